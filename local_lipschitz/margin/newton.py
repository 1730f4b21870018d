"""Newton's matrix of the barrier method: tr(A_i V A_j V), by what V is between the rows.

A = sym(a bᵀ) with (a, b) = (p, n) for λ, (p, p − 1) for f, (r, r − 1) for h, r = n or w; −sym(1 1) for t. V is Z⁻¹, so
that all entries are sums of products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .reduced import Point, Reduced

PAIRS = (("p", "r", 0), ("p", "p", 1), ("r", "r", 1))  # (a, b, what is taken from b) of λ, f and h


@dataclass(frozen=True)
class Newton:
    """⟨A_i, V⟩ and tr(A_i V A_j V), for V = ξξᵀ/τ + Z_11⁻¹, Z⁻¹ for a t that is τ less.

    values: (M,). between: p p, p r, r p and r r; with_one: 1 p and 1 r; one: 1 1. first: (2, M), the rows of t and γ.
    """

    values: Tensor
    between: dict[str, Tensor]
    with_one: dict[str, Tensor]
    one: Tensor
    first: Tensor

    @classmethod
    def of(cls, reduced: Reduced, at: Point, tau: float) -> Newton:
        G, d = reduced.relaxation.kinks, slice(1, 1 + reduced.relaxation.span)
        hats = torch.cat(reduced.hats(at))
        X = torch.linalg.solve_triangular(at.L, hats[:, 1:].mT, upper=False)
        X = torch.cat([X, (hats @ at.xi / tau**0.5)[None]])  # V = XᵀX between p and rows
        p, r = X[:, :G], X[:, G:]
        pp, rp, rr = p.mT @ p, r.mT @ p, r.mT @ r
        reduced.add_cells(at, pp, rp, rr)
        one = torch.ones_like(at.mu[0]) / tau
        unit = torch.eye(len(at.L), d.stop - 1, dtype=X.dtype, device=X.device)
        D = torch.cat([torch.linalg.solve_triangular(at.L, unit, upper=False), (at.xi[d] / tau**0.5)[None]])
        with_d, v0, dd = X.mT @ D, at.xi[d] / tau, D.mT @ D
        Vd, Sd, (p1, r1) = with_d[:G], with_d[G:], (X[-1] / tau**0.5).split([G, len(hats) - G])
        ball = v0.square().sum()
        t = torch.cat([-p1 * r1[:G], p1 * (one - p1), r1 * (one - r1)])
        gamma = torch.cat([(Vd * Sd[:G]).sum(1), (Vd * (Vd - v0)).sum(1), (Sd * (Sd - v0)).sum(1)]) + t
        corner = torch.stack([one.square(), one.square() - ball, dd.square().sum() - 2.0 * ball + one.square()])
        first = torch.cat([torch.stack([corner[:2], corner[1:]]), torch.stack([t, gamma])], 1)
        own = [rp[:G].diagonal(), pp.diagonal() - p1, rr.diagonal() - r1]
        values = torch.cat([-one[None], dd.diagonal().sum()[None] - one, *own])
        return cls(values, {"pp": pp, "rp": rp, "pr": rp.mT, "rr": rr}, {"p": p1, "r": r1}, one, first)

    def promising(self, slope: Tensor, inverse: Tensor, count: int) -> Tensor:
        """The multipliers that move, in order: those from which a Newton step by themselves would gain most."""
        one, p1, r1, G = self.one, self.with_one["p"], self.with_one["r"], len(self.with_one["p"])
        pp, rp, rr = (self.between[name].diagonal() for name in ("pp", "rp", "rr"))
        lam = 0.5 * (rp[:G].square() + pp * rr[:G])
        f, h = (0.5 * ((v - v1).square() + v * (v - 2.0 * v1 + one)) for v, v1 in ((pp, p1), (rr, r1)))
        gain = slope[2:].square() / (torch.cat([lam, f, h]) + inverse[2:].square())
        best = gain.topk(min(count, len(gain))).indices.sort().values + 2
        return torch.cat([torch.arange(2, device=best.device), best])

    def matrix(self, moving: Tensor) -> Tensor:
        """tr(A_i V A_j V) for the multipliers `moving`, the first of which are t and γ."""
        G = len(self.with_one["p"])
        ends = [2, 2 + G, 2 + 2 * G, self.first.shape[1]]
        parts = [moving[(moving >= i) & (moving < j)] - i for i, j in zip(ends, ends[1:], strict=False)]
        M = self.first.new_empty(len(moving), len(moving))
        M[:2], M[:, :2] = self.first[:, moving], self.first[:, moving].mT
        starts = [2, 2 + len(parts[0]), 2 + len(parts[0]) + len(parts[1])]
        for i in range(3):
            for j in range(i, 3):
                block = self._block(PAIRS[i], parts[i], PAIRS[j], parts[j])
                rows, columns = slice(starts[i], starts[i] + len(block)), slice(starts[j], starts[j] + block.shape[1])
                M[rows, columns], M[columns, rows] = block, block.mT
        return M

    def _block(self, pair: tuple[str, str, int], i: Tensor, other: tuple[str, str, int], j: Tensor) -> Tensor:
        """½ (aᵀVb'·bᵀVa' + aᵀVa'·bᵀVb') for pairs (a, b) of one kind and (a', b') of another."""
        (a, b, less), (a2, b2, less2) = pair, other

        def form(x: str, y: str) -> Tensor:
            return self.between[x + y][i][:, j]

        one = self.with_one
        ab, ba, bb = form(a, b2), form(b, a2), form(b, b2)
        if less2:
            ab -= one[a][i][:, None]
            bb -= one[b][i][:, None]
        if less:
            ba -= one[a2][j]
            bb -= one[b2][j] - less2 * self.one
        return ab.mul_(ba).add_(form(a, a2).mul_(bb)).mul_(0.5)
