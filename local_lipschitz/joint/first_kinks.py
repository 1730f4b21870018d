"""The first kinks read the input and few of each other: eliminated from W(μ), by matrices of the size of the input.

T₁ of these kinks falls into small blocks: 0 for the kinks of a first layer, a window each where pooling follows. With
their rows Q₁, D = diag(μ₁) − T₁ diag(μ₁) T₁ᵀ, U = diag(μ₁) T₁ᵀD⁻¹, M = diag(μ₁) + U T₁ diag(μ₁), Σ = (I − Q₁ᵀD⁻¹Q₁)⁻¹
and Q̂ = Q₂ + T₂₁UQ₁ what is left of W for the others is

    W' = diag(μ₂) − Q̂ΣQ̂ᵀ − T₂₁MT₂₁ᵀ − T₂₂ diag(μ₂) T₂₂ᵀ,     det W = det W' det Σ⁻¹ det D,

and S is the same of W', with Σ and M in every product of rows (docs/joint_bound.md, section 4).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 16  # kinks that T couples, directly or by others


class Sets:
    """Which of k kinks T (k, k) couples, in sets of one size: some places of a set may be empty."""

    def __init__(self, T: Tensor, label: Tensor, counts: Tensor) -> None:
        order = label.argsort(stable=True)
        number = torch.repeat_interleave(torch.arange(len(counts), device=T.device), counts)
        inside = torch.arange(len(T), device=T.device) - (counts.cumsum(0) - counts)[number]
        self.table = torch.full((len(counts), int(counts.max())), len(T), device=T.device)  # len(T): an empty place
        self.table[number, inside] = order
        self.place = torch.empty_like(order)  # of each kink in the flattened table
        self.place[order] = number * self.table.shape[1] + inside
        at, there = self.table.clamp(max=len(T) - 1), self.table < len(T)
        self.T = T[at[:, :, None], at[:, None]] * (there[:, :, None] & there[:, None])

    @classmethod
    def of(cls, T: Tensor) -> Sets | None:
        """None where a set has more than MOST kinks."""
        i, j = T.nonzero(as_tuple=True)
        if len(i) > MOST * len(T):
            return None
        label = torch.arange(len(T), device=T.device)
        for _ in range(MOST):
            before, label = label, label.scatter_reduce(0, i, label[j], "amin").scatter_reduce(0, j, label[i], "amin")
            if torch.equal(before, label):
                break
        counts = torch.unique(label, return_counts=True)[1]
        return cls(T, label, counts) if torch.equal(before, label) and int(counts.max()) <= MOST else None

    def scaled(self, unit: Tensor, dtype: torch.dtype) -> Sets:
        """The same for diag(1/unit)·T·diag(unit)."""
        scaled, unit = copy.copy(self), self.split(unit, 1.0)
        scaled.T = (self.T / unit[:, :, None] * unit[:, None]).to(dtype)
        return scaled

    def split(self, x: Tensor, empty: float = 0.0) -> Tensor:
        """(sets, size, …) for x (k, …)."""
        return torch.cat([x, torch.full_like(x[:1], empty)])[self.table]

    def join(self, y: Tensor) -> Tensor:
        """The inverse of `split`."""
        return y.flatten(0, 1)[self.place]

    def times(self, blocks: Tensor, x: Tensor) -> Tensor:
        """diag(blocks)·x for x (k, ·)."""
        return self.join(blocks @ self.split(x))


class FirstKinks:
    """Kinks with rows Q (k, n), and how others depend on what these read: rows [Q₂; N] (·, n), [T₂₁ P₁ᵀ]ᵀ (k, ·)."""

    def __init__(self, sets: Sets, Q: Tensor, others: Tensor, columns: Tensor) -> None:
        self.sets, self.Q, self.others, self.columns = sets, Q, others, columns
        self.inner = (sets.join((sets.T != 0).any(1))).nonzero()[:, 0]  # those that others of their set read

    def eliminate(self, x: Tensor, diagonal: Tensor) -> Eliminated | None:
        """At μ = x, with `diagonal` for diag(μ) in W; None where W is not ≻ 0 for these kinks."""
        sets, T = self.sets, self.sets.T
        x = sets.split(x, 1.0)
        root, info = torch.linalg.cholesky_ex(torch.diag_embed(sets.split(diagonal, 1.0)) - (T * x[:, None]) @ T.mT)
        if bool(info.any()):
            return None
        R = sets.join(torch.linalg.solve_triangular(root, sets.split(self.Q), upper=False))
        unit = torch.eye(R.shape[1], dtype=R.dtype, device=R.device)
        L, info = torch.linalg.cholesky_ex(unit.addmm_(R.T, R, alpha=-1.0))
        if int(info) or not bool(torch.isfinite(L.diagonal()).all()):
            return None
        D = torch.cholesky_inverse(root)
        U = x[:, :, None] * (T.mT @ D)
        others = self.others
        if len(self.inner):
            others = torch.addmm(others, self.columns[self.inner].T, sets.times(U, self.Q)[self.inner])
        half = torch.linalg.cholesky(torch.diag_embed(x) + (U @ T) * x[:, None])
        H = torch.cat([torch.linalg.solve_triangular(L, others.T, upper=False), sets.times(half.mT, self.columns)])
        weighted = torch.linalg.solve_triangular(L, sets.times(D, self.Q).T, upper=False).T
        log_det = 2.0 * (root.diagonal(dim1=1, dim2=2).double().log().sum() + L.diagonal().double().log().sum())
        return Eliminated(self, U, D, H, weighted, log_det)


@dataclass(frozen=True)
class Eliminated:
    """At some μ. H (n + k, ·): the rows of the others, so that HᵀH = Q̂ΣQ̂ᵀ + T₂₁MT₂₁ᵀ; weighted: D⁻¹Q₁L⁻ᵀ, LLᵀ = Σ⁻¹."""

    kinks: FirstKinks
    U: Tensor
    D: Tensor  # its inverse
    H: Tensor
    weighted: Tensor
    log_det: Tensor

    def response(self, Y: Tensor) -> tuple[Tensor, Tensor]:
        """(Y, E) of these kinks, for the Y of those that are left."""
        sets, rest, n = self.kinks.sets, len(Y), self.weighted.shape[1]
        reads, acts = (A[:, rest:] + A[:, :rest] @ Y for A in (self.H[:n], self.kinks.columns))
        first = self.weighted @ reads + sets.times(self.U.mT, acts)
        return first, acts + sets.times(sets.T.mT, first)

    def diagonals(self, L: Tensor) -> tuple[Tensor, Tensor]:
        """Of W⁻¹ and of TᵀW⁻¹T, for these kinks; W' = LLᵀ."""
        sets, rest, n = self.kinks.sets, len(L), self.weighted.shape[1]
        V = torch.linalg.solve_triangular(L, self.H[:n, :rest].T, upper=False)
        Z = torch.linalg.solve_triangular(L, self.kinks.columns[:, :rest].T, upper=False).T
        A = torch.cat([self.weighted, self.weighted @ V.T + sets.times(self.U.mT, Z)], 1)
        through = sets.times(sets.T.mT, A)
        through[:, n:] += Z
        own = sets.join(self.D.diagonal(dim1=1, dim2=2)), sets.join((sets.T * (self.D @ sets.T)).sum(1))
        return own[0] + A.square().sum(1), own[1] + through.square().sum(1)


def pays(inputs: int, first: int, groups: int) -> bool:
    """Whether this takes fewer multiplications than W with all its groups, roughly."""
    rest = groups - first
    block = inputs * (1.5 * inputs * first + 2.0 * first * rest + 1.5 * rest**2) + first * rest**2
    return first > 0 and block < 0.8 * (groups**3 - rest**3)
