"""The joint bound with the rows of all uncertain groups at hand (docs/joint_bound.md, sections 3 to 5).

For networks whose uncertain neurons are a few thousand: one backward pass a group gives its row of [Q T], and from
then on everything is dense linear algebra in the number of groups, in float64, whatever the size of the network.
Rounding (section 6): each row has its proven error, |v_g − ṽ_g| ≤ ε_g‖δ‖; `slack` covers the algebra.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..joint_operator import Elements, JointOperator
from ..layers.graph import Graph
from ..norms.lanczos import Operator
from ..norms.spectral_norm import DENSE_SIDE, lanczos_norms
from .certificate import FEW, Random, output_tails
from .descent import TooManyGroups, affordable
from .device import SHARE, free_memory, largest_cube, memory
from .factor import Factor
from .first_kinks import step_work
from .functions import Functions, rows
from .groups import CANCELLED, RESULT_SLACK, TAU, Groups, least_mu
from .interior import NEWTON
from .krylov import BASIS, SMALL_OUTPUT
from .passes import FAR_BELOW, ROUGH, ROUNDS
from .together import Work

ALONE = 200  # effort from which each output gets multipliers of its own: about a per cent, at twice the cost
DEAR, LEAST_STEPS = 2000, 3  # groups, none eliminated, from which fewer steps are taken, since each is dearer; how few
WORK = 2e12  # multiplications spent on rows, or
ROWS = 600  # times those of the operator
MORE = 4 / 3  # times the steps on the way where kinks are too many for Newton steps, which end at the optimum anyway
TUNED = 256  # functions that stand for all those of a layer when its multipliers are tuned
SURE = 1e-6  # that values are below their targets before they are proven


class DenseGroups(Groups):
    """The groups as they are found on the way, growing in the order of the layers."""

    status = "dense"

    def __init__(self, like: Tensor, graph: Graph, steps: int, random: Random) -> None:
        super().__init__(like, math.prod(graph.in_shape))
        self.cost, self.steps, self.random = graph.cost, steps, random
        self.memory = SHARE * free_memory(like.device)

    def find(self, candidates: Elements) -> Work[Functions]:
        operator, count = candidates.operator, candidates.out_size
        total = count + len(self.mu)
        too_dear = operator.work + count * operator.cost > max(WORK, ROWS * self.cost)
        too_large = memory(total, self.Q.shape[1]) > self.memory
        if too_dear or too_large or self._step_work(count) > largest_cube(self.Q.device):
            raise TooManyGroups(total)
        found = Functions(self, *rows(candidates))
        if len(self.mu):
            steps = self.steps if len(self.mu) <= NEWTON else round(MORE * self.steps)
            self.mu = yield from found.some(TUNED).improve(self.mu, self._affordable(steps), True, last=False)
        return found

    def _affordable(self, steps: int) -> int:
        """Fewer steps where each takes longer."""
        return affordable(steps, round(self._step_work() ** (1 / 3)), DEAR, 2, LEAST_STEPS)

    def _step_work(self, new: int = 0) -> float:
        """Multiplications of a step with so many more groups, in units of those of a cube; the first are eliminated."""
        sets = self.eliminated()
        first = len(sets.place) if sets is not None else 0 if len(self.mu) else new
        return step_work(self.Q.shape[1], first, len(self.mu) + new)

    def add(self, found: Functions, kept: Tensor, elements: Elements) -> None:
        """μ ∝ S_gg for the new groups, twice what makes W positive definite."""
        new = found.part(kept)
        X, S, error = new.rows(self.mu), new.matrix(self.mu), new.error
        size = S.diagonal().clamp(min=torch.finfo(S.dtype).tiny)
        tau = (CANCELLED * error / size.sqrt()).clamp(TAU, 1.0)
        d = size + least_mu(error, tau)
        top = _largest(S / (d.sqrt()[:, None] * d.sqrt()), self.random)
        layer = sum(len(block.kinks) for block in elements.operator.blocks)
        self.extend(layer, (new.delta, new.P), 2.0 * top * d, error, tau)
        self.extend_factor(X, S)

    def layer_gain(self, operator: JointOperator, known: float) -> float:
        """√λ_max(S(μ)) of the whole output of `operator`, certified; in float64. Of small ones all rows are at hand."""
        small = operator.out_size + len(self.mu) <= DENSE_SIDE
        factor = self.factor(self.mu, operator.out_size if small else 1)
        if factor is None:
            return math.inf
        if small:
            return float(Functions(self, *rows(operator)).proven(self.mu, False))
        share = self.random.share
        eta = output_tails(operator, self.random)
        M = self._root(operator, factor, eta.to(self.mu.device))
        norm = lanczos_norms(M, ROUGH, (1.0 - FEW) * share, self.random.generator).upper
        self.random.spent += share
        return float(norm) * math.sqrt(self.rounding(self.mu) * (1.0 + 2.0 * self.slack(1))) * (1.0 + RESULT_SLACK)

    def _root(self, operator: JointOperator, factor: Factor, eta: Tensor) -> Operator:
        """M with M Mᵀ = S(μ), the rows of the factor of all outputs: one pass and dense algebra."""

        def apply(x: Tensor) -> Tensor:
            delta, w = factor.back(x)
            return operator.forward(delta, self.stretch * w)[0]

        def adjoint(f: Tensor) -> Tensor:
            delta, w = operator.adjoint(f, f.new_zeros(len(f), len(self.mu)))
            return factor.rows(delta, self.stretch * w)

        return Operator(1, operator.out_size, factor.terms, apply, adjoint, self.mu.dtype, self.mu.device, eta)

    def outputs(
        self, operator: JointOperator, C: Tensor | None, effort: int, target: Tensor | None = None
    ) -> Work[tuple[Tensor, Tensor]]:
        """Bounds of the whole output (1,) or of each of C (K, m): proven at the end, and before refinement."""
        function, each = Functions(self, *rows(operator, C)), C is not None
        before = function.bounds(self.mu, each)
        best, mu, part = (before, self.mu), self.mu, function
        wanted = None if target is None else target.maximum(FAR_BELOW * before)
        open_ = torch.ones_like(before, dtype=torch.bool) if wanted is None else before > wanted * (1.0 - SURE)
        if each and wanted is not None:
            part, wanted, best = function.part(open_), wanted[open_], (before[open_], mu)
        effort, many = self._affordable(effort), C is None and operator.out_size > SMALL_OUTPUT
        for _ in range((ROUNDS if many else 1) if len(mu) and bool(open_.any()) else 0):
            largest = part.top(mu, 2 * BASIS) if many else part
            mu = yield from largest.improve(mu, max(1, effort // ROUNDS) if many else effort, each, wanted)
            best = min(best, (part.bounds(mu, each), mu), key=lambda found: _size(found[0], wanted))
        value = function.proven(best[1], each)
        if not bool(open_.all()):
            value = torch.minimum(value, function.proven(self.mu, each))
        if C is not None and effort >= ALONE and len(mu) and target is None:
            own = []
            for row in (function.part(slice(k, k + 1)) for k in range(len(C))):
                tuned = yield from row.improve(mu, effort // 8, True)
                own.append(row.proven(tuned, True))
            value = torch.minimum(value, torch.cat(own))
        self.mu = best[1]
        return value, torch.maximum(before, value)


def _size(bounds: Tensor, wanted: Tensor | None) -> float:
    """What makes some bounds better than others: the mean, or how far the worst is above what is wanted."""
    return float(bounds.mean() if wanted is None else (bounds / wanted).amax())


def _largest(S: Tensor, random: Random) -> float:
    """The largest eigenvalue of a correlation matrix; of a large one roughly, hardly below it by more than a tenth."""
    if len(S) <= 400:
        return float(torch.linalg.eigvalsh(S)[-1].clamp(min=1.0))
    x = random.normal(len(S), 4, S)
    for _ in range(20):
        x = torch.linalg.qr(S @ x)[0]
    return max(1.0, float(torch.linalg.matrix_norm(S @ x, 2)))
