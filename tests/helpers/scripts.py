"""Runs the project's scripts as a user would, in a copy of the project, so that tests leave no results behind."""

from __future__ import annotations

import atexit
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from functools import cache
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


def command(script: str | Path, *args: object) -> list[str]:
    return [sys.executable, str(script), *map(str, args)]


@cache
def fork_server() -> subprocess.Popen:
    """The process that scripts are forked from: one for each process that runs tests, and it ends with that."""
    pipe = subprocess.PIPE
    file = Path(__file__).with_name("fork_server.py")
    server = subprocess.Popen([sys.executable, file], stdin=pipe, stdout=pipe, text=True, env=environment())
    atexit.register(server.communicate)  # ends its stdin, and so the server
    return server


def fork(folder: Path, argv: list[str]) -> subprocess.CompletedProcess:
    """What subprocess.run gives for the interpreter with these arguments, without the seconds that imports take."""
    server = fork_server()
    with tempfile.TemporaryDirectory() as output:
        job = {"argv": argv, "folder": str(folder), "environment": environment(), "output": output}
        print(json.dumps(job), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        texts = [Path(output, name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(argv, status, *texts)


def run(
    folder: Path, script: str | Path, *args: object, status: int = 0, forked: bool = True
) -> subprocess.CompletedProcess:
    """Run a script to its end, forked for speed or by an interpreter of its own, and check its exit status."""
    if forked:
        done = fork(folder, command(script, *args)[1:])
    else:
        done = subprocess.run(
            command(script, *args), cwd=folder, capture_output=True, text=True, timeout=300, env=environment()
        )
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def error_of(folder: Path, script: str, *args: object) -> str:
    """The one line on stderr of a run that must end with exit status 2."""
    lines = run(folder, script, *args, status=2).stderr.strip().splitlines()
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
