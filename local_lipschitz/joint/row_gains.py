"""Gains of single elements by passes: each bounded by itself, whatever the multipliers so far (docs/joint_bound.md).

One certificate of the kinks alone, ‖K̂‖² ≤ s < 1 for K̂ = diag(μ)^(−1/2) [Q, T diag(μ)^(1/2)], serves all elements. For
the functional of an element, carried back together with any y (G,), z = x + K̂ᵀy, its square is at most

    ‖z‖² − ‖y‖² + ‖K̂z − y‖²/(1 − s),

which is S(μ) where y = K̂z. Such y are found by conjugate gradients in the working dtype; only the last pass counts, in
float64 (docs/joint_bound.md, sections 5 and 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..joint_operator import Elements, JointOperator, RowErrors, unit_rows
from ..norms.spectral_norm import lanczos_norms
from ..numerics import of_computed
from .certificate import FEW, Random, scaled_operator, tail_norms
from .krylov import gram, solve

FORWARD = 1e-7  # of ‖z‖: what the rounding of a forward pass may change in K̂z, in the model of the Lanczos process
RESIDUAL = 0.1  # of conjugate gradients: S grows by its square
KINKS = 2e-2  # tolerance of ‖K̂‖
OUTWARD = 1e-12  # of a gain


@dataclass(frozen=True)
class Gains:
    """What is known of some elements: gains (k,), or None where these are not affordable."""

    gains: Tensor | None


@dataclass(frozen=True)
class Feasible:
    """Multipliers μ (G,) with ‖v̂‖² ≤ s‖ξ‖² on the true differences, ξ = (δ, μ^(−1/2)w), v̂ = μ^(−1/2)v; in float64.

    eta: |y·v̂ − K̂ᵀy·ξ| ≤ η‖y‖‖δ‖ for what a backward pass takes K̂ᵀy to be.
    """

    mu: Tensor
    s: float
    eta: float


def feasible(operator: JointOperator, mu: Tensor, random: Random, share: float) -> Feasible | None:
    """Certified, except with probability `share`; None where s < 1 is not seen. operator: in float64."""
    if len(mu) == 0:
        return Feasible(mu, 0.0, 0.0)
    one, nothing = mu.new_ones(1), mu.new_zeros(1, operator.out_size)  # H of an output that is 0
    eta = tail_norms(operator, mu, one, nothing, random, share)
    H = scaled_operator(operator, mu, one, nothing, eta)
    norms = lanczos_norms(H, KINKS, (1.0 - FEW) * share, random.generator, hopeless=1.0)
    random.spent += share
    s = float(norms.upper) ** 2
    return Feasible(mu, s, float(eta)) if s < 1.0 else None


def row_gains(elements: Elements, mu: Tensor, random: Random, share: float) -> Tensor | None:
    """(k,) |Δy_i| ≤ gain_i·‖δ‖ for each of the elements, float64; None where μ (G,) is not seen to be feasible."""
    exact = replace(elements, operator=elements.operator.to(torch.float64), scale=elements.scale.double())
    known = feasible(exact.operator, mu.double(), random, share)
    if known is None:
        return None
    gains = elements.like.new_empty(elements.out_size, dtype=torch.float64)  # small results beside large f: fragments
    done = 0
    for f in unit_rows(elements):
        y: Tensor | None = f.new_zeros(len(f), 0)
        if len(mu):
            y = solve(elements, mu, gram(elements, mu, f, f.new_zeros(len(f), len(mu)))[1], None, 0.0, RESIDUAL)
        if y is None:
            return None
        gains[done : done + len(f)] = _gains(exact, known, f.double(), y.double())
        done += len(f)
    if exact.operator is not elements.operator:
        elements.operator.work += exact.operator.work
    return gains


def _gains(elements: Elements, known: Feasible, f: Tensor, y: Tensor) -> Tensor:
    """Of the functionals f (p, k), with y (p, G) near W⁻¹c."""
    root = known.mu.sqrt()
    errors = RowErrors(f)
    delta, w = elements.adjoint(f, y, errors)
    z, y = torch.cat([delta, root * w], 1), root * y
    _, v = elements.forward(delta, root * z[:, delta.shape[1] :])
    zz, yy = z.square().sum(1), y.square().sum(1)
    missing = (v / root - y).norm(dim=1) + FORWARD * zz.sqrt()
    S = zz - yy + missing.square() / (1.0 - known.s) + of_computed(z.shape[1] + 8) * (zz + yy)
    gains = S.clamp(min=0.0).sqrt() * (1.0 + known.eta / math.sqrt(1.0 - known.s)) + known.eta * yy.sqrt()
    return (gains * (1.0 + OUTWARD) + errors.total).nan_to_num(nan=math.inf)


def random_sums(elements: Elements, count: int, random: Random) -> Tensor:
    """(count or fewer, k): functionals that stand for all elements, each the sum of some of them with random signs.

    The square of such a sum is that of its elements but for the chance of the signs, so that no group is forgotten.
    """
    k = elements.out_size
    F, every = elements.like.new_zeros(min(count, k), k), torch.arange(k)
    F[every % len(F), every] = random.normal(1, k, F)[0].sign()
    return F
