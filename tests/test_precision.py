"""Precision is the bound's own: whatever the caller's process or thread is set to, and all is put back afterwards."""

import random

import pytest
import torch
from torch import nn

from local_lipschitz import certified_radius, describe, global_bound, joint_bound, local_bound, margin_bound
from local_lipschitz.attacks.gradient import fgsm
from local_lipschitz.lower_bounds import gradient_lower_bound, random_lower_bound
from local_lipschitz.precision import no_tf32

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]
NEW = ("", "cudnn", "mkldnn", "cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
has_new = pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")


def switch(path: str):
    holder = torch.backends
    for name in path.split(".") if path else ():
        holder = getattr(holder, name)
    return holder


def state() -> dict:
    """Every setting; the older ones raise where they disagree with the newer ones."""
    read = {
        "matmul precision": torch.get_float32_matmul_precision,
        "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
        "cublas": lambda: torch.backends.cuda.matmul.allow_tf32,
    }
    for name in ("fp16_reduced_precision_reduction", "bf16_reduced_precision_reduction", "fp16_accumulation"):
        read[name] = lambda name=name: getattr(torch.backends.cuda.matmul, f"allow_{name}", None)
    if hasattr(torch.backends, "fp32_precision"):
        read |= {path: lambda path=path: switch(path).fp32_precision for path in NEW}
    values = {}
    for name, get in read.items():
        try:
            values[name] = get()
        except RuntimeError:
            values[name] = "mixed"
    return values


@pytest.fixture(autouse=True)
def as_before():
    """Every test leaves the process as it was; the context itself is what puts things back."""
    with no_tf32():
        yield


def set_at_random(rng: random.Random) -> None:
    kind = rng.randrange(6)
    if kind < 3 and hasattr(torch.backends, "fp32_precision"):
        path = rng.choice(NEW)
        switch(path).fp32_precision = rng.choice(["ieee", "tf32", "none"] + ["bf16"] * ("mkldnn" in path))
    elif kind == 3:
        torch.set_float32_matmul_precision(rng.choice(["highest", "high", "medium"]))
    elif kind == 4:
        torch.backends.cudnn.allow_tf32 = rng.random() < 0.5
    else:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = rng.random() < 0.5


@pytest.mark.filterwarnings("ignore")
def test_every_mixture_of_settings_is_exact_inside_and_as_it_was_afterwards():
    rng = random.Random(0)
    for _ in range(100):
        for _ in range(rng.randint(1, 4)):
            set_at_random(rng)
        before = state()
        with no_tf32():
            inside = state()
            with pytest.raises(KeyError), no_tf32():
                raise KeyError
            assert state() == inside
        assert state() == before
        assert all(inside.get(path, "ieee") == "ieee" for path in NEW[3:])
        assert (inside["matmul precision"], inside["cudnn.allow_tf32"], inside["cublas"]) == ("highest", False, False)
        assert not inside["fp16_reduced_precision_reduction"] and not inside["bf16_reduced_precision_reduction"]


@has_new
def test_what_was_inherited_is_inherited_again():
    for path in NEW:
        switch(path).fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"
    with no_tf32():
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.mkldnn.conv.fp32_precision == "ieee"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()


X0 = torch.linspace(0.0, 1.0, 16).reshape(1, 1, 4, 4)

FUNCTIONS = {
    "global_bound": lambda net, x0: global_bound(net, x0).value,
    "local_bound": lambda net, x0: local_bound(net, x0, 0.1).value,
    "joint_bound": lambda net, x0: joint_bound(net, x0, 0.1, effort=5).value,
    "certified_radius": lambda net, x0: certified_radius(net, x0, rtol=0.1).radius,
    "describe": lambda net, x0: describe(net, x0),
    "random_lower_bound": lambda net, x0: random_lower_bound(net, x0, 0.1, samples=20),
    "gradient_lower_bound": lambda net, x0: gradient_lower_bound(net, x0, 0.1, starts=2, steps=2),
    "fgsm": lambda net, x0: fgsm(net, x0).distance,
}

SETTINGS = {
    "autocast to bfloat16": lambda device: torch.autocast(device, dtype=torch.bfloat16),
    "autocast to float16": lambda device: torch.autocast(device, dtype=torch.float16),
    "inference mode": lambda device: torch.inference_mode(),
    "no gradients": lambda device: torch.no_grad(),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_contexts_of_the_caller_change_nothing(name, setting, device):
    net, x0 = network().to(device), X0.to(device)
    expected = FUNCTIONS[name](net, x0)
    with SETTINGS[setting](device):
        result = FUNCTIONS[name](net, x0)
    assert result == expected if name == "describe" else torch.equal(result, expected)


@pytest.mark.parametrize("function", [global_bound, local_bound, joint_bound, margin_bound, certified_radius])
def test_results_take_part_in_gradients_and_can_be_changed(function):
    """Much is computed in inference mode, whose tensors can do neither."""
    found = vars(function(network(), X0, *([] if function in (global_bound, certified_radius) else [0.1])))
    tensors = [x for x in found.values() if isinstance(x, torch.Tensor)] + [x for _, x in found.get("per_layer", [])]
    for x in tensors:
        weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad((weight * x).sum(), weight)
        assert float(gradient) == pytest.approx(float(x.sum()))
        x.zero_()


def old_settings() -> None:
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")


def new_settings() -> None:
    torch.backends.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", [old_settings, pytest.param(new_settings, marks=has_new)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_settings_of_the_process_change_nothing(name, settings, device):
    net, x0 = network().to(device), X0.to(device)
    expected = FUNCTIONS[name](net, x0)
    settings()
    before = state()
    result = FUNCTIONS[name](net, x0)
    assert result == expected if name == "describe" else torch.equal(result, expected)
    assert state() == before


def test_a_default_device_without_numbers():
    net, x0 = nn.Sequential(nn.Linear(3, 2)).eval(), torch.ones(1, 3)
    with torch.device("meta"), pytest.raises(ValueError, match="default device is 'meta', whose tensors hold no"):
        joint_bound(net, x0, 0.1)
