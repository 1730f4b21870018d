"""Faults: a full disk, a folder that cannot be written, damaged and malicious files.

What a user then sees is one sentence on stderr and exit status 2; what was there before is there still.
"""

import contextlib
import os
import pickle
import resource
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import contents_of, run_here, sentence

from networks import _checkpoint
from script_tools import certified_rows, results


@contextlib.contextmanager
def files_of_at_most(size: int):
    """No file may grow beyond `size` bytes: what a full disk or a quota looks like to the one who writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


ONLY_LOCAL = ("--network", "tiny", "--points", "3", "--no-random", "--no-gradient", "--no-global", "--no-joint")


def test_a_full_disk_loses_nothing(tiny, capsys):
    with files_of_at_most(100):
        message = sentence(capsys, "calculate_bounds.py", *ONLY_LOCAL)
    assert "cannot be written" in message and "local.npz" in message
    assert contents_of(tiny) == {}
    run_here("calculate_bounds.py", *ONLY_LOCAL)
    whole = contents_of(tiny)
    assert list(whole) == ["local.npz"]
    arrays, settings = results.load(tiny / "local.npz")
    results.save(tiny / "local.npz", arrays | {"value": np.array([arrays["value"][0], np.nan, np.nan])}, settings)
    before = contents_of(tiny)
    with files_of_at_most(100):  # more points to come, and no room for them
        assert "cannot be written" in sentence(capsys, "calculate_bounds.py", *ONLY_LOCAL)
    assert contents_of(tiny) == before != whole
    run_here("calculate_bounds.py", *ONLY_LOCAL)
    assert contents_of(tiny) == whole


def test_a_full_disk_while_many_images_are_certified(mnist, images, capsys):
    """The second row no longer fits: the first one is kept, and the run goes on when there is room."""
    shutil.copy(images / "8.png", images / "9.png")
    args = ("--images", images, "--bound", "global", "--batch", "1")
    before = contents_of(mnist)
    part = mnist / "certified_global.part0.csv"
    with files_of_at_most(100):
        message = sentence(capsys, "calculate_bounds_many.py", *args)
    assert str(part) in message and "cannot be written" in message
    part.unlink(missing_ok=True)
    run_here("calculate_bounds_many.py", *args)
    whole = certified_rows.read_any(mnist / "certified_global.csv")[1]
    lines = (mnist / "certified_global.csv").read_text().splitlines(keepends=True)
    (mnist / "certified_global.csv").unlink()
    part.write_text("".join(lines[:3]))  # as if killed after the first image
    with files_of_at_most(part.stat().st_size + 20):
        assert "rows written before are kept" in sentence(capsys, "calculate_bounds_many.py", *args)
    assert certified_rows.read_any(part)[1] == whole[:1]
    assert contents_of(mnist)["weights.pt"] == before["weights.pt"]
    run_here("calculate_bounds_many.py", *args)
    again = certified_rows.read_any(mnist / "certified_global.csv")[1]
    assert [row._replace(seconds=0) for row in again] == [row._replace(seconds=0) for row in whole]


def test_a_row_that_was_cut_off_is_written_over(tmp_path):
    """Where the process was killed, or the disk full, within a line."""
    path, settings = tmp_path / "rows.csv", {"seed": 0}
    rows = [certified_rows.ImageRow(i, -1, 8, 0.25, 3, 1.5, f"{i}.png") for i in range(3)]
    certified_rows.write(path, rows[:2], settings)
    whole = path.read_bytes()
    for cut in range(1, 20):
        path.write_bytes(whole[:-cut])
        with certified_rows.Writer(path, settings) as writer:
            writer.write(rows[1:])
        assert certified_rows.read(path, settings) == rows


def test_a_full_disk_while_a_checkpoint_is_written(tmp_path):
    path = tmp_path / "w.pt"
    _checkpoint.save(path, {"a": torch.ones(3)})
    with files_of_at_most(100), pytest.raises(OSError, match=r"w\.pt cannot be written .* untouched"):
        _checkpoint.save(path, {"a": torch.ones(1000)})
    assert torch.equal(_checkpoint.read(path)["a"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["w.pt"]


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


FOREIGN = [
    "truncated", "empty", "text", "pickle", "object array", "pickle in a zip", "another npz", "a made-up size",
    "a folder",
]  # fmt: skip


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
    elif kind == "pickle in a zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("settings.npy", pickle.dumps(Bomb(fired)))
    elif kind == "another npz":
        np.savez(path, x=np.zeros(2))
    elif kind == "a made-up size":  # a few bytes that say they are terabytes
        with zipfile.ZipFile(path, "w") as archive:
            header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }\n"
            archive.writestr("eps.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
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


def test_results_of_something_else_in_the_place_of_a_curve(tiny, capsys):
    results.save(tiny / "local.npz", {"x": np.zeros(2)}, {"random_weights": False})
    before = contents_of(tiny)
    message = sentence(capsys, "calculate_bounds_plot.py", "--network", "tiny")
    assert str(tiny / "local.npz") in message and "without 'value'" in message
    assert contents_of(tiny) == before


CSVS = {
    "another table": b"name,price\nbread,2\n",
    "a line of text": b"do not lose me",
    "no text": b'# {"seed": 0}\n\xff\xfe\x00\n',
    "settings that are none": b"# {}[]\nindex\n",
    "other columns": b'# {"seed": 0}\nindex,label\n0,1\n',
}


@pytest.mark.parametrize("name", ["certified_global.csv", "certified_global.part0.csv"])
@pytest.mark.parametrize("kind", CSVS)
def test_a_foreign_file_of_certified_radii(kind, name, mnist, images, capsys):
    (mnist / name).write_bytes(CSVS[kind])
    before = contents_of(mnist)
    message = sentence(capsys, "calculate_bounds_many.py", "--images", images, "--bound", "global")
    assert f"{mnist / name} is not a file of certified radii" in message
    assert contents_of(mnist) == before


def missing(state):
    del state["fc3.bias"]


def extra(state):
    state["fc4.weight"] = torch.zeros(3)


def shape(state):
    state["conv1.weight"] = state["conv1.weight"][:, :, :3]


def nan(state):
    state["fc1.weight"][0, 0] = float("nan")


def too_large(state):
    state["fc1.weight"] = torch.full((120, 256), 1e200, dtype=torch.float64)


def sparse(state):
    state["fc1.weight"] = state["fc1.weight"].to_sparse()


def another_network(state):
    for key in list(state):
        state[f"module.encoder.{key}"] = state.pop(key)


CHANGES = {
    missing: "missing fc3.bias",
    extra: "unexpected fc4.weight",
    shape: "conv1.weight has shape",
    nan: "NaN",
    too_large: "infinite",
    sparse: "fc1.weight holds no plain numbers",
    another_network: "and 2 more",
}


@pytest.mark.parametrize(("change", "words"), CHANGES.items(), ids=[change.__name__ for change in CHANGES])
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
    "text": (lambda path: path.write_text("not a picture"), "cannot identify image file"),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "missing": (lambda path: None, "No such file or directory"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind, mnist, capsys, tmp_path):
    make, words = IMAGES[kind]
    path = tmp_path / "picture.png"
    make(path)
    before = contents_of(mnist)
    message = sentence(capsys, "calculate_bounds_adv.py", "--input", path, "--methods", "global")
    assert words in message and str(path) in message
    if path.is_file():
        images = tmp_path / "images"
        images.mkdir()
        shutil.copy(path, images)
        message = sentence(capsys, "calculate_bounds_many.py", "--images", images, "--bound", "global")
        assert words in message and "picture.png" in message
    kept = {name: content for name, content in contents_of(mnist).items() if name in before}
    assert kept == before
