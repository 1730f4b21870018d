"""What floating point can change, by inequalities: the constants that every bound of rounding here is made of.

A sum of n products, in whatever order and with or without fused operations, has an error of at most
γ_n Σ|a_i x_i|, γ_n = n u/(1 − n u), with u the unit roundoff (Higham, Accuracy and Stability of Numerical Algorithms,
2002, section 3.1). Errors that follow one another add their n. docs/rounding.md.
"""

from __future__ import annotations

import torch

# Added to a sum of sizes before γ_n multiplies it: what products that underflow may lose, even where subnormal numbers
# are flushed to zero, is n·2⁻¹⁰²² < γ_n·UNDERFLOW.
UNDERFLOW = 1e-290


def unit_roundoff(dtype: torch.dtype) -> float:
    """u: the largest relative error of one operation in this dtype that does not underflow."""
    return 0.5 * torch.finfo(dtype).eps


def gamma_n(n: float, dtype: torch.dtype = torch.float64) -> float:
    """γ_n = n u/(1 − n u), rounded up: the relative error of n roundings in a row. inf where n u reaches 1/2."""
    nu = n * unit_roundoff(dtype)
    return nu / (1.0 - nu) * (1.0 + 1e-14) if nu < 0.5 else float("inf")


def of_computed(n: float, dtype: torch.dtype = torch.float64) -> float:
    """γ_n/(1 − γ_n): the same error relative to a sum of sizes that n roundings may have made smaller."""
    gamma = gamma_n(n, dtype)
    return gamma / (1.0 - gamma) * (1.0 + 1e-14) if gamma < 0.5 else float("inf")
