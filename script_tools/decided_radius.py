"""From a decision to a radius: the largest ε at which `decide` says that the class holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from local_lipschitz import certified_radius, margin_bound, verify

LARGEST = 1e9  # as a radius: nothing in between is far


class Decision(NamedTuple):
    """Whether the class is proved to hold on a ball, and the class whose margin is smallest there."""

    holds: bool
    limiting_class: int


Decide = Callable[[nn.Module, Tensor, float, Tensor], Decision]  # (net, x0 (1, *shape), eps, label (1,))


def decided_radius(net: nn.Module, x0: Tensor, decide: Decide, rtol: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(radius (B,), limiting class (B,)) of inputs x0 (B, *shape), each by itself; 0.0 where nothing is proved.

    Starts at the pairwise radius of `local_bound`, doubles it while the class holds, and then halves the way between
    what holds and what does not, in logarithms. Every radius is one at which `decide` said that the class holds, or the
    first one; it is within `rtol` of one at which `decide` did not.
    """
    first = certified_radius(net, x0, seed=seed)
    radii, limiting = first.radius.clone(), first.limiting_class.clone()
    for b in (first.radius > 0).nonzero()[:, 0].tolist():
        x, label, low, high = x0[b : b + 1], first.label[b : b + 1], float(first.radius[b]), float("inf")
        while high > (1.0 + rtol) * low and low < LARGEST:
            eps = 2.0 * low if high == float("inf") else (low * high) ** 0.5
            decision = decide(net, x, eps, label)
            if decision.holds:
                low = eps
            else:
                high, limiting[b] = eps, decision.limiting_class
        radii[b] = low
    return radii, limiting


def margin_radius(net: nn.Module, x0: Tensor, rtol: float, seed: int) -> tuple[Tensor, Tensor]:
    """(radius (B,), limiting class (B,)) by the margin certificate alone."""
    result = certified_radius(net, x0, margin_bound, rtol=rtol, seed=seed)
    return result.radius, result.limiting_class


def branching_radius(net: nn.Module, x0: Tensor, rtol: float, seed: int) -> tuple[Tensor, Tensor]:
    """(radius (B,), limiting class (B,)) by everything that `verify` does."""
    return decided_radius(net, x0, by_branching, rtol, seed)


def by_branching(net: nn.Module, x0: Tensor, eps: float, label: Tensor) -> Decision:
    """By everything that `verify` does."""
    result = verify(net, x0, eps, label)
    return Decision(result.verdict == ["verified"], smallest(result.lower, label, result.lower.shape[1] + 1))


def smallest(lower: Tensor, label: Tensor, classes: int) -> int:
    """The class with the smallest of the margins `lower` (1, classes − 1), which leave `label` (1,) out."""
    others = torch.tensor([c for c in range(classes) if c != int(label)])
    return int(others[int(lower[0].argmin())])
