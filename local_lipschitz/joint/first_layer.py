"""The first kinks read the input alone: eliminated from W(μ), by matrices of the size of the input.

With the rows Q₁ of these kinks (their T is zero) and Σ = (I − Q₁ᵀ diag(1/μ₁) Q₁)⁻¹ what is left of W is

    W' = diag(μ₂) − Q₂ΣQ₂ᵀ − T₂ diag(μ) T₂ᵀ,     det W = det W' det Σ⁻¹ Π μ₁,

and S is the same of W' with Σ in every product of rows (docs/joint_bound.md, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Eliminated:
    """At some μ₁, with Σ = L⁻ᵀL⁻¹. root: L⁻¹[Q₂ᵀ Nᵀ], (n, ·); weighted: L⁻¹Q₁ᵀ diag(1/μ₁), (n, k₁)."""

    L: Tensor
    root: Tensor
    weighted: Tensor

    @property
    def log_det(self) -> Tensor:
        """log det Σ⁻¹."""
        return 2.0 * self.L.diagonal().double().log().sum()

    def response(self, ends: Tensor) -> Tensor:
        """(k₁, ·): the Y of these kinks, for L⁻¹ times how the input acts on each function, `ends` (n, ·)."""
        return self.weighted.T @ ends

    def diagonal(self, Z: Tensor, x: Tensor) -> Tensor:
        """Of W⁻¹, for these kinks; Z = L'⁻¹Q₂L⁻ᵀ with W' = L'L'ᵀ."""
        return 1.0 / x + (self.weighted * torch.addmm(self.weighted, Z.T @ Z, self.weighted)).sum(0)


def eliminate(Q: Tensor, others: Tensor, x: Tensor) -> Eliminated | None:
    """Kinks with rows Q (k₁, n) at μ₁ = x, for other rows (·, n); None where Σ is not ≻ 0."""
    M = torch.eye(Q.shape[1], dtype=Q.dtype, device=Q.device).addmm_(Q.T / x, Q, alpha=-1.0)
    L, info = torch.linalg.cholesky_ex(M)
    if int(info) or not bool(torch.isfinite(L.diagonal()).all()):
        return None
    columns = torch.linalg.solve_triangular(L, torch.cat([Q, others]).T, upper=False)
    return Eliminated(L, columns[:, len(Q) :], columns[:, : len(Q)] / x)


def pays(inputs: int, first: int, groups: int) -> bool:
    """Whether this takes fewer multiplications than W with all its groups, roughly."""
    rest = groups - first
    return first > 0 and rest > 0 and inputs * (2.0 * inputs * groups + 1.5 * rest**2) < 0.8 * (groups**3 - rest**3)
