"""The part of a network that a box of values hangs on, or that a box of inputs reaches, as a network of its own.

One element of a convolution's output reads a window of what is before it, one element of an input reaches a window of
what is behind it. A pass that starts from few elements need not touch the rest, which would only carry zeros. What a
part computes are the same sums, without these zeros: all that holds of the network's passes holds of the part's.
A box is a range (start, stop) for each spatial axis; of vectors, which have none, it is (), all elements.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from local_lipschitz.layers.layer import Layer
from local_lipschitz.layers.linear_maps import Change, Convolution, LinearMap, Shape
from local_lipschitz.layers.max_pooling import MaxPool
from other_methods.common.network import Link, Network

Box = tuple[tuple[int, int], ...]
Geometry = tuple[Shape, Shape, Shape]  # stride, padding, reach: output i reads `reach` from i·stride − padding on


@dataclass(frozen=True)
class Cut(LinearMap):
    """A map from a box of its input to a box of its output: F.pad by `pads`, then `inner`, a convolution or nothing.

    Negative pads cut off what no output of the box reads.
    """

    pads: tuple[int, ...]
    inner: Convolution | None

    def apply(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.pads)
        return x if self.inner is None else self.inner.apply(x)

    def adjoint(self, y: Tensor) -> Tensor:
        y = y if self.inner is None else self.inner.adjoint(y)
        return F.pad(y, [-pad for pad in self.pads])

    def entries(self, change: Change) -> Cut:
        return self if self.inner is None else replace(self, inner=self.inner.entries(change))

    @property
    def terms(self) -> int:
        return 1 if self.inner is None else self.inner.terms

    @property
    def cost(self) -> int:
        return 0 if self.inner is None else self.inner.cost


@dataclass(frozen=True)
class Part:
    """A network cut down to boxes; of what each link reads, and of what it gives."""

    net: Network
    reads: tuple[Box, ...]
    gives: tuple[Box, ...]


def cut(values: Tensor, box: Box) -> Tensor:
    """The values (…, *shape) in the box, a view."""
    where: tuple = (..., *(slice(*ends) for ends in box))
    return values[where]


def whole(shape: Shape) -> Box:
    return tuple((0, n) for n in shape[1:])


def tiles(link: Link, shape: Shape, side: int) -> Iterator[Box]:
    """Boxes of `side` elements along each spatial axis that together hold each element of what the link reads or gives.

    Of a link that cannot be cut it is one box.
    """
    if not _may_be_cut(link):
        side = max(shape)
    axes = [[(start, min(start + side, n)) for start in range(0, n, side)] for n in shape[1:]]
    yield from itertools.product(*axes)


def place(values: Tensor, box: Box, shape: Shape) -> Tensor:
    """(B, *shape): the values (B, …) in the box, zeros around it."""
    if box == whole(shape):
        return values
    everywhere = values.new_zeros(len(values), *shape)
    cut(everywhere, box)[:] = values
    return everywhere


def before(links: Sequence[Link], box: Box) -> Part:
    """What the box of the last link's output is computed from."""
    reads, gives = [whole(link.in_shape) for link in links], [whole(link.out_shape) for link in links]
    for j in range(len(links) - 1, -1, -1):
        if not _may_be_cut(links[j]):
            break
        gives[j] = box
        ends = zip(_read_by(_geometry(links[j]), box), links[j].in_shape[1:], strict=True)
        box = tuple((max(a, 0), min(b, n)) for (a, b), n in ends)
        if j > 0 and not (_may_be_cut(links[j - 1]) and _may_be_cut_behind(links[j - 1])):
            break  # what that one gives stays whole
        reads[j] = box
        pool = links[j - 1].unit if j > 0 else None
        if isinstance(pool, MaxPool):
            box = _read_by(_pool_geometry(pool), box)
    return _part(links, reads, gives)


