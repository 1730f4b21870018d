"""The margin relaxation: what is true of every point of the ball, as quadratic inequalities in ξ = (1, δ, p).

A kink that may bend reads y in [−ℓ, u] and is y = p − n with p = max(y, 0), n = max(−y, 0). With δ in units of ε, p of
u and n of ℓ, everything below is at most 1, and on the ball

    ‖δ‖² ≤ 1,   p·n = 0,   p² ≤ p,   n² ≤ n   for each kink,   w² ≤ w   for every other w known to lie in [0, 1].

n and w are rows, linear in ξ. Each statement is ⟨A, ξξᵀ⟩ ≤ 0 (or = 0) for a matrix A, which has rank two but for the
ball's. So if Z = C + Σ μ_i A_i ⪰ 0, where ξᵀCξ = g is the function in question and A_t = −e0 e0ᵀ has the multiplier t,
then g ≥ t on the ball (docs/margin.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = 400  # the size from which on matrices are formed layer by layer


@dataclass(frozen=True)
class Relaxation:
    """A batch of relaxations of one size. Multipliers μ (B, 2 + 2G + R) are in the order t, γ, λ, f, h.

    rows: (B, R, N), N = 1 + span + G; the first G are n of the kinks, in the order of p; the others are w. span: the
    dimension of δ. bends: (B, G), False for a p that no longer stands for a kink: λ is 0 there. starts: the first kink
    of each layer; its rows see p of earlier layers, and each its own.
    """

    rows: Tensor
    span: int
    bends: Tensor
    starts: tuple[int, ...]

    @property
    def kinks(self) -> int:
        return self.bends.shape[1]

    @property
    def size(self) -> int:
        return self.rows.shape[2]

    @property
    def multipliers(self) -> int:
        return 2 + 2 * self.kinks + self.rows.shape[1]

    def signed(self) -> Tensor:
        """(2 + 2G + R,): which multipliers must be ≥ 0."""
        signed = torch.ones(self.multipliers, dtype=torch.bool, device=self.rows.device)
        signed[0], signed[2 : 2 + self.kinks] = False, False
        return signed

    def fixed(self) -> Tensor:
        """(B, 2 + 2G + R): which multipliers are 0."""
        fixed = torch.zeros(len(self.bends), self.multipliers, dtype=torch.bool, device=self.rows.device)
        fixed[:, 2 : 2 + self.kinks] = ~self.bends
        return fixed

    def pick(self, which: Tensor) -> Relaxation:
        """Those of the batch in `which`."""
        return Relaxation(self.rows[which], self.span, self.bends[which], self.starts)

    def _layers(self) -> list[tuple[slice, slice, slice]]:
        """(rows, what they see of ξ, their own p): of each layer of kinks, and of the other rows, which have no p."""
        if self.size < BLOCKS:
            return [(slice(0, None), slice(0, None), slice(0, 0))]
        ends, p = [*self.starts, self.kinks], 1 + self.span
        layers = [(slice(i, j), slice(0, p + i), slice(p + i, p + j)) for i, j in zip(ends, ends[1:], strict=False)]
        return [*layers, (slice(self.kinks, None), slice(0, p), slice(0, 0))]

    def _own(self, here: slice, own: slice) -> Tensor:
        """(B, k, 1): what each row of a layer has of its own p."""
        return self.rows[:, here, own].diagonal(dim1=1, dim2=2)[..., None]

    def seen(self, V: Tensor) -> Tensor:
        """rows·V, (B, R, n), for V (B, N, n)."""
        parts = []
        for here, before, own in self._layers():
            part = self.rows[:, here, before] @ V[:, before]
            parts.append(part if own.stop == 0 else part + self._own(here, own) * V[:, own])
        return torch.cat(parts, 1)

    def gram(self, h: Tensor) -> Tensor:
        """rowsᵀ diag(h) rows, (B, N, N), for h (B, R)."""
        Z = h.new_zeros(len(h), self.size, self.size)
        for here, before, own in self._layers():
            rows, weight = self.rows[:, here, before], h[:, here, None]
            weighted = weight * rows
            Z[:, before, before] += rows.mT @ weighted
            if own.stop:
                diagonal = self._own(here, own)
                Z[:, own, before] += diagonal * weighted
                Z[:, before, own] += (diagonal * weighted).mT
                Z[:, own, own].diagonal(dim1=1, dim2=2).add_((weight * diagonal.square())[..., 0])
        return Z

    def acting(self, mu: Tensor, xi: Tensor) -> Tensor:
        """Σ μ_i A_i ξ, (B, N), for μ (B, M) and ξ (N,), for a batch of one or of as many."""
        t, gamma, lam, f, h = self.split(mu)
        k, n, p = self.span, self.rows @ xi, xi[1 + self.span :]
        out = ((h * (n - 0.5)) + torch.nn.functional.pad(0.5 * lam * p, (0, h.shape[1] - len(p))))[:, None] @ self.rows
        out = out[:, 0]
        out[:, 1 + k :] += 0.5 * lam * n[:, : self.kinks] + f * (p - 0.5)
        out[:, 0] -= 0.5 * ((h * n).sum(1) + f @ p) + gamma + t
        out[:, 1 : 1 + k] += gamma[:, None] * xi[1 : 1 + k]
        return out

    def split(self, mu: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """t (B,), γ (B,), λ (B, G), f (B, G), h (B, R)."""
        G = self.kinks
        return mu[:, 0], mu[:, 1], mu[:, 2 : 2 + G], mu[:, 2 + G : 2 + 2 * G], mu[:, 2 + 2 * G :]

    def matrix(self, mu: Tensor) -> Tensor:
        """Σ μ_i A_i, (B, N, N)."""
        t, gamma, lam, f, h = self.split(mu)
        rows, p = self.rows, slice(1 + self.span, None)
        Z = self.gram(h)
        pn = 0.5 * lam[..., None] * rows[:, : self.kinks]
        Z[:, p] += pn
        Z[:, :, p] += pn.mT
        linear = 0.5 * (h[:, None] @ rows)[:, 0]
        linear[:, p] += 0.5 * f
        Z[:, 0] -= linear
        Z[:, :, 0] -= linear
        diagonal = Z.diagonal(dim1=1, dim2=2)
        diagonal[:, p] += f
        diagonal[:, 1 : 1 + self.span] += gamma[:, None]
        diagonal[:, 0] -= gamma + t
        return Z

    def values(self, V: Tensor) -> Tensor:
        """⟨A_i, V⟩ for symmetric V (B, N, N): (B, 2 + 2G + R)."""
        k, G = self.span, self.kinks
        seen = self.seen(V)
        diagonal = V.diagonal(dim1=1, dim2=2)
        t = -V[:, 0, :1]
        gamma = diagonal[:, 1 : 1 + k].sum(1, keepdim=True) - V[:, 0, :1]
        lam = seen[:, :G, 1 + k :].diagonal(dim1=1, dim2=2)
        f = diagonal[:, 1 + k :] - V[:, 0, 1 + k :]
        h = (seen * self.rows).sum(2) - seen[:, :, 0]
        return torch.cat([t, gamma, lam, f, h], 1)

    def schur(self, X: Tensor, inverse: Tensor) -> Tensor:
        """tr(A_i X A_j Z⁻¹), (B, 2 + 2G + R, 2 + 2G + R), for the `inverse` Z⁻¹.

        A = sym(a bᵀ) with (a, b) = (p, n), (p, p − 1), (n, n − 1), and −sym(1 1) for t, so that entries are sums of
        products of what X and Z⁻¹ are between these rows. γ alone takes a matrix product.
        """
        (xaa, xab, xbb), (zaa, zab, zbb) = self._between(X), self._between(inverse)
        M = 0.25 * (xab.mT * zab + xab * zab.mT + xbb * zaa + xaa * zbb)
        M[:, 0] *= -1.0
        M[:, :, 0] *= -1.0
        d = slice(1, 1 + self.span)
        U = inverse[:, :, d] @ X[:, d] - inverse[:, :, :1] @ X[:, :1]
        with_gamma = self.values(0.5 * (U + U.mT))
        M = torch.cat([M[:, :, :1], M.new_zeros(len(M), M.shape[1], 1), M[:, :, 1:]], 2)
        M = torch.cat([M[:, :1], M.new_zeros(len(M), 1, M.shape[2]), M[:, 1:]], 1)
        M[:, 1], M[:, :, 1] = with_gamma, with_gamma
        return M

    def _between(self, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """aᵀVa', aᵀVb', bᵀVb' over the pairs (a, b) of t, λ, f, h; each (B, 1 + 2G + R, 1 + 2G + R)."""
        G, R = self.kinks, self.rows.shape[1]
        seen = self.seen(V)
        onto = torch.cat([V[:, :1], V[:, 1 + self.span :], seen], 1)  # rows 1, p, n and w times V
        K = torch.cat([onto[:, :, :1], onto[:, :, 1 + self.span :], onto @ self.rows.mT], 2)
        one, p, n = (torch.arange(i, j, device=V.device) for i, j in ((0, 1), (1, 1 + G), (1 + G, 1 + G + R)))
        a, b = torch.cat([one, p, p, n]), torch.cat([one, n[:G], p, n])
        less = (torch.arange(1 + 2 * G + R, device=V.device) > G).to(V)  # b is one less for f and h
        Ka, Kb = K[:, a], K[:, b] - less[:, None] * K[:, :1]
        return Ka[:, :, a], Ka[:, :, b] - Ka[:, :, :1] * less, Kb[:, :, b] - Kb[:, :, :1] * less

    def weights(self, c: Tensor) -> Tensor:
        """(G,) with which weight each p enters c·ξ (N,), those after it replaced by lines; for a batch of one.

        Lines as `KinkRows.lines` has them: p ≤ (y/ℓ + 1)/(u/ℓ + 1) where p enters with a negative weight, else p ≥ y/u
        or p ≥ 0; and n has own = u/ℓ of its own p and −y/ℓ of the rest.
        """
        first, b = 1 + self.span, c[1 + self.span :].clone()
        for i, j in reversed(list(zip(self.starts, [*self.starts, self.kinks][1:], strict=True))):
            rows, here = self.rows[0, i:j, first:], b[i:j]
            own = rows[:, i:j].diagonal()
            below = torch.where(own > 1.0, 1.0 / own, 0.0)
            b[:i] -= (here * torch.where(here < 0, 1.0 / (1.0 + own), below)) @ rows[:, :i]
        return b

    def attained(self, mu: Tensor, c: Tensor) -> Tensor:
        """(B,) the largest t with Z ⪰ 0 for the other multipliers of mu, and functions c (B, N); NaN if there is none.

        t = Z_00 − z_0ᵀ Z_11⁻¹ z_0, with Z for t = 0.
        """
        mu = mu.clone()
        mu[:, 0] = 0.0
        Z = self.matrix(mu) + objective(c)
        L, info = torch.linalg.cholesky_ex(Z[:, 1:, 1:])
        half = torch.linalg.solve_triangular(L, Z[:, 1:, :1], upper=False)
        return torch.where(info == 0, Z[:, 0, 0] - half.square().sum((1, 2)), torch.nan)


