"""Killed at any moment (SIGKILL): files load, and a run that resumes gives bit-identical results."""

import multiprocessing
import os
import random
import runpy
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import ROOT, SHIPPED

import calculate_bounds_many_plot
import networks.mnist
import networks.tiny
from script_tools import certified_rows, results

SWEEP = ("--network", "tiny", "--points", "3", "--samples", "3000", "--no-joint")


def work(folder: Path, script: str, args: tuple[str, ...]) -> None:
    """A script in a process of its own, with its results in `folder`."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    networks.tiny.data_dir = networks.mnist.data_dir = folder
    calculate_bounds_many_plot.draw = lambda *args: []  # the figure takes longer than all that is tested here
    torch.set_num_threads(1)
    sys.argv = [script, *args]
    runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.fixture(scope="module")
def warm():
    """Processes forked from one that has imported everything, so that a start takes milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_kills", "calculate_bounds", "calculate_bounds_many"])
    return context


def until(process, seconds: float | None = None) -> int | None:
    """Wait for the end of a process, or kill it (SIGKILL) after some seconds; its exit status."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def killed(job: tuple, kills: int, seed: int, contents, wipe) -> int:
    """Kill a job (context, folder, script, options) at `kills` random moments of its life, and again while it resumes.

    After each, what it wrote loads.
    Whenever it gets to its end, what it made is what an undisturbed run makes, and it starts anew. Returns how often
    it got there.
    """

    context, folder, script, args = job

    def start():
        process = context.Process(target=work, args=(folder, script, args))
        process.start()
        return process

    assert until(start()) == 0  # the first one warms up
    wipe()
    begin = time.monotonic()
    assert until(start()) == 0
    life = time.monotonic() - begin
    reference, finished, rng = contents(), 0, random.Random(seed)
    assert reference
    wipe()
    while kills > 0:
        status = until(start(), life * rng.random())
        now = contents()  # every file loads
        if status == 0:
            assert now == reference
            finished += 1
            wipe()
        else:
            assert status == -9
            kills -= 1
    assert until(start()) == 0
    assert contents() == reference
    leftovers = {file.name for file in folder.iterdir()} - {"weights.pt"}
    assert not [name for name in leftovers if "unfinished" in name or "part" in name], leftovers
    return finished + 1


def test_a_sweep_killed_30_times(warm, tmp_path):
    """Bit-identical result files, whenever the sweep is killed and however often."""

    def contents() -> dict[str, bytes]:
        for file in tmp_path.glob("*.npz"):
            arrays, settings = results.load(file)
            assert settings["network"] == "tiny" and np.isfinite(arrays["value"]).any()
        return {file.name: file.read_bytes() for file in sorted(tmp_path.glob("*.npz"))}

    def wipe() -> None:
        for file in tmp_path.iterdir():
            file.unlink()

    assert killed((warm, tmp_path, "calculate_bounds.py", SWEEP), 30, 0, contents, wipe) >= 1
    assert set(contents()) == {"random.npz", "gradient.npz", "global.npz", "local.npz"}


def test_a_many_images_run_killed_20_times(warm, tmp_path):
    """The same rows for every image; only the time that each took may differ."""
    images, folder = tmp_path / "images", tmp_path / "data"
    images.mkdir()
    folder.mkdir()
    shutil.copy(SHIPPED / "weights.pt", folder)
    generator = np.random.default_rng(0)
    for i in range(6):
        digit = np.asarray(Image.open(SHIPPED / "8.png").convert("L")).astype(int)
        noisy = (digit + generator.integers(-20, 20, digit.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(images / f"{i}.png")

    def contents() -> list[certified_rows.ImageRow]:
        files = [folder / "certified_global.csv", *folder.glob("certified_global.part*.csv")]
        rows = {row.index: row._replace(seconds=0.0) for file in files for row in certified_rows.read_any(file)[1]}
        return [rows[i] for i in sorted(rows)]

    def wipe() -> None:
        for file in folder.iterdir():
            if file.name != "weights.pt":
                file.unlink()

    args = ("--network", "mnist", "--images", str(images), "--bound", "global", "--batch", "1")
    assert killed((warm, folder, "calculate_bounds_many.py", args), 20, 1, contents, wipe) >= 1
    assert [row.index for row in contents()] == list(range(6))
