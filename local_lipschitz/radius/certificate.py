"""Whether a bound proves that the class does not change within ε: both rules of radius.py, as one number h(ε)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..joint.bound import JointBound, joint_bound
from ..margin.bound import MarginBound, margin_bound
from ..product.bound import Bound
from ..product.propagation import REACH_SLACK

LEAST_MARGIN = 1e-200  # in units of which margins are bounded
HOLDS = 2e-3  # of a margin: a lower bound that is worth the work, what rounding takes off included


@dataclass(frozen=True)
class Load:
    """h = max_c ε·L_c(ε)/margin_c, below 1 where the certificate holds, and the class c of the maximum; (b,) each.

    failure_probability: of the bound. dense: (b,) bool, whether it is a joint or margin bound by dense algebra.
    """

    h: Tensor
    limiting_class: Tensor
    failure_probability: float
    dense: Tensor


@dataclass(frozen=True)
class Certificate:
    """What proves that inputs are of their class: a bound and a rule."""

    net: nn.Module
    x0: Tensor
    bound: Callable[..., Bound | MarginBound]
    margins: str
    label: Tensor
    others: Tensor
    margin: Tensor  # (B, m − 1), rounded down
    options: dict[str, Any]

    def load(
        self, which: Tensor, eps: Tensor | None, evaluation: int = 0, enough: float = 0.0, by_passes: bool = True
    ) -> Load:
        """At eps (b,) for the inputs `which` (b,); for eps None h is max_c L_c/margin_c.

        An h ≤ enough, or > 1, need not be as small as possible: the joint and the margin bound then work less.
        by_passes: whether the joint bound goes on by passes where kinks are too many for dense algebra.

        The number of the evaluation decides its random vectors: a search chooses ε from earlier results, and a start
        that has been used is not independent of what it is then used on.
        """
        options = dict(self.options)
        if evaluation:
            options["seed"] = seed_of(options.get("seed", 0), self.bound, evaluation)
        margin, others = self.margin[which], self.others[which]
        if self.margins == "pairwise":
            unit = torch.eye(margin.shape[1] + 1, dtype=torch.float64, device=margin.device)
            options["outputs"] = unit[self.label[which]][:, None] - unit[others]
            if self.bound is margin_bound:  # in units of the margins only the smallest of its bounds counts
                unit_margin = margin.clamp(min=LEAST_MARGIN)
                options["outputs"], options["smallest"] = options["outputs"] / unit_margin[..., None], True
                options["target"], options["least"] = 1.0 - enough * (1.0 - 1e-6), HOLDS
                margin = margin / unit_margin
        if self.bound is joint_bound and eps is not None:
            L = enough * margin / eps[:, None]
            options["target"] = L if self.margins == "pairwise" else L.amin(1, keepdim=True) / math.sqrt(2.0)
        if self.bound in (joint_bound, margin_bound):
            options["by_passes"] = by_passes and options.get("by_passes", True)
        result = self.bound(self.net, self.x0[which], *(() if eps is None else (eps,)), **options)
        if self.margins == "paper":
            L = math.sqrt(2.0) * result.value[:, None]
        else:  # only a fall of the margin does harm
            L = result.value if result.fall is None else result.fall
        h = L / margin if eps is None else eps[:, None] * L / margin
        h, at = torch.where(h.isnan(), math.inf, h * (1.0 + REACH_SLACK)).max(1)
        failure, limiting = min(1.0, L.shape[1] * result.failure_probability), others.gather(1, at[:, None])[:, 0]
        status = result.status if isinstance(result, JointBound | MarginBound) else [""] * len(h)
        dense = torch.tensor([way in ("dense", "margin") for way in status], device=h.device)
        return Load(h, limiting, failure, dense)


def seed_of(seed: int, bound: Callable[..., Any], evaluation: int) -> int:
    """Another one for every evaluation of every bound, the same in every run: by numpy's SeedSequence."""
    words = (seed, zlib.crc32(getattr(bound, "__name__", "").encode()), evaluation)
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
