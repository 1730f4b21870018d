"""What a row sees: where that is little, a problem of its own is small, and its multipliers serve nobody else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .kinks import KinkRows, Rows

FEW = 12  # kinks
LITTLE = 0.5  # of all kinks: what rows see at most that form a field of their own


@dataclass(frozen=True)
class Field:
    """Rows `which` (k,) of some, in terms of the kinks and of the elements of the input that they see."""

    which: Tensor
    kinks: KinkRows
    rows: Rows


def fields(kinks: KinkRows, rows: Rows, at: Tensor) -> list[Field]:
    """The rows `at`, those that see the same together, and so all that see more than a part of the kinks.

    The same kinks where these are FEW, and else the same elements of the input: such rows differ in few kinks.
    """
    reads = (kinks.T != 0).to(kinks.T)
    sees = (rows.T[at] != 0).to(reads)
    for _ in kinks.starts:  # a kink that is seen sees those that it reads
        sees = ((sees + sees @ reads) != 0).to(reads)
    inputs = ((rows.Q[at] != 0) | (sees @ (kinks.Q != 0).to(sees) != 0)).to(sees)
    found: dict[tuple[bool, bytes], list[int]] = {}
    for i, few in enumerate((sees.sum(1) <= FEW).tolist()):
        same = (sees if few else inputs)[i].cpu().numpy().tobytes()
        found.setdefault((few, same), []).append(i)
    several = [i for i in found.values() if float(sees[i].amax(0).sum()) <= LITTLE * len(kinks)]
    parts = [_field(kinks, rows, at[i], sees[i].amax(0) != 0, inputs[i].amax(0) != 0) for i in several]
    rest = torch.ones_like(at, dtype=torch.bool)
    for part in several:
        rest[part] = False
    return [*parts, Field(at[rest], kinks, rows.pick(at[rest]))] if bool(rest.any()) else parts


def _field(kinks: KinkRows, rows: Rows, which: Tensor, seen: Tensor, inputs: Tensor) -> Field:
    index, delta = seen.nonzero()[:, 0], inputs.nonzero()[:, 0]
    starts = [int((index < first).sum()) for first, end in kinks.layers() if bool(seen[first:end].any())]
    y0, error, lower, upper, reach, joint = (
        x[index] for x in (kinks.y0, kinks.error, kinks.lower, kinks.upper, kinks.reach, kinks.joint)
    )
    Q, T = kinks.Q[index][:, delta], kinks.T[index][:, index]
    part = KinkRows(kinks.eps, kinks.sides.none(), y0, Q, T, error, lower, upper, reach, joint, starts)
    picked = rows.pick(which)
    return Field(which, part, replace(picked, Q=picked.Q[:, delta], T=picked.T[:, index]))
