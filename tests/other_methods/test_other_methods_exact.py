"""The exact Lipschitz constant of small networks by enumeration of their linear regions, and the methods against it.

Shares nothing with the methods: a region is found by fixing the sign of one neuron after another and asking for the
point nearest to x0 that has these signs (Lawson & Hanson's least distance programming).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.optimize import nnls

from other_methods.aol import aol
from other_methods.chain import Array, Ball, Box, Chain, random_chain
from other_methods.common.network import as_network
from other_methods.common.sampled import lower_bounds
from other_methods.eclipse import eclipse
from other_methods.liplt import liplt
from other_methods.lipmip import lipmip
from other_methods.lipopt import lipopt
from other_methods.lipsdp import lipsdp
from other_methods.recurjac import recurjac
from other_methods.seqlip import autolip, seqlip

MARGIN = 1e-9  # a region that is thinner than this, or touches the set by less, does not count

Pair = tuple[Array, Array]


def nearest(G: Array, h: Array) -> Array | None:
    """The shortest d with G d ≥ h, or None."""
    scale = np.linalg.norm(G, axis=1)
    if (h[scale == 0] > 0).any():
        return None
    G, h = G[scale > 0] / scale[scale > 0, None], h[scale > 0] / scale[scale > 0]
    if len(h) == 0:
        return np.zeros(G.shape[1])
    E = np.vstack([G.T, h])
    u, _ = nnls(E, np.append(np.zeros(G.shape[1]), 1.0), maxiter=1000 + 10 * len(h))
    r = E @ u - np.append(np.zeros(G.shape[1]), 1.0)
    if np.linalg.norm(r) < 1e-7:
        return None
    d = -r[:-1] / r[-1]
    return d if (G @ d >= h - 1e-7).all() else None


def regions(chain: Chain, x0: Array, eps: float, p: float) -> Iterator[tuple[Array, Array]]:
    """(J, d) for every linear region that meets the lp ball of radius eps, p = 2 or inf; eps = inf: for all.

    J is the Jacobian there, x0 + d a point inside both.
    """
    n = len(x0)
    G, h = np.zeros((0, n)), np.zeros(0)
    if p == np.inf and np.isfinite(eps):
        G, h = np.vstack([np.eye(n), -np.eye(n)]), np.full(2 * n, -eps)
    radius = eps if p == 2 else np.inf

    def visit(k: int, i: int, at: Pair, side: Pair, d: Array, slopes: list[float]) -> Iterator:
        """Neuron i of layer k, whose inputs are A (x − x0) + c on the region G d ≥ h so far, which has the point d."""
        (A, c), (G, h) = at, side
        W, b = chain.weights[k], chain.biases[k]
        if k == len(chain.weights) - 1:
            yield W @ A, d
            return
        if i == len(W):
            s = np.array(slopes)
            yield from visit(k + 1, 0, (s[:, None] * (W @ A), s * (W @ c + b)), side, d, [])
            return
        row, constant = W[i] @ A, W[i] @ c + b[i]
        for sign, slope in ((1.0, 1.0), (-1.0, 0.0)):
            G_next = np.vstack([G, sign * row])
            h_next = np.append(h, -sign * constant + MARGIN * max(float(np.linalg.norm(row)), MARGIN))
            d_next = nearest(G_next, h_next)
            if d_next is not None and np.linalg.norm(d_next) < radius * (1.0 - MARGIN):
                yield from visit(k, i + 1, at, (G_next, h_next), d_next, [*slopes, slope])

    yield from visit(0, 0, (np.eye(n), x0), (G, h), np.zeros(n), [])


def exact(chain: Chain, x0: Array, eps: float, ball: float = 2, norm: float = 2) -> float:
    """sup ‖J(x)‖ over the ball, in the operator norm l_norm → l_norm."""
    return max(float(np.linalg.norm(J, norm)) for J, _ in regions(chain, x0, eps, ball))


def small(seed: int, widths: tuple[int, ...]) -> tuple[Chain, Array]:
    """A random network and a point; weights twice torch's, so that there are more regions near."""
    rng = np.random.default_rng(seed)
    chain = random_chain(widths, seed)
    chain = Chain(tuple(2.0 * W for W in chain.weights), chain.biases)
    return chain, rng.uniform(-0.5, 0.5, size=widths[0])


