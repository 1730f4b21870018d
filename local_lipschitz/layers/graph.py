"""A network as named layers that know their inputs by name; a chain is the simplest graph.

Between two nonlinear layers lies a *stage*: everything affine from the nonlinear layers it reads (its sources, or the
network's input) to the input of the next nonlinear layer, or to the network's output. Bounds go stage by stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from .layer import INPUT, Layer
from .linear_maps import Shape
from .stage import Stage


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
            name, op = stage.nonlinear
            values[name] = op.apply(y)
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
            name, op = stage.nonlinear
            values[name] = op.apply(y0)
            changes[name] = op.difference(y0, dy)
        raise AssertionError("the last stage has no reader")
