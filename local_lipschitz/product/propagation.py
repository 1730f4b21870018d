"""From stage to stage: gains, slopes and live elements of every layer (docs/bounds.md; Avant & Morgansen 2023).

The gain of a layer is a bound of sup ‖Δ layer‖ / ‖x − x0‖ over the ball; it passes from stage to stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.activations import Activation, Interval, merged
from ..layers.graph import Graph
from ..layers.layer import INPUT
from ..layers.linear_maps import total
from ..layers.max_pooling import MaxPool, pool_anything
from ..layers.rounding import affine_rounding, apply_rounding, norms_of, roundings, row_norms
from ..layers.stage import Stage
from ..numerics import of_computed
from .stage_norms import StageNorms

# Row norms and slopes are computed in float64; this covers their rounding, outward.
REACH_SLACK = 1e-12
TINY = torch.finfo(torch.float64).tiny
# Products of the smallest ε and the smallest gain other than 0 do not vanish; a bound holds for every smaller ε.
EPS_MIN, LEAST = 1e-100, 1e-200


@dataclass(frozen=True)
class Source:
    """What is known of a layer that a stage reads.

    y0: its nominal value (1 or B, *shape), float64. gain: (B,) with ‖Δ‖ ≤ gain·‖x − x0‖. live: (1 or B, *shape), False
    where the element is constant on the ball. What rounding may have changed in y0: error (B,) bounds its norm over the
    live elements, drift each element that is not live (0 for the others); off is that of what the layer reads.
    """

    y0: Tensor
    gain: Tensor
    live: Tensor
    error: Tensor
    off: Tensor
    drift: Tensor


@dataclass(frozen=True)
class Slopes:
    """Of an activation: Δz = s·Δy, s in `left` where Δy < 0, in `right` where Δy > 0, |Δy| ≤ reach·‖x − x0‖.

    left, right: (lo, hi); all (1 or B, *shape). stage: its y.
    """

    stage: Stage
    left: Interval
    right: Interval
    reach: Tensor

    @property
    def steepest(self) -> Tensor:
        """r with |Δz| ≤ r·|Δy|."""
        lo, hi = merged(self.left, self.right)
        return torch.maximum(lo.abs(), hi.abs())


@dataclass(frozen=True)
class Propagated:
    """The state before the last stage: every layer that a stage reads, the activations' slopes, the factors so far."""

    sources: dict[str, Source]
    slopes: dict[str, Slopes]
    per_layer: list[tuple[str, Tensor]]

    def only(self, b: int) -> dict[str, Source]:
        """What is known of every layer, for input b alone."""

        def pick(x: Tensor) -> Tensor:
            return x[b % x.shape[0]][None]

        return {
            name: Source(pick(s.y0), pick(s.gain), pick(s.live), pick(s.error), pick(s.off), pick(s.drift))
            for name, s in self.sources.items()
        }


@torch.inference_mode()  # many small operations, each quicker so
def propagate(graph: Graph, x0: Tensor, eps: Tensor | None, norms: StageNorms) -> Propagated:
    """Nominal values, gains and live elements of every nonlinear layer, in order; eps None: over all x."""
    batch, eps = (x0.shape[0], None) if eps is None else (eps.shape[0], eps.clamp(min=EPS_MIN))
    one = torch.ones(batch, dtype=torch.float64, device=x0.device)
    nothing = torch.zeros_like(x0, dtype=torch.float64)
    sources = {INPUT: Source(x0.double(), one, torch.ones_like(x0, dtype=torch.bool), 0.0 * one, nothing, nothing)}
    per_layer: list[tuple[str, Tensor]] = []
    slopes: dict[str, Slopes] = {}
    for stage in graph.stages[:-1]:
        (reader, op), read_by = stage.nonlinear, {name: sources[name] for name in stage.sources}
        y0 = stage.affine({name: source.y0 for name, source in read_by.items()})
        rows = {name: row_norms(stage, name, source.live) for name, source in read_by.items()}
        rounding = _rounding(stage, read_by)
        off = _off(read_by, rows, rounding)
        if isinstance(op, MaxPool):
            r = None
            live = pool_anything(op, total(rows.values()) > 0)
            drift = op.apply(off)
        else:
            reach = total_reach(rows, read_by)
            slopes[reader] = Slopes(stage, *_slopes(op, y0, eps, reach, off), reach)
            r = slopes[reader].steepest
            live = r > 0
            more = apply_rounding(op, y0)
            rounding = torch.where(live, rounding * op.steepest_slope(y0) + more, 0.0)
            drift = _drift(op, y0, reach, off) + more
        gain, factor, error = stage_gain(stage, read_by, rows, r, norms)
        error = error + norms_of(rounding)
        if stage.layers or r is not None:
            per_layer.append((stage.name, factor))
        if isinstance(op, MaxPool):
            gain, error = math.sqrt(op.overlap) * gain, math.sqrt(op.overlap) * error
            per_layer.append((reader, math.sqrt(op.overlap) * one))
        sources[reader] = Source(op.apply(y0), gain, live, error, off, torch.where(live, 0.0, drift))
    return Propagated(sources, slopes, per_layer)


