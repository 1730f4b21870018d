"""The lower triangles of sums of products, with half of the multiplications."""

from __future__ import annotations

from torch import Tensor

STRIP = 384  # columns at a time


def minus_gram(H: Tensor) -> Tensor:
    """−HᵀH, the lower triangle of it."""
    gram = H.new_zeros(H.shape[1], H.shape[1])
    for first in range(0, H.shape[1], STRIP):
        end = first + STRIP
        gram[first:, first:end].addmm_(H[:, first:].T, H[:, first:end], alpha=-1.0)
    return gram


def add_gram(gram: Tensor, T: Tensor, spans: list[tuple[int, int]], sign: float = 1.0) -> None:
    """gram ± T Tᵀ, in place and in the lower triangle, for a T that is strictly lower triangular by layers."""
    for first, end in spans[1:]:
        gram[first:, first:end].addmm_(T[first:, :first], T[first:end, :first].T, alpha=sign)
