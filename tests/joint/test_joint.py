"""The joint bound against the truth: samples, the Jacobian, closed forms, the optimum of the dense problem."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_convolutional, random_network
from torch import Tensor, nn

import local_lipschitz.joint.bound as joint
import local_lipschitz.joint.dense as joint_dense
from local_lipschitz import joint_bound, local_bound
from local_lipschitz.joint.descent import Infeasible
from local_lipschitz.lower_bounds import gradient_lower_bound, random_lower_bound
from local_lipschitz.reading.read import read


def quantised(net: nn.Module, x0: Tensor) -> Tensor:
    """Round all weights and the input to multiples of 1/2: exact ties in windows, neurons at exactly zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((2 * parameter).round() / 2)
    return (2 * x0).round() / 2


def best_lower_bound(net: nn.Module, x0: Tensor, eps: float) -> float:
    sampled = random_lower_bound(net, x0, eps, samples=2_000, batch=2_000)  # hardly ever more than the ascent finds
    return max(float(sampled), float(gradient_lower_bound(net, x0, eps, starts=8, steps=15)))


@pytest.mark.parametrize("part", range(4))  # side by side
@settings(max_examples=75)
@given(seed=st.integers(0, 10**6), log_eps=st.floats(-3.0, 1.0), ties=st.booleans(), effort=st.integers(1, 8))
def test_between_samples_and_product(part, seed, log_eps, ties, effort):
    net, x0 = random_network(4 * seed + part)
    x0 = quantised(net, x0) if ties else x0
    eps = 10**log_eps
    bound = joint_bound(net, x0, eps, effort=effort)
    assert bound.status == ["dense"]
    assert float(bound) <= float(local_bound(net, x0, eps, failure_probability=0.5e-9))
    assert float(bound) >= best_lower_bound(net, x0, eps)


@pytest.mark.parametrize("seed", range(30))
def test_passes_between_samples_and_product(seed, passes_only):
    net, x0 = random_network(seed)
    x0 = quantised(net, x0) if seed % 3 == 0 else x0
    eps = [0.02, 0.3, 3.0][seed % 3]
    bound = joint_bound(net, x0, eps, effort=6)
    assert bound.status == ["passes"] or bound.groups == [0]
    assert float(bound) <= float(local_bound(net, x0, eps)) * (1 + 1e-9)
    assert float(bound) >= best_lower_bound(net, x0, eps)


@pytest.mark.parametrize("path", ["dense", "passes"])
@pytest.mark.parametrize("seed", range(20))
def test_tends_to_the_jacobian(seed, path, monkeypatch):
    if path == "passes":
        monkeypatch.setattr(joint_dense, "SHARE", -1.0)
    net, x0 = random_network(seed)
    J = torch.autograd.functional.jacobian(net, x0).reshape(-1, x0.numel())
    bound = joint_bound(net, x0, 1e-9, tolerance=1e-7)
    if bound.groups == [0]:  # no ties
        assert float(bound) == pytest.approx(float(torch.linalg.matrix_norm(J, 2)), rel=1e-6, abs=1e-12)


def test_most_random_networks_have_no_ties():
    """So that the test above tests something."""
    networks = [random_network(seed) for seed in range(20)]
    assert sum(joint_bound(net, x0, 1e-9).groups == [0] for net, x0 in networks) >= 14


def test_closed_forms():
    relu = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    with torch.no_grad():
        for layer, weight in ((relu[0], 3.0), (relu[2], -2.0)):
            layer.weight.fill_(weight)
            layer.bias.zero_()
    zero = torch.zeros(1, 1, dtype=torch.float64)
    assert float(joint_bound(relu, zero, 0.7)) == pytest.approx(6.0, rel=1e-6)  # at the kink: the steeper side
    # from x = -1 the secant slope up to x = -1 + eps is (eps − 1)/eps
    assert float(joint_bound(relu, zero - 1, 4.0)) == pytest.approx(6.0 * 0.75, rel=1e-6)
    assert float(joint_bound(relu, zero - 1, 0.5)) == 0.0
    assert float(joint_bound(relu, zero + 1, 4.0)) == pytest.approx(6.0, rel=1e-6)

    pool = nn.Sequential(nn.MaxPool2d(2)).eval()
    tied = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    assert float(joint_bound(pool, tied, 0.1)) == pytest.approx(1.0, rel=5e-3)  # any one element may win


