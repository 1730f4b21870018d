"""Everything affine between two nonlinear layers: apply it, apply its adjoint, the norms of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .layer import Layer, Nonlinear, Sum
from .linear_maps import Change, Dense, LinearMap, Shape, keep, size
from .rearranging import Reshape


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
        assert self.reader is not None and isinstance(self.reader.op, Nonlinear)
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

    def functions(self, source: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """x ↦ A_source x and y ↦ A_sourceᵀ y."""
        ops = [layer.op for layer in self.layers]
        if len(ops) == 1 and isinstance(ops[0], LinearMap):  # the rest is a fifth of a small layer's time
            return ops[0].apply, ops[0].adjoint
        return lambda x: self.apply({source: x}), lambda y: self.adjoint(y)[source]

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
        computing = [layer.op for layer in stage.layers if not isinstance(layer.op, Reshape)]
        if len(computing) == 1 and isinstance(computing[0], Dense) and len(computing[0].in_shape) == 1:
            return computing[0].weight
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
