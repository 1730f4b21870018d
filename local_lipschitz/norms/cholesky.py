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
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    shift = _shift(diagonal)
    shifted = matrices - torch.diag_embed(shift[:, None].expand_as(diagonal))
    return (torch.linalg.cholesky_ex(shifted).info == 0) & torch.isfinite(shift) & (diagonal.amin(-1) > 0)


def proven_with_border(matrix: Tensor, borders: Tensor, corners: Tensor) -> Tensor:
    """(k,) bool, the same for the k matrices [[Z, b], [bᵀ, c]]: Z (N, N), borders b (k, N), corners c (k,) ≤ 1.

    Their factorisations have the first N rows in common; the last row takes one triangular solve.
    """
    diagonal = matrix.diagonal()
    shift = _shift(torch.cat([diagonal, diagonal.new_ones(1)]))
    L, info = torch.linalg.cholesky_ex(matrix - torch.diag(shift.expand_as(diagonal)))
    if int(info) or not bool(torch.isfinite(shift)) or not bool((diagonal > 0).all()):
        return torch.zeros_like(corners, dtype=torch.bool)
    row = torch.linalg.solve_triangular(L, borders.T, upper=False)
    return (corners <= 1.0) & ((corners - shift) - row.square().sum(0) > 0)


def _shift(diagonal: Tensor) -> Tensor:
    """c for matrices with the diagonals (…, N), with room for the roundings of this sum and of the shift itself."""
    N = diagonal.shape[-1]
    lost = 8.0 * N * (N + 3.0 + diagonal.amax(-1)) * SUBNORMAL
    return of_computed(N + 4) * diagonal.clamp(min=0.0).sum(-1) + lost
