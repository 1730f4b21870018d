"""Faults: killed at any moment, a full disk, a folder that cannot be written, damaged and malicious files.

What a user then sees is one sentence on stderr and exit status 2; what was there before is there still.
"""

import contextlib
import multiprocessing
import os
import pickle
import random
import resource
import runpy
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import ROOT

import calculate_bounds_many_plot
import certified_rows
import networks.mnist
import networks.tiny
import results

SHIPPED = networks.mnist.data_dir
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
    context.set_forkserver_preload(["test_faults", "calculate_bounds", "calculate_bounds_many"])
    return context


def until(process, seconds: float | None = None) -> int | None:
    """Wait for the end of a process, or kill it (SIGKILL) after some seconds; its exit status."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def killed(context, folder: Path, script: str, args: tuple[str, ...], kills: int, seed: int, contents, wipe) -> int:
    """Kill a job at `kills` random moments of its life, and again while it resumes; after each, what it wrote loads.

    Whenever it gets to its end, what it made is what an undisturbed run makes, and it starts anew. Returns how often it
    got there.
    """

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

    assert killed(warm, tmp_path, "calculate_bounds.py", SWEEP, 30, 0, contents, wipe) >= 1
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

    def contents() -> list[certified_rows.Row]:
        files = [folder / "certified_global.csv", *folder.glob("certified_global.part*.csv")]
        rows = {row.index: row._replace(seconds=0.0) for file in files for row in certified_rows.read_any(file)[1]}
        return [rows[i] for i in sorted(rows)]

    def wipe() -> None:
        for file in folder.iterdir():
            if file.name != "weights.pt":
                file.unlink()

    args = ("--network", "mnist", "--images", str(images), "--bound", "global", "--batch", "1")
    assert killed(warm, folder, "calculate_bounds_many.py", args, 20, 1, contents, wipe) >= 1
    assert [row.index for row in contents()] == list(range(6))


def sentence(capsys, script: str, *args: object) -> str:
    """What a script that must be refused says on stderr, after its progress bars: one sentence, exit status 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, args)])
        with pytest.raises(SystemExit) as exit_status:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    error = capsys.readouterr().err
    assert exit_status.value.code == 2, error
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.strip() and "%|" not in line]
    assert len(lines) == 1 and lines[0].startswith(f"{ROOT / script}: "), error
    return lines[0]


@contextlib.contextmanager
def files_of_at_most(size: int):
    """No file may grow beyond `size` bytes: what a full disk or a quota looks like to the one who writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(networks.tiny, "data_dir", tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def mnist(monkeypatch, tmp_path):
    monkeypatch.setattr(networks.mnist, "data_dir", tmp_path / "mnist")
    (tmp_path / "mnist").mkdir()
    shutil.copy(SHIPPED / "weights.pt", tmp_path / "mnist")
    return tmp_path / "mnist"


ONLY_LOCAL = ("--network", "tiny", "--points", "3", "--no-random", "--no-gradient", "--no-global", "--no-joint")


def run_here(script: str, *args: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, args)])
        runpy.run_path(str(ROOT / script), run_name="__main__")


def test_a_full_disk_loses_nothing(tiny, capsys):
    with files_of_at_most(100):
        message = sentence(capsys, "calculate_bounds.py", *ONLY_LOCAL)
    assert "cannot be written" in message and "local.npz" in message
    assert contents_of(tiny) == {}
    run_here("calculate_bounds.py", *ONLY_LOCAL)
    before = contents_of(tiny)
    assert list(before) == ["local.npz"]
    with files_of_at_most(100):  # more points to come, and no room for them
        sentence(capsys, "calculate_bounds.py", *ONLY_LOCAL[:4], "--no-local", "--no-gradient", "--no-joint")
    assert contents_of(tiny) == before


def test_a_full_disk_while_many_images_are_certified(mnist, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(SHIPPED / "8.png", images)
    before = contents_of(mnist)
    with files_of_at_most(100):
        message = sentence(capsys, "calculate_bounds_many.py", "--images", images, "--bound", "global")
    assert "certified_global" in message and "cannot be written" in message
    assert {name: content for name, content in contents_of(mnist).items() if name in before} == before


def test_a_data_folder_that_cannot_be_written(tiny, capsys):
    """A file in its place, which stops root as well; and, for everybody else, a folder without the permission."""
    tiny.write_text("I am in the way")
    message = sentence(capsys, "calculate_bounds.py", *ONLY_LOCAL)
    assert "cannot be written" in message and str(tiny) in message
    assert tiny.read_text() == "I am in the way"
    tiny.unlink()
    tiny.mkdir()
    tiny.chmod(0o555)
    if os.geteuid() != 0:
        assert "cannot be written" in sentence(capsys, "calculate_bounds.py", *ONLY_LOCAL)
        assert contents_of(tiny) == {}
    tiny.chmod(0o755)


class Bomb:
    """What unpickling it would do: write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


FOREIGN = ["truncated", "empty", "text", "pickle", "object array", "another npz", "a folder"]


