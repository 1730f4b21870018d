"""How far a scalar function c·f of the output can fall, by pulling c back through the layers (docs/bounds.md).

A row c of output weights becomes the row a = cᵀA on what the last stage reads. There Δ(c·f) = Σ_j a_j Δz_j, and an
activation z = φ(y) is followed one-sidedly: where a_j > 0 only a fall of z_j does harm, where a_j < 0 only a rise. So

    −a_j Δz_j ≤ −a_j m_j Δy_j + |a_j| ρ_j |Δy_j|,

with m the mean of the two slopes that matter, one for Δy < 0 and one for Δy > 0, and ρ half their difference, or 0
where one straight line bounds both (always, for a_j > 0 and a convex φ). The row a∘m goes on to the layers before.
Wherever this stops, what the row can do there plus what was left behind is a bound; the smallest is taken. Rows add up
with their signs, which a product of layer norms cannot do. Max pooling is where it ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layers.linear_maps import size, total
from ..layers.rounding import roundings, row_norms
from ..layers.stage import Stage
from ..numerics import of_computed
from .propagation import LEAST, TINY, Propagated, Slopes, total_reach

ELEMENTS = 2**24  # of the rows held at a time, in the widest layer
CAPS = 12  # rounds in which elements of `largest_sum` meet their caps
ROUNDED_SUMS = 10  # of as many terms as there are elements, and other roundings, in `largest_sum`
ROUNDED = 1e-15  # of m and ρ, relative to the steepest slope

Rows = dict[str, Tensor]  # layer -> (B, k, *shape)


def falls(last: Stage, known: Propagated, outputs: Tensor) -> Tensor:
    """Bounds of (c_k·f(x0) − c_k·f(x)) / ‖x − x0‖ on the ball for the rows c_k of outputs (B, K, m): (B, K) float64."""
    stages = [last, *(slopes.stage for slopes in known.slopes.values())]
    widest = max(size(shape) for stage in stages for shape in (stage.out_shape, *stage.in_shapes.values()))
    part = max(1, ELEMENTS // (widest * outputs.shape[0]))
    return torch.cat([_falls(last, known, rows) for rows in outputs.split(part, 1)], 1)


def _falls(last: Stage, known: Propagated, outputs: Tensor) -> Tensor:
    sources = {name: known.sources[name] for name in last.sources}
    norms = {name: row_norms(last, name, source.live) for name, source in sources.items()}
    rows, behind = _through(last, outputs.reshape(*outputs.shape[:2], *last.out_shape), total_reach(norms, sources))
    best = behind + _here(rows, known)
    for name, slopes in reversed(known.slopes.items()):
        if name not in rows:
            continue
        a = rows.pop(name)
        m, rho = _lines(a, slopes)
        more, lost = _through(slopes.stage, a * m, slopes.reach)
        behind = behind + lost + _left_behind(a, rho, slopes, known.sources[name].gain)
        for source, row in more.items():
            rows[source] = rows[source] + row if source in rows else row
        if bool((behind >= best).all()):
            break
        best = torch.minimum(best, behind + _here(rows, known))
    return best


def _through(stage: Stage, rows: Tensor, reach: Tensor) -> tuple[Rows, Tensor]:
    """Rows (B, k, *out_shape) on a stage's output as rows on what it reads; (B, k) what rounding may have lost."""
    pulled = stage.to(torch.float64).adjoint(rows.flatten(0, 1))
    lost = of_computed(roundings(stage)) * (rows.abs() * reach[:, None]).flatten(2).sum(2)
    return {name: pulled[name].unflatten(0, rows.shape[:2]) for name in stage.sources}, lost


def _lines(a: Tensor, slopes: Slopes) -> tuple[Tensor, Tensor]:
    """(m, ρ) of the lines that bound −a·Δz, for rows a (B, k, *shape)."""
    (left_lo, left_hi), (right_lo, right_hi) = slopes.left, slopes.right
    below, above = 0.5 * (left_hi + right_lo), 0.5 * (left_lo + right_hi)
    rho_below, rho_above = 0.5 * (left_hi - right_lo), 0.5 * (right_hi - left_lo)
    m = torch.where(a > 0, below[:, None], above[:, None])
    return m, torch.where(a > 0, rho_below[:, None], rho_above[:, None]).clamp(min=0.0)


def _left_behind(a: Tensor, rho: Tensor, slopes: Slopes, gain: Tensor) -> Tensor:
    """(B, k) ≥ Σ_j |a_j| ρ_j |Δy_j| / ‖x − x0‖, where r_j|Δy_j| ≤ r_j·reach_j and ‖(r_j Δy_j)_j‖ ≤ gain·‖x − x0‖."""
    r = slopes.steepest[:, None]
    return largest_sum(a.abs() * torch.where(r > 0, rho / r + ROUNDED, 0.0), r * slopes.reach[:, None], gain)


def _here(rows: Rows, known: Propagated) -> Tensor:
    """What the rows can do: Σ_s max −a_s·Δ_s / ‖x − x0‖, with ‖Δ_s‖ ≤ gain_s and what each element can, (B, k)."""
    terms = []
    for name, a in rows.items():
        source = known.sources[name]
        if name in known.slopes:
            slopes = known.slopes[name]
            (left_lo, left_hi), (right_lo, right_hi) = slopes.left, slopes.right
            fall, rise = torch.maximum(left_hi, -right_lo), torch.maximum(right_hi, -left_lo)
            cap = torch.where(a > 0, (fall * slopes.reach)[:, None], (rise * slopes.reach)[:, None]).clamp(min=0.0)
        else:
            cap = source.live.double()[:, None] * source.gain.reshape(-1, *(1,) * (a.dim() - 1))
        terms.append(largest_sum(a.abs(), cap, source.gain))
    return total(terms)


def largest_sum(a: Tensor, cap: Tensor, radius: Tensor) -> Tensor:
    """max Σ_j a_j d_j over 0 ≤ d_j ≤ cap_j, ‖d‖ ≤ radius, to within `CAPS` rounds from above: (B, k).

    a ≥ 0 (B, k, ...), cap broadcasts against it, radius (B,). The maximum has d = min(cap, a·t). Every t > 0 gives the
    upper bound Σ_j (a_j d_j − d_j²/2t) + radius²/2t (Lagrange), so nothing rests on how exact t is.
    """
    a, cap = torch.broadcast_tensors(a, cap)
    a, cap, radius = a.flatten(2), cap.flatten(2), radius[:, None]
    a_unit, unit = a.amax(2, keepdim=True).clamp(min=TINY), radius.clamp(LEAST, 1.0 / LEAST)  # squares would vanish
    a, cap, radius = a / a_unit, cap / unit[..., None], radius / unit
    length, without_ball = a.norm(dim=2), (a * cap).sum(2)
    best = torch.minimum(radius * length, without_ball)
    t = radius / length
    for _ in range(CAPS):
        capped = a * t[..., None] >= cap
        free = torch.where(capped, 0.0, a).norm(dim=2)
        rest = radius.square() - torch.where(capped, cap, 0.0).square().sum(2)
        t = torch.where((free > 0) & (rest > 0), rest.clamp(min=0.0).sqrt() / free, t)
    d = torch.minimum(cap, a * t[..., None])
    value = (a * d - d.square() / (2.0 * t[..., None])).sum(2) + radius.square() / (2.0 * t)
    value = torch.where(value < best, value, best)  # not NaN, which t = 0 or 0/0 gives
    return a_unit[..., 0] * unit * value * (1.0 + of_computed(ROUNDED_SUMS * (a.shape[2] + ROUNDED_SUMS)))
