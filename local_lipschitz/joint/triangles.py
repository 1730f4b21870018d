"""Products with triangles: sums of products of which the lower triangle is wanted, and the inverse by its factor.

All take single matrices, or batches of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRIP = 384  # columns at a time


def minus_gram(H: Tensor) -> Tensor:
    """−HᵀH, the lower triangle of it, with half of the multiplications."""
    size = H.shape[-1]
    gram = H.new_zeros(*H.shape[:-2], size, size)
    for first in range(0, size, STRIP):
        end = first + STRIP
        _add_product(gram[..., first:, first:end], H[..., first:].mT, H[..., first:end], -1.0)
    return gram


def add_gram(gram: Tensor, T: Tensor, spans: list[tuple[int, int]], sign: float = 1.0) -> None:
    """gram ± T Tᵀ, in place and in the lower triangle, for a T that is strictly lower triangular by layers."""
    for first, end in spans[1:]:
        _add_product(gram[..., first:, first:end], T[..., first:, :first], T[..., first:end, :first].mT, sign)


def inverse_of(L: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹, by matrix products: torch.cholesky_inverse is some fifteen times slower at a thousand groups."""
    unit = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand_as(L)
    X = torch.linalg.solve_triangular(L, unit, upper=False)
    return X.mT @ X


def _add_product(to: Tensor, A: Tensor, B: Tensor, sign: float) -> None:
    """to + sign·A·B, in place."""
    if to.dim() == 2:
        to.addmm_(A, B, alpha=sign)
    else:
        to.baddbmm_(A, B, alpha=sign)
