"""Style by ruff and type hints by mypy, so that the one test command covers them. Settings: pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def output_of(*command: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600, env=dict(os.environ)
    )
    return done.returncode, done.stdout + done.stderr


def test_ruff():
    status, output = output_of("ruff", "check", ".")
    assert status == 0, output


def test_mypy():
    status, output = output_of("mypy")
    assert status == 0, output
