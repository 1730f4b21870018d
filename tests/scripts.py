"""Runs the project's scripts as a user would, in a copy of the project, so that tests leave no results behind."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def copy_of_project(folder: Path) -> Path:
    """The scripts, the package, the networks and what ships in data/, in `folder`."""
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    for name in ("local_lipschitz", "networks", "other_methods"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shipped = ("weights.pt", "8.png", "nominal.png")
    for file in (ROOT / "data").rglob("*"):
        if file.name in shipped:
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return folder


def command(script: str, *args: object) -> list[str]:
    return [sys.executable, script, *map(str, args)]


def run(folder: Path, script: str, *args: object, status: int = 0, **kwargs) -> subprocess.CompletedProcess:
    """Run a script to its end and check its exit status."""
    done = subprocess.run(
        command(script, *args), cwd=folder, capture_output=True, text=True, timeout=300, env=environment(), **kwargs
    )
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def error_of(folder: Path, script: str, *args: object, **kwargs) -> str:
    """The one line on stderr of a run that must end with exit status 2."""
    lines = run(folder, script, *args, status=2, **kwargs).stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def refused(monkeypatch, capsys, script: str, *args: object) -> str:
    """The same within this process, which is quicker, for what is refused before anything is written."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
    with pytest.raises(SystemExit) as exit_status:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert exit_status.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]
