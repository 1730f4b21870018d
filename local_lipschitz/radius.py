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

from .bracket import EPS_MAX, Found, Load, Manner, search
from .inputs import check_between, check_input, check_label, other_classes
from .joint.bound import JointBound, joint_bound
from .layers.graph import Graph
from .layers.rounding import logits
from .margin.bound import MarginBound, margin_bound
from .numerics import gamma_n
from .precision import no_tf32
from .printing import certainty, values
from .product.bound import Bound, global_bound, local_bound
from .product.propagation import REACH_SLACK, output_error
from .product.stage_norms import StageNorms
from .reading.read import read

VAGUE = 1e-6  # of the margin: an error of the outputs that more work is spent on
LEAST_MARGIN = 1e-200  # in units of which margins are bounded
HOLDS = 2e-3  # of a margin: a lower bound that is worth the work, what rounding takes off included


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
    own = bound in (local_bound, joint_bound, global_bound, margin_bound)
    certificate = _Certificate(graph if own else net, x0, bound, margins, label, others, margin, bound_options)
    held = margin.amin(1) > 0  # at ε = 0
    found = _closed_form(certificate, held) if bound is global_bound else _search(certificate, held, rtol, progress)
    return Radius(found.radius, label, found.limiting_class, found.evaluations, found.failure_probability + spent)


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
    """What proves that inputs are of their class: a bound and a rule. net: for our own bounds what was read from it."""

    net: nn.Module | Graph
    x0: Tensor
    bound: Callable[..., Bound | MarginBound]
    margins: str
    label: Tensor
    others: Tensor
    margin: Tensor  # (B, m − 1), rounded down
    options: dict[str, Any]

    def load(
        self, which: Tensor, eps: Tensor | None, evaluation: int = 0, enough: float = 0.0, by_passes: bool = True
    ) -> Load:
        """At eps (b,) for the inputs `which` (b,); for eps None h is max_c L_c/margin_c.

        An h ≤ enough, or > 1, need not be as small as possible: the joint and the margin bound then work less.
        by_passes: whether the joint bound goes on by passes where kinks are too many for dense algebra, even dear ones.

        The number of the evaluation decides its random vectors: a search chooses ε from earlier results, and a start
        that has been used is not independent of what it is then used on.
        """
        options = dict(self.options)
        if evaluation:
            options["seed"] = _seed(options.get("seed", 0), self.bound, evaluation)
        margin, others = self.margin[which], self.others[which]
        if self.margins == "pairwise":
            unit = torch.eye(margin.shape[1] + 1, dtype=torch.float64, device=margin.device)
            options["outputs"] = unit[self.label[which]][:, None] - unit[others]
            if self.bound is margin_bound:  # in units of the margins only the smallest of its bounds counts
                unit_margin = margin.clamp(min=LEAST_MARGIN)
                options["outputs"], options["smallest"] = options["outputs"] / unit_margin[..., None], True
                options["target"], options["least"] = 1.0 - enough * (1.0 - 1e-6), HOLDS
                margin = margin / unit_margin
        if self.bound is joint_bound and eps is not None:
            L = enough * margin / eps[:, None]
            options["target"] = L if self.margins == "pairwise" else L.amin(1, keepdim=True) / math.sqrt(2.0)
        if self.bound in (joint_bound, margin_bound):
            options["by_passes"] = by_passes and options.get("by_passes", True)
        result = self.bound(self.net, self.x0[which], *(() if eps is None else (eps,)), **options)
        if self.margins == "paper":
            L = math.sqrt(2.0) * result.value[:, None]
        else:  # only a fall of the margin does harm
            L = result.value if result.fall is None else result.fall
        h = L / margin if eps is None else eps[:, None] * L / margin
        h, at = torch.where(h.isnan(), math.inf, h * (1.0 + REACH_SLACK)).max(1)
        failure, limiting = min(1.0, L.shape[1] * result.failure_probability), others.gather(1, at[:, None])[:, 0]
        status = result.status if isinstance(result, JointBound | MarginBound) else [""] * len(h)
        dense = torch.tensor([way in ("dense", "margin") for way in status], device=h.device)
        return Load(h, limiting, failure, dense)


def _closed_form(certificate: _Certificate, held: Tensor) -> Found:
    """min_c margin_c / L_c for a bound that holds for every ε; open at its end, hence the factor."""
    load = certificate.load(torch.arange(len(held), device=held.device), None)
    radius = torch.where(held, ((1.0 - REACH_SLACK) / load.h).clamp(max=EPS_MAX), 0.0)
    once = torch.ones_like(certificate.label)
    nearest = certificate.others.gather(1, certificate.margin.argmin(1, keepdim=True))[:, 0]
    limiting = torch.where(held, load.limiting_class, nearest)
    return Found(radius, limiting, once, load.failure_probability * once.double(), torch.zeros_like(held))


def _search(certificate: _Certificate, held: Tensor, rtol: float, progress: bool = False) -> Found:
    """From the radius by a cheaper bound: for the margin bound, which proves what the joint one does, from there on."""
    bound: Callable[..., Any] = certificate.bound
    first: Callable[..., Bound | MarginBound] = local_bound
    rough = 0.1
    if bound in (local_bound, margin_bound):
        first, rough = (global_bound, 0.0) if bound is local_bound else (joint_bound, 0.25)
    known = ("tolerance", "failure_probability", "seed")
    options = {key: value for key, value in certificate.options.items() if key in known}
    cheaper = replace(certificate, bound=first, options=options)
    start = _closed_form(cheaper, held) if first is global_bound else _search(cheaper, held, rough)
    manner = Manner(careful=bound in (joint_bound, margin_bound), includes_start=bound is margin_bound)
    return search(certificate.load, start, held, manner, rtol, progress)


def _seed(seed: int, bound: Callable[..., Any], evaluation: int) -> int:
    """Another one for every evaluation of every bound, the same in every run: by numpy's SeedSequence."""
    words = (seed, zlib.crc32(getattr(bound, "__name__", "").encode()), evaluation)
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
