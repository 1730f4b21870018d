"""AlexNet and VGG-16: torchvision's networks, their download, and a file that is damaged."""

import urllib.error

import pytest
import torch
from checkpoints import Malicious, small

import networks
from networks import _imagenet


def test_alexnet_with_random_weights():
    alexnet = networks.load("alexnet")
    assert len(alexnet.classes) == 1000 and alexnet.classes[281] == "tabby"
    with torch.no_grad():
        output = alexnet.net(random_weights=True)(alexnet.x0)
    assert output.shape == (1, 1000) and output.isfinite().all()


def test_vgg16_module():
    vgg16 = networks.load("vgg16")
    assert vgg16.x0.shape == (1, 3, 224, 224) and len(vgg16.classes) == 1000
    assert vgg16.eps_min == 0.001 and vgg16.eps_max == 3
    with torch.device("meta"):  # shapes only: no memory for 138 million weights
        model = vgg16.net(random_weights=True)
    assert model(vgg16.x0.to("meta")).shape == (1, 1000) and not model.training


class Weights:
    """Stands for torchvision's weights: found where `url` says, or `error`."""

    url = "https://example.org/models/small-12345678.pth"

    def __init__(self, result):
        self.result = result

    def __str__(self):
        return "Weights.V1"

    def get_state_dict(self, **settings):
        assert settings["weights_only"] is True
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_pretrained_weights_are_loaded_and_checked():
    state = small().state_dict()
    model = _imagenet.pretrained(small, Weights(state), False, 0)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items()) and not model.training
    with pytest.raises(ValueError, match=r"missing 2\.bias"):
        _imagenet.pretrained(small, Weights({k: v for k, v in state.items() if k != "2.bias"}), False, 0)


def test_failed_download_says_what_where_and_how(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    place = tmp_path / "checkpoints" / "small-12345678.pth"
    with pytest.raises(RuntimeError) as error:
        _imagenet.pretrained(small, Weights(urllib.error.URLError("no route to host")), False, 0)
    for word in ["no route to host", Weights.url, str(place), "--random-weights"]:
        assert word in str(error.value)
    place.parent.mkdir()
    place.write_bytes(b"half a download")
    with pytest.raises(RuntimeError) as error:
        _imagenet.pretrained(small, Weights(ValueError("bad file")), False, 0)
    assert "cannot read" in str(error.value) and str(place) in str(error.value)


def test_damaged_alexnet_file_is_named_and_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    place.parent.mkdir(parents=True)
    torch.save({"a": Malicious(tmp_path / "executed")}, place)
    with pytest.raises(RuntimeError, match=r"alexnet-owt-7be5be79\.pth"):
        networks.load("alexnet").net()
    assert not (tmp_path / "executed").exists()
