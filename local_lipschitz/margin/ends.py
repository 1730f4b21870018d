"""Better ends of a layer of kinks: by lines, and by the certificate with more or less effort (docs/margin.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from .ball import scaled
from .certificate import certified_shares
from .fields import fields
from .intervals import Interval, KinkRows, Rows
from .layered import shared_scales
from .small_fields import small, together
from .solve import Wanted, proven, solve_all
from .start import shared, starts

MANY = 1500  # kinks from which on the multipliers of the joint bound are not tried by themselves
SMALL = 3e7  # rows times the cube of the size, up to which each row of a layer gets scales of its own


def by_certificate(kinks: KinkRows, rows: Rows, ends: Interval) -> Interval:
    """Better ends of some rows: by interior points where these are few or see little, else with tuned scales."""
    low, high = by_shares(kinks, rows, ends)
    at = ((low < 0) & (high > 0)).nonzero()[:, 0]
    if len(kinks) == 0 or len(at) == 0:
        return low, high
    if len(at) * (len(kinks) + len(at)) ** 3 <= SMALL:
        return _closer((low, high), at, _each(kinks, rows.pick(at)))
    found = fields(kinks, rows, at)
    few, more = ([field for field in found if small(field) == way] for way in (True, False))
    for field, below in zip(few, together(few), strict=True):
        low, high = _closer((low, high), field.which, below)
    for field in more:
        low, high = _closer((low, high), field.which, _together(field.kinks, field.rows))
    return low, high


def _each(kinks: KinkRows, rows: Rows) -> Tensor:
    """Lower bounds of rows and of their negatives, (2k,), with scales of layers and kinds for each."""
    both = Rows.join(rows, -rows)
    ball = scaled(kinks, both)
    wanted = Wanted(torch.full_like(both.y0, torch.inf), 0.03, steps=5)
    return proven(ball, solve_all(ball, starts(kinks, both), wanted))


def _together(kinks: KinkRows, rows: Rows) -> Tensor:
    """Lower bounds of rows and of their negatives, (2k,), with the same multipliers, up to a scale each."""
    both = Rows.join(rows, -rows)
    ball = scaled(kinks, both)
    return certified_shares(ball, shared_scales(ball.relaxation, ball.functions, both.y0, shared(kinks)))


def by_shares(kinks: KinkRows, rows: Rows, ends: Interval) -> Interval:
    """Better ends of some rows: by lines, and by the certificate with multipliers that a cheaper bound has.

    Those of the joint bound make the ends hardly shorter than it does: not worth a large factorisation.
    """
    low, high = by_lines(kinks, rows, ends)
    at = ((low < 0) & (high > 0)).nonzero()[:, 0]
    known = len(kinks) > MANY and bool((kinks.joint > 0).any())
    if len(kinks) == 0 or len(at) == 0 or known:
        return low, high
    both = Rows.join(rows.pick(at), -rows.pick(at))
    return _closer((low, high), at, certified_shares(scaled(kinks, both), shared(kinks)))


def _closer(ends: Interval, at: Tensor, below: Tensor) -> Interval:
    """With lower bounds of the rows `at`, and then of their negatives."""
    low, high = ends[0].clone(), ends[1].clone()
    low[at] = torch.maximum(low[at], below[: len(at)])
    high[at] = torch.minimum(high[at], -below[len(at) :])
    return low, high


def by_lines(kinks: KinkRows, rows: Rows, ends: Interval) -> Interval:
    """Better ends of some rows, by lines."""
    return torch.maximum(ends[0], kinks.lines(rows).lower), torch.minimum(ends[1], -kinks.lines(-rows).lower)
