"""Bounds of every pre-activation of a network of linear maps over a ball: intervals and CROWN's lines, by passes.

The same bounds as in preactivation.py, for convolutions and max pooling as well. Max pooling in CROWN: below lies the
element with the largest lower bound; above, that element where no other can exceed it, else the largest upper bound.
Guaranteed: l ≤ y_k(x) ≤ u on the whole ball, in exact arithmetic with the given weights, rounding added outward.
Cost: intervals two passes; CROWN two backward passes for each relu whose sign the intervals leave open, through what
it reads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from local_lipschitz.layers.linear_maps import size
from local_lipschitz.layers.max_pooling import MaxPool
from other_methods.chain import Ball, Domain
from other_methods.common.network import Link, Network
from other_methods.common.preactivation import Bounds, gamma
from other_methods.common.windows import before, cut, tiles

CHUNK = 2**22  # elements of a batch of backward passes


class Range(NamedTuple):
    """low ≤ y_k ≤ high, (1, *shape) each, of what a unit reads."""

    low: Tensor
    high: Tensor


def ranges(net: Network, domain: Domain, relaxation: str = "crown") -> list[Range]:
    """One Range for each unit. relaxation: "interval", or "crown" (intersected with the intervals)."""
    if relaxation not in ("interval", "crown"):
        raise ValueError(f"relaxation is {relaxation!r}; 'interval' or 'crown' is wanted")
    if not isinstance(domain, Ball):
        raise ValueError("by passes the set of inputs is a ball")
    if domain.x0.size != size(net.links[0].in_shape):
        raise ValueError(f"the ball has {domain.x0.size} elements, the network reads {size(net.links[0].in_shape)}")
    known: list[Range] = []
    sizes = [torch.from_numpy(np.abs(domain.x0) + domain.eps).reshape(1, *net.links[0].in_shape)]  # |z_k| at most
    for k, link in enumerate(net.links[:-1]):
        box = _interval(net, domain, known, sizes[k], k)
        if relaxation == "crown" and k > 0 and not link.is_identity:
            box = _crown(net, domain, known, sizes, box, k)
        known.append(box)
        z = [apply_unit(link.unit, y) for y in box]
        sizes.append(torch.maximum(z[0].abs(), z[1].abs()))
    return known


def ranges_of_bounds(net: Network, bounds: list[Bounds]) -> list[Range]:
    """The bounds of preactivation.py, for a network that is a chain of matrices."""
    return [
        Range(*(torch.from_numpy(y).reshape(1, *link.out_shape) for y in bound))
        for link, bound in zip(net.links, bounds, strict=False)
    ]


def apply_unit(unit: object, y: Tensor) -> Tensor:
    """relu(y), or y pooled."""
    return unit.apply(y) if isinstance(unit, MaxPool) else y.clamp(min=0.0)


def _interval(net: Network, domain: Ball, known: list[Range], z_size: Tensor, k: int) -> Range:
    """A mid + b ± |A| half; the first layer exactly, from the shape of the set."""
    link = net.links[k]
    if link.is_identity and k > 0:
        low, high = (apply_unit(net.links[k - 1].unit, y) for y in known[-1])
        return Range(low, high)
    slack = 2.0 * _slack(link, z_size)
    if k == 0:
        middle = link.apply(torch.from_numpy(domain.x0).reshape(1, *link.in_shape)) + link.bias
        reach = _reach(link, domain)
    else:
        low, high = (apply_unit(net.links[k - 1].unit, y) for y in known[-1])
        middle = link.apply(0.5 * (low + high)) + link.bias
        reach = link.absolute.apply(0.5 * (high - low)).clamp(min=0.0)
    return Range(middle - reach - slack, middle + reach + slack)


def _slack(link: Link, z_size: Tensor) -> Tensor:
    """What rounding may change in A z + b, or in the adjoint of anything times z."""
    layers = max(1, len(link.stage.layers))
    return layers * gamma(link.stage.terms) * (link.absolute.apply(z_size).clamp(min=0.0) + link.bias.abs())


def _reach(link: Link, domain: Ball) -> Tensor:
    """sup of A (x − x0) over the ball, row by row."""
    if domain.p == 2:
        rows = link.stage.row_norms(link.source, torch.ones(1, *link.in_shape, dtype=torch.float64))
        return domain.eps * rows * (1.0 + gamma(link.stage.terms))
    if domain.p == np.inf:
        return domain.eps * link.absolute.apply(torch.ones(1, *link.in_shape, dtype=torch.float64)).clamp(min=0.0)
    return torch.from_numpy(domain.reach(link.matrix())).reshape(1, *link.out_shape)


def _crown(net: Network, domain: Ball, known: list[Range], sizes: list[Tensor], box: Range, k: int) -> Range:
    """The box with CROWN's bounds for the elements whose sign it leaves open, those of one place after another."""
    links = net.links[: k + 1]
    bounds = Range(box.low.clone(), box.high.clone())
    slacks = [_slack(*pair) for pair in zip(links, sizes, strict=False)]
    x0 = torch.from_numpy(domain.x0).reshape(1, *links[0].in_shape)
    for tile in tiles(links[k], links[k].out_shape, 1):
        low, high = (cut(y, tile) for y in bounds)
        unsure = ((low < 0) & (high > 0)).nonzero()
        if not len(unsure):
            continue
        part = before(links, tile)
        ball = Ball(cut(x0, part.reads[0]).flatten().numpy(), domain.eps, domain.p)
        ranges_there = [Range(cut(r.low, b), cut(r.high, b)) for r, b in zip(known, part.gives, strict=False)]
        slacks_there = [cut(slack, b) for slack, b in zip(slacks, part.gives, strict=True)]
        largest = max(max(size(link.in_shape), size(link.out_shape)) for link in part.net.links)
        for each in unsure.split(max(1, CHUNK // (2 * largest))):
            at, rows = tuple(each.T), torch.zeros(len(each), *low.shape[1:], dtype=torch.float64)
            one: tuple = (torch.arange(len(each)), *at[1:])
            rows[one] = 1.0
            upper = _upper(part.net, ball, ranges_there, slacks_there, torch.cat([rows, -rows]), k)
            high[at] = torch.minimum(high[at], upper[: len(each)])
            low[at] = torch.maximum(low[at], -upper[len(each) :])
    return bounds


def _upper(net: Network, domain: Ball, known: list[Range], slacks: list[Tensor], A: Tensor, k: int) -> Tensor:
    """Upper bounds of A·y_k (rows,): each unit replaced by the line above or below it, from the last one back."""
    total = torch.zeros(len(A), dtype=torch.float64)
    for j in range(k, -1, -1):
        link = net.links[j]
        if j < k:
            A, constant = lines(link.unit, known[j], A)
            total = total + constant * (1.0 + gamma(size(link.out_shape)))
        total = total + (A * link.bias).flatten(1).sum(1) + (A.abs() * slacks[j]).flatten(1).sum(1)
        A = link.adjoint(A)
    A, x0 = A.flatten(1), torch.from_numpy(domain.x0)
    dual = {1.0: np.inf, 2.0: 2, np.inf: 1}[domain.p]
    rounding = gamma(A.shape[1]) * (A.abs() @ (x0.abs() + domain.eps))
    return A @ x0 + domain.eps * torch.linalg.vector_norm(A, ord=dual, dim=1) + total + rounding


def lines(unit: object, known: Range, A: Tensor) -> tuple[Tensor, Tensor]:
    """(A', c) with A·unit(y) ≤ A'·y + c wherever y is in its range; A (rows, *shape of the unit's output), c ≥ 0."""
    positive, negative = A.clamp(min=0.0), A.clamp(max=0.0)
    low, high = known
    if isinstance(unit, MaxPool):
        places = Windows(unit, known)
        alone = places.alone
        constant = torch.where(alone, 0.0, positive.flatten(2) * places.highest).flatten(1)
        to_winner = negative.flatten(2) + torch.where(alone, positive.flatten(2), 0.0)
        before = A.new_zeros(len(A), *unit.in_shape).flatten(2)
        before.scatter_add_(2, places.winner.expand(len(A), -1, -1), to_winner)
        return before.reshape(-1, *unit.in_shape), constant.sum(1)
    active, uncertain = low >= 0, (low < 0) & (high > 0)
    slope = torch.where(uncertain, high / torch.where(uncertain, high - low, 1.0), active.double())
    offset = torch.where(uncertain, -low * slope, 0.0)  # relu(y) ≤ slope·y + offset
    below = torch.where(uncertain, high > -low, active).double()  # relu(y) ≥ below·y
    return positive * slope + negative * below, (positive * offset).flatten(1).sum(1)


class Windows:
    """What is known of the windows of a max pooling, from the range of what it reads; (1, C, windows[, kernel])."""

    def __init__(self, pool: MaxPool, known: Range) -> None:
        self.index = pool.windows  # (windows, kernel), −1 for padding
        low, high = (self.gather(y, -torch.inf) for y in known)
        at_best = low.max(-1)
        self.winner = self.index.expand(low.shape).gather(3, at_best.indices[..., None])[..., 0]
        self.highest = high.amax(-1)
        self.candidates = high >= at_best.values[..., None]  # of all others the value is below the largest
        self.alone = self.candidates.sum(-1) == 1

    def gather(self, y: Tensor, padding: float) -> Tensor:
        """(B, C, windows, kernel): the elements of y (B, C, H, W) that each window reads."""
        read = y.flatten(2)[:, :, self.index.clamp(min=0)]
        return torch.where(self.index >= 0, read, padding)
