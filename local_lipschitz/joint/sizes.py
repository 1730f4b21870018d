"""What is made small of some functions: a smooth size of their squared bounds S ≥ 0, for B problems at once.

S (B, k) are the eigenvalues of a matrix, or the bounds of single functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .descent import TINY

NEGLIGIBLE = 1e-3  # of a second derivative


def log_norm(S: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """log of the p-norm, ≥ log of the largest: (B,), and its derivatives (B, k)."""
    top, ratio, powers = _ratios(S, p)
    total = powers.sum(1, keepdim=True)
    return (top.log() + total.log() / p)[:, 0], ratio.pow(p - 1) / (total * top)


def mean_log(S: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of log S over the first `counts` (B,) of each: (B,), and its derivatives (B, k)."""
    there = torch.arange(S.shape[1], device=S.device) < counts[:, None]
    logs = torch.where(there, S.log(), 0.0)
    return logs.sum(1) / counts, torch.where(there, 1.0 / (S * counts[:, None]), 0.0)


def mixing(S: Tensor, p: float, turning: bool) -> tuple[Tensor, Tensor, Tensor]:
    """i, j (pairs,) and the factors (B, pairs) of the second derivative of log ‖S‖_p; negligible ones left out.

    turning: whether S are eigenvalues, whose vectors turn; others have no factors for i ≠ j.
    """
    top, ratio, powers = _ratios(S, p)
    a, b = ratio[:, :, None], ratio[:, None]
    if turning:
        apart = (a - b).abs() >= 1e-6
        divided = (a.pow(p - 1) - b.pow(p - 1)) / torch.where(apart, a - b, 1.0)
        divided = torch.where(apart, divided, (p - 1) * a.pow(p - 2)).tril()
        divided = 2.0 * divided - torch.diag_embed(divided.diagonal(dim1=1, dim2=2))
    else:
        divided = torch.diag_embed((p - 1) * ratio.pow(p - 2))
    divided = torch.where(divided > NEGLIGIBLE, divided, 0.0)
    i, j = divided.any(0).nonzero(as_tuple=True)
    total = (powers.sum(1, keepdim=True) * top.square()).clamp(min=TINY)
    return i, j, divided[:, i, j] / total


def _ratios(S: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor]:
    """The largest S (B, 1), what the others are of it, and their p-th powers, (B, k) each."""
    top = S.amax(1, keepdim=True).clamp(min=torch.finfo(S.dtype).tiny)
    ratio = (S / top).clamp(min=0.0)
    return top, ratio, ratio.pow(p)
