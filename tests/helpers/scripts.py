"""Runs the project's scripts as a user would, in a copy of the project, so that tests leave no results behind."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "data" / "mnist"


def copy_of_project(folder: Path) -> Path:
    """The scripts, the package, the networks and what ships in data/, in `folder`."""
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    for name in ("local_lipschitz", "networks", "other_methods", "script_tools"):
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


def run_here(script: str, *args: object) -> None:
    """A script within this process, which is quicker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, args)])
        runpy.run_path(str(ROOT / script), run_name="__main__")


def sentence(capsys, script: str, *args: object) -> str:
    """What a script that must be refused says on stderr, after its progress bars: one sentence, exit status 2."""
    with pytest.raises(SystemExit) as exit_status:
        run_here(script, *args)
    error = capsys.readouterr().err
    assert exit_status.value.code == 2, error
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.strip() and "%|" not in line]
    assert len(lines) == 1 and lines[0].startswith(f"{ROOT / script}: "), error
    return lines[0]


def refused(monkeypatch, capsys, script: str, *args: object) -> str:
    """`sentence`, for tests that have these fixtures at hand."""
    return sentence(capsys, script, *args)


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, whole."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
