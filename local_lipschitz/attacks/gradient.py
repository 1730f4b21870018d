"""Adversarial examples that are found: upper bounds of the radius that `certified_radius` bounds from below.

Every attack returns an `Attack` whose distance is that of a verified misclassification: the network, evaluated in
float64 at the returned input, gives another class a strictly larger output. Every input found is drawn back along the
straight line to x0 as far as it stays misclassified. fgsm, iterated_fgsm and gradient_ascent roam over all inputs;
carlini_wagner and ddn clip to valid images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..precision import no_tf32
from .search import Attack, Search, per_input, pixel_distance
from .with_foolbox import carlini_wagner, ddn

__all__ = ["Attack", "carlini_wagner", "ddn", "fgsm", "gradient_ascent", "iterated_fgsm", "pixel_distance"]

PAIR_ELEMENTS = 2**22  # input elements that gradient_ascent holds at a time
RESTARTS = 12  # from random points, the last 100 ‖x0‖ away, where it finds nothing


@no_tf32()
def fgsm(net: nn.Module, x0: Tensor, label: Tensor | None = None) -> Attack:
    """One step along the sign of the gradient of the cross-entropy, as small as works (Goodfellow et al. 2015).

    Arguments and errors as for `gradient_ascent`; nothing is random. Not clipped to valid images.
    """
    return iterated_fgsm(net, x0, label, iterations=1)


@no_tf32()
def iterated_fgsm(net: nn.Module, x0: Tensor, label: Tensor | None = None, *, iterations: int = 10) -> Attack:
    """Up to `iterations` equal steps along the sign of the cross-entropy's gradient (Kurakin et al. 2017).

    The step is the smallest, by growing and bisecting, from which a path meets a misclassified input; that one counts.
    Arguments and errors as for `gradient_ascent`; nothing is random. Not clipped to valid images.
    """
    search = Search(net, x0, label)
    everything = torch.arange(len(x0), device=x0.device)

    def signs(i: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        # log(exp(CE) − 1) = logsumexp of the others − f_t: grows with the cross-entropy CE, and where CE rounds to
        # zero its gradient, a positive multiple of CE's, does not
        def loss(y: Tensor) -> Tensor:
            rest = y.scatter(1, search.label[i, None], -math.inf)
            return rest.logsumexp(1) - y.gather(1, search.label[i, None])[:, 0]

        _, gradient = search.gradient(loss, x)
        return gradient.sign(), gradient.flatten(1).abs().sum(1)

    def works(i: Tensor, step: Tensor) -> Tensor:
        """Whether the path with this step, (b,), meets a misclassified input; each one met is offered."""
        x, met = search.x0[i], torch.zeros_like(i, dtype=torch.bool)
        for _ in range(iterations):
            j = (~met).nonzero()[:, 0]
            if len(j) == 0:
                break
            x[j] += per_input(step[j], x) * signs(i[j], x[j])[0]
            met[j] = search.offer(i[j], x[j])
        return met

    _, slope = signs(everything, search.x0)
    step = 0.5 * search.margin.clamp(min=torch.finfo(torch.float64).tiny) / (iterations * slope)  # linearised, half
    i = (step.isfinite()).nonzero()[:, 0]  # a gradient of zero leads nowhere
    lo, hi = torch.zeros_like(step), torch.full_like(step, math.inf)
    for _ in range(40):
        if len(i) == 0:
            break
        met = works(i, step[i])
        hi[i[met]], lo[i[~met]] = step[i[met]], step[i[~met]]
        step = torch.where(hi.isinf(), 1.5 * step, (lo + hi) / 2)
        i = i[hi[i] > 1.01 * lo[i]]
    return search.result(valid_images=False)


@no_tf32()
def gradient_ascent(
    net: nn.Module, x0: Tensor, label: Tensor | None = None, *, steps: int = 60, seed: int = 0
) -> Attack:
    """Ascent of f_c − f_t along its gradient from x0, for every other class c; the nearest that is found.

    Steps are a fifth of the linearised way that is left, and never less than a fiftieth of the first such way. A class
    is given up when its path is longer than the best one of its input. Where nothing is found, because the gradient is
    zero or leads into a dead end, it is tried again from random points, further and further away. Not clipped to valid
    images.

    net: any nn.Module in eval mode, (B, *input shape) -> (B, m). x0: (B, *input shape). label: (B,) the class t; None
    is the predicted one. seed: of the random points.
    Raises ValueError for a bad x0, one output only, or an input that is not of its `label`.
    """
    search = Search(net, x0, label)
    generator = torch.Generator().manual_seed(seed)
    order = search.margins.argsort(1)  # the nearest classes first: they shorten the work on the others
    classes = search.others.gather(1, order)  # (B, m − 1)
    _ascend(search, torch.arange(len(x0), device=x0.device), classes, search.x0, steps)
    away = 0.05 * search.x0.flatten(1).norm(dim=1).clamp(min=1e-3)
    for restart in range(RESTARTS):
        i = search.distance.isinf().nonzero()[:, 0]
        if len(i) == 0:
            break
        direction = torch.randn(search.x0.shape, generator=generator, dtype=torch.float64).to(x0.device)
        direction = direction / per_input(direction.flatten(1).norm(dim=1), direction)
        start = search.x0 + per_input(2.0**restart * away, direction) * direction
        search.offer(i, start[i])
        _ascend(search, i, classes, start, steps)
    return search.result(valid_images=False)


def _ascend(search: Search, which: Tensor, classes: Tensor, start: Tensor, steps: int) -> None:
    """Follow the gradients for the inputs `which` (b,) and their classes (B, K) from start (B, *shape)."""
    pairs = max(1, PAIR_ELEMENTS // start[0].numel())
    inputs, targets = which.repeat(classes.shape[1]), classes[which].T.reshape(-1)
    for i, c in zip(inputs.split(pairs), targets.split(pairs), strict=True):
        _ascend_pairs(search, i, c, start[i], steps)


def _ascend_pairs(search: Search, i: Tensor, c: Tensor, x: Tensor, steps: int) -> None:
    """The same for inputs i and classes c, (P,) each, from x (P, *shape); what is met on the way is offered."""
    scale = torch.full(i.shape, math.nan, dtype=torch.float64, device=x.device)  # the first linearised way
    for _ in range(steps):
        t = search.label[i]
        gap, gradient = search.gradient(lambda y: (y.gather(1, c[:, None]) - y.gather(1, t[:, None]))[:, 0], x)
        slope = gradient.flatten(1).norm(dim=1)
        way = (-gap.double()).clamp(min=0.0) / slope
        scale = torch.where(scale.isnan(), way.clamp(min=1e-12), scale)
        step = torch.minimum(torch.maximum(0.2 * way, 0.02 * scale), 0.2 * scale) / slope
        x = x + per_input(step, x) * gradient
        going = (slope > 0) & step.isfinite()  # a flat place leads nowhere
        met = torch.zeros_like(going)
        met[going] = search.offer(i[going], x[going])
        going &= ~met & ((x - search.x0[i]).flatten(1).norm(dim=1) < search.distance[i])
        i, c, x, scale = i[going], c[going], x[going], scale[going]
        if len(i) == 0:
            break
