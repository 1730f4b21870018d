"""What one block of the network does: a stage, then max pooling, an activation, or one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..layers.activations import Activation
from ..layers.graph import Graph
from ..layers.linear_maps import Shape, size
from ..layers.max_pooling import MaxPool
from ..layers.rounding import roundings
from ..layers.stage import Stage
from .kinks import Kinks
from .pooling import Level
from .row_errors import BRANCHES, Errors


@dataclass(frozen=True)
class Plan:
    """What one block of the network does, before any slope is known.

    A stage, then max pooling or an activation or, for monotone activations, the pooling first and then the
    activation: max and a non-decreasing φ commute, and a window needs one kink where its elements need several.
    """

    name: str
    stage: Stage
    pool: MaxPool | None
    activation: Activation | None


def plans(graph: Graph) -> tuple[list[Plan], Stage]:
    """The blocks of a network in order, and its last stage."""
    result: list[Plan] = []
    merged: set[str] = set()
    for stage in graph.stages[:-1]:
        name, op = stage.nonlinear
        if name in merged:
            continue
        if isinstance(op, MaxPool):
            result.append(Plan(name, stage, op, None))
            continue
        pool_name, pool = _pooled_by(graph, name)
        if pool is not None and op.non_decreasing and op.same_within_channels(len(pool.in_shape)):
            merged.add(pool_name)
            result.append(Plan(pool_name, stage, pool, op))
        else:
            result.append(Plan(name, stage, None, op))
    return result, graph.stages[-1]


def _pooled_by(graph: Graph, name: str) -> tuple[str, MaxPool | None]:
    """Name and function of the max-pooling layer that alone reads layer `name`, directly; else ("", None)."""
    readers = [stage for stage in graph.stages if name in stage.sources]
    if len(readers) == 1 and not readers[0].layers and readers[0].reader is not None:
        pool_name, pool = readers[0].nonlinear
        if isinstance(pool, MaxPool):
            return pool_name, pool
    return "", None


@dataclass
class Block:
    """A plan with its kinks: a layer of them for each level of the tournament, then one for the activation.

    It may still lack some of these layers; its output is then what it has computed so far.
    """

    plan: Plan
    stage: Stage  # in the working dtype
    reach: Tensor  # (*shape) of the stage's output: Σ_j |a_ij| reach_j, however small the sum may be
    levels: list[Level]
    kinks: list[Kinks] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(len(kinks.index) for kinks in self.kinks)

    @property
    def out_shape(self) -> Shape:
        """The shape after the kinks there are so far."""
        done, pool = len(self.kinks), self.plan.pool
        if pool is None or done == 0:
            return self.stage.out_shape
        return pool.out_shape if done >= len(self.levels) else (pool.in_shape[0], len(self.levels[done - 1].a))

    def forward(self, y: Tensor, w: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From the stage's output (p, *shape) and this block's w (p, count) to (z, v of each kink layer)."""
        p, vs, used = y.shape[0], [], 0
        for i, kinks in enumerate(self.kinks):
            if i < len(self.levels):
                first, y = self.levels[i].difference(y.flatten(2))
            z, v = kinks.forward(y, w[:, used : used + len(kinks.index)])
            y = first + z if i < len(self.levels) else z
            if self.plan.pool is not None and i == len(self.levels) - 1:
                y = y.reshape(p, *self.plan.pool.out_shape)
            vs.append(v)
            used += len(kinks.index)
        return y, vs

    def adjoint(self, z: Tensor, v: Tensor, errors: Errors | None = None) -> tuple[Tensor, list[Tensor]]:
        """The adjoint: from z's and v's adjoint to (that of the stage's output, that of each w)."""
        ws, used = [], self.count
        for i in range(len(self.kinks) - 1, -1, -1):
            kinks = self.kinks[i]
            k = len(kinks.index)
            if i == len(self.levels) - 1:
                z = z.flatten(2)
            if errors is not None:
                errors.add(z, kinks.moved, self.levels[i].terms if i < len(self.levels) else 2)
            y, w = kinks.adjoint(z, v[:, used - k : used])
            if i < len(self.levels):
                y = self.levels[i].adjoint(z, y, self._length(i))
            ws.append(w)
            z, used = y, used - k
        z = self._as_stage(z)
        if errors is not None:
            errors.add(z, self.reach, roundings(self.stage) + BRANCHES)
        return z, ws[::-1]

    def ahead(self, z: Tensor) -> Tensor:
        """What the next layer of kinks would read, from the output so far (p, *out_shape)."""
        done = len(self.kinks)
        return self.levels[done].difference(z.flatten(2))[1] if done < len(self.levels) else z

    def adjoint_ahead(self, y: Tensor) -> Tensor:
        """The adjoint of `ahead`."""
        done = len(self.kinks)
        if done < len(self.levels):
            y = self.levels[done].adjoint(y.new_zeros(y.shape), y, self._length(done))
        return y.reshape(y.shape[0], *self.out_shape)

    def _as_stage(self, z: Tensor) -> Tensor:
        return z if self.plan.pool is None else z.reshape(z.shape[0], *self.plan.pool.in_shape)

    def _length(self, i: int) -> int:
        assert self.plan.pool is not None
        return len(self.levels[i - 1].a) if i > 0 else size(self.plan.pool.in_shape[1:])
