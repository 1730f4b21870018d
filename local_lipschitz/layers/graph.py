"""A network as named layers that know their inputs by name; a chain is the simplest graph.

Between two nonlinear layers lies a *stage*: everything affine from the nonlinear layers it reads (its sources, or the
network's input) to the input of the next nonlinear layer, or to the network's output. Bounds go stage by stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from .activations import Nonlinear
from .linear_maps import Change, LinearMap, Reshape, Shape, size

INPUT = "input"


@dataclass(frozen=True)
class Sum:
    """The sum of several layers of one shape (a residual connection)."""


@dataclass(frozen=True)
class Concat:
    """Several layers side by side along one dimension, counted with the batch dimension."""

    dim: int
    sizes: tuple[int, ...]


Op = LinearMap | Sum | Concat | Nonlinear


@dataclass(frozen=True)
class Layer:
    """One layer: `name` reads the layers `inputs` (INPUT is the network's input) and gives (B, *shape).

    A linear map adds `bias`, which broadcasts against (B, *shape).
    """

    name: str
    inputs: tuple[str, ...]
    op: Op
    shape: Shape
    bias: Tensor | None = None

    @property
    def is_linear(self) -> bool:
        return isinstance(self.op, LinearMap | Sum | Concat)

    def apply(self, xs: Sequence[Tensor | None], change: Change | None = None) -> Any:
        """The linear part, without bias. An input that is None is zero, and so (None) is what depends on no other.

        change: of the entries of its linear map, once they have the dtype of xs.
        """
        op, known = self.op, [x for x in xs if x is not None]
        if not known:
            return None
        if isinstance(op, LinearMap):
            return op.apply(known[0]) if change is None else op.apply_changed(known[0], change)
        if isinstance(op, Sum):
            return sum(known[1:], start=known[0])
        assert isinstance(op, Concat)
        return torch.cat([zeros(known[0], op, i) if x is None else x for i, x in enumerate(xs)], op.dim)

    def adjoint(self, y: Tensor) -> list[Tensor]:
        """The adjoint of the linear part: one tensor for each input."""
        op = self.op
        if isinstance(op, LinearMap):
            return [op.adjoint(y)]
        if isinstance(op, Sum):
            return [y] * len(self.inputs)
        assert isinstance(op, Concat)
        return list(y.split(op.sizes, op.dim))

    def entries(self, change: Change) -> Layer:
        """The layer with `change` applied to each entry of its linear map, and without bias."""
        op = self.op.entries(change) if isinstance(self.op, LinearMap) else self.op
        return replace(self, op=op, bias=None)


def keep(a: Tensor) -> Tensor:
    """The change that leaves entries as they are, but in another dtype."""
    return a


def zeros(like: Tensor, op: Concat, i: int) -> Tensor:
    """What stands for input i of a concatenation where it is zero; `like` is another of its inputs."""
    shape = list(like.shape)
    shape[op.dim] = op.sizes[i]
    return like.new_zeros(shape)


@dataclass(frozen=True)
class Stage:
    """The affine part between the nonlinear layers `sources` and the layer `reader` that reads its result.

    `reader` is None for the last stage, the network's output. `layers` may be empty: then `target` is the one source.
    """

    reader: Layer | None
    target: str
    sources: tuple[str, ...]
    layers: tuple[Layer, ...]
    in_shapes: Mapping[str, Shape]
    out_shape: Shape

    @property
    def nonlinear(self) -> tuple[str, Nonlinear]:
        """Name and function of the layer that reads this stage; every stage but the last has one."""
        assert self.reader is not None and not isinstance(self.reader.op, LinearMap | Sum | Concat)
        return self.reader.name, self.reader.op

    @property
    def name(self) -> str:
        """What results call this stage: the last layer in it that computes anything, else the layer that reads it."""
        computing = [layer.name for layer in self.layers if not isinstance(layer.op, Reshape)]
        reader = self.reader.name if self.reader else self.target
        return computing[-1] if computing else reader

    def entries(self, change: Change) -> Stage:
        """The stage with `change` applied to each entry of its layers, and without biases."""
        return replace(self, layers=tuple(layer.entries(change) for layer in self.layers))

    def to(self, dtype: torch.dtype) -> Stage:
        """The same linear stage in another dtype (without biases)."""
        return self.entries(lambda a: a.to(dtype))

    def affine(self, values: Mapping[str, Tensor], change: Change = keep) -> Tensor:
        """The stage with its biases, in the dtype of the values; `change` of all entries and biases."""
        known = dict(values)
        for layer in self.layers:
            y = layer.apply([known[i] for i in layer.inputs], change)
            known[layer.name] = y if layer.bias is None else y + change(layer.bias.to(y.dtype, copy=True))
        return known[self.target]

    def apply(self, values: Mapping[str, Tensor], change: Change | None = None) -> Tensor:
        """Σ_s A_s x_s for the given sources; those left out are zero. `change` as for a layer."""
        known: dict[str, Any] = dict(values)
        for layer in self.layers:
            known[layer.name] = layer.apply([known.get(i) for i in layer.inputs], change)
        return known[self.target]

    def adjoint(self, y: Tensor) -> dict[str, Tensor]:
        """A_sᵀ y for every source s."""
        known: dict[str, Tensor] = {self.target: y}
        for layer in reversed(self.layers):
            for name, x in zip(layer.inputs, layer.adjoint(known.pop(layer.name)), strict=True):
                known[name] = known[name] + x if name in known else x
        return known

    def of(self, source: str) -> Stage:
        """The stage with one of its sources and only the layers that depend on it: its map is A_source."""
        reached, layers = {source}, []
        for layer in self.layers:
            if reached.intersection(layer.inputs):
                reached.add(layer.name)
                layers.append(layer)
        return replace(self, sources=(source,), layers=tuple(layers), in_shapes={source: self.in_shapes[source]})

    def is_selection(self, source: str) -> bool:
        """Whether no row and no column of A_source holds more than one entry; then ‖R A D‖ = max_i r_i ‖a_iᵀD‖."""
        reached = {source}
        for layer in self.layers:
            inputs = [i for i in layer.inputs if i in reached]
            one_entry = getattr(layer.op, "one_per_row", True) and getattr(layer.op, "one_per_column", True)
            if len(inputs) > 1 or (inputs and not one_entry):
                return False
            reached.update([layer.name] if inputs else [])
        return True

    def matrix(self, source: str, like: Tensor) -> Tensor:
        """A_source as a dense matrix (size of out_shape, size of the source's shape), in the dtype of `like`."""
        stage, shape = self.of(source).to(like.dtype), self.in_shapes[source]
        m, n = size(self.out_shape), size(shape)
        if m < n:
            unit = torch.eye(m, dtype=like.dtype, device=like.device).reshape(m, *self.out_shape)
            return stage.adjoint(unit)[source].reshape(m, n)
        unit = torch.eye(n, dtype=like.dtype, device=like.device).reshape(n, *shape)
        return stage.apply({source: unit}).reshape(n, m).mT

    @property
    def terms(self) -> int:
        """The largest number of products summed in one element of any of the layers."""
        return max([layer.op.terms for layer in self.layers if isinstance(layer.op, LinearMap)], default=1)

    @property
    def cost(self) -> int:
        """Multiplications in one application."""
        return sum(layer.op.cost for layer in self.layers if isinstance(layer.op, LinearMap))

    def row_norms(self, source: str, d: Tensor) -> Tensor:
        """‖a_iᵀ D‖ for every row i of A_source, D = diag(d), d (B, *shape) in 0/1; (B, *out_shape), in d's dtype.

        Exact (to rounding) for one affine layer with any number of layers around it that only renumber, scale, cut, pad
        with zeros or average without overlap: Σ_j a_ij² d_j. An upper bound where several affine layers follow one
        another or branches of the same source meet.

        For a map M so far, with rows m_k, two things are known: squares q_k ≥ ‖m_kᵀD‖², and their spread h with
        ‖Σ_k w_k m_kᵀD‖² ≤ Σ_k w_k² h_k for every w. So a row a of the next layer has the square min((Σ|a_k|√q_k)²,
        Σ a_k² h_k), the first by the triangle inequality; and AM has the spread Σ_k a_ik² c_k h_k, where c_k counts
        the non-zero entries of column k of A, by Cauchy's.
        """
        q, h = {source: d}, {source: d}
        for layer in self.of(source).layers:
            inputs = [i for i in layer.inputs if i in q]
            A, branches = layer.op if isinstance(layer.op, LinearMap) else None, len(inputs)
            square = partial(layer.apply, change=Tensor.square_)
            exact = all(h[i] is q[i] for i in inputs)  # so far no column holds two entries
            if A is not None and not A.one_per_row:
                rows = square([h[inputs[0]]])
                if not exact:
                    rows = torch.minimum(rows, layer.apply([_root(q[inputs[0]])], Tensor.abs_).square())
            elif branches > 1 and isinstance(layer.op, Sum):
                rows = layer.apply([_root(q[i]) for i in inputs]).square()
            else:
                rows = square([q.get(i) for i in layer.inputs])
            q[layer.name] = rows
            if layer.name == self.target:
                break
            if A is not None and not A.one_per_column:
                (counts,) = layer.entries(lambda a: (a != 0).to(d.dtype)).adjoint(torch.ones_like(rows[:1]))
                h[layer.name] = square([counts * h[inputs[0]]])
            elif branches > 1:
                h[layer.name] = square([branches * h[i] if i in h else None for i in layer.inputs])
            else:
                h[layer.name] = rows if exact else square([h.get(i) for i in layer.inputs])
        # a convolution routine may return a rounding below zero where the sum is zero
        return _root(q[self.target])


def _root(squares: Tensor) -> Tensor:
    return squares.clamp(min=0.0).sqrt()


@dataclass(frozen=True)
class Call:
    """One step of the module as its user wrote it, numbered from 1 in error messages and in `describe`.

    name: the module's path or the function's name; kind: the module's type or the function's name; shape: of its
    output, without batch; layers: names of the layers that it became; note: what became of it where there are none.
    """

    name: str
    kind: str
    shape: Shape
    layers: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Graph:
    """A network: layers in topological order; the last one is the output. `calls`: the module they were read from."""

    in_shape: Shape
    layers: tuple[Layer, ...]
    calls: tuple[Call, ...] = ()

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return {INPUT: self.in_shape} | {layer.name: layer.shape for layer in self.layers}

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """One stage for each nonlinear layer, in order, and one for the output."""
        ends = [(layer, layer.inputs[0]) for layer in self.layers if not layer.is_linear]
        output = self.layers[-1].name if self.layers else INPUT
        return tuple(self._stage(reader, target) for reader, target in [*ends, (None, output)])

    @property
    def out_shape(self) -> Shape:
        return self.layers[-1].shape if self.layers else self.in_shape

    @property
    def norm_count(self) -> int:
        """The number of (stage, source) pairs."""
        return sum(len(stage.sources) for stage in self.stages)

    @property
    def cost(self) -> int:
        """Multiplications in the affine part of one forward pass."""
        return sum(stage.cost for stage in self.stages)

    def _stage(self, reader: Layer | None, target: str) -> Stage:
        needed, layers = {target}, []
        for layer in reversed(self.layers):
            if layer.name in needed and layer.is_linear:
                needed.remove(layer.name)
                needed.update(layer.inputs)
                layers.append(layer)
        sources = tuple(name for name in self.shapes if name in needed)
        in_shapes = {name: self.shapes[name] for name in sources}
        return Stage(reader, target, sources, tuple(reversed(layers)), in_shapes, self.shapes[target])

    def forward(self, x: Tensor) -> Tensor:
        """The network's output at x (B, *in_shape), computed in the dtype of x."""
        values = {INPUT: x}
        for stage in self.stages:
            y = stage.affine({name: values[name] for name in stage.sources})
            if stage.reader is None:
                return y
            op = stage.reader.op
            assert isinstance(op, Nonlinear)
            values[stage.reader.name] = op.apply(y)
        raise AssertionError("the last stage has no reader")

    def difference(self, x0: Tensor, delta: Tensor) -> Tensor:
        """f(x0 + δ) − f(x0) for x0 (1, *in_shape) and δ (N, *in_shape), to relative rounding however small δ is.

        Differences are passed on through the layers, instead of subtracting two nearly equal outputs.
        """
        values, changes = {INPUT: x0}, {INPUT: delta}
        for stage in self.stages:
            y0 = stage.affine({name: values[name] for name in stage.sources})
            dy = stage.to(delta.dtype).apply({name: changes[name] for name in stage.sources})
            if stage.reader is None:
                return dy
            op = stage.reader.op
            assert isinstance(op, Nonlinear)
            values[stage.reader.name] = op.apply(y0)
            changes[stage.reader.name] = op.difference(y0, dy)
        raise AssertionError("the last stage has no reader")
