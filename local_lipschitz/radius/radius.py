"""The certified radius: how far no input can be of another class (docs/bounds.md; Avant & Morgansen 2023).

Two rules turn a bound into a certificate. With t the predicted class and y = f(x0), the closed ball of radius ε holds
no input of another class if
    pairwise:  ε·L_c(ε) < y_t − y_c for every other class c, L_c(ε) the bound of how g_c = f_t − f_c falls
    paper:     ε·L(ε) < δ/√2,  δ = y_t − max_c y_c, L(ε) the bound of f, since ‖e_t − e_c‖ = √2.
The paper's published code takes (δ + √2)/L for the global bound. That is no certificate: for the paper's own example it
gives 5.1e-4, and 3.5e-4 is what δ/(√2 L) proves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs import check_between, check_input, check_label, other_classes
from ..layers.graph import Graph
from ..layers.rounding import logits
from ..margin.bound import MarginBound
from ..numerics import gamma_n
from ..precision import no_tf32
from ..printing import certainty, values
from ..product.bound import Bound, global_bound, local_bound
from ..product.propagation import output_error
from ..product.stage_norms import StageNorms
from ..reading.read import read
from .certificate import Certificate, seed_of
from .search import closed_form, search

VAGUE = 1e-6  # of the margin: an error of the outputs that more work is spent on


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
    certificate = Certificate(net, x0, bound, margins, label, others, margin, bound_options)
    held = margin.amin(1) > 0  # at ε = 0
    found = closed_form(certificate, held) if bound is global_bound else search(certificate, held, rtol, progress)
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
        probability, seed = options.get("failure_probability", 1e-9), seed_of(options.get("seed", 0), logits, 0)
        norms = StageNorms(x0.dtype, graph, options.get("tolerance", 2e-3), probability, True, seed)
        y[vague], error = output_error(graph, x0[vague], norms)
        off[vague] = torch.fmin(error, logits(graph, x0[vague])[1])
        spent[vague] = norms.failure_spent
    return y, off, spent


