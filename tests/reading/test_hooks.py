"""Hooks: those that change what passes through their module are refused by name, those that look are let through."""

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_hooks

from local_lipschitz import local_bound
from local_lipschitz.reading.read import read


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2)).eval()


def doubles_in_place(module, args, output):
    output.mul_(1.0001)


def shifts_input(module, args):
    return (args[0] + 1e-4,)


def shifts_in_place(module, args):
    args[0].add_(1e-4)


CHANGING = {
    "forward hook": lambda net: net[1].register_forward_hook(lambda module, args, output: 1.0001 * output),
    "forward hook in place": lambda net: net[1].register_forward_hook(doubles_in_place),
    "forward hook with keywords": lambda net: net[1].register_forward_hook(
        lambda module, args, kwargs, output: 1.0001 * output, with_kwargs=True
    ),
    "forward hook of a container": lambda net: net[0].register_forward_hook(doubles_in_place),
    "forward hook of the net": lambda net: net.register_forward_hook(doubles_in_place),
    "pre-hook": lambda net: net[1].register_forward_pre_hook(shifts_input),
    "pre-hook that returns one tensor": lambda net: net[1].register_forward_pre_hook(lambda m, args: args[0] + 1e-4),
    "pre-hook with keywords": lambda net: net[0].register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] + 1e-4,), kwargs), with_kwargs=True
    ),
    "pre-hook in place": lambda net: net.register_forward_pre_hook(shifts_in_place),
    "global hook": lambda net: torch_hooks.register_module_forward_hook(
        lambda module, args, output: 1.0001 * output if isinstance(module, nn.Linear) else None
    ),
    "global pre-hook": lambda net: torch_hooks.register_module_forward_pre_hook(shifts_input),
}


@pytest.mark.parametrize("kind", CHANGING)
def test_hooks_that_change_values_are_refused_by_name(kind):
    """However little they change."""
    net = two_layers()
    handle = CHANGING[kind](net)
    name = "shifts_input" if kind in ("pre-hook", "global pre-hook") else "doubles_in_place|shifts_in_place|<lambda>"
    try:
        with pytest.raises(ValueError, match=rf"a hook that changes values, .*({name})"):
            read(net, torch.ones(1, 3))
    finally:
        handle.remove()
    read(net, torch.ones(1, 3))


def test_hooks_that_look_are_let_through():
    net, seen = two_layers(), []
    net[0].register_forward_hook(lambda module, args, output: seen.append(output.mean().item()))
    net[1].register_forward_hook(lambda module, args, output: output)
    net[1].register_forward_hook(lambda module, args, output: output.clone())
    net.register_forward_pre_hook(lambda module, args: args)
    net.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    before = [dict(m._forward_hooks) for m in net.modules()]
    with_hooks = float(local_bound(net, torch.ones(1, 3), 0.1))
    assert seen and before == [dict(m._forward_hooks) for m in net.modules()]
    assert with_hooks == float(local_bound(two_layers(), torch.ones(1, 3), 0.1))
