"""What users rely on: the package installs whole and runs alone, public names are there, every script has --help."""

import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from scripts import ROOT, environment, run_here

import local_lipschitz

NAMES = (
    "Bound", "JointBound", "MarginBound", "Radius", "UnsupportedLayerError", "Verdict", "certified_radius", "describe",
    "global_bound", "joint_bound", "local_bound", "margin_bound", "verify",
)  # fmt: skip
MODULES = ("local_lipschitz.lower_bounds", "local_lipschitz.attacks.gradient", "networks", "other_methods")
METHODS = ("eclipse", "lipmip", "lipopt", "lipsdp", "recurjac", "seqlip")
SCRIPTS = [
    *(path.name for path in ROOT.glob("calculate_bounds*.py")),
    *(f"other_methods/{name}.py" for name in ("compare", *METHODS)),
    *(f"networks/{name}.py" for name in ("mnist_train", "cifar10_train")),
    *(f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")),
]
PREAMBLE = """
import torch, local_lipschitz
net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4)).eval()
x0 = torch.ones(1, 3)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built in a copy of the source, so that nothing is left in the project."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("local_lipschitz", "networks", "script_tools", "tests"):  # only the first belongs into it
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


def pip(*args: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "-q", *map(str, args)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    package = ROOT / "local_lipschitz"
    wanted = {str(path.relative_to(ROOT)) for path in package.rglob("*.py")} | {"local_lipschitz/py.typed"}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == wanted
    folders = {path.parent for path in package.rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_the_three_lines_of_the_readme_run_where_only_the_wheel_is(wheel, tmp_path):
    """Elsewhere, with nothing of the project on the path."""
    pip("install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## In three lines")[1]
    lines = re.search(r"```python\n(.*?)```", section, re.S).group(1)
    check = "assert bound.value.shape == (1,)\nprint(local_lipschitz.__file__)"
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + lines + check], cwd=tmp_path / "empty", capture_output=True, text=True,
        timeout=300, env=environment() | {"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "site")


@pytest.mark.parametrize("name", NAMES)
def test_public_names(name):
    assert name in local_lipschitz.__all__
    assert getattr(local_lipschitz, name).__doc__.strip()


@pytest.mark.parametrize("name", MODULES)
def test_public_modules(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_help(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        run_here(script, "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: ") and "--help" in text


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name.startswith("calculate_bounds")])
def test_the_switches_of_every_bound_script(script, capsys):
    with pytest.raises(SystemExit):
        run_here(script, "--help")
    text = capsys.readouterr().out
    assert all(option in text for option in ("--network", "--random-weights", "--seed", "--device"))