def behind(links: Sequence[Link], box: Box) -> Part:
    """What the box of the first link's input reaches."""
    reads, gives = [whole(link.in_shape) for link in links], [whole(link.out_shape) for link in links]
    for j, link in enumerate(links):
        after = _reached(_geometry(link), box, link.out_shape) if _may_be_cut(link) else None
        if after is None:
            break
        reads[j] = box
        if j + 1 == len(links) or not (_may_be_cut_behind(link) and _may_be_cut(links[j + 1])):
            break  # what it gives stays whole
        pool = link.unit
        if isinstance(pool, MaxPool):
            geometry = _pool_geometry(pool)
            pooled = _reached(geometry, after, pool.out_shape)
            if pooled is None:
                break
            after, box = _read_by(geometry, pooled), pooled
        else:
            box = after
        gives[j] = after
        reads[j + 1] = box
    return _part(links, reads, gives)


def _part(links: Sequence[Link], reads: list[Box], gives: list[Box]) -> Part:
    cuts = tuple(_cut_link(*each) for each in zip(links, reads, gives, strict=True))
    return Part(Network(cuts), tuple(reads), tuple(gives))


def _convolution(link: Link) -> Convolution | None:
    """The convolution that the link is, where it is one and can be cut."""
    ops = [layer.op for layer in link.stage.layers]
    return ops[0] if len(ops) == 1 and isinstance(ops[0], Convolution) and not ops[0].transposed else None


def _may_be_cut(link: Link) -> bool:
    return link.is_identity or _convolution(link) is not None


def _may_be_cut_behind(link: Link) -> bool:
    """Whether the unit behind the link can be cut: of max poolings those whose windows do not overhang."""
    return not isinstance(link.unit, MaxPool) or int(link.unit.windows.min()) >= 0


def _geometry(link: Link) -> Geometry:
    op, axes = _convolution(link), len(link.in_shape) - 1
    if op is None:
        return (1,) * axes, (0,) * axes, (1,) * axes
    return op.stride, op.padding, tuple(d * (k - 1) + 1 for d, k in zip(op.dilation, op.weight.shape[2:], strict=True))


def _pool_geometry(pool: MaxPool) -> Geometry:
    return pool.stride, pool.padding, tuple(d * (k - 1) + 1 for d, k in zip(pool.dilation, pool.kernel, strict=True))


def _read_by(geometry: Geometry, box: Box) -> Box:
    """What the outputs of the box read, padding included."""
    return tuple((a * s - p, (b - 1) * s - p + r) for (a, b), s, p, r in zip(box, *geometry, strict=True))


def _reached(geometry: Geometry, box: Box, out_shape: Shape) -> Box | None:
    """The outputs that may read any of the box; None where there are none."""
    ends = []
    for (a, b), s, p, r, n in zip(box, *geometry, out_shape[1:], strict=True):
        start, stop = max(0, -((r - 1 - a - p) // s)), min(n, (b - 1 + p) // s + 1)  # ⌈(a + p − r + 1)/s⌉ on
        if start >= stop:
            return None
        ends.append((start, stop))
    return tuple(ends)


def _cut_link(link: Link, reads: Box, gives: Box) -> Link:
    """The link from one box to the other, and the max pooling behind it on the latter."""
    if reads == whole(link.in_shape) and gives == whole(link.out_shape):
        return link
    in_shape = (link.in_shape[0], *(b - a for a, b in reads))
    out_shape = (link.out_shape[0], *(b - a for a, b in gives))
    needed = _read_by(_geometry(link), gives)
    around = [(a - c, d - b) for (a, b), (c, d) in zip(reads, needed, strict=True)]
    pads, padded = tuple(itertools.chain(*reversed(around))), tuple(d - c for c, d in needed)
    inner = _convolution(link)
    if inner is not None:
        none = (0,) * len(padded)
        padded_shape = (in_shape[0], *padded)
        inner = replace(inner, in_shape=padded_shape, out_shape=out_shape, padding=none, output_padding=none)
    name = link.stage.target if inner is not None else f"{link.source}, cut"
    layer = Layer(name, (link.source,), Cut(in_shape, out_shape, pads, inner), out_shape)
    stage = replace(link.stage, target=name, layers=(layer,), in_shapes={link.source: in_shape}, out_shape=out_shape)
    unit = link.unit
    if isinstance(unit, MaxPool) and gives != whole(link.out_shape):
        unit = replace(unit, in_shape=out_shape, ceil_mode=False)
    return Link(stage, cut(link.bias.expand(1, *link.out_shape), gives), unit)
