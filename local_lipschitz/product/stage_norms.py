"""The norm ‖R A D‖ of one stage: R and D diagonal, A the stage's affine map from one of its sources."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ..layers.graph import Graph
from ..layers.linear_maps import Convolution, Shape, size
from ..layers.rounding import norm_rounding, sums_products
from ..layers.short_sums import in_short_sums
from ..layers.stage import Stage
from ..norms.lanczos import Operator
from ..norms.spectral_norm import DENSE_SIDE, Norms, dense_norms, lanczos_norms

DENSE_ELEMENTS = 2**25  # of a batch of dense matrices held at a time
TINY_COST = 1_000_000  # multiplications
CHEAP = 300_000  # multiplications: in float64 they take no longer, and nothing is to be added for rounding
DEAR = 500_000_000  # multiplications
CLOSE, CLOSER = 0.95, 0.5  # of the tolerance, where norms stop that are not dear, and cheap ones: steps cost little
PRODUCT_SLACK = 1e-15  # of one product in float64
SUMMED = 1e-13  # of a failure probability, for the rounding of the sum of its shares
SINGLE = 1e10  # products of largest entries, and norms, within this factor of 1 are far from the ends of float32


class StageNorms:
    """Computes the norms of one bound, in `dtype` where that holds the entries, and adds up what they cost.

    Called with (stage, source, rows, r, live) it returns (B,) float64: certified upper bounds of ‖R A D‖, or converged
    estimates for `certified=False`. The failure probability is shared out evenly over the graph's norms by passes.
    """

    def __init__(
        self, dtype: torch.dtype, graph: Graph, tolerance: float, failure_probability: float, certified: bool, seed: int
    ) -> None:
        self.dtype, self.tolerance, self.certified = dtype, tolerance, certified
        random = sum(by_passes(stage, source) for stage in graph.stages for source in stage.sources)
        self.share = (1.0 - SUMMED) * failure_probability / max(1, random)
        self.generator = torch.Generator().manual_seed(seed)
        self.failure_spent = 0.0 if certified else 1.0
        self.work = 0.0  # multiplications spent, in forward-plus-adjoint passes of a stage

    def __call__(self, stage: Stage, source: str, rows: Tensor, r: Tensor | None, live: Tensor) -> Tensor:
        """‖R A_source D‖; r (1 or B, *out_shape) or None for R = I, live (1 or B, *source shape) bool.

        rows: ‖a_iᵀD‖, float64, rounded up. The largest r_i ‖a_iᵀD‖ is the scale of what is alive.
        """
        sizes = rows if r is None else r * rows * (1.0 + PRODUCT_SLACK)
        scale = sizes.flatten(1).amax(1)
        if stage.is_selection(source):
            return scale
        random, stage = by_passes(stage, source), stage.of(source)
        norms = (self._by_passes if random else _dense)(stage, source, sizes, r, live)
        self.work += norms.passes * stage.cost
        if not self.certified:
            return norms.estimate
        self.failure_spent += norms.failure_probability
        return norms.upper if sums_products(stage, source) else torch.maximum(norms.upper, scale)

    def _by_passes(self, stage: Stage, source: str, sizes: Tensor, r: Tensor | None, live: Tensor) -> Norms:
        """Lanczos from one start: in `dtype` the matrices whose scale it holds, in float64 others and cheap ones."""
        batch = _batch(r, live)
        scale = sizes.flatten(1).amax(1).expand(batch)
        single = torch.zeros_like(scale, dtype=torch.bool)
        cheap = stage.cost <= CHEAP
        if not cheap and not sums_products(stage, source) and working_dtype([stage], self.dtype) is torch.float32:
            single = (scale >= 1.0 / SINGLE) & (scale <= SINGLE)
        estimate, upper, passes = torch.empty_like(scale), torch.empty_like(scale), 0.0
        state = self.generator.get_state()
        for dtype, which in ((torch.float32, single), (torch.float64, ~single)):
            if not bool(which.any()):
                continue
            at = which.nonzero()[:, 0]
            self.generator.set_state(state)
            some = partial(_some, kept=at)
            norms = self._lanczos(stage, source, some(sizes), _changed(r, some), some(live), dtype)
            estimate[at], upper[at] = norms.estimate, norms.upper
            passes += norms.passes * len(at) / batch
        return Norms(estimate, upper, self.share, passes)

    def _lanczos(
        self, stage: Stage, source: str, sizes: Tensor, r: Tensor | None, live: Tensor, dtype: torch.dtype
    ) -> Norms:
        """Of R A D over its largest row, so that no square vanishes, where that is far from 1."""
        scale = sizes.flatten(1).amax(1).expand(_batch(r, live))
        near = (scale >= 1.0 / SINGLE) & (scale <= SINGLE)
        unit = torch.where(near | (scale == 0.0), 1.0, scale)
        if bool((unit != 1.0).any()):
            ones = torch.ones(1, *stage.out_shape, dtype=torch.float64, device=live.device)
            each = unit.reshape(-1, *(1,) * len(stage.out_shape))
            r, sizes = (ones if r is None else r) / each, sizes / each
        rounding = norm_rounding(stage, source, sizes, r, live, dtype).expand(_batch(r, live))
        operator = self._operator(stage, source, r, live, rounding, dtype)
        aim = self.tolerance * (CLOSER if stage.cost <= CHEAP else CLOSE if stage.cost <= DEAR else 1.0)
        with _kernels_for(operator.batch * stage.cost, live.device):
            norms = lanczos_norms(operator, aim, self.share, self.generator)
        return Norms(unit * norms.estimate, unit * norms.upper, norms.failure_probability, norms.passes)

    def _operator(
        self, stage: Stage, source: str, r: Tensor | None, live: Tensor, rounding: Tensor, dtype: torch.dtype
    ) -> Operator:
        """R A D as a batch of operators on flat vectors."""
        in_shape, out_shape = stage.in_shapes[source], stage.out_shape
        summed = in_short_sums(stage) if dtype is torch.float32 else stage
        cast, d, R, batch = summed.to(dtype), _factor(live, dtype), _factor(r, dtype), _batch(r, live)
        flat, shaped = _flat, _shaped
        if pays_channels_last(stage, batch, live.device, dtype):
            flat, shaped = _flat_channels_last, _shaped_channels_last
            cast, d, R = cast.entries(channels_last), _changed(d, channels_last), _changed(R, channels_last)

        forwards, backwards = cast.functions(source)

        def scaled(R: Tensor | None, d: Tensor | None, batch: int, rounding: Tensor) -> Operator:
            def apply(v: Tensor) -> Tensor:  # v comes from `adjoint` or the masked start: it is zero where d is
                return flat(_multiplied(forwards(shaped(v, in_shape)), R))

            def adjoint(u: Tensor) -> Tensor:
                return flat(_multiplied(backwards(_product(R, shaped(u, out_shape))), d))

            def part(kept: Tensor) -> Operator:
                some = partial(_some, kept=kept)
                return scaled(_changed(R, some), _changed(d, some), len(kept), some(rounding))

            return Operator(
                batch, size(out_shape), size(in_shape), apply, adjoint, dtype, live.device, rounding,
                row_mask=_changed(R, flat), column_mask=_changed(d, flat), part=part,
                row_order=lambda u: flat(_shaped(u, out_shape)), column_order=lambda v: flat(_shaped(v, in_shape)),
            )  # fmt: skip

        return scaled(R, d, batch, rounding)


def by_passes(stage: Stage, source: str) -> bool:
    """Whether ‖R A_source D‖ takes a random start; it is read off a selection, and small ones are solved densely."""
    smallest = min(size(stage.out_shape), size(stage.in_shapes[source]))
    return smallest > DENSE_SIDE and not stage.is_selection(source)


def _batch(r: Tensor | None, live: Tensor) -> int:
    return max(live.shape[0], 1 if r is None else r.shape[0])


def _factor(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A diagonal matrix in this dtype; None where it is the identity."""
    return None if x is None or bool((x == 1).all()) else x.to(dtype)


