"""Training of the networks that ship: learns, resumes, and names what is missing."""

import sys

import numpy as np
import pytest
import torch
from digits import write_mnist
from scripts import run
from torch import nn

import networks
from networks import _checkpoint


def test_mnist_train_learns_resumes_and_keeps_settings_apart(tmp_path, monkeypatch, capsys):
    from networks import mnist_train

    # Ten classes that differ in the position of a bright bar: any working training learns them.
    rng = np.random.default_rng(0)
    labels = np.arange(1000) % 10
    images = rng.integers(0, 60, (1000, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 3 : 2 * label + 6] = 250
    write_mnist(tmp_path, images, labels)

    def train(out, seed=0):
        options = ["--data", tmp_path, "--epochs", 6, "--out", tmp_path / out, "--seed", seed]
        monkeypatch.setattr(sys, "argv", ["mnist_train.py", *map(str, options)])
        mnist_train.main()
        return capsys.readouterr().out

    assert "test accuracy 100.00%" in train("whole.pt")
    assert not (tmp_path / "whole.unfinished").exists()
    weights = _checkpoint.read(tmp_path / "whole.pt")
    _checkpoint.load_weights(networks.load("mnist").architecture(), weights, "whole.pt")

    # The same training, stopped after two epochs as a kill would, then continued.
    def stop(path, state, save=_checkpoint.save):
        save(path, state)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_checkpoint, "save", stop)
        train("parts.pt")
    assert (tmp_path / "parts.unfinished").exists() and not (tmp_path / "parts.pt").exists()
    with pytest.raises(ValueError, match="unfinished training"):
        train("parts.pt", seed=1)
    assert "continuing after epoch 2 of 6" in train("parts.pt")
    for key, value in _checkpoint.read(tmp_path / "parts.pt").items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize("script, option", [("mnist_train.py", "--data"), ("cifar10_train.py", "--image-folder")])
def test_training_runs_as_a_file_and_names_what_is_missing(script, option, tmp_path):
    blocked = tmp_path / "file"  # where a folder would have to be: fails with and without a network connection
    blocked.write_text("")
    error = run(tmp_path, networks.ROOT / "networks" / script, option, blocked, status=2).stderr
    assert str(blocked) in error and error.count("\n") == 1


def test_augmentation_mirrors_and_shifts_and_nothing_else():
    from networks.cifar10_train import augment, prepare

    torch.manual_seed(0)
    pixels = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8)
    padded = nn.functional.pad(prepare(pixels), [4] * 4)
    for result, image in zip(augment(pixels), padded, strict=True):
        crops = [image[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
        assert any(torch.equal(result, crop) or torch.equal(result, crop.flip(2)) for crop in crops)


def test_learning_rate_rises_to_its_peak_and_falls_to_zero():
    from networks._train import learning_rate

    rates = [learning_rate(step / 100, peak=0.5) for step in range(101)]
    assert rates[0] == 0 and max(rates) == pytest.approx(0.5) and rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[:26] == sorted(rates[:26]) and rates[25:] == sorted(rates[25:], reverse=True)