def total_reach(rows: dict[str, Tensor], sources: dict[str, Source]) -> Tensor:
    """g with |Δy_i| ≤ g_i·‖x − x0‖ on the ball: Σ_s ‖a_iᵀD_s‖·gain_s. (B, *shape)."""
    reaches = (times(_per_input(sources[name].gain, norms), norms) for name, norms in rows.items())
    return total(reaches) * (1.0 + REACH_SLACK)


def _slopes(op: Activation, y0: Tensor, eps: Tensor | None, reach: Tensor, off: Tensor) -> tuple[Interval, Interval]:
    """To the left and to the right of every y0, (1 or B, *shape): any slope of φ for eps None, else those in reach."""
    if eps is None:
        lo, hi = (slope.expand_as(y0) for slope in op.slope_range(y0))
        return (lo, hi), (lo, hi)
    return op.sided_slopes(y0, _per_input(eps, y0) * reach, off)


def output_error(graph: Graph, x0: Tensor, norms: StageNorms) -> tuple[Tensor, Tensor]:
    """(y, off): the outputs (B, m) at x0 in float64, and how far each may be from the exact one, by norms of layers.

    For deep networks far less than what `logits` has by |A|.
    """
    known = propagate(graph, x0, x0.new_full((len(x0),), EPS_MIN, dtype=torch.float64), norms)
    stage = graph.stages[-1]
    read_by = {name: known.sources[name] for name in stage.sources}
    rows = {name: row_norms(stage, name, source.live) for name, source in read_by.items()}
    y = stage.affine({name: source.y0 for name, source in read_by.items()})
    return y.flatten(1), _off(read_by, rows, _rounding(stage, read_by)).flatten(1)


def _rounding(stage: Stage, sources: dict[str, Source]) -> Tensor:
    """What the stage's own rounding, and that of elements that do not move, may have changed in its nominal value."""
    return affine_rounding(stage, {name: source.y0 for name, source in sources.items()}) + _drifted(stage, sources)


def _off(sources: dict[str, Source], rows: dict[str, Tensor], rounding: Tensor) -> Tensor:
    """How far the exact nominal y_i may be from y0_i: the stage's rounding and that of what it reads. (B, *shape)."""
    passed_on = total(_per_input(sources[name].error, norms) * norms for name, norms in rows.items())
    return (rounding + passed_on) * (1.0 + REACH_SLACK)


def _drifted(stage: Stage, sources: dict[str, Source]) -> Tensor | float:
    """Σ_s |A_s|·drift_s: what the rounding of elements that do not move adds to that of the next stage."""
    drifts = {name: source.drift for name, source in sources.items()}
    if not any(bool(drift.any()) for drift in drifts.values()):
        return 0.0
    return stage.apply(drifts, Tensor.abs_).clamp(min=0.0) * (1.0 + of_computed(roundings(stage)))


def _drift(op: Activation, y0: Tensor, reach: Tensor, off: Tensor) -> Tensor:
    """|φ(y) − φ(y0)| for |y − y0| ≤ off, at most; 0 where y moves on the ball: φ is flat there if φ(y) does not."""
    still = reach == 0
    if not bool(still.any()):
        return torch.zeros_like(off)
    lo, hi = op.secant_slopes(y0, off)
    return torch.where(still, torch.maximum(lo.abs(), hi.abs()) * off, 0.0)


def stage_gain(
    stage: Stage, sources: dict[str, Source], rows: dict[str, Tensor], r: Tensor | None, norms: StageNorms
) -> tuple[Tensor, Tensor, Tensor]:
    """(Σ_s ‖R A_s D_s‖·gain_s, that sum over the largest gain_s, Σ_s ‖R A_s D_s‖·error_s).

    rows: ‖a_iᵀD_s‖ of each source. For a chain the second is ‖R A D‖.
    """
    norm_of = {name: norms(stage, name, rows[name], r, source.live) for name, source in sources.items()}
    gain = total(times(norm_of[name], source.gain) for name, source in sources.items())
    error = total(norm_of[name] * source.error for name, source in sources.items())
    largest = torch.stack([source.gain for source in sources.values()]).amax(0)
    return gain, torch.where(largest > 0, gain / largest.clamp(min=TINY), 0.0), error


def times(a: Tensor, b: Tensor) -> Tensor:
    """A gain a·b for a, b ≥ 0: 0 where one of them is, even if the other is infinite, and never by underflow."""
    return torch.where((a == 0) | (b == 0), 0.0, (a * b).clamp(min=LEAST))


def _per_input(factor: Tensor, like: Tensor) -> Tensor:
    """A factor an input, (B,), shaped to multiply (B, *shape)."""
    return factor.reshape(-1, *(1,) * (like.dim() - 1))