def test_absolute_value_is_not_twice_as_steep():
    """relu(x) + relu(−x) = |x| has slope 1 everywhere; the product bound says √2·√2 = 2."""
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[2].weight.fill_(1.0)
    x0 = torch.full((1, 1), 0.3, dtype=torch.float64)
    assert float(joint_bound(net, x0, 0.2)) == pytest.approx(1.0, rel=1e-8)
    assert float(local_bound(net, x0, 0.4)) > 1.05
    assert float(joint_bound(net, x0, 0.4)) < float(local_bound(net, x0, 0.4)) - 0.02


@pytest.mark.parametrize("seed", range(8))
def test_each_output_by_itself(seed):
    net, x0 = random_convolutional(random.Random(seed))
    m = net(x0).shape[1]
    C = torch.randn(3, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    C[2] = 2 * C[0]
    eps = 0.3
    bound = joint_bound(net, x0, eps, outputs=C, effort=20)
    assert bound.value.shape == (1, 3)
    assert bool((bound.value <= local_bound(net, x0, eps, outputs=C, failure_probability=0.5e-9).value).all())
    assert float(bound.value[0, 2]) == pytest.approx(2 * float(bound.value[0, 0]), rel=1e-2, abs=1e-12)
    for k in range(3):
        head = nn.Linear(m, 1, bias=False).double().eval()
        with torch.no_grad():
            head.weight.copy_(C[k : k + 1])
        assert float(bound.value[0, k]) >= best_lower_bound(nn.Sequential(*net, head).eval(), x0, eps)


@pytest.mark.parametrize("seed", [1, 4, 6])
def test_passes_agree_with_dense_for_outputs(seed, passes_only):
    net, x0 = random_convolutional(random.Random(seed))
    C = torch.eye(net(x0).shape[1], dtype=torch.float64)
    bound = joint_bound(net, x0, 0.1, outputs=C, effort=20)
    assert bool((bound.value <= local_bound(net, x0, 0.1, outputs=C).value * (1 + 1e-9)).all())
    whole = float(joint_bound(net, x0, 0.1, effort=20))
    assert float(bound.value.norm()) >= 0.9 * whole / math.sqrt(len(C)) and float(bound.value.max()) <= 1.2 * whole


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_is_its_inputs(seed):
    net, x0 = random_network(seed)
    x = torch.cat([x0, x0 + 0.1, -x0])
    eps = torch.tensor([0.1, 0.5, 2.0])
    together = joint_bound(net, x, eps, effort=4)
    alone = [float(joint_bound(net, x[i : i + 1], float(eps[i]), effort=4)) for i in range(3)]
    assert together.value.tolist() == pytest.approx(alone, rel=1e-6)
    several = joint_bound(net, x0, eps, effort=4)
    assert several.value.shape == (3,) and len(several.status) == 3


@pytest.mark.parametrize("path", ["dense", "passes"])
def test_single_precision(path, monkeypatch):
    if path == "passes":
        monkeypatch.setattr(joint_dense, "SHARE", -1.0)
    net, x0 = random_network(21)
    net, x0 = net.float(), x0.float()
    single = float(joint_bound(net, x0, 0.2, effort=10))
    double = float(joint_bound(net.double(), x0.double(), 0.2, effort=10))
    assert single == pytest.approx(double, rel=2e-2)


@pytest.mark.parametrize("seed", range(6))
def test_scaling(seed):
    """f(2x)/4 on half the ball, and hidden neurons permuted: the same operator in other coordinates."""
    net, x0 = random_network(seed)
    value = float(joint_bound(net, x0, 0.4, effort=40))
    first = next(layer for layer in net if isinstance(layer, nn.Linear | nn.Conv2d))
    with torch.no_grad():
        first.weight.mul_(2.0)
        net[-1].weight.mul_(0.25)
    if isinstance(first, nn.Conv2d) or first is not net[-1]:
        assert float(joint_bound(net, x0 / 2, 0.2, effort=40)) == pytest.approx(value / 2, rel=1e-2, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_permuted_neurons(seed):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    x0 = torch.randn(1, 6, generator=generator).double()
    before = float(joint_bound(net, x0, 0.5, effort=60))
    order = torch.randperm(9, generator=generator)
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight[order])
        net[0].bias.copy_(net[0].bias[order])
        net[2].weight.copy_(net[2].weight[:, order])
    assert float(joint_bound(net, x0, 0.5, effort=60)) == pytest.approx(before, rel=5e-3)


@pytest.mark.parametrize("seed", range(8))
def test_grows_with_eps(seed):
    """The truth does; the bound does but for the multipliers' accuracy."""
    net, x0 = random_network(100 + seed)
    values = joint_bound(net, x0, torch.logspace(-3, 1, 9), effort=60).value
    assert bool((values >= 0.98 * values.cummax(0).values).all())


class Residual(nn.Module):
    """Two branches summed, then two side by side, with slopes on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(12, 3)
        self.act = nn.LeakyReLU(0.2)

    def forward(self, x):
        a = self.act(self.first(x))
        b = a + self.second(a).relu()
        return self.third(torch.cat([b, a], 1))


@pytest.mark.parametrize("path", ["dense", "passes"])
@pytest.mark.parametrize("seed", range(4))
def test_residual_networks(seed, path, monkeypatch):
    if path == "passes":
        monkeypatch.setattr(joint_dense, "SHARE", -1.0)
    generator = torch.Generator().manual_seed(seed)
    net = Residual().double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    x0 = torch.randn(1, 4, generator=generator).double()
    J = torch.autograd.functional.jacobian(net, x0).reshape(3, 4)
    nearby = joint_bound(net, x0, 1e-9, tolerance=1e-7)
    assert float(nearby) == pytest.approx(float(torch.linalg.matrix_norm(J, 2)), rel=1e-6)
    for eps in (0.1, 1.0):
        bound = joint_bound(net, x0, eps, effort=10)
        assert best_lower_bound(net, x0, eps) <= float(bound) <= float(local_bound(net, x0, eps)) * (1 + 1e-9)


def test_falls_back_and_says_so(monkeypatch):
    def fails(*args, **kwargs):
        raise Infeasible("no feasible multipliers were found")

    net, x0 = random_network(4)
    monkeypatch.setattr(joint.Job, "_run", fails)
    bound = joint_bound(net, x0, 0.5)
    assert float(bound) == float(local_bound(net, x0, 0.5, failure_probability=0.5e-9))
    assert bound.status == ["product bound: no feasible multipliers were found"]


def test_records():
    net, x0 = random_convolutional(random.Random(3))
    bound = joint_bound(net, x0, 0.5)
    assert math.prod(float(factor) for _, factor in bound.per_layer) == pytest.approx(float(bound), rel=1e-9)
    assert sum(a + b for a, b in bound.uncertain[0].values()) == bound.groups[0] > 0
    assert float(bound.before_refinement) >= float(bound) and bound.passes > 0
    assert 0.0 <= bound.failure_probability <= 1e-9
    assert [name for name, _ in bound.per_layer][-1] == read(net, x0).stages[-1].name


@pytest.mark.parametrize(
    ("change", "message"),
    [({"effort": 0}, "effort"), ({"eps": -1.0}, "eps"), ({"outputs": torch.ones(2, 77)}, "outputs")],
)
def test_messages(change, message):
    net, x0 = random_network(2)
    with pytest.raises(ValueError, match=message):
        joint_bound(net, x0, **{"eps": 0.1, **change})


def test_many_outputs_are_tuned_along_the_top_directions():
    """More outputs than are tuned for at once: close to the optimum over all of them, never below the truth."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 60)).double().eval()
    x0 = torch.randn(1, 10).double()
    for eps in (0.1, 1.0):
        some = joint_bound(net, x0, eps, effort=90)
        assert some.status == ["dense"] and some.groups[0] > 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("local_lipschitz.joint.dense.SMALL_OUTPUT", 60)
            everything = joint_bound(net, x0, eps, effort=90)
        assert float(gradient_lower_bound(net, x0, eps)) <= float(some) <= 1.01 * float(everything)
