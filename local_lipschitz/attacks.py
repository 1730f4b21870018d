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

from .attacks_foolbox import carlini_wagner, ddn
from .attacks_search import Attack, Search, per_input, pixel_distance

__all__ = ["Attack", "carlini_wagner", "ddn", "fgsm", "gradient_ascent", "iterated_fgsm", "pixel_distance"]

PAIR_ELEMENTS = 2**22  # input elements that gradient_ascent holds at a time


def fgsm(net: nn.Module, x0: Tensor, label: Tensor | None = None) -> Attack:
    """One step along the sign of the gradient of the cross-entropy, as small as works (Goodfellow et al. 2015).

    Arguments and errors as for `gradient_ascent`; nothing is random. Not clipped to valid images.
    """
    return iterated_fgsm(net, x0, label, iterations=1)


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


def gradient_ascent(
    net: nn.Module, x0: Tensor, label: Tensor | None = None, *, steps: int = 60, seed: int = 0
) -> Attack:
    """Ascent of f_c − f_t along its gradient from x0, for every other class c; the nearest that is found.

    Steps are a fifth of the linearised way that is left, and never less than a fiftieth of the first such way. A class
    is given up when its path is longer than the best one of its input. Not clipped to valid images.

    net: any nn.Module in eval mode, (B, *input shape) -> (B, m). x0: (B, *input shape). label: (B,) the class t; None
    is the predicted one. seed: of a random direction that is taken where the gradient is zero.
    Raises ValueError for a bad x0, one output only, or an input that is not of its `label`.
    """
    search = Search(net, x0, label)
    generator = torch.Generator().manual_seed(seed)
    order = search.margins.argsort(1)  # the nearest classes first: they shorten the work on the others
    classes = search.others.gather(1, order).T.reshape(-1)
    inputs = torch.arange(len(x0), device=x0.device).repeat(order.shape[1])
    pairs = max(1, PAIR_ELEMENTS // x0[0].numel())
    for i, c in zip(inputs.split(pairs), classes.split(pairs), strict=True):
        _ascend(search, i, c, steps, generator)
    return search.result(valid_images=False)


def _ascend(search: Search, i: Tensor, c: Tensor, steps: int, generator: torch.Generator) -> None:
    """Follow the gradient of f_c − f_t for the inputs i and classes c, (P,) each; offers what it meets."""
    x, scale = search.x0[i], None
    for _ in range(steps):
        t = search.label[i]
        gap, gradient = search.gradient(lambda y: (y.gather(1, c[:, None]) - y.gather(1, t[:, None]))[:, 0], x)
        slope = gradient.flatten(1).norm(dim=1)
        flat = ~(slope > 0)
        way = torch.where(flat, math.inf, -gap.double() / slope)  # linearised
        if scale is None:
            scale = torch.where(flat, 0.1 * x.flatten(1).norm(dim=1) + 1e-3, way.clamp(min=1e-12))
        chance = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        direction = torch.where(per_input(flat, x), chance, gradient)
        direction = direction / per_input(direction.flatten(1).norm(dim=1), x)
        x = x + per_input(torch.minimum(torch.maximum(0.2 * way, 0.02 * scale), 0.2 * scale), x) * direction
        met = search.offer(i, x)
        going = ~met & ((x - search.x0[i]).flatten(1).norm(dim=1) < search.distance[i])
        i, c, x, scale = i[going], c[going], x[going], scale[going]
        if len(i) == 0:
            break
