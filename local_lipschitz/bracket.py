"""The largest ε at which something holds, for each input of a batch: a bracket that closes (radius.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .printing import counter

EPS_MIN, EPS_MAX = 1e-15, 1e9  # the radii that are searched
GROWTH = 2.5  # the largest step upwards: bounds can be much dearer where they are far from holding
STEEP = 3.0  # d log h / d log ε that is taken for upward steps of bounds whose failures are dear,
STEEPER = 1.7  # or, if that is less, so many times the slope that was seen last
TOLD = 0.9  # times the h that is enough: one nearer to that may only be where the work ended, and tells nothing more
BLIND = 0.02  # the first step upwards, at least, from such an h; each one that holds is followed by one twice as long
BEYOND, ONWARD = 1.35, 1.15  # the first step upwards of the margin bound, from where the joint one ends, and the others
MAX_EVALUATIONS = 60
JUMP = 4.0  # d log h / d log ε that is taken for a jump


@dataclass(frozen=True)
class Manner:
    """How the search goes. careful: failures are dear, so steps upwards are such that they mostly hold.

    includes_start: what is asked holds where the search starts. It goes on from there by BEYOND and then ONWARD, and h
    only says whether it holds.
    """

    careful: bool = False
    includes_start: bool = False


@dataclass(frozen=True)
class Load:
    """h = max_c ε·L_c(ε)/margin_c, below 1 where the certificate holds, and the class c of the maximum; (b,) each.

    failure_probability: of the bound. dense: (b,) bool, whether it is a joint or margin bound by dense algebra.
    """

    h: Tensor
    limiting_class: Tensor
    failure_probability: float
    dense: Tensor


@dataclass(frozen=True)
class Found:
    """radius, limiting_class, evaluations, failure_probability as in radius.py; (B,) each.

    dense: whether a joint or margin bound by dense algebra held on the way.
    """

    radius: Tensor
    limiting_class: Tensor
    evaluations: Tensor
    failure_probability: Tensor
    dense: Tensor


class Loads(Protocol):
    """h at eps (b,) for the inputs `which` (b,), with random vectors of its own for every evaluation.

    An h ≤ enough, or > 1, need not be as small as possible. by_passes: whether to go on by passes where dense algebra
    ends even if they are dear.
    """

    def __call__(self, which: Tensor, eps: Tensor, evaluation: int, enough: float, by_passes: bool) -> Load: ...


def search(loads: Loads, start: Found, held: Tensor, manner: Manner, rtol: float, progress: bool) -> Found:
    """A bracket for each input, lo held and hi failed, until hi/lo ≤ 1 + rtol or h(lo) ≥ 1 − rtol."""
    bracket = _Bracket(len(held), held.device, manner)
    eps, limiting = start.radius.clamp(EPS_MIN, EPS_MAX), start.limiting_class.clone()
    failure, evaluations, dense = torch.zeros_like(eps), torch.zeros_like(limiting), start.dense.clone()
    if manner.includes_start:
        known, failure = (held & (start.radius > 0)).nonzero()[:, 0], failure + start.failure_probability
        bracket.holds(known, start.radius[known], torch.full_like(start.radius[known], 1.0 - rtol), rtol)
        eps[known] = bracket.following(rtol)[known]
    active = held.clone()
    show = counter(len(held), progress, "input")
    while bool(active.any()):
        first = active.nonzero()[0, 0]  # with those that are treated alike, as each would be without the others
        i = (active & (evaluations == evaluations[first]) & (dense == dense[first])).nonzero()[:, 0]
        evaluations[i] += 1
        by_passes = not bool(dense[first])  # dear ones are looser, too: they will hardly hold at a larger ε
        load = loads(i, eps[i], int(evaluations[first]), 1.0 - rtol, by_passes)
        failure[i] += load.failure_probability
        good = load.h < 1.0
        up, down = i[good], i[~good]
        bracket.holds(up, eps[up], load.h[good], rtol)
        limiting[up], dense[up] = load.limiting_class[good], dense[up] | load.dense[good]
        bracket.fails(down, eps[down], load.h[~good])
        bracket.note(i)
        active[up] = load.h[good] < 1.0 - rtol
        active &= bracket.open(rtol) & (evaluations < MAX_EVALUATIONS)
        eps[i] = bracket.following(rtol)[i]
        show(int((~active).sum()))
    return Found(bracket.lo, limiting, evaluations, failure, dense)


class _Bracket:
    """[lo, hi) for each input of a batch, of which 0 and ∞ are not known yet; f = log h at its ends."""

    def __init__(self, batch: int, device: torch.device, manner: Manner) -> None:
        self.manner = manner
        self.lo = torch.zeros(batch, dtype=torch.float64, device=device)
        self.hi = torch.full_like(self.lo, math.inf)
        self.f_lo, self.f_hi = -self.hi, self.hi.clone()
        self.width, self.slow = self.hi.clone(), torch.zeros_like(self.lo)  # log hi/lo; evaluations that hardly cut it
        self.held = torch.zeros(batch, dtype=torch.int64, device=device)  # how often
        self.steep = torch.full_like(self.lo, STEEP if manner.careful else 1.0)  # d log h / d log ε upwards
        self.blind = torch.zeros_like(self.lo)  # of log ε, the next step upwards where h only tells that it holds

    def holds(self, i: Tensor, eps: Tensor, h: Tensor, rtol: float) -> None:
        """The inputs i at eps, with h < 1."""
        if self.manner.careful:
            seen = (h.log() - self.f_lo[i]) / (eps / self.lo[i]).log()
            told, both = h < TOLD * (1.0 - rtol), (self.lo[i] > 0) & (self.blind[i] == 0)
            self.steep[i] = torch.where(told & both, STEEPER * seen, STEEP).clamp(1.0, STEEP)
            self.blind[i] = torch.where(told, 0.0, (2.0 * self.blind[i]).clamp(min=math.log1p(max(BLIND, rtol))))
        self.lo[i], self.f_lo[i], self.held[i] = eps, h.log(), self.held[i] + 1

    def fails(self, i: Tensor, eps: Tensor, h: Tensor) -> None:
        """The inputs i at eps, with h ≥ 1."""
        self.hi[i], self.f_hi[i] = eps, h.log()

    def note(self, i: Tensor) -> None:
        """How much narrower those of the inputs i have become."""
        before, self.width[i] = self.width[i], (self.hi[i] / self.lo[i]).log()
        slow = before.isfinite() & (self.width[i] > 0.51 * before)
        self.slow[i] = torch.where(slow, self.slow[i] + 1, 0)

    def open(self, rtol: float) -> Tensor:
        """Whether there is room in each for another evaluation, (B,) bool."""
        return (self.hi > self.lo * (1.0 + rtol)) & (self.lo < EPS_MAX) & (self.hi > EPS_MIN)

    def following(self, rtol: float) -> Tensor:
        """The ε to try next in each, (B,).

        L(ε) does not decrease, so f grows at least as fast as log ε: from any ε, the step to ε/h(ε) reaches the other
        side. It brackets, and it moves the other end where secants have moved only one (`slow`). Where f jumps, because
        an element stops being constant, only halves help, and so where h only tells that it holds, but for a step down
        that reaches the other side. With a `steep` that is more than there is, steps upwards mostly hold.
        """
        lo, hi, f_lo, f_hi = self.lo, self.hi, self.f_lo, self.f_hi
        across_up, across_down = lo * (-f_lo).exp() * (1.0 + rtol), hi * (-f_hi).exp() * (1.0 - rtol)
        careful = lo * torch.maximum(-f_lo / self.steep, self.blind).exp().clamp(min=1.0 + rtol)
        upwards = torch.minimum(torch.where(self.steep > 1.0, careful, across_up), GROWTH * lo)
        if self.manner.includes_start:
            upwards = torch.where(self.held == 1, BEYOND, ONWARD) * lo
        downwards = torch.where(f_hi.isinf(), hi / GROWTH, across_down)

        width, rise = (hi / lo).log(), f_hi - f_lo
        secant = lo * ((math.log1p(-rtol / 2) - f_lo) / rise * width).exp()
        across = torch.where(f_hi < -f_lo, across_down, across_up)
        middle = (lo * hi).sqrt()
        if not self.manner.includes_start:
            middle = torch.where(self.blind > 0, torch.maximum(middle, across_down), middle)
        between = torch.where(self.slow == 1, across, secant)
        outside = ~((between > lo) & (between < hi))
        halve = outside | (self.slow > 1) | (rise > JUMP * width) | (self.blind > 0) | self.manner.includes_start
        between = torch.where(halve, middle, between).clamp(lo * (1.0 + rtol / 2), hi / (1.0 + rtol / 2))
        eps = torch.where(hi.isinf(), upwards, torch.where(lo == 0.0, downwards, between))
        return eps.clamp(EPS_MIN, EPS_MAX)
