"""What rounding may have changed in the operator of the joint bound, measured on random inputs.

The theorem is about the exact network; its rows and passes are computed in the working dtype. Where sums through active
units cancel, rounding may be all that is left of them, and a relative slack covers nothing. (Norms bound rounding too,
but grow with the depth beyond all measure: rounding errors are not worst directions.) So it is measured. With w = s∘v,
|s| ≤ 1, the operator is a linear network of slopes c + ρs, and random δ pass through it twice: as computed, and in
float64 with every sum moved at random by about as much as rounding may have moved it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..layers.layer import INPUT, keep
from ..layers.stage import Stage
from .blocks import Block
from .kinks import Kinks

SAMPLES, SAFETY = 3, 4.0


class Rounding:
    """Random unit δ followed through a network, block by block, in the dtype of `like`.

    Estimates, from above, of sup ‖E δ‖/‖δ‖ for the error E of the linear map to a layer: the root mean square of ‖E δ‖
    over unit δ is ‖E‖_F/√n, so √n times the largest of some samples, and a factor for safety.
    """

    def __init__(self, in_shape: tuple[int, ...], like: Tensor, seed: int) -> None:
        self.like, self.eps = like, torch.finfo(like.dtype).eps
        self.generator = torch.Generator().manual_seed(seed)
        self.scale = SAFETY * math.sqrt(math.prod(in_shape))
        delta = self._normal(SAMPLES, *in_shape)
        delta = (delta / _norms(delta).reshape(-1, *(1,) * len(in_shape))).to(like.dtype)
        self.computed, self.moved = {INPUT: delta}, {INPUT: delta.double()}

    def through(self, block: Block) -> float:
        """The error of what the next block of the network gives."""
        name, y, moved = block.plan.name, *self._stage(block.plan.stage)
        frozen = replace(block, kinks=[self._frozen(kinks) for kinks in block.kinks])
        self.computed[name], _ = frozen.forward(y, y.new_zeros(SAMPLES, 0))
        frozen.kinks = [replace(kinks, c=kinks.c.double()) for kinks in frozen.kinks]
        self.moved[name], _ = frozen.forward(moved, moved.new_zeros(SAMPLES, 0))
        return self.scale * float(_norms(self.computed[name] - self.moved[name]).amax())

    def output(self, last: Stage, outputs: Tensor | None) -> Tensor:
        """The error of the network's output, (1,), or of each of `outputs` (K, m)."""
        y, moved = (y.double().flatten(1) for y in self._stage(last))
        if outputs is None:
            return self.scale * _norms(y - moved).amax()[None]
        C = outputs.double()
        off = ((y - moved) @ C.T).abs() + self.eps * (moved.abs() @ C.abs().T)
        return self.scale * off.amax(0)

    def _stage(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """The output of a stage as computed, and with its sums moved by eps·N(0, 1)·|A||x|."""
        y = stage.to(self.like.dtype).apply({name: self.computed[name] for name in stage.sources})
        read = {name: self.moved[name] for name in stage.sources}
        moved = stage.apply(read, keep)
        largest = {name: x.abs().amax(0, keepdim=True) for name, x in read.items()}
        size = stage.apply(largest, Tensor.abs_)
        return y, moved + self.eps * size * self._normal(*moved.shape)

    def _frozen(self, kinks: Kinks) -> Kinks:
        """c + ρs in the place of c, another s for each δ, and nothing uncertain."""
        s = 2.0 * torch.rand(SAMPLES, len(kinks.index), generator=self.generator).to(kinks.rho) - 1.0
        c = kinks.c.flatten().repeat(SAMPLES, 1).index_add_(1, kinks.index, kinks.rho * s)
        return Kinks(c.reshape(SAMPLES, *kinks.c.shape), kinks.index[:0], kinks.rho[:0], kinks.reads)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.like.device)


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)