def best_scales(M: Tensor, L: Tensor, functions: Tensor) -> tuple[Tensor, Tensor]:
    """The best scale s of M (N, N) for functions c·ξ (K, N), (K,), and y = −(s M_11)⁻¹(c/2 + s m_0), (N − 1, K).

    t(s) = c_0 + s m_00 − ‖c/2 + s m_0‖² in the metric (s M_11)⁻¹. L: the Cholesky factor of M_11.
    """
    half_c = 0.5 * functions[:, 1:].mT
    solved = torch.linalg.solve_triangular(L, torch.cat([half_c, M[1:, :1]], 1), upper=False)
    scale, half = scaled_best(solved, M[0, 0])
    return scale, -torch.linalg.solve_triangular(L.mT, half, upper=True)


def scaled_best(solved: Tensor, corner: Tensor) -> tuple[Tensor, Tensor]:
    """The best scales s (K,), and L⁻¹(c/2 + s m_0)/s (N − 1, K), for L⁻¹[c/2 of each, m_0] (N − 1, K + 1) and m_00."""
    rest = (solved[:, -1].square().sum() - corner).clamp(min=torch.finfo(solved.dtype).tiny)
    scale = (solved[:, :-1].square().sum(0) / rest).sqrt().clamp(min=1e-12)
    return scale, solved[:, :-1] / scale + solved[:, -1:]


def objective(c: Tensor) -> Tensor:
    """C with ξᵀCξ = c·ξ, (B, N, N), for c (B, N) and ξ_0 = 1."""
    C = c.new_zeros(*c.shape, c.shape[1])
    C[:, 0] += 0.5 * c
    C[:, :, 0] += 0.5 * c
    return C
