"""Checkpoints and images that are damaged, foreign or malicious: one sentence, exit status 2, nothing overwritten."""

import shutil
import struct
import zlib
from pathlib import Path

import pytest
import torch
from damage import Bomb, spoil
from PIL import Image
from scripts import contents_of, sentence


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
    for i, key in enumerate(list(state)):
        state[f"module.encoder.{i}.{key.rpartition('.')[2]}"] = state.pop(key)


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