LOCAL = {
    "RecurJac": lambda chain, ball: recurjac(chain, ball, 2),
    "RecurJac, intervals": lambda chain, ball: recurjac(chain, ball, 2, relaxation="interval"),
    "FastLip": lambda chain, ball: recurjac(chain, ball, 2, "fastlip"),
    "LipSDP-Neuron": lambda chain, ball: lipsdp(chain, "neuron", ball),
    "LipSDP-Layer": lambda chain, ball: lipsdp(chain, "layer", ball),
}
GLOBAL = {
    "AutoLip": lambda chain: autolip(as_network(chain)),
    "SeqLip": lambda chain: seqlip(as_network(chain)),
    "SeqLip, relaxed": lambda chain: seqlip(as_network(chain), "relaxed"),
    "LipLT": lambda chain: liplt(as_network(chain)),
    "AOL": lambda chain: aol(as_network(chain)),
    "AOL, product": lambda chain: aol(as_network(chain), "product"),
    "LipSDP-Neuron": lipsdp,
    "LipSDP-Layer": lambda chain: lipsdp(chain, "layer"),
    "LipSDP, chordal": lambda chain: lipsdp(chain, "chordal"),
    "ECLipsE": eclipse,
    "ECLipsE-Fast": lambda chain: eclipse(chain, "fast"),
}


def test_the_enumeration_knows_a_case_by_hand():
    """f = relu(x_1) + 2 relu(−x_1) + 3 relu(x_2 − 1): slopes (1 or −2, 0 or 3)."""
    W = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    chain = Chain((W, np.array([[1.0, 2.0, 3.0]])), (np.array([0.0, 0.0, -1.0]), np.zeros(1)))
    x0 = np.array([0.5, 0.0])
    assert exact(chain, x0, 0.4) == pytest.approx(1.0)
    assert exact(chain, x0, 0.6) == pytest.approx(2.0)
    assert exact(chain, x0, 1.05) == pytest.approx(np.sqrt(10))  # reaches x_2 = 1, but not x_1 < 0 there
    assert exact(chain, x0, 1.05, ball=np.inf, norm=np.inf) == pytest.approx(5.0)
    assert exact(chain, x0, np.inf) == pytest.approx(np.sqrt(13))


