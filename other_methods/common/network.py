"""A network as a chain of linear maps that are applied, not written down: convolutions and max pooling included.

    f = A_n ∘ u_{n-1} ∘ A_{n-1} ∘ … ∘ u_1 ∘ A_1,   each A_k affine, each unit u_k relu or max pooling.

The maps are the package's own; what a method needs of a map it gets from products with it and with its adjoint. Max
pooling may be cut out by its constant: ‖Δ pooled‖ ≤ √overlap · ‖Δ‖, overlap the largest number of windows an element
falls in. What is left are *segments*, chains of affine maps and relu, and a Lipschitz constant of the network is at
most the product of theirs and of these constants. float64 throughout: float32 weights are converted exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from local_lipschitz import UnsupportedLayerError
from local_lipschitz.layers.activations import RELU
from local_lipschitz.layers.linear_maps import Change, LinearMap, Shape, size
from local_lipschitz.layers.max_pooling import MaxPool
from local_lipschitz.layers.stage import Stage
from local_lipschitz.norms.lanczos import Operator
from local_lipschitz.norms.spectral_norm import lanczos_norms
from local_lipschitz.reading.read import read
from other_methods.chain import MAX_ENTRIES, Array, Chain, as_module
from other_methods.common.certify import spectral_norm
from other_methods.common.preactivation import gamma

FAILURE = 1e-12  # probability, over our own random vectors, that one norm by passes is too small
DENSE_SIDE = 512  # norms of matrices whose smaller side is at most this are those of a full decomposition


@dataclass(frozen=True)
class Link:
    """An affine map (B, *in_shape) -> (B, *out_shape), and the unit that reads it: RELU, a MaxPool, None at the end."""

    stage: Stage  # linear, in float64
    bias: Tensor  # (1, *out_shape)
    unit: object

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def source(self) -> str:
        return self.stage.sources[0]

    @property
    def in_shape(self) -> Shape:
        return self.stage.in_shapes[self.source]

    @property
    def out_shape(self) -> Shape:
        return self.stage.out_shape

    @property
    def is_identity(self) -> bool:
        return not self.stage.layers

    def apply(self, x: Tensor) -> Tensor:
        """A x, without bias."""
        return self.stage.apply({self.source: x})

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y."""
        return self.stage.adjoint(y)[self.source]

    def entries(self, change: Change) -> Link:
        """The map whose layers' entries are changed, as in the package."""
        return replace(self, stage=self.stage.entries(change))

    def matrix(self) -> Array:
        """A, (outputs, inputs); ValueError, with the numbers, where it gets too large."""
        entries = size(self.out_shape) * size(self.in_shape)
        if entries > MAX_ENTRIES:
            raise ValueError(
                f"layer {self.name!r} as a matrix has {entries:,} entries; at most {MAX_ENTRIES:,} are written down"
            )
        return self.stage.matrix(self.source, torch.zeros((), dtype=torch.float64)).numpy().astype(np.float64)

    @cached_property
    def absolute(self) -> Link:
        """The map with the entries |a| of its layers: Σ|a||x| is at least what any rounding works on."""
        return self.entries(torch.abs)

    @cached_property
    def rounding(self) -> float:
        """A bound of ‖computed A x − A x‖ / ‖x‖, and for the adjoint: γ √(largest row sum · largest column sum)."""
        summing = [layer for layer in self.stage.layers if isinstance(layer.op, LinearMap) and layer.op.terms > 1]
        if not summing:
            return 0.0
        rows = self.absolute.apply(torch.ones(1, *self.in_shape, dtype=torch.float64)).amax()
        columns = self.absolute.adjoint(torch.ones(1, *self.out_shape, dtype=torch.float64)).amax()
        return gamma(self.stage.terms) * len(summing) * math.sqrt(float(rows * columns))

    @cached_property
    def norm(self) -> float:
        """An upper bound of ‖A‖₂: of a full decomposition where the matrix is small, else by passes (`norm_of`)."""
        if self.is_identity:
            return 1.0
        if min(size(self.in_shape), size(self.out_shape)) <= DENSE_SIDE and self.stage.cost <= MAX_ENTRIES:
            return spectral_norm(self.matrix())
        return norm_of([self])


@dataclass(frozen=True)
class Network:
    """The links in order; the last one has no unit."""

    links: tuple[Link, ...]

    @cached_property
    def segments(self) -> tuple[tuple[Link, ...], ...]:
        """The runs of affine maps with relu between them that lie between max poolings."""
        runs: list[list[Link]] = [[]]
        for link in self.links:
            if not link.is_identity:
                runs[-1].append(link)
            if isinstance(link.unit, MaxPool):
                runs.append([])
        return tuple(tuple(run) for run in runs if run)

    @cached_property
    def pooling(self) -> float:
        """The product of the constants √overlap of all max poolings."""
        return math.sqrt(math.prod(link.unit.overlap for link in self.links if isinstance(link.unit, MaxPool)))

    @property
    def is_chain_of_vectors(self) -> bool:
        """Whether all layers are fully connected ones with relu between them."""
        return all(len(link.in_shape) == 1 and not isinstance(link.unit, MaxPool) for link in self.links)

    @property
    def hidden(self) -> int:
        """The number of relus."""
        return sum(size(link.out_shape) for link in self.links if link.unit is RELU)

    def product(self, of_segment: Callable[[tuple[Link, ...]], float]) -> float:
        """The Lipschitz bound of the whole network from one for each segment."""
        values = [run[0].norm if len(run) == 1 else of_segment(run) for run in self.segments]
        return self.pooling * math.prod(values) * (1.0 + 1e-15 * (len(values) + 2))


