"""The joint bound by forward and backward passes alone, for networks with many uncertain groups.

Same condition and letters as descent.py: with D = diag(1, μ) the operator G = K D Kᵀ takes one backward and
one forward pass. W⁻¹ is applied by conjugate gradients, and the result rests on a certified ‖H‖ (docs/joint_bound.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..joint_operator.operator import LastGroups, Network
from .certificate import Random, certify
from .descent import descend, log_norm

WIDE = 2**23  # elements of a layer in single precision: larger ones are new memory in every operation, which is slow
CG_STEPS = 40
CG_TOLERANCE = 0.02  # of the residual; the gradient needs no more, and no bound rests on it
BASIS = 6  # output directions that the multipliers are tuned for, where the outputs are many
SMALL_OUTPUT = 16  # all output directions at once
ROUNDS = 3  # changes of these directions
P_NORM = 16.0
WORTH = 1.1  # multipliers on the way are improved where γ may fall by more than this factor
BLOCK = 2  # directions that a Krylov space starts from
GROWTH, WAY_GROWTH, ROUGH_GROWTH = 9, 6, 3  # times it grows by as many: for outputs, layers, new groups
REPAIRS = (1.05, 1.2, 1.5, 2.0, 4.0, 16.0)
ROUGH = 2e-2  # tolerance of the gains on the way
FINE = 5e-4  # of the last certificate: what it exceeds 1 by counts once for each layer
SLACK = 1e-9


def gram(network: Network | LastGroups, mu: Tensor, f: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K D Kᵀ (f, v), and the w part of Kᵀ(f, v): (p, m), (p, G), (p, G); a few of p at a time where layers are wide."""
    part, results = max(1, WIDE // network.widest), []
    for some_f, some_v in zip(f.split(part), v.split(part), strict=True):
        delta, w = network.adjoint(some_f, some_v)
        results.append((*network.forward(delta, mu * w), w))
    f, v, w = (torch.cat(x) for x in zip(*results, strict=True))
    return f, v, w


def respond(
    network: Network | LastGroups, mu: Tensor, F: Tensor, guess: Tensor | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """(S F, Y, E) for output directions F (p, m): Y = W⁻¹C F, E = PᵀF + TᵀY.

    None where W is seen not to be ≻ 0, or where numbers are too large for the working dtype.
    """
    p, G = F.shape[0], len(mu)
    if G == 0:
        Y: Tensor | None = F.new_zeros(p, 0)
    else:
        _, C, _ = gram(network, mu, F, F.new_zeros(p, G))
        Y = _conjugate_gradients(network, mu, C, guess)
    if Y is None:
        return None
    SF, _, E = gram(network, mu, F, Y)
    return (SF, Y, E) if bool(torch.isfinite(SF).all()) else None


def _conjugate_gradients(network: Network | LastGroups, mu: Tensor, C: Tensor, guess: Tensor | None) -> Tensor | None:
    """W⁻¹C for C (p, G), preconditioned by diag(μ); None where a direction of negative curvature turns up."""

    def W(y: Tensor) -> Tensor:
        _, v, _ = gram(network, mu, y.new_zeros(y.shape[0], network.out_size), y)
        return mu * y - v

    y = torch.zeros_like(C) if guess is None else guess
    r = C if guess is None else C - W(y)
    z = r / mu
    d, rz = z, (r * z).sum(1)
    target = CG_TOLERANCE**2 * (C.square() / mu).sum(1)
    for _ in range(CG_STEPS):
        active = rz > target
        if not bool(active.any()):
            break
        Wd = W(d)
        curvature = (d * Wd).sum(1)
        if bool((curvature[active] <= 0).any()) or not bool(torch.isfinite(curvature).all()):
            return None
        step = torch.where(active, rz / curvature, 0.0)[:, None]
        y, r = y + step * d, r - step * Wd
        z = r / mu
        new = (r * z).sum(1)
        d = z + torch.where(active, new / rz.clamp(min=torch.finfo(rz.dtype).tiny), 0.0)[:, None] * d
        rz = new
    return y


@dataclass
class Top:
    """Estimates of the best γ (1,) or (K,) for given μ, from below, and the output directions (p, m) to tune μ for."""

    gamma: Tensor
    F: Tensor


def top(network: Network | LastGroups, mu: Tensor, F: Tensor, growth: int = GROWTH) -> Top | None:
    """Estimate of the largest eigenvalue of S(μ) from the Krylov space of F[:BLOCK]; None where W is not ≻ 0."""
    if F.shape[0] == network.out_size:  # F is square and orthogonal
        answer = respond(network, mu, F, None)
        if answer is None:
            return None
        values = torch.linalg.eigvalsh((F @ answer[0].T).double())
        return Top(values[-1:], F)
    basis = images = F[:0]
    block = torch.linalg.qr(F[:BLOCK].T)[0].T
    for _ in range(min(growth, network.out_size // BLOCK)):
        answer = respond(network, mu, block, None)
        if answer is None:
            return None
        basis, images = torch.cat([basis, block]), torch.cat([images, answer[0]])
        block = answer[0]
        for _ in range(2):
            block = torch.linalg.qr((block - (block @ basis.T) @ basis).T)[0].T
    small = (basis @ images.T).double()
    values, vectors = torch.linalg.eigh(0.5 * (small + small.T))
    best = vectors[:, -BASIS:].flip(1).to(F.dtype).T @ basis
    return Top(values[-1:], best)


def estimate(network: Network, mu: Tensor, C: Tensor | None, F: Tensor) -> Top | None:
    """γ (1,) of the whole output, or (K,) of each of C (K, m); None where W is not ≻ 0."""
    if C is None:
        return top(network, mu, F)
    answer = respond(network, mu, C, None)
    return None if answer is None else Top((C * answer[0]).double().sum(1), C)


def improve(network: Network, mu: Tensor, F: Tensor, steps: int, p: float | None) -> Tensor:
    """Better multipliers for the outputs F (p rows): mean of log S_ii (p None), or p-norm of F S Fᵀ."""
    dtype, warm = F.dtype, dict[str, Tensor]()

    def evaluate(theta: Tensor) -> tuple[float, Tensor, Tensor] | None:
        mu = theta.exp().to(dtype)
        if not bool((torch.isfinite(mu) & (mu > 0)).all()):
            return None
        answer = respond(network, mu, F, warm.get("Y"))
        if answer is None:
            return None
        SF, Y, E = answer
        S = (F @ SF.T).double()
        if p is None:
            s = S.diagonal().clamp(min=torch.finfo(dtype).tiny)
            value, weight = float(s.log().mean()), 1.0 / (s * len(s))
            left, right = E, Y
        else:
            s, basis = torch.linalg.eigh(0.5 * (S + S.T))
            value, weight = log_norm(s, p)
            left, right = basis.T.to(dtype) @ E, basis.T.to(dtype) @ Y
        warm["Y"] = Y
        weight, m = weight[:, None], theta.exp()
        return value, m * (left.double().square() * weight).sum(0), m * (right.double().square() * weight).sum(0)

    return descend(evaluate, mu.double().log(), steps).exp().to(dtype)


class Infeasible(Exception):
    """No feasible multipliers were found."""


def directions(count: int, network: Network | LastGroups, random: Random) -> Tensor:
    """Output directions (count, m) to start from; all of them where they are few."""
    m = network.out_size
    return torch.eye(m).to(network.like) if m <= SMALL_OUTPUT else random.normal(count, m, network.like)


def least(network: Network, F: Tensor) -> float:
    """‖F N‖² for orthonormal directions F (p, m): no multipliers make γ smaller."""
    delta, _ = network.adjoint(F, F.new_zeros(F.shape[0], network.groups))
    return float(torch.linalg.eigvalsh((delta @ delta.T).double())[-1])


def layer_gain(network: Network, mu: Tensor, gamma: Tensor, random: Random) -> float:
    """A certified bound of ‖Δ‖ / ‖δ‖ for the output of `network`; γ (1,): an estimate of its square, to start from."""
    certified = certify(network, mu, (1.0 + 3.0 * ROUGH) * gamma.double(), None, random, ROUGH)
    return float(certified.sqrt()) * (1.0 + SLACK)


class PassGroups:
    """The multipliers μ of the groups so far, growing in the order of the layers; gains are left as they are."""

    status = "passes"

    def __init__(self, network: Network, cost: int, steps: int, random: Random) -> None:
        self.network, self.steps, self.random = network, steps, random
        self.mu = network.like.new_zeros(0)
        self.order = network.like.new_zeros(0)  # of each group's kink layer: 1, 2, …

    def gains(self, network: Network, count: int) -> None:
        return None

    def add(self, network: Network, kept: Tensor, g: Tensor) -> None:
        """μ ∝ g² for the new groups, twice what makes W positive definite."""
        if len(g) == 0:
            return
        g = g.to(self.network.like)
        rows = LastGroups(network, len(g), g)
        found = self._repaired(lambda: top(rows, self.mu, directions(BLOCK, rows, self.random), ROUGH_GROWTH))
        self.mu = torch.cat([self.mu, 2.0 * max(1.0, 1.1 * float(found.gamma)) * g.square()])
        self.order = torch.cat([self.order, g.new_full((len(g),), network.depth)])

    def _repaired(self, attempt: Callable[[], Top | None]) -> Top:
        """attempt(), with multipliers that are feasible: μ_k s^k is where ‖H‖² ≤ s with μ (docs, section 4)."""
        for s in REPAIRS:
            found = attempt()
            if found is not None and bool(torch.isfinite(found.gamma).all()):
                return found
            self.mu = self.mu * s**self.order
        raise Infeasible("no feasible multipliers were found")

    def layer_gain(self, network: Network) -> float:
        if len(self.mu) == 0:
            return layer_gain(network, self.mu, self.mu.new_ones(1), self.random)
        start = directions(BASIS, network, self.random)
        best = self._repaired(lambda: top(network, self.mu, start, WAY_GROWTH))
        if bool(best.gamma > WORTH * least(network, best.F)):
            mu = improve(network, self.mu, best.F, self.steps, P_NORM)
            better = top(network, mu, best.F, WAY_GROWTH)
            if better is not None and bool(better.gamma < best.gamma):
                self.mu, best = mu, better
        return layer_gain(network, self.mu, best.gamma, self.random)

    def outputs(self, network: Network, C: Tensor | None, effort: int) -> tuple[Tensor, Tensor]:
        """Bounds of the whole output (1,) or of each of C (K, m): certified, and an estimate before refinement."""
        if len(self.mu) == 0:
            ones = torch.ones(1 if C is None else len(C), dtype=torch.float64, device=network.like.device)
            value = certify(network, self.mu, ones, C, self.random, self.random.tolerance).sqrt()
            return value, value
        few = C is None and network.out_size <= SMALL_OUTPUT
        F = directions(BASIS, network, self.random) if C is None else C
        best = self._repaired(lambda: estimate(network, self.mu, C, F))
        before, gamma, mu = best.gamma.sqrt(), best.gamma, self.mu
        rounds = 1 if few or C is not None else ROUNDS
        for _ in range(rounds):
            self.mu = improve(network, self.mu, best.F, max(1, effort // rounds), P_NORM if C is None else None)
            try:
                best = self._repaired(lambda: estimate(network, self.mu, C, best.F))
            except Infeasible:
                break
            if bool(best.gamma.sum() < gamma.sum()):  # not always: other directions may have become larger
                gamma, mu = best.gamma, self.mu
        self.mu = mu
        gamma = certify(network, self.mu, gamma * (1.0 + self.random.tolerance), C, self.random, FINE)
        return gamma.sqrt(), before
