"""The bounds of the paper: a product of layer norms, global and local (docs/bounds.md; Avant & Morgansen 2023).

Both bound the *anchored* Lipschitz constant sup ‖f(x) − f(x0)‖ / ‖x − x0‖ over the ball ‖x − x0‖ ≤ ε (over all x for
the global one). The gain of a layer is a bound of sup ‖Δ layer‖ / ‖x − x0‖; it passes from stage to stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .activations import MaxPool, PiecewiseLinear, pool_anything
from .graph import INPUT, Graph, Stage
from .inputs import check_eps, check_input, check_outputs
from .layers import read
from .linear import total
from .rounding import affine_rounding
from .stage_norms import StageNorms

# Row norms and slopes are computed in float64; this covers their rounding, outward.
SLACK = 1e-12
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Bound:
    """An upper bound for each input of the batch.

    value: (B,) float64. per_layer: (name, (B,) factor) for every stage and pooling; their product is the value where
    the network is a chain. failure_probability: of one value, over our own random vectors; 0.0 if all norms were dense.
    passes: forward-plus-adjoint applications of single layers, in units of the whole network (a mean over the stages).
    """

    value: Tensor
    per_layer: list[tuple[str, Tensor]]
    failure_probability: float
    passes: float

    def __float__(self) -> float:
        if self.value.numel() != 1:
            raise ValueError(f"float() needs a batch of one, this bound has {self.value.numel()} values")
        return float(self.value)


def global_bound(
    net: nn.Module, x0: Tensor, *, outputs: Tensor | None = None, tolerance: float = 2e-3,
    failure_probability: float = 1e-9, certified: bool = True, seed: int = 0,
) -> Bound:  # fmt: skip
    """Bound of ‖f(x) − f(x0)‖ / ‖x − x0‖ for all x and all x0: the product of the layers' spectral norms.

    Arguments, guarantee and errors as in `local_bound`; of x0 only the shape, dtype and device enter.
    """
    check_input(x0)
    graph = read(net, x0)
    norms = StageNorms(x0.dtype, graph.norm_count, tolerance, failure_probability, certified, seed)
    return finish(graph, propagate(graph, x0[:1], None, norms), norms, check_outputs(outputs, graph, x0.shape[0]))


def local_bound(
    net: nn.Module, x0: Tensor, eps: float | Tensor, *, outputs: Tensor | None = None, tolerance: float = 2e-3,
    failure_probability: float = 1e-9, certified: bool = True, seed: int = 0,
) -> Bound:  # fmt: skip
    """Bound of ‖f(x) − f(x0)‖ / ‖x − x0‖ over 0 < ‖x − x0‖ ≤ eps: the paper's product of ‖R A D‖ over the layers.

    Guaranteed: value ≥ the anchored local Lipschitz constant of the network with the given weights, except with
    probability `failure_probability` over our own random vectors (0 where every norm was solved densely). Each
    spectral norm is at most a factor 1 + `tolerance` too large. Nominal activations, row norms and slopes are computed
    in float64; the norms in x0's dtype, whose rounding is added outward.

    net: a chain or graph of supported layers, in eval mode (see `read`). x0: (B, *input shape) float32 or float64, in
    the network's own (normalised) units. eps: a radius in the same units, or one an input (B,); a single input with
    several eps is a batch. outputs: (K, m) or (B, K, m): bound the K scalar functions outputs_k · f, each by itself, in
    place of f (class margins e_t − e_c); value is then (B, K). certified=False returns the converged estimates, which
    are not upper bounds. seed: of the random start vectors.
    Raises ValueError for a wrong shape, NaN or infinite input, eps ≤ 0, a net in training mode; UnsupportedLayerError.
    Source: Avant & Morgansen, IEEE TNNLS 2023, Theorem 2 and Section IV; docs/bounds.md.
    """
    check_input(x0)
    eps = check_eps(eps, x0)
    graph = read(net, x0)
    norms = StageNorms(x0.dtype, graph.norm_count, tolerance, failure_probability, certified, seed)
    return finish(graph, propagate(graph, x0, eps, norms), norms, check_outputs(outputs, graph, eps.shape[0]))




@dataclass(frozen=True)
class Source:
    """What is known of a layer that a stage reads.

    y0: its nominal value (1 or B, *shape), float64. gain: (B,) with ‖Δ‖ ≤ gain·‖x − x0‖. live: (1 or B, *shape), False
    where the element is constant on the ball. error: (B,) ≥ ‖y0 − its exact value‖, by rounding; off: the same of each
    element of what the layer reads.
    """

    y0: Tensor
    gain: Tensor
    live: Tensor
    error: Tensor
    off: Tensor


@dataclass(frozen=True)
class Propagated:
    """The state before the last stage: what it reads, the factors so far, their failure probability and cost."""

    sources: dict[str, Source]
    per_layer: list[tuple[str, Tensor]]


@torch.no_grad()
def propagate(graph: Graph, x0: Tensor, eps: Tensor | None, norms: StageNorms) -> Propagated:
    """Nominal values, gains and live elements of every nonlinear layer, in order; eps None: over all x."""
    batch = x0.shape[0] if eps is None else eps.shape[0]
    one = torch.ones(batch, dtype=torch.float64, device=x0.device)
    sources = {INPUT: Source(x0.double(), one, torch.ones_like(x0, dtype=torch.bool), 0.0 * one, 0.0 * x0)}
    per_layer: list[tuple[str, Tensor]] = []
    for stage in graph.stages[:-1]:
        (reader, op), read_by = stage.nonlinear, {name: sources[name] for name in stage.sources}
        y0 = stage.affine({name: source.y0 for name, source in read_by.items()})
        row_norms = {name: stage.row_norms(name, source.live.double()) for name, source in read_by.items()}
        rounding = affine_rounding(stage, {name: source.y0 for name, source in read_by.items()}, y0)
        off = _off(read_by, row_norms, rounding)
        if isinstance(op, MaxPool):
            r = None
            live = pool_anything(op, total(row_norms.values()) > 0)
        else:
            r = op.steepest(y0) if eps is None else _slope_bound(op, y0, _reach(row_norms, read_by, eps), off)
            live = r > 0
            rounding = rounding * torch.where(live, op.steepest(y0), 0.0)
        gain, factor, error = _stage_gain(stage, read_by, r, norms)
        error = error + _norm(rounding)
        if stage.layers or r is not None:
            per_layer.append((stage.name, factor))
        if isinstance(op, MaxPool):
            gain, error = math.sqrt(op.overlap) * gain, math.sqrt(op.overlap) * error
            per_layer.append((reader, math.sqrt(op.overlap) * one))
        sources[reader] = Source(op.apply(y0), gain, live, error, off)
    return Propagated(sources, per_layer)


def _reach(row_norms: dict[str, Tensor], sources: dict[str, Source], eps: Tensor) -> Tensor:
    """h with |Δy_i| ≤ h_i on the ball: Σ_s ε_s ‖a_iᵀD_s‖, ε_s = ε·gain_s. (B, *shape)."""
    reach = total(_per_input(eps * sources[name].gain, rows) * rows for name, rows in row_norms.items())
    return reach * (1.0 + SLACK)


def _off(sources: dict[str, Source], row_norms: dict[str, Tensor], rounding: Tensor) -> Tensor:
    """How far the exact nominal y_i may be from y0_i: the stage's rounding and that of what it reads. (B, *shape)."""
    return rounding + total(_per_input(sources[name].error, rows) * rows for name, rows in row_norms.items())


