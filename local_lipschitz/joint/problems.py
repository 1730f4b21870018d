"""Better multipliers are a problem; those of several inputs are solved side by side, in one tensor each.

On a GPU a small problem is all launching of kernels, on a CPU that of a tiny one is all calls, so that several take
little longer than one. Their kinks lie layer by layer, each layer as long as the longest; a kink that fills up a place
has no rows, and μ = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from .groups import Groups


@dataclass(frozen=True)
class Wanted:
    """Functions [N P] whose S is to become small: N (k, n), P (k, G), NNᵀ (k, k) or, for each by itself, its diagonal.

    target: of their bounds, (1,) or for each (k,); None: as small as the steps allow.
    """

    delta: Tensor
    P: Tensor
    NN: Tensor
    target: Tensor | None

    @property
    def each(self) -> bool:
        return self.NN.dim() == 1

    @property
    def relative(self) -> Wanted:
        """Each function in units of its target, so that 1 is the target of all."""
        if self.target is None:
            return self
        unit = self.target[:, None]
        return Wanted(self.delta / unit, self.P / unit, self.NN / self.target.square(), torch.ones_like(self.target))


@dataclass(frozen=True)
class Problem:
    """Better multipliers than `mu` (G,) of these groups, for what is wanted, in `steps` steps at most.

    last: whether they are as good as they get after this, and not improved again for other functions.
    """

    groups: Groups
    wanted: Wanted
    mu: Tensor
    steps: int
    last: bool = True


@dataclass(frozen=True)
class Axis:
    """Where the entries of each problem lie among those of all, `places` (B tensors), and how many places there are."""

    places: list[Tensor]
    size: int

    @property
    def counts(self) -> list[int]:
        return [len(at) for at in self.places]

    @classmethod
    def of_functions(cls, problems: Sequence[Problem]) -> Axis:
        """One after the other."""
        counts = [len(p.wanted.P) for p in problems]
        return cls([torch.arange(k, device=p.mu.device) for k, p in zip(counts, problems, strict=True)], max(counts))

    @classmethod
    def of_kinks(cls, problems: Sequence[Problem]) -> tuple[Axis, list[tuple[int, int]]]:
        """Layer by layer; and the (first, end) of each layer, as long as the longest of these problems."""
        own = [dict(zip(p.groups.layers, (b - a for a, b in p.groups.spans), strict=True)) for p in problems]
        layers = sorted(set().union(*own))
        ends = list(accumulate(max(lengths.get(layer, 0) for lengths in own) for layer in layers))
        firsts = dict(zip(layers, [0, *ends[:-1]], strict=True))
        places = [torch.cat([torch.arange(k) + firsts[layer] for layer, k in lengths.items()]) for lengths in own]
        spans = list(zip(firsts.values(), ends, strict=True))
        return cls([at.to(p.mu.device) for at, p in zip(places, problems, strict=True)], ends[-1]), spans


def side_by_side(parts: Sequence[Tensor], *axes: Axis, fill: float = 0.0) -> Tensor:
    """(B, *sizes of the axes) from a tensor of each problem; `fill` where it has nothing."""
    if len(parts) == 1:
        return parts[0][None]
    whole = parts[0].new_full((len(parts), *(axis.size for axis in axes)), fill)
    for b, part in enumerate(parts):
        whole[b][torch.meshgrid(*(axis.places[b] for axis in axes), indexing="ij")] = part
    return whole