def network_of(net: nn.Module, x0: Tensor) -> Network:
    """The network as linear maps. UnsupportedLayerError unless it is a chain of affine layers, relu and max pooling."""
    if x0.shape[0] != 1:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; one input, (1, *input shape), is wanted")
    links, source = [], "input"
    for stage in read(net, x0).stages:
        unit = None if stage.reader is None else stage.reader.op
        reader = stage.reader.name if stage.reader else ""
        if not (unit is None or unit is RELU or isinstance(unit, MaxPool)):
            raise UnsupportedLayerError(
                f"layer {reader!r} ({type(unit).__name__}): the other methods know affine layers, ReLU and max pooling"
            )
        if stage.sources != (source,):
            raise UnsupportedLayerError(f"layer {stage.name!r} reads {stage.sources}: the other methods know chains")
        zero = torch.zeros(1, *stage.in_shapes[source], dtype=torch.float64, device=x0.device)
        links.append(Link(stage.to(torch.float64), stage.affine({source: zero}), unit))
        source = reader
    return Network(tuple(links))


def as_network(chain: Chain) -> Network:
    """A chain of matrices as a network."""
    return network_of(as_module(chain), torch.zeros(1, chain.widths[0], dtype=torch.float64))


def chain_of(net: nn.Module, x0: Tensor) -> tuple[Chain, Array]:
    """The network as matrices, and x0 (1, *input shape) flattened to (n_0,); errors as `network_of`, `matrices_of`."""
    return matrices_of(network_of(net, x0)), x0.flatten().double().cpu().numpy().copy()


def matrices_of(net: Network) -> Chain:
    """The network as matrices. UnsupportedLayerError for max pooling, ValueError where a matrix gets too large."""
    for before, link in pairwise(net.links):
        if isinstance(before.unit, MaxPool):
            raise UnsupportedLayerError(
                f"layer {link.source!r} (MaxPool): this method needs matrices, and knows affine layers and ReLU only"
            )
    return chain_of_segment(net.links)


def chain_of_segment(links: Sequence[Link]) -> Chain:
    """A segment as matrices; ValueError, with the numbers, where one gets too large."""
    return Chain(tuple(link.matrix() for link in links), tuple(link.bias.flatten().numpy().copy() for link in links))


def norm_of(links: Sequence[Link], tolerance: float = 2e-3) -> float:
    """An upper bound of ‖A_m … A_1‖₂ by passes, at most about `tolerance` too large; never above Π ‖A‖.

    The Lanczos process certifies it, but for the probability FAILURE over its random start. Each map rounds, and what
    is lost is carried on by the others: Σ_k rounding_k Π_{j≠k} (‖A_j‖ + rounding_j).
    """
    first, last = links[0], links[-1]

    def apply(v: Tensor) -> Tensor:
        x = v.reshape(-1, *first.in_shape)
        for link in links:
            x = link.apply(x.reshape(-1, *link.in_shape))
        return x.flatten(1)

    def adjoint(u: Tensor) -> Tensor:
        y = u.reshape(-1, *last.out_shape)
        for link in reversed(links):
            y = link.adjoint(y.reshape(-1, *link.out_shape))
        return y.flatten(1)

    if len(links) == 1:
        return by_passes(size(last.out_shape), size(first.in_shape), apply, adjoint, first.rounding, tolerance)
    norms = [link.norm + link.rounding for link in links]
    lost = sum(link.rounding * math.prod(norms) / norm for link, norm in zip(links, norms, strict=True) if norm > 0)
    upper = by_passes(size(last.out_shape), size(first.in_shape), apply, adjoint, lost, tolerance)
    return min(upper, math.prod(link.norm for link in links))


def by_passes(
    rows: int, columns: int, apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], rounding: float,
    tolerance: float = 2e-3,
) -> float:  # fmt: skip
    """An upper bound of the norm of a linear map (1, columns) -> (1, rows) known by its products, in float64.

    rounding: how far in norm what the products apply may be from the map.
    """
    lost = torch.tensor([rounding], dtype=torch.float64)
    operator = Operator(1, rows, columns, apply, adjoint, torch.float64, torch.device("cpu"), lost)
    generator = torch.Generator().manual_seed(0)
    return float(lanczos_norms(operator, tolerance, FAILURE, generator).upper)
