"""The certified radius: how far no input can be of another class (docs/bounds.md; Avant & Morgansen 2023).

Two rules turn a bound into a certificate. With t the predicted class and y = f(x0), the closed ball of radius ε holds
no input of another class if
    pairwise:  ε·L_c(ε) < y_t − y_c for every other class c, L_c(ε) the bound of how g_c = f_t − f_c falls
    paper:     ε·L(ε) < δ/√2,  δ = y_t − max_c y_c, L(ε) the bound of f, since ‖e_t − e_c‖ = √2.
The paper's published code takes (δ + √2)/L for the global bound. That is no certificate: for the paper's own example it
gives 5.1e-4, and 3.5e-4 is what δ/(√2 L) proves.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .inputs import check_between, check_input, check_label, other_classes
from .joint.bound import joint_bound
from .layers.graph import Graph
from .layers.rounding import logits
from .margin.bound import MarginBound, margin_bound
from .numerics import gamma_n
from .precision import no_tf32
from .printing import certainty, counter, values
from .product.bound import Bound, global_bound, local_bound
from .product.propagation import REACH_SLACK, output_error
from .product.stage_norms import StageNorms
from .reading.read import read

EPS_MIN, EPS_MAX = 1e-15, 1e9  # the radii that are searched
GROWTH = 2.5  # the largest step upwards: bounds can be much dearer where they are far from holding
STEEP = 3.0  # d log h / d log ε that is taken for upward steps of bounds whose failures are dear,
STEEPER = 1.7  # or, if that is less, so many times the slope that was seen last
TOLD = 0.9  # times the h that is enough: one nearer to that may only be where the work ended, and tells no slope
MAX_EVALUATIONS = 60
ROUGH, ROUGHER = 0.1, 0.25  # tolerances of the radii to begin with, by the local and by the joint bound
BEYOND = 1.15  # the step upwards of the margin bound, whose failures are the dearest, from where the joint one ends
VAGUE = 1e-6  # of the margin: an error of the outputs that more work is spent on
JUMP = 4.0  # d log h / d log ε that is taken for a jump


@dataclass(frozen=True)
class Radius:
    """A certified radius for each input of the batch; all (B,), float64 or int64.

    radius: no x with ‖x − x0‖ ≤ radius is of another class than `label`; 0.0 where nothing is certified.
    limiting_class: the class that is closest to not being excluded there. evaluations: of the bound, for this input.
    failure_probability: that any of these evaluations was too small, over our own random vectors.
    """

    radius: Tensor
    label: Tensor
    limiting_class: Tensor
    evaluations: Tensor
    failure_probability: Tensor

    def __repr__(self) -> str:
        what = f"no x with ‖x − x0‖ ≤ radius is of another class than {values(self.label)}"
        lines, failure = [f"Radius {values(self.radius)}", what], float(self.failure_probability.max())
        return "\n".join([*lines, f"{certainty(failure)}; {values(self.evaluations)} evaluations of the bound"])


@no_tf32()
@torch.no_grad()
def certified_radius(
    net: nn.Module, x0: Tensor, bound: Callable[..., Bound | MarginBound] = local_bound, margins: str = "pairwise", *,
    label: Tensor | None = None, rtol: float = 1e-4, progress: bool = False, **bound_options: Any,
) -> Radius:  # fmt: skip
    """The largest radius, to a relative `rtol`, within which `bound` proves that the class does not change.

    Guaranteed: the radius is one at which the certificate was evaluated and held for every other class (for
    `global_bound`, which does not depend on it, it is min margin/L). It is about the network with its given weights in
    exact arithmetic; logits are computed in float64 and their margins rounded down. That it is the largest to within
    `rtol` rests on ε·L(ε) being non-decreasing, which a randomised or optimised bound obeys
    only up to its own tolerance.

    net, x0: as in `local_bound`; x0 (B, *input shape), the radius is ℓ2 in the same (normalised) units, over all x and
    not only over valid images. bound: local_bound, joint_bound, global_bound or a function called the same way;
    `bound_options` (tolerance, seed, …) go to it; every evaluation has random vectors of its own. margins: "pairwise"
    or "paper", see above. label: (B,) the class that is certified, or one for all; None is the predicted one.
    progress: a bar counts the inputs that are done.
    A tie at the top has radius 0, and so has an input not certified down to 1e-15; none is searched beyond 1e9.
    Raises ValueError for outputs other than (B, classes) or of one class, an input that is not of its `label`, and
    what `bound` refuses.
    """
    check_input(x0)
    if margins not in ("pairwise", "paper"):
        raise ValueError(f"margins is {margins!r}; 'pairwise' or 'paper' is wanted")
    if not callable(bound):
        raise ValueError(f"bound is {bound!r}; local_bound, joint_bound, global_bound or such a function is wanted")
    check_between("rtol", rtol, 0.0, 1.0)
    graph = read(net, x0)
    y, off, spent = _logits(graph, x0, bound_options)
    label = check_label(label, y.reshape(len(y), *graph.out_shape))
    others = other_classes(label, y.shape[1])  # (B, m − 1)
    off = off + gamma_n(4) * y.abs()  # the three operations that follow
    margin = (y - off).gather(1, label[:, None]) - (y + off).gather(1, others)
    certificate = _Certificate(net, x0, bound, margins, label, others, margin, bound_options)
    held = margin.amin(1) > 0  # at ε = 0
    result = _closed_form(certificate, held) if bound is global_bound else _search(certificate, held, rtol, progress)
    return replace(result, failure_probability=result.failure_probability + spent)


@no_tf32()
def _logits(graph: Graph, x0: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """(y, off, failure probability): outputs (B, m), how far each may be from the exact one, (B,) that it is farther.

    By |A| where that is all but exact, and else by norms, which grow less with the depth.
    """
    y, off = logits(graph, x0)
    spent = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    top = y.topk(min(2, y.shape[1]), 1).values
    vague = (off.amax(1) > VAGUE * (top[:, 0] - top[:, -1])).nonzero()[:, 0]
    if len(vague) and len(graph.stages) > 1:
        probability, seed = options.get("failure_probability", 1e-9), _seed(options.get("seed", 0), logits, 0)
        norms = StageNorms(x0.dtype, graph, options.get("tolerance", 2e-3), probability, True, seed)
        y[vague], error = output_error(graph, x0[vague], norms)
        off[vague] = torch.fmin(error, logits(graph, x0[vague])[1])
        spent[vague] = norms.failure_spent
    return y, off, spent


@dataclass(frozen=True)
class _Certificate:
    """h(ε) = max_c ε·L_c(ε)/margin_c, and the class c of the maximum: the certificate holds where h < 1."""

    net: nn.Module
    x0: Tensor
    bound: Callable[..., Bound | MarginBound]
    margins: str
    label: Tensor
    others: Tensor
    margin: Tensor  # (B, m − 1), rounded down
    options: dict[str, Any]

    def load(
        self, which: Tensor, eps: Tensor | None, evaluation: int = 0, enough: float = 0.0
    ) -> tuple[Tensor, Tensor, float]:
        """(h, its class, failure probability) of the inputs `which` (b,) at eps (b,); of L_c/margin_c for eps None.

        An h ≤ enough, or > 1, need not be as small as possible: the joint and the margin bound then work less.

        The number of the evaluation decides its random vectors: a search chooses ε from earlier results, and a start
        that has been used is not independent of what it is then used on.
        """
        arguments, options = [self.net, self.x0[which]], dict(self.options)
        if evaluation:
            options["seed"] = _seed(options.get("seed", 0), self.bound, evaluation)
        if eps is not None:
            arguments.append(eps)
        margin, others = self.margin[which], self.others[which]
        if self.margins == "pairwise":
            unit = torch.eye(margin.shape[1] + 1, dtype=torch.float64, device=margin.device)
            options["outputs"] = unit[self.label[which]][:, None] - unit[others]
            if self.bound is margin_bound:  # in units of the margins only the smallest of its bounds counts
                unit_margin = margin.clamp(min=1e-200)
                options["outputs"], options["smallest"] = options["outputs"] / unit_margin[..., None], True
                options["target"] = 1.0 - enough * (1.0 - 1e-6)
                margin = margin / unit_margin
        if self.bound is joint_bound and eps is not None:
            L = enough * margin / eps[:, None]
            options["target"] = L if self.margins == "pairwise" else L.amin(1, keepdim=True) / math.sqrt(2.0)
        result = self.bound(*arguments, **options)
        if self.margins == "paper":
            L = math.sqrt(2.0) * result.value[:, None]
        else:  # only a fall of the margin does harm
            L = result.value if result.fall is None else result.fall
        h = L / margin if eps is None else eps[:, None] * L / margin
        h = torch.where(h.isnan(), math.inf, h * (1.0 + REACH_SLACK))
        worst, at = h.max(1)
        rows = L.shape[1]
        return worst, others.gather(1, at[:, None])[:, 0], min(1.0, rows * result.failure_probability)


def _closed_form(certificate: _Certificate, held: Tensor) -> Radius:
    """min_c margin_c / L_c for a bound that holds for every ε; open at its end, hence the factor."""
    h, limiting, failure = certificate.load(torch.arange(len(held), device=held.device), None)
    radius = torch.where(held, ((1.0 - REACH_SLACK) / h).clamp(max=EPS_MAX), 0.0)
    once = torch.ones_like(certificate.label)
    nearest = certificate.others.gather(1, certificate.margin.argmin(1, keepdim=True))[:, 0]
    return Radius(radius, certificate.label, torch.where(held, limiting, nearest), once, failure * once.double())


def _search(certificate: _Certificate, held: Tensor, rtol: float, progress: bool = False) -> Radius:
    """A bracket for each input, lo held and hi failed, until hi/lo ≤ 1 + rtol or h(lo) ≥ 1 − rtol."""
    batch, device = len(held), held.device
    start = _start(certificate, held)
    limiting, evaluations = start.limiting_class.clone(), torch.zeros(batch, dtype=torch.int64, device=device)
    failure = torch.zeros(batch, dtype=torch.float64, device=device)
    lo, hi = torch.zeros_like(failure), torch.full_like(failure, math.inf)
    f_lo, f_hi = -hi, hi.clone()  # log h at the ends
    width, slow = hi.clone(), torch.zeros_like(evaluations)
    careful = certificate.bound in (joint_bound, margin_bound)
    steep = torch.full_like(lo, STEEP if careful else 1.0)
    eps = start.radius.clamp(EPS_MIN, EPS_MAX)
    if certificate.bound is margin_bound:  # it proves what the joint bound proves
        known = held & (start.radius > 0)
        lo, failure = torch.where(known, start.radius, lo), failure + start.failure_probability
        f_lo, eps = (
            torch.where(known, math.log1p(-rtol), f_lo),
            torch.where(known, BEYOND * eps, eps).clamp(max=EPS_MAX),
        )
    active, evaluation = held.clone(), 0
    show = counter(batch, progress, "input")
    while bool(active.any()):
        i = active.nonzero()[:, 0]
        evaluation += 1  # the same for all: an input stays active from the first on
        h, worst, probability = certificate.load(i, eps[i], evaluation, 1.0 - rtol)
        holds = h < 1.0
        evaluations[i] += 1
        failure[i] += probability
        up, down = i[holds], i[~holds]
        if careful:
            seen = (h[holds].log() - f_lo[up]) / (eps[up] / lo[up]).log()
            told = (lo[up] > 0) & (h[holds] < TOLD * (1.0 - rtol))
            steep[up] = torch.where(told, STEEPER * seen, STEEP).clamp(1.0, STEEP)
        lo[up], f_lo[up], limiting[up] = eps[up], h[holds].log(), worst[holds]
        hi[down], f_hi[down] = eps[down], h[~holds].log()
        active[up] = h[holds] < 1.0 - rtol
        active &= (hi > lo * (1.0 + rtol)) & (lo < EPS_MAX) & (hi > EPS_MIN) & (evaluations < MAX_EVALUATIONS)
        before, width = width, (hi / lo).log()
        slow = torch.where(before.isfinite() & (width > 0.51 * before), slow + 1, 0)
        if certificate.bound is margin_bound:  # its h are not as small as they could be: no secants
            slow = torch.full_like(slow, 2)
        eps = _next((lo, f_lo), (hi, f_hi), slow, steep, rtol)
        if certificate.bound is margin_bound:
            eps = torch.where(hi.isinf() & (lo > 0), BEYOND * lo, eps).clamp(max=EPS_MAX)
        show(int((~active).sum()))
    return Radius(lo, certificate.label, limiting, evaluations, failure)


def _seed(seed: int, bound: Callable[..., Any], evaluation: int) -> int:
    """Another one for every evaluation of every bound, the same in every run: by numpy's SeedSequence."""
    words = (seed, zlib.crc32(getattr(bound, "__name__", "").encode()), evaluation)
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def _next(low: tuple[Tensor, Tensor], high: tuple[Tensor, Tensor], slow: Tensor, steep: Tensor, rtol: float) -> Tensor:
    """The ε to try next in each bracket (lo, hi), of which 0 and ∞ are not known yet; f = log h.

    L(ε) does not decrease, so f grows at least as fast as log ε: from any ε, the step to ε/h(ε) reaches the other side.
    It brackets, and it moves the other end where secants have moved only one (`slow`). Where f jumps, because an
    element stops being constant, only halves help. low, high: (ε, f) of its ends. steep: d log h / d log ε as it is
    taken upwards: with more than there is, steps mostly hold, and the last one, by the tolerance, ends the search.
    """
    (lo, f_lo), (hi, f_hi) = low, high
    target = math.log1p(-rtol / 2)
    across_up, across_down = lo * (-f_lo).exp() * (1.0 + rtol), hi * (-f_hi).exp() * (1.0 - rtol)
    careful = lo * (-f_lo / steep).exp().clamp(min=1.0 + rtol)
    upwards = torch.minimum(torch.where(steep > 1.0, careful, across_up), GROWTH * lo)
    downwards = torch.where(f_hi.isinf(), hi / GROWTH, across_down)

    width, rise = (hi / lo).log(), f_hi - f_lo
    secant = lo * ((target - f_lo) / rise * width).exp()
    across = torch.where(f_hi < -f_lo, across_down, across_up)
    middle = (lo * hi).sqrt()
    between = torch.where(slow == 1, across, secant)
    outside = ~((between > lo) & (between < hi))
    between = torch.where(outside | (slow > 1) | (rise > JUMP * width), middle, between)
    between = between.clamp(lo * (1.0 + rtol / 2), hi / (1.0 + rtol / 2))
    eps = torch.where(hi.isinf(), upwards, torch.where(lo == 0.0, downwards, between))
    return eps.clamp(EPS_MIN, EPS_MAX)


def _start(certificate: _Certificate, held: Tensor) -> Radius:
    """Where to begin: the radius by the global bound, or roughly that by the next cheaper one for a dearer bound."""
    cheaper: Callable[..., Bound | MarginBound] = local_bound
    if certificate.bound in (local_bound, margin_bound):
        cheaper = global_bound if certificate.bound is local_bound else joint_bound
    known = ("tolerance", "failure_probability", "seed")
    options = {key: value for key, value in certificate.options.items() if key in known}
    certificate = replace(certificate, bound=cheaper, options=options)
    if cheaper is global_bound:
        return _closed_form(certificate, held)
    return _search(certificate, held, ROUGH if cheaper is local_bound else ROUGHER)
