"""Checkpoints as people save them: loaded where the names fit, else a sentence that says what is in the way."""

import pytest
import torch
from torch import nn

from networks._checkpoint import load_weights, read


def build() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()), nn.Flatten(), nn.Linear(8, 3))


def saved() -> nn.Module:
    net = build()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1.0
    return net


STATE = saved().state_dict()
TRAINING = {"epoch": 3, "optimizer": {"state": {}, "param_groups": []}, "best": 0.9}


def prefixed(prefix: str) -> dict:
    return {prefix + key: value for key, value in STATE.items()}


FITTING = {
    "bare": STATE,
    "data parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "both": prefixed("module._orig_mod."),
    "surrounding module": prefixed("net.body."),
    "a part in parallel": {key.replace("0.", "0.module.", 1) if key[0] == "0" else key: v for key, v in STATE.items()},
    "state_dict": {"state_dict": STATE, **TRAINING},
    "model": {"model": STATE, **TRAINING},
    "averages, two levels down": {"ema": {"module": STATE, "decay": 0.99}, **TRAINING},
    "own name, data parallel": {"my_net": prefixed("module."), **TRAINING},
    "without counts": {key: value for key, value in STATE.items() if "num_batches" not in key},
    "nested, compiled, without counts": {
        "model": {key: value for key, value in prefixed("_orig_mod.").items() if "num_batches" not in key}
    },
}


@pytest.mark.parametrize("kind", FITTING)
def test_weights_are_found(kind, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(FITTING[kind], path)
    net = load_weights(build(), read(path), path)
    assert not net.training
    for key, value in net.state_dict().items():
        assert torch.equal(value, STATE[key])


@pytest.mark.parametrize("content, words", [
    ({"module." + key[2:]: value for key, value in STATE.items() if key[0] == "0"}, "every name starts with 'module.'"),
    ({"state_dict": {"fc.weight": torch.ones(2, 2)}, "epoch": 1}, "the weights under 'state_dict' do not fit either"),
    ({"model": STATE, "ema": STATE}, "several sets of weights fit, 'model', 'ema'"),
])  # fmt: skip
def test_what_is_in_the_way_is_said(content, words):
    with pytest.raises(ValueError) as caught:
        load_weights(build(), content, "weights.pt")
    assert words in str(caught.value) and "missing" in str(caught.value)


def test_a_whole_model_is_not_unpickled(tmp_path):
    torch.save(saved(), tmp_path / "model.pt")
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "model.pt")
    message = str(caught.value)
    assert "such as a whole model" in message and "save model.state_dict() instead" in message
    assert message.isprintable()
