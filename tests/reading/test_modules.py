"""Wrappers that are seen through, programs that hide their layers, and outputs and numbers that need care."""

import warnings

import pytest
import torch
from explicit import jacobian
from torch import Tensor, nn

from local_lipschitz import (
    UnsupportedLayerError,
    certified_radius,
    describe,
    global_bound,
    joint_bound,
    local_bound,
)
from local_lipschitz.reading.read import read


class Parts(nn.Module):
    """A backbone and a head; `wrap` wraps the backbone."""

    def __init__(self, wrap=lambda module: module):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
        self.head = nn.Linear(8, 3)
        self.backbone = wrap(self.backbone)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


X0 = torch.tensor([[0.3, -0.7, 1.1, 0.2]])


def compiled(module):
    return torch.compile(module, backend="eager")


def compiled_in_place(module):
    module.compile(backend="eager")
    return module


def with_compiled_forward(module):
    module.forward = compiled(module.forward)
    return module


def inner_compiled(module):
    module[2] = compiled(module[2])
    return module


WRAPS = {
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "compiled forward": with_compiled_forward,
    "compiled deep inside": inner_compiled,
    "compiled twice": lambda module: compiled(nn.Sequential(compiled(module))),
    "data parallel": nn.DataParallel,
    "data parallel, compiled": lambda module: compiled(nn.DataParallel(module)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.parametrize("where", ["whole", "part", "never called"])
def test_wrappers_are_seen_through(name, where):
    wrap = WRAPS[name]
    if where == "part":
        net = Parts(wrap).eval()
    else:
        net = wrap(Parts().eval()) if name != "compiled deep inside" else nn.Sequential(Parts(wrap))
    if where != "never called":
        net(X0)
    assert float(local_bound(net.eval(), X0, 0.1)) == float(local_bound(Parts().eval(), X0, 0.1))


def test_a_trained_network_through_each_wrapper():
    torch.manual_seed(0)
    net = Parts()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(20):
        x = torch.randn(32, 4)
        optimiser.zero_grad()
        ((net(x) - x[:, :3].abs()) ** 2).mean().backward()
        optimiser.step()
    net.eval()
    exact = Parts().double().eval()
    exact.load_state_dict(net.state_dict())
    norm = float(torch.linalg.matrix_norm(jacobian(exact, X0.double()), 2))
    for wrap in (lambda module: module, compiled, nn.DataParallel):
        assert float(joint_bound(wrap(net).eval(), X0, 1e-7)) == pytest.approx(norm, rel=1e-5)


def test_names_do_not_say_that_a_part_is_compiled():
    assert [call.name for call in read(Parts(compiled).eval(), X0).calls][:2] == ["backbone.0", "backbone.1"]


def test_hooks_of_a_wrapper_are_found():
    net = nn.DataParallel(Parts()).eval()
    net.register_forward_hook(lambda module, args, output: 1.001 * output)
    with pytest.raises(ValueError, match=r"at DataParallel.*a hook that changes values"):
        read(net, X0)


@pytest.mark.parametrize("where", ["whole", "part"])
def test_exported_programs_are_refused(where):
    program = torch.export.export(Parts().eval(), (X0,))
    with pytest.raises(ValueError, match=r"net is an exported program.*give the module that torch\.export was given"):
        read(program, X0)
    net = program.module() if where == "whole" else nn.Sequential(program.module())
    net.training = False
    name = "net" if where == "whole" else "layer '0'"
    with pytest.raises(ValueError, match=rf"{name} is an exported program.*give the module"):
        local_bound(net, X0, 0.1)


def test_a_symbolically_traced_module_is_read():
    net = torch.fx.symbolic_trace(Parts().eval()).eval()
    assert float(local_bound(net, X0, 0.1)) == float(local_bound(Parts().eval(), X0, 0.1))


def test_a_part_in_torchscript_is_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = Parts(torch.jit.script).eval()
    with pytest.raises(UnsupportedLayerError, match="layer 'backbone' is a TorchScript module"):
        read(net, X0)


def test_parameters_that_are_not_there_yet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.LazyLinear(3)).eval()
    with pytest.raises(ValueError, match=r"'0\.(weight|bias)' is not initialised yet; run net once"):
        read(net, X0)


# Outputs of one number an input


class Critic(nn.Module):
    def __init__(self, last):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.last = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x))


ONE_NUMBER = {
    "squeeze": lambda y: y.squeeze(-1),
    "sum": lambda y: y.sum(1),
    "mean": lambda y: y.mean(dim=1),
    "index": lambda y: y[:, 0],
    "reshape": lambda y: y.reshape(y.shape[0]),
    "nonlinear": lambda y: y[:, 0].abs().clamp(-9, 9) * 1.0,
    "nonlinear between": lambda y: torch.stack([y[:, 0].relu(), -(-y[:, 0]).relu()], 1).sum(1),
    "max pooled": lambda y: torch.nn.functional.max_pool1d(y[:, None], 1)[:, 0, 0],
}


@pytest.mark.parametrize("name", ONE_NUMBER)
def test_an_output_of_one_number_an_input(name):
    net = Critic(ONE_NUMBER[name]).double().eval()
    x0 = X0.double().repeat(2, 1)
    exact = float(jacobian(lambda x: net(x)[:, None], x0[:1]).norm())
    assert float(joint_bound(net, x0[:1], 1e-7)) == pytest.approx(exact, rel=1e-5)
    assert local_bound(net, x0, 0.1).value.shape == (2,)
    assert float(global_bound(net, x0[:1])) >= exact
    assert local_bound(net, x0, 0.1, outputs=[[1.0], [-2.0]]).value.shape == (2, 2)
    assert "global bound" in describe(net, x0)
    with pytest.raises(ValueError, match="the network has one output; a class needs at least two"):
        certified_radius(net, x0)


# Numbers that are no numbers


class Standardised(nn.Module):
    def __init__(self, divide, std):
        super().__init__()
        self.fc, self.divide = nn.Linear(4, 3), divide
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.divide(x, self.std))


@pytest.mark.parametrize(
    "divide, layer",
    [
        (lambda x, std: (x - 0.5) / std, "'truediv' (position 2, truediv)"),
        (lambda x, std: x.div(std), "'div' (position 1, div)"),
        (lambda x, std: x * (1.0 / std), "'mul' (position 1, mul)"),
        (lambda x, std: x * std.rsqrt(), "'mul' (position 1, mul)"),
        (lambda x, std: x + std / std, "'add' (position 1, add)"),
        (lambda x, std: nn.functional.linear(x, torch.diag(std.log())), "'linear' (position 1, linear)"),
        (lambda x, std: nn.functional.batch_norm(x, std, std, eps=0.0), "'batch_norm' (position 1, batch_norm)"),
        (lambda x, std: nn.functional.pad(x, (0, 1), value=float("inf"))[:, :4], "'pad' (position 1, pad)"),
    ],
)
def test_a_division_by_zero_is_named(divide, layer):
    with pytest.raises(ValueError) as caught:
        local_bound(Standardised(divide, [1.0, 2.0, 0.0, 1.0]).eval(), X0, 0.1)
    assert layer in str(caught.value) and "division by zero" in str(caught.value)


def test_weights_that_hooks_make_nan_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.ReLU(), nn.utils.weight_norm(nn.Linear(4, 3))).eval()
    with torch.no_grad():
        net[1].weight_v.zero_()
    with pytest.raises(ValueError, match=r"layer '1' \(position 2, Linear\): its numbers are NaN or infinite"):
        read(net, X0)
