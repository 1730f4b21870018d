"""The joint bound by forward and backward passes alone, for networks with many uncertain groups.

Same condition and letters as descent.py. The result rests on a certified ‖H‖ (docs/joint_bound.md, section 4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..joint_operator import Elements, JointOperator
from ..layers.graph import Graph
from .certificate import Random, certify
from .descent import Point, descend, log_norm
from .krylov import BASIS, BLOCK, SMALL_OUTPUT, Top, directions, estimate, least, respond, top

ROUNDS = 3  # changes of these directions
P_NORM = 16.0
WORTH = 1.1  # multipliers on the way are improved where γ may fall by more than this factor
WAY_GROWTH, ROUGH_GROWTH = 6, 3  # times a Krylov space grows: for layers, new groups
REPAIRS = (1.05, 1.2, 1.5, 2.0, 4.0, 16.0)
ROUGH = 2e-2  # tolerance of the gains on the way
FINE = 5e-4  # of the last certificate: what it exceeds 1 by counts once for each layer
PASSES_SLACK = 1e-9  # outward, on a gain by passes


def improve(operator: JointOperator, mu: Tensor, F: Tensor, steps: int, p: float | None) -> Tensor:
    """Better multipliers for the outputs F (p rows): mean of log S_ii (p None), or p-norm of F S Fᵀ."""
    dtype, warm = F.dtype, dict[str, Tensor]()

    def evaluate(wide: Tensor) -> Point | None:
        mu = wide.to(dtype)
        if not bool((torch.isfinite(mu) & (mu > 0)).all()):
            return None
        answer = respond(operator, mu, F, warm.get("Y"))
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
        up, down = ((side.double().square() * weight[:, None]).sum(0) for side in (left, right))
        return Point(value, wide * up, wide * down)

    return descend(evaluate, mu.double(), steps)[0].to(dtype)


class Infeasible(Exception):
    """No feasible multipliers were found."""


def layer_gain(operator: JointOperator, mu: Tensor, gamma: Tensor, random: Random) -> float:
    """A certified bound of ‖Δ‖ / ‖δ‖ for the output of `operator`; γ (1,): an estimate of its square, to start from."""
    certified = certify(operator, mu, (1.0 + 3.0 * ROUGH) * gamma.double(), None, random, ROUGH)
    return float(certified.sqrt()) * (1.0 + PASSES_SLACK)


class NoRows:
    """Of elements whose rows are not affordable."""

    gains = None


class PassGroups:
    """The multipliers μ of the groups so far, growing in the order of the layers; gains are left as they are."""

    status = "passes"

    def __init__(self, like: Tensor, graph: Graph, steps: int, random: Random) -> None:
        self.steps, self.random = steps, random
        self.mu, self.order = like.new_zeros(0), like.new_zeros(0)  # order: of each group's kink layer: 1, 2, …

    def find(self, candidates: Elements) -> NoRows:
        return NoRows()

    def add(self, found: NoRows, kept: Tensor, elements: Elements) -> None:
        """μ ∝ g² for the new groups, twice what makes W positive definite."""
        start = directions(BLOCK, elements, self.random)
        best = self._repaired(lambda: top(elements, self.mu, start, ROUGH_GROWTH))
        g, depth = elements.scale, elements.operator.depth + 1
        self.mu = torch.cat([self.mu, 2.0 * max(1.0, 1.1 * float(best.gamma)) * g.square()])
        self.order = torch.cat([self.order, torch.full_like(g, depth)])

    def _repaired(self, attempt: Callable[[], Top | None]) -> Top:
        """attempt(), with multipliers that are feasible: μ_k s^k is where ‖H‖² ≤ s with μ (docs, section 4)."""
        for s in REPAIRS:
            found = attempt()
            if found is not None and bool(torch.isfinite(found.gamma).all()):
                return found
            self.mu = self.mu * s**self.order
        raise Infeasible("no feasible multipliers were found")

    def layer_gain(self, operator: JointOperator) -> float:
        if len(self.mu) == 0:
            return layer_gain(operator, self.mu, self.mu.new_ones(1), self.random)
        start = directions(BASIS, operator, self.random)
        best = self._repaired(lambda: top(operator, self.mu, start, WAY_GROWTH))
        if bool(best.gamma > WORTH * least(operator, best.F)):
            mu = improve(operator, self.mu, best.F, self.steps, P_NORM)
            better = top(operator, mu, best.F, WAY_GROWTH)
            if better is not None and bool(better.gamma < best.gamma):
                self.mu, best = mu, better
        return layer_gain(operator, self.mu, best.gamma, self.random)

    def outputs(
        self, operator: JointOperator, C: Tensor | None, effort: int, target: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Bounds of the whole output (1,) or of each of C (K, m): certified, and an estimate before refinement."""
        if len(self.mu) == 0:
            ones = torch.ones(1 if C is None else len(C), dtype=torch.float64, device=operator.like.device)
            value = certify(operator, self.mu, ones, C, self.random, self.random.tolerance).sqrt()
            return value, value
        few = C is None and operator.out_size <= SMALL_OUTPUT
        rows = None if C is None else C.to(operator.like)
        F = directions(BASIS, operator, self.random) if rows is None else rows
        best = self._repaired(lambda: estimate(operator, self.mu, rows, F))
        before, gamma, mu = best.gamma.sqrt(), best.gamma, self.mu
        rounds = 1 if few or C is not None else ROUNDS
        for _ in range(rounds):
            if target is not None and bool((gamma.sqrt() * (1.0 + ROUGH) <= target).all()):
                break
            self.mu = improve(operator, self.mu, best.F, max(1, effort // rounds), P_NORM if C is None else None)
            try:
                best = self._repaired(lambda: estimate(operator, self.mu, rows, best.F))
            except Infeasible:
                break
            if bool(best.gamma.sum() < gamma.sum()):  # not always: other directions may have become larger
                gamma, mu = best.gamma, self.mu
        self.mu = mu
        gamma = certify(operator, self.mu, gamma * (1.0 + self.random.tolerance), C, self.random, FINE)
        return gamma.sqrt(), before
