"""Networks and weights as people have them: an ONNX file, a checkpoint, an input of their own."""

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import run_here, sentence
from torch import nn

import networks
from networks import _onnx, tiny
from script_tools import command_line


def options(*given) -> object:
    return command_line.parser(None, tiny).parse_args([*map(str, given), "--device", "cpu"])


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


@pytest.fixture
def file(tmp_path, monkeypatch, model):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(_onnx, "ROOT", tmp_path)
    torch.onnx.export(model, (torch.zeros(1, 3, 4, 4),), tmp_path / "mine.onnx", dynamo=False)
    return tmp_path / "mine.onnx"


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path / "cat.png", torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255.0


def test_an_onnx_file_has_the_fields_of_a_module(file, image, model):
    path, pixels = image
    network, net, x0 = command_line.load_network(
        options("--network", file, "--input", path, "--mean", 0.5, "--std", 0.2, 0.3, 0.4)
    )
    std = torch.tensor([0.2, 0.3, 0.4]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(x0, (pixels - 0.5) / std)
    torch.testing.assert_close(net(x0), model(x0))
    torch.testing.assert_close(network.box[1], 0.5 / std)
    assert network.classes == ["0", "1", "2"]
    assert set(vars(networks.load("tiny"))) >= {"name", "data_dir", "box"} <= set(vars(network))


def test_a_sweep_of_an_onnx_file(file, image, tmp_path, capsys):
    given = ("--network", file, "--input", image[0], "--no-random", "--no-joint", "--points", 2)
    run_here("calculate_bounds.py", *given)
    folder = tmp_path / "data" / "mine_onnx"
    local, lower = (np.load(folder / f"{name}.npz")["value"] for name in ("local", "gradient"))
    assert (lower > 0).all() and (lower <= local).all()
    words = sentence(capsys, "calculate_bounds.py", "--network", file)
    assert "--input is wanted" in words


def test_an_array_as_input(tmp_path):
    shape = tuple(tiny.x0.shape)
    np.save(tmp_path / "x.npy", np.full(shape[1:], 0.5))
    _, _, x0 = command_line.load_network(options("--input", tmp_path / "x.npy"))
    assert tuple(x0.shape) == shape and x0.dtype == tiny.x0.dtype and bool((x0 == 0.5).all())
    np.save(tmp_path / "wrong.npy", np.zeros(50))
    np.save(tmp_path / "nan.npy", np.full(shape, np.nan))
    for name, words in (("wrong", "is wanted"), ("nan", "NaN"), ("none", "none.npy")):
        with pytest.raises((ValueError, OSError), match=words):
            command_line.load_network(options("--input", tmp_path / f"{name}.npy"))


def test_weights_from_a_checkpoint(tmp_path):
    net = tiny.net(random_weights=True, seed=5)
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    _, loaded, x0 = command_line.load_network(options("--weights", tmp_path / "weights.pt"))
    assert torch.equal(loaded(x0), net(x0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--network", "tiny", "--mean", "0.5"), "for a .onnx file only"),
        (("--network", "none.onnx"), "no ONNX file at none.onnx"),
        (("--network", "tiny", "--weights", "none.pt"), "no checkpoint at none.pt"),
        (("--network", "tiny", "--weights", "a.pt", "--random-weights"), "not allowed with argument"),
        (("--network", "tiny", "--input", "x.png"), "the input of tiny is not an image"),
    ],
)
def test_what_is_refused(given, words, capsys):
    if "onnx" in given[1]:
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    assert words in sentence(capsys, "calculate_bounds.py", *given)


def test_what_does_not_fit_an_onnx_file(file, image, capsys):
    given = ("--network", file, "--input", image[0])
    for more, words in (
        (("--weights", "a.pt"), "holds its weights"),
        (("--random-weights",), "holds its weights"),
        (("--std", "0"), "--std: positive numbers are wanted"),
        (("--mean", "1", "2"), "--mean: one finite number or 3 are wanted"),
    ):
        assert words in sentence(capsys, "calculate_bounds.py", *given, *more)
