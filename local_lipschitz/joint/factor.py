"""The Cholesky factor of W(μ), or that of a matrix in which the first kinks come first, where that is cheaper.

A ⪰ 0 for A = [[diag(μ), K], [Kᵀ, diag(1, 1/μ)]] is K diag(1, μ) Kᵀ ⪯ diag(μ), and Cholesky's method takes its rows
in any order: v₁, w₁, δ, w₂, v₂ with the first kinks in sets (first_kinks.py), or δ, w, v, of which the last is W's own.
A function [N P] is one row more; the sum of squares of that row of the factor is S (docs/joint_bound.md, section 6).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .first_kinks import Eliminated, FirstKinks, Sets
from .triangles import add_gram, minus_gram


@dataclass(frozen=True)
class Factor:
    """At μ = unit². slack: of W, relative, outward.

    first: k kinks that are eliminated, or None (k = 0); H (k + n, ·), T, L: of the others, in units of √μ.
    """

    unit: Tensor
    slack: float
    first: Eliminated | None
    H: Tensor
    T: Tensor
    L: Tensor

    @classmethod
    def of(
        cls, rows: tuple[Tensor, Tensor], spans: list[tuple[int, int]], first: Sets | Tensor, mu: Tensor,
        least: Tensor, slack: float,
    ) -> Factor | None:  # fmt: skip
        """For rows (Q, T) and W less least and μ·slack; None where that is not ≻ 0.

        first: the kinks that are eliminated, or QQᵀ where none are.
        """
        unit, diagonal = mu.sqrt(), 1.0 - slack - least / mu
        k = len(first.place) if isinstance(first, Sets) else 0
        Q, T = rows[0] / unit[:, None], (rows[1][k:] / unit[k:, None]).mul_(unit)
        if isinstance(first, Sets):
            kinks = FirstKinks(first.scaled(unit[:k], Q.dtype), Q[:k])
            gone = kinks.eliminate(torch.ones_like(unit[:k]), diagonal[:k])
            if gone is None:
                return None
            H = gone.rows(Q[k:], T[:, :k])
            W, T = minus_gram(H), T[:, k:]
        else:
            gone, H, W = None, Q.T, (first / unit[:, None]).div_(unit).neg_()
        add_gram(W, T, [(a - k, b - k) for a, b in spans if a >= k], -1.0)
        W.diagonal().add_(diagonal[k:])
        L = _cholesky(W)
        return None if L is None else cls(unit, slack, gone, H, T, L)

    def grown(self, X: Tensor, S: Tensor, mu: Tensor, least: Tensor) -> Factor | None:
        """With a layer of k groups more: X (k, ·) and S (k, k) of their rows, and their μ and least (k,)."""
        unit, (G, k) = mu.sqrt(), (len(self.L), len(mu))
        X = X / unit[:, None]
        W = (S / unit[:, None]).div_(unit).neg_()
        W.diagonal().add_(1.0 - self.slack - least / mu)
        corner = _cholesky(W)
        if corner is None:
            return None
        H, T, last = X.split([len(self.H), G, G], 1)
        L = _bordered(self.L, -last, corner)
        T = _bordered(self.T, T, T.new_zeros(k, k))
        return replace(self, unit=torch.cat([self.unit, unit]), H=torch.cat([self.H, H.T], 1), T=T, L=L)

    def rows(self, delta: Tensor, P: Tensor) -> Tensor:
        """X (r, ·) with S = XXᵀ, for functions [N P]: their rows of the factor."""
        w = P * self.unit
        k = w.shape[1] - len(self.L)
        H = delta.T if self.first is None else self.first.rows(delta, w[:, :k])
        C = torch.addmm(self.T @ w[:, k:].T, self.H.T, H)
        return torch.cat([H.T, w[:, k:], torch.linalg.solve_triangular(self.L, C, upper=False).T], 1)

    def back(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The adjoint of the map from (δ, w) to a row X, for x (p, ·)."""
        G = len(self.L)
        h, w, last = x.split([x.shape[1] - 2 * G, G, G], 1)
        Y = torch.linalg.solve_triangular(self.L.T, last.T, upper=True).T
        h, w = h + Y @ self.H.T, w + Y @ self.T
        if self.first is not None:
            h, before = self.first.back(h)
            w = torch.cat([before, w], 1)
        return h, w * self.unit

    @property
    def terms(self) -> int:
        """The length of a row X."""
        return len(self.H) + 2 * len(self.L)


def _cholesky(A: Tensor) -> Tensor | None:
    L, info = torch.linalg.cholesky_ex(A)
    return None if int(info) or not bool(torch.isfinite(L.diagonal()).all()) else L


def _bordered(A: Tensor, rows: Tensor, corner: Tensor) -> Tensor:
    """[[A, 0], [rows, corner]]."""
    G, k = len(A), len(corner)
    result = A.new_zeros(G + k, G + k)
    result[:G, :G], result[G:, :G], result[G:, G:] = A, rows, corner
    return result
