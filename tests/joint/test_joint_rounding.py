"""The joint bound where rounding is all that is left: cancelling rows and long equal sums, against exact rationals."""

from fractions import Fraction

import pytest
import torch
from exact import exceeds
from torch import Tensor, nn

import local_lipschitz.joint.dense as joint_dense
from local_lipschitz import joint_bound
from local_lipschitz.joint.certificate import Random, are_proven, is_proven
from local_lipschitz.joint.dense import DenseGroups
from local_lipschitz.joint.functions import Functions
from local_lipschitz.joint_operator import JointOperator
from local_lipschitz.layers.graph import Graph

DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=["dense", "passes"])
def path(request, monkeypatch):
    if request.param == "passes":
        monkeypatch.setattr(joint_dense, "SHARE", -1.0)
    return request.param


def filled(layer: nn.Linear, weight: list, bias: float | list = 0.0) -> nn.Linear:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        layer.bias.copy_(torch.as_tensor(bias, dtype=torch.float64).expand_as(layer.bias))
    return layer


def cancelling(dtype: torch.dtype, readers: list[nn.Module]) -> tuple[nn.Sequential, Tensor]:
    """A row (1 + 2⁻ᵏ)² − (1 + 2¹⁻ᵏ) = 2⁻²ᵏ over two active units, which rounds to 0, read by `readers` at nominal 0."""
    k = 12 if dtype is torch.float32 else 27
    a, b = 1 + 2.0**-k, 1 + 2.0 ** (1 - k)
    offset = float(-(Fraction(a) * 4 - 4))
    net = nn.Sequential(
        filled(nn.Linear(1, 2).double(), [[a], [b]], 4.0), nn.ReLU(),
        filled(nn.Linear(2, 1).double(), [[a, -1.0]], offset), *readers,
        filled(nn.Linear(1, 1).double(), [[2.0 ** (2 * k)]]),
    )  # fmt: skip
    return net.to(dtype).eval(), torch.zeros(1, 1, dtype=dtype)


