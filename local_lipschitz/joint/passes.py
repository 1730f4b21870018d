"""The joint bound by forward and backward passes alone, for networks with many uncertain groups.

Same condition and letters as descent.py. The result rests on a certified ‖H‖ (docs/joint_bound.md, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ..joint_operator import Elements, JointOperator, Passes
from ..layers.graph import Graph
from .certificate import Random, certify
from .descent import TINY, Infeasible, TooManyGroups
from .krylov import BASIS, INSIDE, SMALL_OUTPUT, Top, least, respond, top
from .row_gains import Gains, random_sums, row_gains
from .together import Work
from .tuning import Barrier, Objective, improve, of_all, of_the_whole, of_the_worst

ROUNDS, ANOTHER = 3, 0.05  # changes of these directions, at most; of γ: what one has to gain for another to follow
PLAIN = ((16.0, 0.0),)  # p of the norm that smooths the largest eigenvalue, and τ of the barrier
CENTRAL = ((8.0, 0.3), (16.0, 0.05), (64.0, 0.01))  # where passes are cheap
WORTH = 2.0  # multipliers on the way are improved where γ may fall by more than this factor
ADDED, WAY, LAST = 4, 12, 16  # steps of a Krylov space: for new groups, a layer, the output
ROOM, LARGER_ROOM = 2.2, 4.0  # of the μ of new groups, over what they were found to need: tuned on the way, or not
RAISED, TIGHT = 1.5, 1.03  # γ of a layer over what was found: a certificate close to the least takes many steps
MORE = 0.015  # kinks, of those so far, that may be added for want of a certificate
NOISE = 0.3  # of a random direction beside the one that is known
REPAIRS = (1.05, 1.2, 1.5, 2.0, 4.0, 16.0)
ROUGH = 2e-2  # tolerance of the gains on the way
FINE = 5e-4  # of the last certificate: what it exceeds 1 by counts once for each layer
WORK = {"cpu": 1e12, "cuda": 3e13}  # multiplications, up to which elements get gains of their own
SOLVE = 12  # passes of the whole network that the gain of an element may take
SUMS, PROBES = 32, 16  # of a layer's elements, for which μ is improved; vectors of the barrier
GAIN, LAST_GAIN = 5e-3, 1e-3  # of log γ: what another step has to promise on the way, and at the end
PASSES_SLACK = 1e-9  # outward, on a gain by passes
FAR_BELOW = 1e-6  # of a first bound: the least target; the square of a smaller one might vanish

Found = TypeVar("Found", Tensor, Top)


def cheap(solves: int, cost: int, device: torch.device, spent: float = 0.0) -> bool:
    """Whether the gains of so many elements of a network are affordable by passes, beside the work that is done."""
    return spent + solves * SOLVE * cost <= WORK[device.type]


def _objective(p: float, tau: float, each: bool, aims: bool) -> Objective:
    """Of the last multipliers: the norm of the whole output, or of `each` function, the worst where there are targets.

    Without a barrier all functions count even so: a single one would hardly keep W from its boundary.
    """
    if not each:
        return partial(of_the_whole, p=p)
    return partial(of_the_worst, p=p) if aims and tau > 0.0 else of_all


def _units(bounds: Tensor, target: Tensor | None) -> Tensor:
    """Those in which functions are compared: their targets, none too far below its bound; 1 where there are none."""
    unit = torch.ones_like(bounds) if target is None else target.to(bounds).maximum(FAR_BELOW * bounds)
    return torch.where(unit > 0.0, unit, 1.0)


def middle(operator: Passes, delta: Tensor) -> Tensor:
    """N δ (1, m), where δ (1, n) moves the output with every kink in its middle."""
    return operator.forward(delta, delta.new_zeros(1, operator.groups))[0]


class PassGroups:
    """The multipliers μ of the groups so far, growing in the order of the layers.

    dear: whether to go on where passes are too dear for gains of single elements.
    """

    status = "passes"

    def __init__(self, like: Tensor, graph: Graph, steps: int, random: Random, dear: bool = True) -> None:
        self.cost, self.steps, self.random, self.dear = graph.cost, steps, random, dear
        self.mu, self.order = like.new_zeros(0), like.new_zeros(0)  # order: of each group's kink layer: 1, 2, …
        self.worst: Tensor | None = None  # (1, n) the direction of the input that moves the last layer furthest
        self.finds, self.tuned = 0, False  # tuned: whether the last elements got gains of their own, and μ served these

    def find(self, candidates: Elements) -> Work[Gains]:
        """Gains of their own where passes are cheap, with μ improved for them."""
        yield from ()  # asks for nothing: multipliers are found by passes
        self.tuned = self._cheap(candidates.operator, candidates.out_size + self.steps * (SUMS + PROBES))
        if not self.tuned and not self.dear:
            raise TooManyGroups(len(self.mu) + candidates.out_size)
        known = len(self.mu) == 0 and not candidates.operator.blocks[-1].levels  # their row norms are
        if known or not self.tuned:
            return Gains(None)
        if len(self.mu):
            F = random_sums(candidates, SUMS, self.random)
            self._improve(candidates, F, self.steps, of_all, CENTRAL[0][1], GAIN)
        self.finds += 1
        return Gains(row_gains(candidates, self.mu, self.random, self.random.share / (self.finds * (self.finds + 1))))

    def _cheap(self, operator: JointOperator, solves: int) -> bool:
        return cheap(solves, self.cost, operator.like.device, operator.work)

    def add(self, found: Gains, kept: Tensor, elements: Elements) -> None:
        """μ ∝ g² for the new groups, some times what makes W positive definite."""
        needed = self._top(elements, ADDED).gamma * (ROOM if self.tuned else LARGER_ROOM)
        g, depth = elements.scale, elements.operator.depth + 1
        self.mu = torch.cat([self.mu, needed.to(g).clamp(min=torch.finfo(g.dtype).eps) * g.square()])
        self.order = torch.cat([self.order, torch.full_like(g, depth)])

    def layer_gain(self, operator: JointOperator, known: float) -> float:
        """A certified bound of ‖Δ‖ / ‖δ‖ for the output of `operator`, somewhat larger than it need be.

        The one that is `known` where a smaller one would hardly make the kinks fewer.
        """
        gamma = self.mu.new_ones(1, dtype=torch.float64)
        if len(self.mu):
            raised = TIGHT if self.tuned else RAISED
            if not self._matters(operator, known, math.sqrt(raised) * self._attained(operator)):
                return known
            best = self._top(operator, WAY, BASIS)
            if not self._matters(operator, known, math.sqrt(raised * float(best.gamma))):
                self.worst = best.delta
                return known
            if not self.tuned and float(best.gamma) > WORTH * least(operator, best.F):
                before, raised, (p, tau) = self.mu, TIGHT, PLAIN[0]
                self._improve(operator, best.F, self.steps, partial(of_the_whole, p=p), tau, GAIN)
                better = self._top(operator, WAY, BASIS)
                if bool(better.gamma < best.gamma):
                    best = better
                else:
                    self.mu = before
            self.worst, gamma = best.delta, raised * best.gamma
        certified = certify(operator, self.mu, gamma, None, self.random, ROUGH)
        return float(certified.sqrt()) * (1.0 + PASSES_SLACK)

    def outputs(
        self, operator: JointOperator, C: Tensor | None, effort: int, target: Tensor | None = None
    ) -> Work[tuple[Tensor, Tensor]]:
        """Bounds of the whole output (1,) or of each of C (K, m): certified, and an estimate before refinement."""
        yield from ()
        if len(self.mu) == 0:
            ones = torch.ones(1 if C is None else len(C), dtype=torch.float64, device=operator.like.device)
            value = certify(operator, self.mu, ones, C, self.random, self.random.tolerance).sqrt()
            return value, value
        few = C is None and operator.out_size <= SMALL_OUTPUT
        everything = torch.eye(operator.out_size).to(operator.like) if few else None
        rows = everything if C is None else C.to(operator.like)
        rounds = ROUNDS if rows is None else 1
        gamma, F = self._estimate(operator, rows, C is not None)
        before, best, mu = gamma.sqrt(), gamma, self.mu
        unit, size = _units(before, target), torch.sum if target is None else torch.amax
        stages = CENTRAL if self._cheap(operator, effort * (len(F) + PROBES)) else PLAIN
        for p, tau in stages * rounds:
            if target is not None and bool((best.sqrt() * (1.0 + ROUGH) <= target).all()):
                break
            try:
                steps = max(2, effort // (rounds * len(stages)))
                relative, objective = (F / unit[:, None]).to(F), _objective(p, tau, C is not None, target is not None)
                if not self._improve(operator, relative, steps, objective, tau, LAST_GAIN):
                    break
                gamma, F = self._estimate(operator, rows, C is not None)
            except Infeasible:
                break
            gained = 1.0 - float(size(gamma / unit.square()) / size(best / unit.square()))
            if gained > 0.0:  # not always: other directions may have become larger
                best, mu = gamma, self.mu
            if gained < ANOTHER and tau == 0.0:  # without the barrier more may be gained
                break
        self.mu = mu
        gamma = certify(operator, self.mu, best * (1.0 + self.random.tolerance), C, self.random, FINE)
        return gamma.sqrt(), before

    def _estimate(self, operator: JointOperator, rows: Tensor | None, each: bool) -> tuple[Tensor, Tensor]:
        """γ (1,) of the whole output, or (K,) of `each` of the rows, and the directions that μ is to be tuned for."""
        if rows is None:
            best = self._top(operator, LAST, BASIS)
            self.worst = best.delta
            return best.gamma, best.F

        def exactly(mu: Tensor) -> Tensor | None:
            answer = respond(operator, mu, rows, None, 0.5 * INSIDE)
            return None if answer is None else (rows @ answer[0].T).double()

        S = self._repaired(exactly)
        return (S.diagonal() if each else torch.linalg.eigvalsh(0.5 * (S + S.T))[-1:]), rows

    def _improve(self, operator: Passes, F: Tensor, steps: int, objective: Objective, tau: float, gain: float) -> bool:
        """Better multipliers for the directions F; False where nothing was to be gained."""
        before, barrier = self.mu, Barrier.around(self.mu, PROBES if tau else 0, tau, self.random)
        self.mu = self._repaired(
            partial(improve, operator, F=F, steps=steps, objective=objective, gain=gain, barrier=barrier)
        )
        return self.mu is not before

    def _matters(self, operator: JointOperator, known: float, gain: float) -> bool:
        """Whether kinks would be noticeably fewer with this gain in place of the one that is `known`.

        The next layer is taken to have as many as the last one, and the more the larger the gain.
        """
        added = (known / max(gain, TINY) - 1.0) * max(1, operator.blocks[-1].count)
        return added > MORE * len(self.mu)

    def _attained(self, operator: JointOperator) -> float:
        """How far the worst direction of the layer before moves this one, ‖N δ‖/‖δ‖: no gain is smaller."""
        if self.worst is None:
            return 0.0
        moved = middle(operator, self.worst)
        return float(moved.norm() / self.worst.norm().clamp(min=torch.finfo(moved.dtype).tiny))

    def _top(self, operator: Passes, steps: int, count: int = 1) -> Top:
        """From the output that the worst direction of the layer before becomes, with something of all others."""
        start = self.random.normal(1, operator.out_size, operator.like)
        if self.worst is not None:
            moved = middle(operator, self.worst)
            start = start * (NOISE * moved.norm() / start.norm()) + moved
        return self._repaired(partial(top, operator, start=start, steps=steps, count=count))

    def _repaired(self, attempt: Callable[..., Found | None]) -> Found:
        """attempt(mu=μ), with multipliers that are feasible: μ_k s^k is where ‖H‖² ≤ s with μ (docs, section 4)."""
        for s in REPAIRS:
            found = attempt(mu=self.mu)
            if found is not None:
                return found
            self.mu = self.mu * s**self.order
        raise Infeasible("no feasible multipliers were found")