def _slope_bound(op: PiecewiseLinear, y0: Tensor, h: Tensor, off: Tensor) -> Tensor:
    """r_i ≥ |φ(y_i) − φ(y0_i)| / |y_i − y0_i|: the secant slope towards ȳ_i = y0_i + h_i for ReLU. (1 or B, *shape)."""
    s_lo, s_hi = op.secant_slopes(y0, h, off)
    return torch.maximum(s_lo.abs(), s_hi.abs())


def _stage_gain(
    stage: Stage, sources: dict[str, Source], r: Tensor | None, norms: StageNorms
) -> tuple[Tensor, Tensor, Tensor]:
    """(Σ_s ‖R A_s D_s‖·gain_s, that sum over the largest gain_s, Σ_s ‖R A_s D_s‖·error_s).

    For a chain the second is ‖R A D‖.
    """
    norm_of = {name: norms(stage, name, r, source.live) for name, source in sources.items()}
    gain = total(norm_of[name] * source.gain for name, source in sources.items())
    error = total(norm_of[name] * source.error for name, source in sources.items())
    largest = torch.stack([source.gain for source in sources.values()]).amax(0)
    return gain, torch.where(largest > 0, gain / largest.clamp(min=TINY), 0.0), error


@torch.no_grad()
def finish(graph: Graph, before: Propagated, norms: StageNorms, outputs: Tensor) -> Bound:
    """The bound of the whole network, or of each of its `outputs` (B, K, m): the last stage has no slopes."""
    stage, batch = graph.stages[-1], outputs.shape[0]
    sources = {name: before.sources[name] for name in stage.sources}
    if outputs.shape[1] > 0:
        value = _functional_gains(stage, sources, outputs)
        largest = torch.stack([source.gain for source in sources.values()]).amax(0)
        factor = value.amax(1) / largest.clamp(min=TINY)
    else:
        value, factor, _ = _stage_gain(stage, sources, None, norms)
        value = value.expand(batch)
    per_layer = [(name, f.expand(batch)) for name, f in [*before.per_layer, (stage.name, factor)]]
    return Bound(value * (1.0 + SLACK), per_layer, norms.failure_spent, norms.work / max(1, graph.cost))


def _functional_gains(stage: Stage, sources: dict[str, Source], outputs: Tensor) -> Tensor:
    """Σ_s ‖c_k A_s D_s‖·gain_s for the rows c_k of outputs (B, K, m): one adjoint pass a row, (B, K)."""
    gains = []
    for k in range(outputs.shape[1]):
        rows = stage.to(torch.float64).adjoint(outputs[:, k].reshape(-1, *stage.out_shape))
        terms = [_norm(rows[name] * source.live) * source.gain for name, source in sources.items()]
        gains.append(total(terms))
    return torch.stack(gains, 1)


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows.flatten(1), dim=1)


def _per_input(factor: Tensor, like: Tensor) -> Tensor:
    """A factor a input, (B,), shaped to multiply (B, *shape)."""
    return factor.reshape(-1, *(1,) * (like.dim() - 1))