def _product(factor: Tensor | None, x: Tensor) -> Tensor:
    return x if factor is None else factor * x


def _multiplied(x: Tensor, factor: Tensor | None) -> Tensor:
    """In x's memory, which a map has just filled: new memory for large vectors takes as long as the product."""
    return x if factor is None else x.mul_(factor)


def _changed(factor: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if factor is None else change(factor)


def _some(x: Tensor, kept: Tensor) -> Tensor:
    """x (1 or B, …) for some of a batch of B."""
    return x if x.shape[0] == 1 else x[kept.to(x.device)]


def working_dtype(stages: Iterable[Stage], dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float64 where the entries of a stage are beyond float32."""
    fits = dtype is torch.float64 or all(1.0 / SINGLE <= s <= SINGLE for stage in stages for s in _scales(stage))
    return dtype if fits else torch.float64


def _scales(stage: Stage) -> list[float]:
    """The products of the layers' largest entries, on the way through a stage."""
    scales, largest = [1.0], [1.0]

    def note(a: Tensor) -> Tensor:
        low, high = a.aminmax()
        largest.append(max(-float(low), float(high)) or 1.0)
        return a

    for layer in stage.layers:
        largest.clear()
        layer.entries(note)
        scales.append(scales[-1] * math.prod(largest))
    return scales


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


def _shaped(v: Tensor, shape: Shape) -> Tensor:
    return v.reshape(-1, *shape)


def _flat_channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)


def _shaped_channels_last(v: Tensor, shape: Shape) -> Tensor:
    """(B, n) in the order of (H, W, C) as (B, C, H, W), without a copy."""
    C, H, W = shape
    return v.reshape(-1, H, W, C).permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """x (B, C, H, W) with the channels side by side in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def pays_channels_last(stage: Stage, batch: int, device: torch.device, dtype: torch.dtype) -> bool:
    """On the CPU oneDNN's 2-D convolutions run up to twice as fast with the channels side by side."""
    convolutions = all(isinstance(layer.op, Convolution) and len(layer.shape) == 3 for layer in stage.layers)
    return convolutions and _uses_onednn(batch * stage.cost, device) and dtype is torch.float32


def _uses_onednn(cost: int, device: torch.device) -> bool:
    """On the CPU, oneDNN takes longer to set up a tiny convolution than torch's own kernel takes to compute it."""
    return device.type == "cpu" and cost > TINY_COST


@contextmanager
def _kernels_for(cost: int, device: torch.device) -> Iterator[None]:
    """Without oneDNN on the CPU where that does not pay."""
    if device.type != "cpu" or _uses_onednn(cost, device):
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some builds of torch warn of GPU settings here
        onednn = torch.backends.mkldnn.flags(enabled=False)
        onednn.__enter__()
    try:
        yield
    finally:
        onednn.__exit__(None, None, None)


def _dense(stage: Stage, source: str, sizes: Tensor, r: Tensor | None, live: Tensor) -> Norms:
    """Dense norms in float64, a part of the batch at a time."""
    A = stage.matrix(source, live.new_zeros((), dtype=torch.float64))
    batch = _batch(r, live)
    columns = live.double().flatten(1).expand(batch, -1)
    rows = columns.new_ones(batch, A.shape[0]) if r is None else r.flatten(1).expand(batch, -1)
    part = max(1, DENSE_ELEMENTS // A.numel())
    norms = [
        dense_norms(rows_part[:, :, None] * A * columns_part[:, None, :])
        for rows_part, columns_part in zip(rows.split(part), columns.split(part), strict=True)
    ]
    estimate, upper = torch.cat([n.estimate for n in norms]), torch.cat([n.upper for n in norms])
    return Norms(estimate, upper + norm_rounding(stage, source, sizes, r, live, torch.float64), 0.0, 0)
