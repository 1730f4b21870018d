"""Labelled test sets: where they are looked for, how they are normalised, damaged files."""

import numpy as np
import pytest
import torch
from digits import write_mnist
from PIL import Image

import networks

IMAGES = ["mnist", "cifar10"]


@pytest.mark.parametrize("name", IMAGES)
def test_missing_test_set_says_where_and_how(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        networks.load(name).test_set(tmp_path)
    assert str(tmp_path) in str(error.value) and f"{name}_train.py" in str(error.value)


def test_cifar10_test_set_from_a_folder_of_images(tmp_path):
    cifar10 = networks.load("cifar10")
    for i, name in enumerate(cifar10.classes):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (20 * i, 0, 0)).save(tmp_path / "test" / name / "a.png")
    data = cifar10.test_set(tmp_path)
    assert [label for _, label in data] == list(range(10))
    for i, (image, _) in enumerate(data):
        assert image.shape == (3, 32, 32)
        assert (image * cifar10.std[0] + cifar10.mean[0])[0].mean().item() == pytest.approx(20 * i / 255, abs=1e-5)
    (tmp_path / "test" / "zebra").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "test" / "zebra" / "a.png")
    with pytest.raises(ValueError, match="zebra"):
        cifar10.test_set(tmp_path)


def test_mnist_test_set_is_normalised_as_the_nominal_image(tmp_path):
    mnist = networks.load("mnist")
    digit = np.asarray(Image.open(mnist.data_dir / "8.png"))
    write_mnist(tmp_path, digit[None], np.array([8]))
    ((image, label),) = mnist.test_set(tmp_path)
    assert label == 8
    torch.testing.assert_close(image, mnist.x0[0])


def test_damaged_test_set_is_a_value_error(tmp_path):
    write_mnist(tmp_path / "mnist", np.zeros((3, 28, 28)), np.zeros(3))
    file = tmp_path / "mnist" / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot read MNIST"):
        networks.load("mnist").test_set(tmp_path / "mnist")
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match="cifar-10-batches-py"):
        networks.load("cifar10").test_set(tmp_path)
