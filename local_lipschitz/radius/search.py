"""The largest ε at which a certificate holds: a bracket that closes, from the radius by a cheaper bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..joint.bound import joint_bound
from ..margin.bound import MarginBound, margin_bound
from ..printing import counter
from ..product.bound import Bound, global_bound, local_bound
from ..product.propagation import REACH_SLACK
from .certificate import Certificate

EPS_MIN, EPS_MAX = 1e-15, 1e9  # the radii that are searched
GROWTH = 2.5  # the largest step upwards: bounds can be much dearer where they are far from holding
STEEP = 3.0  # d log h / d log ε that is taken for upward steps of bounds whose failures are dear,
STEEPER = 1.7  # or, if that is less, so many times the slope that was seen last
TOLD = 0.9  # times the h that is enough: one nearer to that may only be where the work ended, and tells no slope
BEYOND, ONWARD = 1.35, 1.15  # the first step upwards of the margin bound, from where the joint one ends, and the others
MAX_EVALUATIONS = 60
JUMP = 4.0  # d log h / d log ε that is taken for a jump


@dataclass(frozen=True)
class Manner:
    """How a radius is searched with a bound.

    first: the bound whose radius, to the relative tolerance `rough`, is the first ε. careful: failures are dear, so
    steps upwards are such that they mostly hold. includes_first: the bound proves what `first` proves. Its search goes
    on from there by BEYOND and then ONWARD, and its h only say whether it holds.
    """

    first: Callable[..., Bound | MarginBound] = local_bound
    rough: float = 0.1
    careful: bool = False
    includes_first: bool = False


MANNERS: dict[Callable[..., Bound | MarginBound], Manner] = {
    local_bound: Manner(first=global_bound),
    joint_bound: Manner(careful=True),
    margin_bound: Manner(first=joint_bound, rough=0.25, careful=True, includes_first=True),
}


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


def closed_form(certificate: Certificate, held: Tensor) -> Found:
    """min_c margin_c / L_c for a bound that holds for every ε; open at its end, hence the factor."""
    load = certificate.load(torch.arange(len(held), device=held.device), None)
    radius = torch.where(held, ((1.0 - REACH_SLACK) / load.h).clamp(max=EPS_MAX), 0.0)
    once = torch.ones_like(certificate.label)
    nearest = certificate.others.gather(1, certificate.margin.argmin(1, keepdim=True))[:, 0]
    limiting = torch.where(held, load.limiting_class, nearest)
    return Found(radius, limiting, once, load.failure_probability * once.double(), torch.zeros_like(held))


def search(certificate: Certificate, held: Tensor, rtol: float, progress: bool = False) -> Found:
    """A bracket for each input, lo held and hi failed, until hi/lo ≤ 1 + rtol or h(lo) ≥ 1 − rtol."""
    manner = MANNERS.get(certificate.bound, Manner())
    start, bracket = _start(certificate, held, manner), _Bracket(len(held), held.device, manner)
    eps, limiting = start.radius.clamp(EPS_MIN, EPS_MAX), start.limiting_class.clone()
    failure, evaluations, dense = torch.zeros_like(eps), torch.zeros_like(limiting), start.dense.clone()
    if manner.includes_first:
        known, failure = (held & (start.radius > 0)).nonzero()[:, 0], failure + start.failure_probability
        bracket.holds(known, start.radius[known], torch.full_like(start.radius[known], 1.0 - rtol), rtol)
        eps[known] = bracket.following(rtol)[known]
    active = held.clone()
    show = counter(len(held), progress, "input")
    while bool(active.any()):
        first = active.nonzero()[0, 0]  # with those that are treated alike, as each would be without the others
        i = (active & (evaluations == evaluations[first]) & (dense == dense[first])).nonzero()[:, 0]
        evaluations[i] += 1
        by_passes = not bool(dense[first])  # looser and dearer: hardly further than where dense algebra ends
        load = certificate.load(i, eps[i], int(evaluations[first]), 1.0 - rtol, by_passes)
        failure[i] += load.failure_probability
        up, good = i[load.h < 1.0], load.h < 1.0
        bracket.holds(up, eps[up], load.h[good], rtol)
        limiting[up], dense[up] = load.limiting_class[good], dense[up] | load.dense[good]
        bracket.fails(i[~good], eps[i[~good]], load.h[~good])
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

    def holds(self, i: Tensor, eps: Tensor, h: Tensor, rtol: float) -> None:
        """The inputs i at eps, with h < 1."""
        if self.manner.careful:
            seen = (h.log() - self.f_lo[i]) / (eps / self.lo[i]).log()
            told = (self.lo[i] > 0) & (h < TOLD * (1.0 - rtol))
            self.steep[i] = torch.where(told, STEEPER * seen, STEEP).clamp(1.0, STEEP)
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
        an element stops being constant, only halves help. With a `steep` that is more than there is, steps upwards
        mostly hold, and the last one, by the tolerance, ends the search.
        """
        lo, hi, f_lo, f_hi = self.lo, self.hi, self.f_lo, self.f_hi
        across_up, across_down = lo * (-f_lo).exp() * (1.0 + rtol), hi * (-f_hi).exp() * (1.0 - rtol)
        careful = lo * (-f_lo / self.steep).exp().clamp(min=1.0 + rtol)
        upwards = torch.minimum(torch.where(self.steep > 1.0, careful, across_up), GROWTH * lo)
        if self.manner.includes_first:
            upwards = torch.where(self.held == 1, BEYOND, ONWARD) * lo
        downwards = torch.where(f_hi.isinf(), hi / GROWTH, across_down)

        width, rise = (hi / lo).log(), f_hi - f_lo
        secant = lo * ((math.log1p(-rtol / 2) - f_lo) / rise * width).exp()
        across = torch.where(f_hi < -f_lo, across_down, across_up)
        middle = (lo * hi).sqrt()
        between = torch.where(self.slow == 1, across, secant)
        outside = ~((between > lo) & (between < hi))
        halve = outside | (self.slow > 1) | (rise > JUMP * width) | self.manner.includes_first
        between = torch.where(halve, middle, between).clamp(lo * (1.0 + rtol / 2), hi / (1.0 + rtol / 2))
        eps = torch.where(hi.isinf(), upwards, torch.where(lo == 0.0, downwards, between))
        return eps.clamp(EPS_MIN, EPS_MAX)


def _start(certificate: Certificate, held: Tensor, manner: Manner) -> Found:
    """Where to begin: the radius by a cheaper bound, roughly."""
    known = ("tolerance", "failure_probability", "seed")
    options = {key: value for key, value in certificate.options.items() if key in known}
    certificate = replace(certificate, bound=manner.first, options=options)
    if manner.first is global_bound:
        return closed_form(certificate, held)
    return search(certificate, held, manner.rough)