def spoil(path: Path, kind: str, fired: Path) -> None:
    """Put a damaged or foreign file in the place of `path`."""
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("ε,bound\n")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(fired)))
    elif kind == "object array":
        np.savez(path, settings=np.array([Bomb(fired)], dtype=object))
    elif kind == "another npz":
        np.savez(path, x=np.zeros(2))
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_result_files(kind, tiny, capsys, tmp_path):
    run_here("calculate_bounds.py", *ONLY_LOCAL)
    capsys.readouterr()
    path, fired = tiny / "local.npz", tmp_path / "fired"
    spoil(path, kind, fired)
    before = contents_of(tiny)
    for script, args in (("calculate_bounds.py", ONLY_LOCAL), ("calculate_bounds_plot.py", ("--network", "tiny"))):
        message = sentence(capsys, script, *args)
        assert str(path) in message and "truncated or not a result file" in message
    assert contents_of(tiny) == before and not fired.exists()


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "pickle"])
def test_foreign_result_files_of_attacks(kind, mnist, capsys, tmp_path):
    path, fired = mnist / "adversarial.npz", tmp_path / "fired"
    results.save(path, {"x": np.zeros(100)}, {})
    spoil(path, kind, fired)
    before = contents_of(mnist)
    assert str(path) in sentence(capsys, "calculate_bounds_adv.py", "--methods", "global")
    assert contents_of(mnist) == before and not fired.exists()


def test_a_foreign_file_of_certified_radii(mnist, capsys, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(SHIPPED / "8.png", images)
    (mnist / "certified_global.csv").write_text("name,price\nbread,2\n")
    before = contents_of(mnist)
    message = sentence(capsys, "calculate_bounds_many.py", "--images", images, "--bound", "global")
    assert "certified_global.csv is not a file of certified radii" in message
    assert contents_of(mnist) == before


def missing(state):
    del state["fc3.bias"]


def extra(state):
    state["fc4.weight"] = torch.zeros(3)


def shape(state):
    state["conv1.weight"] = state["conv1.weight"][:, :, :3]


def nan(state):
    state["fc1.weight"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "words"),
    [(missing, "missing fc3.bias"), (extra, "unexpected fc4.weight"), (shape, "conv1.weight has shape"), (nan, "NaN")],
)
def test_checkpoints_that_do_not_fit(change, words, mnist, capsys):
    state = torch.load(mnist / "weights.pt", weights_only=True)
    change(state)
    torch.save(state, mnist / "weights.pt")
    before = contents_of(mnist)
    message = sentence(capsys, "calculate_bounds.py", "--network", "mnist")
    assert words in message and str(mnist / "weights.pt") in message
    assert contents_of(mnist) == before


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "pickle", "pickle in a zip"])
def test_damaged_and_malicious_checkpoints(kind, mnist, capsys, tmp_path):
    path, fired = mnist / "weights.pt", tmp_path / "fired"
    if kind == "pickle in a zip":
        torch.save({"conv1.weight": Bomb(fired)}, path)
    else:
        spoil(path, kind, fired)
    before = contents_of(mnist)
    assert f"cannot read checkpoint {path}" in sentence(capsys, "calculate_bounds.py", "--network", "mnist")
    assert contents_of(mnist) == before and not fired.exists()


def bomb(path: Path) -> None:
    """A PNG header of 60,000 × 60,000 pixels in a file of some bytes."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    image = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + image)


IMAGES = {
    "wrong size": (lambda path: Image.new("L", (32, 32)).save(path), "28×28 are wanted"),
    "sixteen bit": (lambda path: Image.new("I;16", (28, 28)).save(path), "8 bits"),
    "transparent": (lambda path: Image.new("RGBA", (28, 28)).save(path), "transparent"),
    "bomb": (bomb, "decompression bomb"),
    "text": (lambda path: path.write_text("not a picture"), "cannot read image"),
    "missing": (lambda path: None, "cannot read image"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind, mnist, capsys, tmp_path):
    make, words = IMAGES[kind]
    path = tmp_path / "picture.png"
    make(path)
    before = contents_of(mnist)
    message = sentence(capsys, "calculate_bounds_adv.py", "--input", path, "--methods", "global")
    assert words in message and str(path) in message
    if path.exists():
        images = tmp_path / "images"
        images.mkdir()
        shutil.copy(path, images)
        message = sentence(capsys, "calculate_bounds_many.py", "--images", images, "--bound", "global")
        assert words in message and "picture.png" in message
    kept = {name: content for name, content in contents_of(mnist).items() if name in before}
    assert kept == before


def test_results_say_what_made_them(tiny):
    run_here("calculate_bounds.py", *ONLY_LOCAL)
    _, settings = results.load(tiny / "local.npz")
    assert {"network", "weights", "seed", "eps_min", "eps_max", "points", "tolerance"} <= settings.keys()
    with np.load(tiny / "local.npz", allow_pickle=False) as file:
        made_with = str(file["made_with"])
    assert torch.__version__ in made_with and np.__version__ in made_with and "device" in made_with


def test_same_seed_same_bits(tiny):
    args = ("--network", "tiny", "--points", "3", "--samples", "500")
    seen = []
    for seed in (7, 7, 8):
        run_here("calculate_bounds.py", *args, "--seed", seed, "--overwrite")
        seen.append(contents_of(tiny))
    assert seen[0] == seen[1]
    assert set(seen[0]) == set(seen[2]) and seen[0] != seen[2]
