"""Positive definite, with a proof: a Cholesky factorisation that runs through (docs/rounding.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import of_computed

SUBNORMAL = 5e-324


def proven_positive_definite(matrices: Tensor) -> Tensor:
    """(B,) bool: True only where a symmetric matrix, (B, N, N) float64 with the lower triangle read, is ≻ 0.

    Where Cholesky's method in floating point succeeds on Z − c·I with c ≥ γ_{N+1}/(1 − γ_{N+1}) tr Z and what underflow
    may lose, Z itself is positive definite (S. M. Rump, BIT 46, 2006). False says nothing.
    """
    N, diagonal = matrices.shape[-1], matrices.diagonal(dim1=-2, dim2=-1)
    largest = diagonal.amax(-1)
    lost = 8.0 * N * (N + 3.0 + largest) * SUBNORMAL
    shift = of_computed(N + 4) * diagonal.clamp(min=0.0).sum(-1) + lost  # and the roundings of the sum and the shift
    shifted = matrices - torch.diag_embed(shift[:, None].expand_as(diagonal))
    return (torch.linalg.cholesky_ex(shifted).info == 0) & torch.isfinite(shift) & (diagonal.amin(-1) > 0)