def a_second_reader() -> list[nn.Module]:
    return [nn.ReLU(), filled(nn.Linear(1, 1).double(), [[0.875]]), nn.LeakyReLU(-1.0)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("readers", [lambda: [nn.LeakyReLU(-1.0)], lambda: [nn.ReLU()], a_second_reader])
def test_a_row_that_rounds_to_zero_is_not_dead(dtype, readers, path):
    net, x0 = cancelling(dtype, readers())
    bound = joint_bound(net, x0, 1.0)
    for delta in (1.0, -1.0, 0.5):
        assert not exceeds(net.double(), x0[0].double(), torch.full((1,), delta).double(), float(bound))
    if dtype is torch.float32 and path == "dense":  # in float64 nothing of it is lost
        assert float(bound) < 1.5


@pytest.mark.parametrize(
    ("path", "width", "dtype"),
    [(path, 8192, dtype) for path in ("dense", "passes") for dtype in DTYPES] + [("dense", 100_000, torch.float32)],
    indirect=["path"],
)
def test_long_sums_of_equal_terms(width, dtype, path):
    """0.1 is no float: each product and partial sum is rounded, and mostly in one direction.

    A hundred thousand groups go by passes whether dense algebra is allowed or not, so they are tried once.
    """
    def equal(rows: int, columns: int, value: float) -> nn.Linear:
        layer = nn.Linear(columns, rows, dtype=dtype)
        nn.init.constant_(layer.weight, value)
        nn.init.constant_(layer.bias, 0.0)
        return layer

    net = nn.Sequential(equal(width, 1, 0.1), nn.ReLU(), equal(2, width, 0.3), nn.ReLU(), equal(1, 2, 0.7)).eval()
    x0 = torch.zeros(1, 1, dtype=dtype)
    for at in (x0, x0 + 1.0):  # at the kink, and away from it
        bound = joint_bound(net, at, 0.5)
        if at is x0:
            assert bound.status == [path if width == 8192 else "passes"]
        a, b, c = (Fraction(net[i].weight[0, 0].item()) for i in (0, 2, 4))
        assert Fraction(float(bound)) >= 2 * c * b * width * a
        if path == "dense":
            assert float(bound) <= float(2 * c * b * width * a) * (1 + 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_branches_that_cancel(dtype, path):
    """x ↦ |a·x − b·x| with a·x and b·x from two wide branches that cancel to their last digits."""
    torch.manual_seed(0)
    first = nn.Linear(3, 40, dtype=dtype)
    nn.init.constant_(first.bias, 9.0)
    second = nn.Linear(40, 4, dtype=dtype)
    with torch.no_grad():
        first.weight[20:] = first.weight[:20]
        second.weight[:, 20:] = -second.weight[:, :20] * (1 + 3 * torch.finfo(dtype).eps)
        second.bias.zero_()
    last = nn.Linear(4, 2, dtype=dtype)
    nn.init.constant_(last.weight, 1.0 / torch.finfo(dtype).eps)
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last).eval()
    x0 = torch.zeros(1, 3, dtype=dtype)
    bound, exact = float(joint_bound(net, x0, 1.0)), net.double()
    for delta in torch.randn(20, 3, dtype=torch.float64):
        assert not exceeds(exact, x0[0].double(), delta / (1.001 * delta.norm()), bound)


def test_a_cholesky_factorisation_proves_no_more_than_is_true():
    """I − vvᵀ/‖v‖²·(1 + t): singular for t = 0, indefinite above; accepted only where it is definite by a margin."""
    v = torch.arange(1.0, 31.0, dtype=torch.float64)
    unit = torch.ones(30, dtype=torch.float64)
    gram = v[:, None] * v / float(v @ v)
    assert not is_proven(gram * (1 + 1e-13), unit, 100)
    assert not is_proven(gram, unit, 100)
    assert is_proven(gram * (1 - 1e-11), unit, 100)
    assert is_proven(4e100 * gram * (1 - 1e-11), 4e100 * unit, 100)


def test_borders_are_proven_like_whole_matrices():
    """Each last row as with the whole matrix: just inside what is definite, just outside, and rows of zeros."""
    torch.manual_seed(0)
    K = torch.randn(31, 40, dtype=torch.float64)
    gram = K @ K.T
    mu = 1.01 * torch.linalg.eigvalsh(gram[:30, :30])[-1].expand(30)
    own, cross = gram[30, 30], gram[30, :30]
    least = float(own + cross @ torch.linalg.solve(torch.diag(mu) - gram[:30, :30], cross))
    rows = torch.stack([cross, cross, 1e100 * cross, 0 * cross]), torch.stack([own, own, 1e200 * own, 0 * own])
    gamma = least * torch.tensor([1 + 1e-9, 1 - 1e-9, 1e200 * (1 + 1e-9), 0.0], dtype=torch.float64)
    assert are_proven(gram[:30, :30], mu, rows, gamma, 40).tolist() == [True, False, True, True]
    alone = []
    for b, c, g in list(zip(*rows, gamma, strict=True))[:3]:
        whole = torch.cat([torch.cat([gram[:30, :30], b[:, None]], 1), torch.cat([b, c[None]])[None]])
        alone.append(is_proven(whole, torch.cat([mu, g[None]]), 40))
    assert alone == [True, False, True]
    assert not are_proven(gram[:30, :30], 0.9 * mu, rows, 1e9 * gamma, 40)[:3].any()
    nothing, one = gram[:0, :0], torch.tensor([1 + 1e-9, 1 - 1e-9], dtype=torch.float64)
    assert are_proven(nothing, mu[:0], (gram[:2, :0], torch.ones(2).double()), one, 40).tolist() == [True, False]


@pytest.mark.parametrize("seed", range(6))
def test_the_robust_theorem_covers_every_row_within_its_error(seed, monkeypatch):
    """Rows moved by up to ε_g‖δ‖ each, and any |w_g| ≤ |v_g|: never above the bound for the rows as they were."""
    monkeypatch.setattr("local_lipschitz.joint.groups.SMALL", 30.0)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, G, m = 5, 6, 3
    N, P, Q, T = draw(m, n), draw(m, G) / 4, draw(G, n), draw(G, G).tril(-1) / 4
    groups = DenseGroups(N.new_zeros(()), Graph((n,), ()), 3, Random(1e-10, 1e-3, 0))
    noise = 10.0 ** float(-4 + seed)
    error, output_error = noise * Q.norm(dim=1), noise * N.norm(dim=1)
    for g in range(G):
        row = Functions(groups, Q[g : g + 1], T[g : g + 1, :g], error[g : g + 1])
        groups.add(row, torch.ones(1, dtype=torch.bool), Wanted())
    value = float(Functions(groups, N, P, output_error).proven(groups.mu, False))
    each = Functions(groups, N, P, output_error).proven(groups.mu, True)
    assert value < float("inf")
    for _ in range(300):
        delta = draw(n)
        delta /= delta.norm()
        s = draw(G).sign() * (torch.rand(G, generator=generator) > 0.2)
        w = delta.new_zeros(G)
        for g in range(G):
            v = Q[g] @ delta + T[g] @ w + error[g] * draw(1).sign()[0]
            w[g] = s[g] * v
        f = N @ delta + P @ w
        assert float(f.norm() + output_error.norm()) <= value * (1 + 1e-9)
        assert bool(((f.abs() + output_error) <= each * (1 + 1e-9)).all())


class Wanted:
    """One element, as far as `add` asks."""

    out_size = 1
    operator = JointOperator((5,), [], None, torch.zeros(()))


def test_evaluations_at_other_eps_draw_other_vectors():
    draws = [float(Random(1e-10, 1e-3, seed, eps).normal(1, 1, torch.zeros(()).double()))
             for seed, eps in ((0, 0.1), (0, 0.1), (0, 0.2), (1, 0.1))]  # fmt: skip
    assert draws[0] == draws[1] and len(set(draws)) == 3
