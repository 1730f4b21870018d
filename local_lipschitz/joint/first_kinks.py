"""The first kinks read the input and few of each other: eliminated from W(μ), by matrices of the size of the input.

T₁ of these kinks falls into small blocks: 0 for the kinks of a first layer, a window each where pooling follows. With
their rows Q₁, M = (diag(1/μ₁) − T₁ᵀ diag(1/μ₁) T₁)⁻¹, R Rᵀ = M⁻¹, B = R⁻¹T₁ᵀ diag(1/μ₁) Q₁ and
Σ = (I − Q₁ᵀ diag(1/μ₁) Q₁ − BᵀB)⁻¹, Q̂ = Q₂ + T₂₁R⁻ᵀB what is left of W for the others is

    W' = diag(μ₂) − Q̂ΣQ̂ᵀ − T₂₁MT₂₁ᵀ − T₂₂ diag(μ₂) T₂₂ᵀ,

and S is the same of W', with Σ and M in every product of rows. These are the steps of Cholesky's method for the matrix
[[diag(μ), K], [Kᵀ, diag(1, 1/μ)]] in the order v₁, w₁, δ, w₂, v₂ (docs/joint_bound.md, sections 4 and 6).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .triangles import minus_gram

MOST = 16  # kinks that T couples, directly or by others
SAME = 1e-6  # of its length: what a multiple may be off


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
    """Kinks with rows Q (k, n) and T, in sets."""

    def __init__(self, sets: Sets, Q: Tensor) -> None:
        self.sets, self.Q = sets, sets.split(Q)
        self.inner = sets.join((sets.T != 0).any(1)).nonzero()[:, 0]  # those whose w others of their set read

    def eliminate(self, x: Tensor, diagonal: Tensor) -> Eliminated | None:
        """At μ = x, with `diagonal` for diag(μ) in W; None where W is not ≻ 0 for these kinks."""
        if not bool((diagonal > 0).all()):
            return None
        sets, n = self.sets, self.Q.shape[2]
        d, x = sets.split(diagonal, 1.0), sets.split(x, 1.0)
        T, Q = sets.T / d.sqrt()[:, :, None], self.Q / d.sqrt()[:, :, None]
        R, info = torch.linalg.cholesky_ex(torch.diag_embed(1.0 / x) - T.mT @ T)
        if bool(info.any()):
            return None
        B, reads = Q.new_zeros(0, n), sets.join(Q)
        if len(self.inner):
            B = sets.join(torch.linalg.solve_triangular(R, T.mT @ Q, upper=False))[self.inner]
        gram = minus_gram(torch.cat([reads, B]))
        gram.diagonal().add_(1.0)
        L, info = torch.linalg.cholesky_ex(gram)
        if int(info) or not bool(torch.isfinite(L.diagonal()).all()):
            return None
        return Eliminated(self, x, d, R, B, L)


class Acts:
    """How others depend on the kinks of each set, columns (k, r) of [T₂₁; P₁]ᵀ = out·Z, with `out` in blocks.

    The kinks of a pooling window all act through its one result: then out (sets, size, 1) and Z (sets, r).
    """

    def __init__(self, sets: Sets, columns: Tensor, dtype: torch.dtype) -> None:
        split = sets.split(columns)
        largest, at = split.square().sum(2).max(1)
        Z = split[torch.arange(len(split), device=split.device), at]
        out = torch.where(largest > 0, (split @ Z[:, :, None])[..., 0].T / largest, 1.0).T[:, :, None]
        if bool(((split - out * Z[:, None]).square().sum(2).amax(1) > SAME**2 * largest).any()):
            Z, out = split.flatten(0, 1), torch.eye(split.shape[1]).to(split).repeat(len(split), 1, 1)
        self.sets, self.Z, self.out = sets, Z.to(dtype), out.to(dtype)

    def split(self, Z: Tensor) -> Tensor:
        """(sets, ·, r)."""
        return Z.reshape(len(self.out), self.out.shape[2], Z.shape[1])

    def columns(self, Z: Tensor) -> Tensor:
        """out·Z, (k, r)."""
        return self.sets.join(self.out @ self.split(Z))


@dataclass(frozen=True)
class Eliminated:
    """At some μ: R, B (of those that others read) and LLᵀ = Σ⁻¹. x, d: μ and the diagonal of W, (sets, size)."""

    kinks: FirstKinks
    x: Tensor
    d: Tensor
    R: Tensor
    B: Tensor
    L: Tensor

    def rows(self, delta: Tensor, w: Tensor) -> Tensor:
        """H (k + n, r), for r rows (r, n) and (r, k), so that HᵀH = Q̂ΣQ̂ᵀ + T₂₁MT₂₁ᵀ for the rows of [Q₂ T₂₁]."""
        kinks, through = self.kinks, w.T
        through = kinks.sets.join(torch.linalg.solve_triangular(self.R, kinks.sets.split(through), upper=False))
        reads = torch.addmm(delta.T, self.B.T, through[kinks.inner])
        return torch.cat([through, torch.linalg.solve_triangular(self.L, reads, upper=False)])

    def back(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The adjoint of the map from (δ, w) to a row of Hᵀ, for h (p, k + n)."""
        kinks, n = self.kinks, len(self.L)
        delta = torch.linalg.solve_triangular(self.L.T, h[:, -n:].T, upper=True)
        w = h[:, :-n].T.clone()
        w[kinks.inner] += self.B @ delta
        split = kinks.sets.split(w)
        return delta.T, kinks.sets.join(torch.linalg.solve_triangular(self.R.mT, split, upper=True)).T

    def reduced(self, delta: Tensor, acts: Acts) -> Tensor:
        """H with the same HᵀH, for rows (r, n) of others and how these act: in as few rows as acts.Z; the last
        n as in `rows`.
        """
        half = torch.linalg.cholesky(acts.out.mT @ (torch.cholesky_inverse(self.R) @ acts.out))
        through, reads = (half.mT @ acts.split(acts.Z)).flatten(0, 1), delta.T
        if len(self.kinks.inner):
            moved = ((acts.out.mT @ self.U) @ self.kinks.Q).flatten(0, 1)
            reads = torch.addmm(reads, moved.T, acts.Z)
        return torch.cat([through, torch.linalg.solve_triangular(self.L, reads, upper=False)])

    @cached_property
    def U(self) -> Tensor:
        """M T₁ᵀ diag(1/μ₁)."""
        return torch.cholesky_inverse(self.R) @ (self.kinks.sets.T / self.d[:, :, None]).mT

    @cached_property
    def D(self) -> Tensor:
        """(diag(μ₁) − T₁ diag(μ₁) T₁ᵀ)⁻¹."""
        return torch.diag_embed(1.0 / self.d) + (self.kinks.sets.T / self.d[:, :, None]) @ self.U

    @cached_property
    def weighted(self) -> Tensor:
        """D Q₁L⁻ᵀ, (k, n); with D = (diag(μ₁) − T₁ diag(μ₁) T₁ᵀ)⁻¹."""
        reads = self.kinks.sets.join(self.D @ self.kinks.Q)
        return torch.linalg.solve_triangular(self.L, reads.T, upper=False).T

    @property
    def log_det(self) -> float:
        """Of diag(μ₁) − T₁ diag(μ₁) T₁ᵀ and Σ⁻¹, less that of diag(μ₁)."""
        roots = self.R.diagonal(dim1=1, dim2=2), self.L.diagonal()
        return float(self.d.double().log().sum()) + sum(2.0 * float(x.double().log().sum()) for x in roots)

    def response(self, H: Tensor, acts: Acts, Y: Tensor) -> tuple[Tensor, Tensor]:
        """(Y, E) of these kinks, for the Y of those that are left; H: of these and of the functions."""
        sets, rest = self.kinks.sets, len(Y)
        reads, through = (A[:, rest:] + A[:, :rest] @ Y for A in (H[-len(self.L) :], acts.Z))
        through = acts.columns(through)
        first = self.weighted @ reads + sets.times(self.U.mT, through)
        return first, through + sets.times(sets.T.mT, first)

    def diagonals(self, H: Tensor, acts: Acts, L: Tensor) -> tuple[Tensor, Tensor]:
        """Of W⁻¹ and of TᵀW⁻¹T, for these kinks; W' = LLᵀ; H: of those that are left."""
        sets, n = self.kinks.sets, len(self.L)
        V = torch.linalg.solve_triangular(L, H[-n:].T, upper=False)
        Z = acts.columns(torch.linalg.solve_triangular(L, acts.Z[:, : len(L)].T, upper=False).T)
        A = torch.cat([self.weighted, self.weighted @ V.T + sets.times(self.U.mT, Z)], 1)
        through = sets.times(sets.T.mT, A)
        through[:, n:] += Z
        own = sets.join(self.D.diagonal(dim1=1, dim2=2)), sets.join((sets.T * (self.D @ sets.T)).sum(1))
        return own[0] + A.square().sum(1), own[1] + through.square().sum(1)


def step_work(inputs: int, first: int, groups: int) -> float:
    """Multiplications of a step, roughly, where so many first kinks are eliminated, in units of those of a cube."""
    rest = groups - first
    own = inputs * (1.5 * inputs * first + 2.0 * first * rest + 1.5 * rest**2) + first * rest**2
    return rest**3 + (own if first else 0.0)


def pays(inputs: int, first: int, groups: int) -> bool:
    """Whether this takes fewer multiplications than W with all its groups."""
    return first > 0 and step_work(inputs, first, groups) < 0.8 * step_work(inputs, 0, groups)
