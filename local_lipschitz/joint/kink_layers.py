"""What the joint bound knows of each layer of kinks: ends on the ball, and multipliers of those that may bend."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..joint_operator import JointOperator
from ..joint_operator.kinks import Kinks

OUTWARD, UP = 1.0 + 1e-9, 1e-15  # of a reach, and of a nominal value: for the rounding of what they are made of


@dataclass(frozen=True)
class KinkLayer:
    """low, high: (n,) float64, where each element lies on the ball; needed: (n,) False where it never matters.

    index: (k,) the elements that may bend, with multipliers mu (k,): the joint certificate has 1/μ for |w|² ≤ |Δy|².
    """

    low: Tensor
    high: Tensor
    needed: Tensor
    index: Tensor
    mu: Tensor

    @classmethod
    def of(cls, kinks: Kinks, mu: Tensor, eps: float) -> KinkLayer:
        reads = kinks.reads
        off = reads.off + UP * reads.y0.abs()
        low, high = reads.y0 - OUTWARD * (off + eps * reads.down), reads.y0 + OUTWARD * (off + eps * reads.up)
        return cls(low.flatten(), high.flatten(), reads.needed.flatten(), kinks.index, mu)


KinkLayers = dict[tuple[str, int], KinkLayer]


def kink_layers(operator: JointOperator, mu: Tensor, eps: float) -> KinkLayers:
    """{(block, number of the layer in it): layer} for the multipliers mu (G,) of all groups of the operator."""
    found, used = {}, 0
    for block in operator.blocks:
        for number, kinks in enumerate(block.kinks):
            found[block.plan.name, number] = KinkLayer.of(kinks, mu[used : used + len(kinks.index)], eps)
            used += len(kinks.index)
    return found
