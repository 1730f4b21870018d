"""The bounds of the paper: a product of layer norms, global and local (docs/bounds.md; Avant & Morgansen 2023).

Both bound the *anchored* Lipschitz constant sup ‖f(x) − f(x0)‖ / ‖x − x0‖ over the ball ‖x − x0‖ ≤ ε (over all x for
the global one). The gain of a layer is a bound of sup ‖Δ layer‖ / ‖x − x0‖; it passes from stage to stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..inputs import check_eps, check_input, check_options, check_outputs
from ..layers.graph import Graph
from ..layers.linear_maps import size
from ..layers.rounding import row_norms
from ..precision import no_tf32
from ..printing import certainty, values
from ..reading.read import read
from .falls import falls
from .propagation import REACH_SLACK, TINY, Propagated, propagate, stage_gain
from .stage_norms import StageNorms


@dataclass(frozen=True)
class Bound:
    """An upper bound for each input of the batch.

    value: (B,) float64. per_layer: (name, (B,) factor) for every stage and pooling; their product is the value where
    the network is a chain. failure_probability: of one value, over our own random vectors; 0.0 if all norms were dense.
    passes: forward-plus-adjoint applications of single layers, in units of the whole network (a mean over the stages).
    fall: (B, K) where `outputs` were given, never above value: outputs_k·(f(x0) − f(x)) ≤ fall·‖x − x0‖, one-sided.
    """

    value: Tensor
    per_layer: list[tuple[str, Tensor]]
    failure_probability: float
    passes: float
    fall: Tensor | None = None

    def __float__(self) -> float:
        if self.value.numel() != 1:
            raise ValueError(f"float() needs a batch of one, this bound has {self.value.numel()} values")
        return float(self.value)

    def __repr__(self) -> str:
        what = "‖f(x) − f(x0)‖" if self.fall is None else "|change| of each of the outputs"
        lines = [f"{type(self).__name__} {values(self.value)}", f"{what} is at most this times ‖x − x0‖"]
        return "\n".join([*lines, f"{certainty(self.failure_probability)}; {self.passes:.3g} passes"])


@no_tf32()
def global_bound(
    net: nn.Module, x0: Tensor, *, outputs: Tensor | None = None, tolerance: float = 2e-3,
    failure_probability: float = 1e-9, certified: bool = True, seed: int = 0,
) -> Bound:  # fmt: skip
    """Bound of ‖f(x) − f(x0)‖ / ‖x − x0‖ for all x and all x0: the product of the layers' spectral norms.

    Arguments, guarantee and errors as in `local_bound`; of x0 only the shape, dtype and device enter.
    """
    check_input(x0)
    seed = check_options(tolerance, failure_probability, seed)
    graph = read(net, x0)
    outputs = check_outputs(outputs, size(graph.out_shape), x0.shape[0]).to(x0.device)
    norms = StageNorms(x0.dtype, graph, tolerance, failure_probability, certified, seed)
    return finish(graph, propagate(graph, x0[:1], None, norms), norms, outputs)


@no_tf32()
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
    seed = check_options(tolerance, failure_probability, seed)
    eps = check_eps(eps, x0)
    graph = read(net, x0)
    outputs = check_outputs(outputs, size(graph.out_shape), eps.shape[0]).to(x0.device)
    norms = StageNorms(x0.dtype, graph, tolerance, failure_probability, certified, seed)
    return finish(graph, propagate(graph, x0, eps, norms), norms, outputs)


@torch.no_grad()
def finish(graph: Graph, before: Propagated, norms: StageNorms, outputs: Tensor) -> Bound:
    """The bound of the whole network, or of each of its `outputs` (B, K, m): the last stage has no slopes."""
    stage, batch = graph.stages[-1], outputs.shape[0]
    sources = {name: before.sources[name] for name in stage.sources}
    fall = None
    if outputs.shape[1] > 0:
        both = falls(stage, before, torch.cat([outputs, -outputs], 1)) * (1.0 + REACH_SLACK)
        fall, value = both[:, : outputs.shape[1]], torch.maximum(*both.chunk(2, 1))
        largest = torch.stack([source.gain for source in sources.values()]).amax(0)
        factor = value.amax(1) / largest.clamp(min=TINY)
    else:
        rows = {name: row_norms(stage, name, source.live) for name, source in sources.items()}
        value, factor, _ = stage_gain(stage, sources, rows, None, norms)
        value = value.expand(batch) * (1.0 + REACH_SLACK)
    factors = [*before.per_layer, (stage.name, factor)]
    per_layer = [(name, f.expand(batch).clone()) for name, f in factors]  # not made in inference mode, and not shared
    return Bound(value, per_layer, norms.failure_spent, norms.work / max(1, graph.cost), fall)
