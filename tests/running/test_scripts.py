"""The main job end to end on `tiny`: run, kill, resume, plot, refuse."""

import signal
import subprocess
import time

import numpy as np
import pytest
from scripts import command, copy_of_project, environment, error_of, run, sentence

import networks.compnet
import networks.mnist
from script_tools import results

SWEEP = ("--network", "tiny", "--points", "6", "--samples", "3000")
METHODS = ("random", "gradient", "global", "local", "joint")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_of_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def swept(project):
    run(project, "calculate_bounds.py", *SWEEP, forked=False)
    return project


def values(project, name):
    return results.load(project / "data" / "tiny" / f"{name}.npz")[0]["value"]


def test_lower_bounds_lie_below_upper_bounds(swept):
    curves = {name: values(swept, name) for name in METHODS}
    assert all(len(value) == 6 and np.isfinite(value).all() for value in curves.values())
    assert (curves["random"] <= curves["local"]).all() and (curves["gradient"] <= curves["local"]).all()
    assert (curves["local"] <= curves["global"]).all()
    assert (curves["joint"] <= curves["local"]).all() and (curves["joint"] >= curves["gradient"]).all()
    assert curves["global"][0] == pytest.approx(9.101114, abs=1e-5)
    assert curves["gradient"] == pytest.approx(curves["local"], rel=1e-4)  # one layer: the bound is attained


def test_plot(swept):
    done = run(swept, "calculate_bounds_plot.py", "--network", "tiny")
    assert "7.5383" in done.stdout
    for suffix in ("png", "pdf"):
        assert (swept / "data" / "tiny" / f"bounds.{suffix}").stat().st_size > 5000
    assert "not an image" in error_of(swept, "calculate_bounds_plot.py", "--network", "tiny", "--inset")


def test_a_killed_sweep_goes_on_to_the_same_bits(swept, tmp_path):
    copy_of_project(tmp_path)
    path = tmp_path / "data" / "tiny" / "random.npz"
    options = ("--network", "tiny", "--points", "6", "--samples", "3000")
    process = subprocess.Popen(command("calculate_bounds.py", *options), cwd=tmp_path, env=environment(), stderr=-3)
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = int(np.isfinite(results.load(path)[0]["value"]).sum())
    assert done >= 1
    run(tmp_path, "calculate_bounds.py", *options)
    for name in METHODS:
        ours = tmp_path / "data" / "tiny" / f"{name}.npz"
        assert ours.read_bytes() == (swept / "data" / "tiny" / f"{name}.npz").read_bytes()


def test_other_settings_are_refused_and_nothing_is_overwritten(swept):
    before = (swept / "data" / "tiny" / "random.npz").read_bytes()
    message = error_of(swept, "calculate_bounds.py", *SWEEP, "--seed", "1")
    assert "seed 0 there, 1 now" in message and "--overwrite" in message
    assert (swept / "data" / "tiny" / "random.npz").read_bytes() == before


def test_plot_without_results(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(networks.compnet, "data_dir", tmp_path)
    assert "run calculate_bounds.py first" in sentence(capsys, "calculate_bounds_plot.py", "--network", "compnet")


@pytest.mark.parametrize("script", ["calculate_bounds_adv", "calculate_bounds_many"])
def test_pictures_without_results(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(networks.mnist, "data_dir", tmp_path)
    assert f"run {script}.py first" in sentence(capsys, f"{script}_plot.py")
    assert list(tmp_path.iterdir()) == []


def test_simple_example(project):
    output = run(project, "simple_example.py", forked=False).stdout
    assert "certified radius" in output and len(output.splitlines()) >= 4
