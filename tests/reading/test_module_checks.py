"""A module is left as it was; what is read of it is compared with what it computes."""

import pytest
import torch
from torch import Tensor, nn
from traced import Applied

from local_lipschitz import UnsupportedLayerError, local_bound
from local_lipschitz.reading.read import read

# The caller's module


def test_the_module_is_left_as_it_was():
    class Busy(nn.Module):
        """Stores in its forward() what it likes."""

        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
            self.register_buffer("count", torch.zeros(()))
            self.seen, self.last, self.calls = [], None, 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            self.calls += 1
            y = self.norm(self.linear(x))
            self.last = y
            self.seen.append(y)
            self.extra = y
            return y.relu()

    net = Busy().eval()
    net.linear.bias.requires_grad_(False)
    fired = []
    handle = net.linear.register_forward_hook(lambda module, args, output: fired.append(type(output)))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    seen = net.seen
    local_bound(net, torch.ones(1, 3), 0.1)
    with pytest.raises(UnsupportedLayerError):
        read(nn.Sequential(net, nn.LayerNorm(2)).eval(), torch.ones(1, 3))

    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert net.seen is seen and seen == [] and net.last is None and net.calls == 0 and not hasattr(net, "extra")
    assert not net.training and not net.linear.training
    assert net.linear.weight.requires_grad and not net.linear.bias.requires_grad and net.linear.weight.grad is None
    assert set(fired) <= {Tensor}  # a hook sees tensors only, never what traces the module
    fired.clear()
    net(torch.ones(1, 3))
    assert len(fired) == 1
    handle.remove()
    net(torch.ones(1, 3))
    assert len(fired) == 1


def test_the_random_state_is_left_as_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    local_bound(nn.Linear(3, 2).eval(), torch.ones(1, 3), 0.1)
    torch.manual_seed(3)
    assert torch.equal(before, torch.get_rng_state())


def test_outputs_that_are_mostly_rounding_are_not_taken_for_another_network():
    """A batch norm takes away what the layer before it added: folded, the two lose less to rounding than one by one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        net[0].bias += 1e6
        net[1].running_mean += 1e6
    x0 = torch.randn(1, 5)
    graph = read(net, x0)
    assert (graph.forward(x0) - net(x0)).abs().max() > 2e-3 * net(x0).abs().max()
    net[3].register_forward_hook(lambda module, args, output: 1e3 * output)
    with pytest.raises(ValueError, match="does not compute what its layers say"):
        read(net, x0)


@pytest.mark.parametrize("hook", ["forward", "pre"])
def test_hooks_that_change_values_are_found(hook):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    if hook == "forward":
        net[0].register_forward_hook(lambda module, args, output: 2 * output)
    else:
        net[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    with pytest.raises(ValueError, match=r"does not compute what its layers say .* a hook that changes values"):
        local_bound(net, torch.ones(1, 3), 0.1)


def test_an_output_that_depends_on_the_batch_is_found():
    net = Applied(lambda x: x / len(x)).eval()
    with pytest.raises(ValueError, match="does not compute what its layers say"):
        read(net, torch.ones(1, 3))


def test_randomness_is_found():
    net = Applied(lambda x: x * torch.rand(3)).eval()
    with pytest.raises(ValueError, match="randomness"):
        read(net, torch.ones(1, 3))


@pytest.mark.parametrize("stored", [Tensor.to_sparse, Tensor.to_sparse_csr, lambda w: w.to(torch.float8_e4m3fn)])
def test_parameters_that_are_not_dense_real_numbers(stored):
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    net[0].weight = nn.Parameter(stored(net[0].weight.detach()), requires_grad=False)
    with pytest.raises(ValueError, match=r"'0.weight' is a torch\.\w+ tensor of .*; a dense one of real numbers"):
        local_bound(net, torch.ones(1, 3), 0.1)


@pytest.mark.filterwarnings("ignore")  # torch's remarks on its quantisation
@pytest.mark.parametrize("kind", ["dynamic", "fake"])
def test_quantised_layers(kind):
    ao = pytest.importorskip("torch.ao.quantization")
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    net = ao.quantize_dynamic(net, {nn.Linear}) if kind == "dynamic" else nn.Sequential(ao.FakeQuantize(), net)
    with pytest.raises(UnsupportedLayerError, match=r"layer '0' is a .*, which rounds: the network becomes a stair"):
        local_bound(net.eval(), torch.ones(1, 3), 0.1)


def test_errors_of_others_are_shown_on_one_line():
    net = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"^at the start of Applied.forward\(\): vmap\(Sequential\( \(0\): Linear"):
        local_bound(Applied(lambda x: torch.func.vmap(net)(x)).eval(), torch.ones(1, 3), 0.1)