@pytest.mark.parametrize("p", [2, np.inf])
def test_the_enumeration_has_the_jacobian_of_every_point_and_no_other(p):
    chain, x0 = small(0, (3, 6, 5, 2))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3))
    x = x0 + 0.4 * x / np.linalg.norm(x, ord=p, axis=1, keepdims=True) * rng.uniform(size=(2000, 1))
    found = list(regions(chain, x0, 0.4, p))
    known = np.array([J for J, _ in found]).reshape(-1, 6)
    distance = np.abs(known[None] - chain.jacobian(x).reshape(-1, 1, 6)).max(-1).min(1)
    assert distance.max() < 1e-12
    assert len(known) > 5
    for J, d in found:
        assert np.linalg.norm(d, ord=p) < 0.4 * (1 + 1e-9)
        np.testing.assert_allclose(chain.jacobian(x0 + d), J, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_one_hidden_layer_and_one_output(seed):
    """Every rigorous method is at least the exact constant; LipMIP is it."""
    chain, x0 = small(seed, (3, 7, 1))
    eps = (0.05, 0.3, 1.0)[seed % 3]
    ball, box = Ball(x0, eps, 2), Ball(x0, eps, np.inf)
    truth = exact(chain, x0, eps)
    for name, method in LOCAL.items():
        assert method(chain, ball) >= truth, name
    everywhere = exact(chain, x0, np.inf)
    for name, method in GLOBAL.items():
        assert method(chain) >= everywhere, name

    for norm, p in (("inf", np.inf), ("1", 1)):
        truth = exact(chain, x0, eps, np.inf, p)
        result = lipmip(chain, box, norm)
        assert truth <= result.value <= truth + 1e-6
        assert truth - 1e-6 <= result.lower <= truth * (1 + 1e-12)
        assert recurjac(chain, box, p) >= truth
        assert recurjac(chain, box, p, "fastlip") >= truth
    assert lipopt(chain, box) >= exact(chain, x0, eps, np.inf, np.inf)
    assert lipopt(chain) >= exact(chain, x0, np.inf, norm=np.inf)


@pytest.mark.parametrize("seed", range(20))
def test_sampled_exact_and_the_rest(seed):
    """20 random small networks, two or three hidden layers, several outputs: sampled ≤ exact ≤ every bound."""
    widths = ((2, 5, 4, 2), (3, 4, 4, 3), (2, 4, 3, 3, 2), (2, 6, 5, 1))[seed % 4]
    chain, x0 = small(seed, widths)
    eps = (0.1, 0.5)[seed % 2]
    sampled = lower_bounds(chain, x0, eps, seed, points=2000)
    ball, box = Ball(x0, eps, 2), Ball(x0, eps, np.inf)

    truth = exact(chain, x0, eps)
    assert sampled["anchored"] <= sampled["local"] <= truth * (1 + 1e-12)
    assert sampled["local"] >= 0.5 * truth
    for name, method in LOCAL.items():
        assert method(chain, ball) >= truth, name

    everywhere = exact(chain, x0, np.inf)
    assert sampled["global"] <= everywhere * (1 + 1e-12)
    for name, method in GLOBAL.items():
        assert method(chain) >= everywhere, name

    of_outputs = exact(chain, x0, eps, np.inf, np.inf)
    result = lipmip(chain, box, "inf")
    assert of_outputs <= result.value <= of_outputs + 1e-6
    assert result.lower == pytest.approx(of_outputs, abs=1e-6)
    assert result.value <= recurjac(chain, box, np.inf) + 1e-6
    result = lipmip(chain, box, "1")
    assert result.value == pytest.approx(exact(chain, x0, eps, np.inf, 1), abs=1e-6)
    assert max(lipopt(chain.output(i), box) for i in range(widths[-1])) >= of_outputs


@pytest.mark.parametrize("seed", range(4))
def test_a_box_that_is_no_ball(seed):
    chain, x0 = small(seed, (2, 5, 3, 2))
    box = Box(x0 - np.array([0.2, 0.7]), x0 + np.array([0.2, 0.7]))
    stretched = Chain((chain.weights[0] * np.array([0.2, 0.7]), *chain.weights[1:]), chain.biases)
    truth = max(
        np.abs(J / np.array([0.2, 0.7])).sum(1).max()
        for J, _ in regions(stretched, x0 / np.array([0.2, 0.7]), 1.0, np.inf)
    )
    assert lipmip(chain, box, "inf").value == pytest.approx(truth, abs=1e-6)
    assert recurjac(chain, box, np.inf) >= truth * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_as_the_radius_goes_to_zero_the_bounds_become_the_norm_of_the_jacobian(seed):
    chain, x0 = small(seed, (4, 8, 7, 3))
    J = chain.jacobian(x0)
    ball, box = Ball(x0, 1e-8, 2), Ball(x0, 1e-8, np.inf)
    for form in ("neuron", "layer"):
        assert lipsdp(chain, form, ball) == pytest.approx(np.linalg.norm(J, 2), rel=1e-9)
    for norm, p in (("inf", np.inf), ("1", 1)):
        assert lipmip(chain, box, norm).value == pytest.approx(np.linalg.norm(J, p), rel=1e-9)
        assert recurjac(chain, box, p) == pytest.approx(np.linalg.norm(J, p), rel=1e-9)
    scalar = chain.output(1)
    assert recurjac(scalar, ball, 2) == pytest.approx(np.linalg.norm(J[1]), rel=1e-9)
    assert lipopt(scalar, box) == pytest.approx(np.abs(J[1]).sum(), rel=1e-9)
    assert recurjac(chain, ball, 2) == pytest.approx(np.linalg.norm(np.abs(J), 2), rel=1e-9)  # the paper's, for l2
