"""verify: proofs never contradict points that are found, and small networks are decided exactly."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from local_lipschitz import verify
from local_lipschitz.joint.bound import Result

MODULE = sys.modules["local_lipschitz.verify"]  # the package's name for it is the function


def small(seed: int, widths: tuple[int, ...] = (2, 4, 3, 3)) -> tuple[nn.Sequential, Tensor]:
    """A fully connected network and an input, float64."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m), nn.ReLU()]
    net = nn.Sequential(*layers[:-1]).double().eval()
    return net.requires_grad_(False), torch.randn(1, widths[0]).double()


def exact_radius(net: nn.Sequential, x0: Tensor) -> float:
    """The distance to the nearest x that ties with another class: a convex problem in each linear region."""
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    x0 = x0[0]
    label = int(net(x0[None]).argmax())
    best = float("inf")
    for signs in itertools.product(*([(0.0, 1.0)] * sum(layer.out_features for layer in linear[:-1]))):
        A, b = torch.eye(len(x0)).double(), torch.zeros(len(x0)).double()
        rows, used = [], 0
        for layer in linear[:-1]:
            s = torch.tensor(signs[used : used + layer.out_features]).double()
            used += layer.out_features
            A, b = layer.weight @ A, layer.weight @ b + layer.bias
            side = 2.0 * s - 1.0
            rows.append((side[:, None] * A, side * b))
            A, b = s[:, None] * A, s * b
        A, b = linear[-1].weight @ A, linear[-1].weight @ b + linear[-1].bias
        G, g = (torch.cat(each) for each in zip(*rows, strict=True))
        for c in range(len(b)):
            if c == label:
                continue
            H, h = torch.cat([G, (A[c] - A[label])[None]]), torch.cat([g, (b[c] - b[label])[None]])
            best = min(best, nearest(x0, H, h, best))
    return best


def nearest(x0: Tensor, H: Tensor, h: Tensor, best: float) -> float:
    """min ‖x − x0‖ with Hx + h ≥ 0, or inf; by the dual, a non-negative least-squares problem."""


    # min ½‖d‖² with Hd ≥ r is solved by the residual of min ‖[Hᵀ; rᵀ]λ − (0, …, 0, 1)‖ (Lawson & Hanson, chapter 23)
    r = -(H @ x0 + h)
    E = torch.cat([H.T, r[None]]).numpy()
    target = torch.zeros(len(x0) + 1).double().numpy()
    target[-1] = 1.0
    solution, norm = nnls(E, target)
    residual = E @ solution - target
    if norm < 1e-9:
        return float("inf")
    d = torch.from_numpy(-residual[:-1] / residual[-1])
    return float(d.norm()) if bool((H @ d >= r - 1e-7).all()) else float("inf")


@pytest.mark.parametrize("seed", range(4))
def test_the_verdict_is_exact_on_small_networks(seed):
    net, x0 = small(seed)
    radius = exact_radius(net, x0)
    assert radius < float("inf")
    below, above = verify(net, x0, radius * (1 - 1e-4)), verify(net, x0, radius * (1 + 1e-3))
    assert below.verdict == ["verified"] and bool((below.lower > 0).all())
    assert above.verdict == ["falsified"]
    x = above.counterexample
    assert float((x - x0).norm()) <= radius * (1 + 1e-3)
    assert int(net(x).argmax()) != int(above.label)


@pytest.mark.parametrize("seed", range(50))
def test_the_radius_is_exact_to_a_millionth(seed):
    """Bisection would end here: proven just below the distance of the nearest tie, and not above it."""
    net, x0 = small(seed, (2, 3, 2))
    radius = exact_radius(net, x0)
    if radius == float("inf"):
        assert verify(net, x0, 100.0).verdict == ["verified"]
        return
    assert verify(net, x0, radius * (1 - 1e-6)).verdict == ["verified"]
    assert verify(net, x0, radius * (1 + 1e-6)).verdict != ["verified"]


@pytest.mark.parametrize("seed", range(4))
def test_after_the_joint_bound_it_is_as_exact(monkeypatch, seed):
    """As where many kinks may bend: the joint bound first, then the margin certificate with what that knows."""
    monkeypatch.setattr(MODULE, "DEAR", 0)
    net, x0 = small(seed)
    radius = exact_radius(net, x0)
    below, above = verify(net, x0, radius * (1 - 1e-4)), verify(net, x0, radius * (1 + 1e-3))
    assert below.verdict == ["verified"] and above.verdict == ["falsified"]
    assert below.stage[0] in ("product", "joint", "margin", "branching")


def test_a_bound_that_is_not_a_number_proves_nothing(monkeypatch):
    net, x0 = small(1)
    eps = 0.95 * exact_radius(net, x0)
    assert verify(net, x0, eps).verdict == ["verified"]
    nan = torch.full((1,), float("nan"), dtype=torch.float64)
    monkeypatch.setattr(MODULE, "JointJob", lambda *_, **__: lambda *_: Result(nan, nan, [], {}, 0, "passes", 0.0, 0.0))
    monkeypatch.setattr(MODULE, "DEAR", 0)
    monkeypatch.setattr(MODULE, "LARGE", 0)
    result = verify(net, x0, eps)
    assert result.verdict == ["unknown"] and bool((result.lower <= 0).any())


def test_a_batch_with_every_verdict():
    net, x0 = small(1)
    radius = exact_radius(net, x0)
    eps = torch.tensor([0.01, 0.9, 1.5]) * radius
    result = verify(net, x0, eps)
    assert result.verdict == ["verified", "verified", "falsified"]
    assert result.stage[0] == "product" and result.stage[2] == "attack"
    assert torch.equal(result.counterexample[:2], x0.expand(2, -1)) and result.lower.shape == (3, 2)
    assert bool((result.seconds > 0).all())


def test_without_time_nothing_is_wrong():
    net, x0 = small(1)
    radius = exact_radius(net, x0)
    result = verify(net, x0, 0.95 * radius, time_limit=0.0)
    assert result.verdict[0] in ("verified", "unknown")


def test_bad_input_is_refused():
    net, x0 = small(0)
    label = int(net(x0).argmax())
    with pytest.raises(ValueError, match="positive, finite radii are wanted"):
        verify(net, x0, 0.0)
    with pytest.raises(ValueError, match="positive, finite radii are wanted"):
        verify(net, x0, float("inf"))
    with pytest.raises(ValueError, match="classes from 0 to 2 are wanted"):
        verify(net, x0, 0.1, label=torch.tensor([7]))
    with pytest.raises(ValueError, match="not as its label"):
        verify(net, x0, 0.1, label=torch.tensor([(label + 1) % 3]))
    with pytest.raises(ValueError, match="the network has one output"):
        verify(nn.Sequential(nn.Linear(2, 1)).double().eval(), x0, 0.1)
    with pytest.raises(ValueError, match="time_limit is nan"):
        verify(net, x0, 0.1, time_limit=float("nan"))


def test_a_time_limit_is_kept(monkeypatch):
    """A clock that goes a second a look: the work ends by itself, wherever it is, and what it says is valid."""
    net, x0 = small(1)
    radius = exact_radius(net, x0)
    for limit in range(0, 60, 12):
        looks = itertools.count()
        monkeypatch.setattr("time.monotonic", lambda looks=looks: float(next(looks)))
        result = verify(net, x0, 0.99 * radius, time_limit=float(limit))
        assert result.verdict[0] in ("verified", "unknown") and float(result.seconds) <= limit + 10.0
