"""Image files as inputs: units, channels, modes, and every file that may be wrong."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import networks
from networks import _imagenet

IMAGES = ["mnist", "cifar10"]


@pytest.mark.parametrize("name", IMAGES)
def test_units_box_is_black_and_white_and_pixel_scale_maps_back_to_pixels(name, tmp_path):
    module = networks.load(name)
    mode, size = ("L", (28, 28)) if name == "mnist" else ("RGB", (32, 32))
    images = []
    for i, level in enumerate(("black", "white")):
        Image.new(mode, size, level).save(tmp_path / f"{level}.png")
        images.append(module.load_image(tmp_path / f"{level}.png"))
        assert images[i].shape == module.x0.shape
        torch.testing.assert_close(images[i], module.box[i].expand_as(module.x0))
    torch.testing.assert_close((images[1] - images[0]) * module.pixel_scale, torch.ones_like(module.x0))
    assert (module.box[0] <= module.x0).all() and (module.x0 <= module.box[1]).all()


def test_channels_keep_their_order(tmp_path):
    cifar10 = networks.load("cifar10")
    Image.new("RGB", (32, 32), (255, 0, 51)).save(tmp_path / "image.png")
    pixels = cifar10.load_image(tmp_path / "image.png") * cifar10.std + cifar10.mean
    torch.testing.assert_close(pixels[0, :, 7, 9], torch.tensor([1.0, 0.0, 0.2]))


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "RGBA"])
def test_mnist_turns_an_image_of_another_mode_to_grey(mode, tmp_path):
    mnist = networks.load("mnist")
    Image.open(mnist.data_dir / "8.png").convert("L").convert(mode).save(tmp_path / "image.png")
    image = mnist.load_image(tmp_path / "image.png")
    if mode == "1":
        assert image.unique().numel() == 2
    else:
        torch.testing.assert_close(image, mnist.x0)


def png(mode="L", size=(28, 28)) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 80).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def assert_refused(path, *words, name="mnist"):
    with pytest.raises(ValueError) as error:
        networks.load(name).load_image(path)
    for word in (path.name, *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_image(tmp_path):
    assert_refused(tmp_path / "none.png", "No such file")


def test_folder_instead_of_an_image(tmp_path):
    assert_refused(tmp_path)


def test_not_an_image(tmp_path):
    (tmp_path / "a.png").write_text("this is text")
    assert_refused(tmp_path / "a.png", "cannot identify")


def test_image_truncated_anywhere(tmp_path):
    whole = png()
    for length in range(0, len(whole) - 30, 11):  # the last bytes are checksum and end mark
        (tmp_path / "a.png").write_bytes(whole[:length])
        assert_refused(tmp_path / "a.png", "cannot read image")


def test_damaged_image_gives_an_image_or_a_value_error(tmp_path):
    rng = np.random.default_rng(0)
    whole = png()
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.integers(8, len(whole))] ^= int(rng.integers(1, 256))
        (tmp_path / "a.png").write_bytes(damaged)
        try:
            assert networks.load("mnist").load_image(tmp_path / "a.png").shape == (1, 1, 28, 28)
        except ValueError as error:
            assert "a.png" in str(error)


@pytest.mark.parametrize("name, size, wanted", [("mnist", (32, 32), "28×28"), ("cifar10", (32, 31), "32×32")])
def test_image_of_the_wrong_size(name, size, wanted, tmp_path):
    (tmp_path / "a.png").write_bytes(png(size=size))
    assert_refused(tmp_path / "a.png", f"{size[0]}×{size[1]}", wanted, name=name)


def test_sixteen_bit_and_transparent_images(tmp_path):
    Image.fromarray(np.full((28, 28), 1000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert_refused(tmp_path / "deep.png", "8 bits")
    Image.new("RGBA", (28, 28), (255, 255, 255, 128)).save(tmp_path / "clear.png")
    assert_refused(tmp_path / "clear.png", "transparent")


@pytest.mark.parametrize("pixels", [100, 300])  # Pillow warns above its limit and refuses above twice that
def test_decompression_bomb(pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32 * 90 // pixels)
    (tmp_path / "a.png").write_bytes(png(size=(32, 32)))
    assert_refused(tmp_path / "a.png", "decompression bomb")
    with pytest.raises(ValueError, match="decompression bomb"):
        _imagenet.load_image(tmp_path / "a.png")


def test_photograph_is_prepared_as_torchvision_does_and_strips_are_refused(tmp_path):
    from torchvision.models import AlexNet_Weights

    expected = AlexNet_Weights.IMAGENET1K_V1.transforms()(Image.open(_imagenet.nominal).convert("RGB"))[None]
    torch.testing.assert_close(_imagenet.load_image(_imagenet.nominal), expected)
    Image.new("L", (1, 5000)).save(tmp_path / "strip.png")
    with pytest.raises(ValueError, match=r"strip\.png.*1×5000"):
        _imagenet.load_image(tmp_path / "strip.png")
