"""Elementwise bounds of Jacobians of a network of linear maps: FastLip's from the input on, RecurJac's from the output.

A unit's Jacobian on the set: of relu a slope, 1, 0 or anything in [0, 1]; of max pooling one element of each window,
any of the *candidates*, whose upper bound reaches the largest lower bound in the window (or a convex combination).
Rounding is bounded from the magnitudes of the summands and added outward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from local_lipschitz.layers.linear_maps import Shape, size
from local_lipschitz.layers.max_pooling import MaxPool
from other_methods.common.network import Link, Network
from other_methods.common.preactivation import gamma
from other_methods.common.preactivation_passes import Range, Windows
from other_methods.common.windows import Box, Part, behind, cut, place, tiles

CHUNK = 2**22  # elements of a batch of columns
TILE = 2  # elements along an axis of what is followed through a network at a time
WORK = 3e11  # multiplications that RecurJac's recursion may take for one layer: a minute or two of a core

Interval = tuple[Tensor, Tensor]


class Relu:
    """What is known of the slopes of a relu layer."""

    def __init__(self, known: Range) -> None:
        self.active = known.low >= 0
        self.uncertain = ~self.active & (known.high > 0)

    def forward(self, low: Tensor, high: Tensor) -> Interval:
        """The entries' intervals after the unit, those before it being in [low, high]."""
        low = torch.where(self.active, low, torch.where(self.uncertain, low.clamp(max=0.0), 0.0))
        return low, torch.where(self.active, high, torch.where(self.uncertain, high.clamp(min=0.0), 0.0))

    back = forward  # diagonal

    def worst(self, M: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """(carried, spent): max of Y·D·M over the unit's D is at most Y·carried + Σ spent, for low ≤ Y ≤ high.

        Where the sign of an entry of Y is certain, its worst slope is known; else the entry's own bounds are spent.
        """
        mixed = self.uncertain & (low < 0) & (high > 0)
        rising = self.uncertain & ~mixed & torch.where(low >= 0, M > 0, M < 0)
        spent = torch.where(mixed, torch.where(M > 0, high, low) * M, 0.0)
        return torch.where(self.active | rising, M, 0.0), spent

    def largest(self, error: Tensor) -> Tensor:
        """The largest of what a unit may choose from."""
        return error


class Pool:
    """What is known of the windows of a max pooling; the same questions as for relu."""

    def __init__(self, pool: MaxPool, known: Range) -> None:
        self.pool, self.windows = pool, Windows(pool, known)

    def forward(self, low: Tensor, high: Tensor) -> Interval:
        return self._least(low), self.largest(high)

    def back(self, low: Tensor, high: Tensor) -> Interval:
        """The intervals before the unit of what is linear in its output: an element's from all windows it falls in."""
        alone = self.windows.alone[..., None]
        ends = []
        for end, zero in ((low, torch.minimum), (high, torch.maximum)):
            each = end.flatten(2)[..., None]
            each = torch.where(alone, each, zero(each, torch.zeros_like(each)))
            ends.append(self._scatter(torch.where(self.windows.candidates, each, 0.0)))
        return ends[0], ends[1]

    def worst(self, M: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        smallest, largest = self._least(M), self.largest(M)
        alone = self.windows.alone.reshape(1, *self.pool.out_shape)
        mixed = ~alone & (low < 0) & (high > 0)
        spent = torch.where(mixed, torch.maximum(high * largest, low * smallest), 0.0)
        return torch.where(mixed, 0.0, torch.where(low >= 0, largest, smallest)), spent

    def largest(self, M: Tensor) -> Tensor:
        """The largest entry of the candidates of each window."""
        read = self.windows.gather(M.reshape(-1, *self.pool.in_shape), -torch.inf)
        read = torch.where(self.windows.candidates, read, -torch.inf)
        return read.amax(-1).reshape(*M.shape[:-3], *self.pool.out_shape)

    def _least(self, M: Tensor) -> Tensor:
        return -self.largest(-M)

    def _scatter(self, each: Tensor) -> Tensor:
        """Σ over the windows of what each (B, C, windows, kernel) gives to its elements."""
        n = size(self.pool.in_shape[1:])
        before = each.new_zeros(*each.shape[:2], n + 1)
        before.index_add_(2, self.windows.index.flatten() % (n + 1), each.flatten(2))
        return before[..., :n].reshape(-1, *self.pool.in_shape)


def units_of(net: Network, known: list[Range]) -> list[Relu | Pool]:
    """The units with what the ranges tell of them."""
    pairs = zip(net.links, known, strict=False)
    return [Pool(link.unit, r) if isinstance(link.unit, MaxPool) else Relu(r) for link, r in pairs]


def forward_bounds(net: Network, known: list[Range]) -> Interval:
    """FastLip: L ≤ J ≤ U, elementwise, (outputs, inputs), in interval arithmetic from the first layer on."""
    first, outputs = net.links[0], size(net.links[-1].out_shape)
    J_low, J_high = torch.zeros(2, outputs, *first.in_shape, dtype=torch.float64)
    for tile in tiles(first, first.in_shape, TILE):
        part, units = _reached(net, known, tile)
        parts = []
        for columns in _unit_vectors(part, tile, first.in_shape, CHUNK // _widest(part.net.links)):
            low = high = part.net.links[0].apply(columns)
            if first.rounding:
                error = _rounding(part.net.links[0], columns)
                low, high = low - error, high + error
            for unit, link in zip(units, part.net.links[1:], strict=True):
                low, high = _through(link, *unit.forward(low, high))
            parts.append((low.flatten(1), high.flatten(1)))
        for J, ends in zip((J_low, J_high), zip(*parts, strict=True), strict=True):
            there = cut(J, tile)
            there[:] = torch.cat(ends).mT.reshape(there.shape)
    return J_low.flatten(1), J_high.flatten(1)


def jacobian_bounds(net: Network, known: list[Range], work: float = WORK) -> list[Interval]:
    """RecurJac: L ≤ Y_k ≤ U, elementwise, for the Jacobian Y_k of f by what link k reads: (outputs, n_{k−1}) each.

    Where the recursion for a layer would take more than `work` multiplications, the bounds of the next layer are spent
    at once, which is interval arithmetic from the output back: a bound as well, and looser.
    """
    units, last = units_of(net, known), net.links[-1]
    outputs = size(last.out_shape)
    unit_rows = torch.eye(outputs, dtype=torch.float64).reshape(outputs, *last.out_shape)
    row = last.adjoint(unit_rows)
    error = _rounding_adjoint(last, unit_rows) if len(last.stage.layers) > 1 else torch.zeros_like(row)
    found = [(row - error, row + error)]
    for k in range(len(net.links) - 2, -1, -1):
        unit, link = units[k], net.links[k]
        low, high = unit.back(*found[0])
        middle, half = link.adjoint(0.5 * (low + high)), link.absolute.adjoint(0.5 * (high - low)).clamp(min=0.0)
        slack = 2.0 * _rounding_adjoint(link, torch.maximum(low.abs(), high.abs()))
        low, high = middle - half - slack, middle + half + slack
        if not link.is_identity and _work(net, known, k) <= work:  # of an identity it repeats that of the next layer
            recursive = [_recursive_upper(net, known, found, k, sign) for sign in (1.0, -1.0)]
            high = torch.minimum(high, recursive[0])
            low = torch.maximum(low, -recursive[1])
        found.insert(0, (low, high))
    return [(low.flatten(1), high.flatten(1)) for low, high in found]


def _work(net: Network, known: list[Range], k: int) -> int:
    """Multiplications of RecurJac's recursion for link k, products with the entries and with their magnitudes."""
    link, outputs, work = net.links[k], size(net.links[-1].out_shape), 0
    for tile in tiles(link, link.in_shape, TILE):
        columns = link.in_shape[0] * math.prod(stop - start for start, stop in tile)
        later = behind(net.links[k:], tile).net.links[1:-1]
        work += 2 * outputs * columns * (2 * sum(each.stage.cost for each in later) + 1)
    return work


def _recursive_upper(net: Network, known: list[Range], found: list[Interval], k: int, sign: float) -> Tensor:
    """Elementwise upper bound of sign·Y_k, (outputs, *shape), from the bounds `found` of Y_{k+1} … Y_n.

    Y_k = Y_{k+1} D_k W_k. What a unit carries is taken on to Y_{k+2} as one matrix; what it spends is added up.
    """
    link, outputs = net.links[k], len(found[0][0])
    upper = torch.zeros(outputs, *link.in_shape, dtype=torch.float64)
    for tile in tiles(link, link.in_shape, TILE):
        part, units = _reached(net, known, tile, k)
        found_there = [(cut(low, b), cut(high, b)) for (low, high), b in zip(found, part.reads[1:], strict=True)]
        at_once = CHUNK // (outputs * _widest(part.net.links[:-1]))
        totals = [
            _recursion(part.net.links, units, found_there, sign, columns)
            for columns in _unit_vectors(part, tile, link.in_shape, at_once)
        ]
        there = cut(upper, tile)
        there[:] = torch.cat(totals, 1).reshape(there.shape)
    return upper


def _recursion(
    links: Sequence[Link], units: list[Relu | Pool], found: list[Interval], sign: float, columns: Tensor
) -> Tensor:
    """Upper bounds (outputs, columns) of sign·Y_k's columns; links from k on, with the bounds of what follows each."""
    outputs, count = len(found[0][0]), len(columns)
    M, error = sign * links[0].apply(columns)[None], _rounding(links[0], columns)[None]  # (1 or outputs, count, …)
    total = torch.zeros(outputs, count, dtype=torch.float64)
    for j, (low, high) in enumerate(found):
        low, high = low[:, None], high[:, None]
        magnitude = units[j].largest(error + gamma(size(links[j].out_shape)) * M.abs())
        M, spent = units[j].worst(M, low, high)
        total = total + (spent + torch.maximum(low.abs(), high.abs()) * magnitude).flatten(2).sum(2)
        if j < len(links) - 2:
            error, M = _rounding(links[j + 1], M.flatten(0, 1)), links[j + 1].apply(M.flatten(0, 1))
            error, M = (x.reshape(outputs, count, *links[j + 1].out_shape) for x in (error, M))
    return total + torch.maximum(low * M, high * M).flatten(2).sum(2)


def _reached(net: Network, known: list[Range], tile: Box, k: int = 0) -> tuple[Part, list[Relu | Pool]]:
    """What the tile of link k's input reaches, and the units there."""
    part = behind(net.links[k:], tile)
    there = [Range(cut(r.low, b), cut(r.high, b)) for r, b in zip(known[k:], part.gives, strict=False)]
    return part, units_of(part.net, there)


def _widest(links: Sequence[Link]) -> int:
    return max(size(shape) for link in links for shape in (link.in_shape, link.out_shape))


def _through(link: Link, low: Tensor, high: Tensor) -> Interval:
    """A mid ± (|A| half + rounding)."""
    middle, half = link.apply(0.5 * (low + high)), link.absolute.apply(0.5 * (high - low)).clamp(min=0.0)
    slack = 2.0 * _rounding(link, torch.maximum(low.abs(), high.abs()))
    return middle - half - slack, middle + half + slack


def _rounding(link: Link, x: Tensor) -> Tensor:
    """What rounding may change in A x."""
    return _unit_rounding(link) * link.absolute.apply(x.abs()).clamp(min=0.0)


def _rounding_adjoint(link: Link, y: Tensor) -> Tensor:
    return _unit_rounding(link) * link.absolute.adjoint(y.abs()).clamp(min=0.0)


def _unit_rounding(link: Link) -> float:
    return max(1, len(link.stage.layers)) * gamma(link.stage.terms)


def _unit_vectors(part: Part, tile: Box, shape: Shape, batch: int) -> Iterator[Tensor]:
    """The unit vectors of the tile's elements as the part reads them, at most `batch` (≥ 1) at a time."""
    sides = (shape[0], *(stop - start for start, stop in tile))
    n, batch = size(sides), max(1, batch)
    for start in range(0, n, batch):
        count = min(batch, n - start)
        columns = torch.zeros(count, n, dtype=torch.float64)
        columns[torch.arange(count), start + torch.arange(count)] = 1.0
        columns = columns.reshape(count, *sides)
        yield columns if part.reads[0] == tile else place(columns, tile, shape)
