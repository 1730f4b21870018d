"""What all attacks share: the record, and the nearest verified adversarial example so far."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..inputs import check_input, check_label, other_classes

HALVES = 40  # bisections of a line


@dataclass(frozen=True)
class Attack:
    """The nearest adversarial example found for each input of the batch.

    x: (B, *input shape) float64, x0 itself where none was found. distance: (B,) float64, ‖x − x0‖₂ in the network's
    (normalised) units, inf where none was found. found_class: (B,) int64, −1 where none was found. valid_images:
    whether x was kept inside the box of valid images.
    """

    x: Tensor
    distance: Tensor
    found_class: Tensor
    valid_images: bool


def pixel_distance(attack: Attack, x0: Tensor, pixel_scale: Tensor) -> Tensor:
    """The same distances in pixel units, where black is 0 and white 1: (B,). pixel_scale: std of each channel."""
    pixels = ((attack.x - x0) * pixel_scale).flatten(1).norm(dim=1)
    return torch.where(attack.distance.isinf(), math.inf, pixels)


class Search:
    """What is known of a batch under attack: the nearest verified adversarial example of each input so far."""

    def __init__(self, net: nn.Module, x0: Tensor, label: Tensor | None) -> None:
        check_input(x0)
        if any(module.training for module in net.modules()):
            raise ValueError("net is in training mode; call net.eval() first")
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.exact = copy.deepcopy(self.net).double()
        self.dtype = next((p.dtype for p in net.parameters()), x0.dtype)
        self.x0 = x0.detach().double()
        with torch.no_grad():
            y = self.exact(self.x0)
        self.label = check_label(label, y)
        self.others = other_classes(self.label, y.shape[1])
        self.margins = y.gather(1, self.label[:, None]) - y.gather(1, self.others)  # (B, m − 1)
        self.margin = self.margins.amin(1)
        self.x = self.x0.clone()
        self.distance = torch.full_like(self.margin, math.inf)
        self.found_class = torch.full_like(self.label, -1)

    def gradient(self, loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """(loss (b,), its gradient (b, *shape) in float64) of the logits at x, in the network's dtype."""
        x = x.detach().to(self.dtype, copy=True).requires_grad_()
        with torch.enable_grad():
            value = loss(self.net(x))
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient.double()

    @torch.no_grad()
    def offer(self, i: Tensor, x: Tensor) -> Tensor:
        """Whether x (b, *shape) for the inputs i (b,) are misclassified; the nearest of those are kept."""
        x = x.double()
        y, t = self.exact(x), self.label[i, None]
        largest, found = y.scatter(1, t, -math.inf).max(1)
        wrong = largest > y.gather(1, t)[:, 0]
        distance = (x - self.x0[i]).flatten(1).norm(dim=1)
        for j in (wrong & (distance < self.distance[i])).nonzero()[:, 0].tolist():
            if distance[j] < self.distance[i[j]]:
                self.x[i[j]], self.distance[i[j]], self.found_class[i[j]] = x[j], distance[j], found[j]
        return wrong

    def result(self, valid_images: bool) -> Attack:
        """The record, after drawing every x back towards x0 as far as it stays misclassified."""
        i = self.distance.isfinite().nonzero()[:, 0]
        way = self.x[i] - self.x0[i]
        lo, hi = self.distance.new_zeros(len(i)), self.distance.new_ones(len(i))
        for _ in range(HALVES if len(i) else 0):
            t = (lo + hi) / 2
            wrong = self.offer(i, self.x0[i] + per_input(t, way) * way)
            lo, hi = torch.where(wrong, lo, t), torch.where(wrong, t, hi)
        return Attack(self.x, self.distance, self.found_class, valid_images)


def per_input(factor: Tensor, like: Tensor) -> Tensor:
    """One number an input, (b,), shaped to broadcast against (b, *shape)."""
    return factor.reshape(-1, *(1,) * (like.dim() - 1))
