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

    values: (M,). columns: of every p (n, G) and r (n, R), whose products are V between them, but for what the cells
    add. inside: of the cells, see `Reduced.inside`. own: pp, rp and rr of each with itself; with_one: 1 p and 1 r; one:
    1 1. first: (2, M), the rows of t and γ.
    """

    values: Tensor
    columns: dict[str, Tensor]
    inside: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    own: dict[str, Tensor]
    with_one: dict[str, Tensor]
    one: Tensor
    first: Tensor

    @classmethod
    def of(cls, reduced: Reduced, at: Point, tau: float) -> Newton:
        G, d = reduced.relaxation.kinks, slice(1, 1 + reduced.relaxation.span)
        hats, inside = torch.cat(reduced.hats(at)), reduced.inside(at)
        X = torch.linalg.solve_triangular(at.L, hats[:, 1:].mT, upper=False)
        X = torch.cat([X, (hats @ at.xi / tau**0.5)[None]])  # V = XᵀX between p and rows
        p, r = X[:, :G], X[:, G:]
        own = _own(p, r, inside)
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
        slopes = [own["rp"], own["pp"] - p1, own["rr"] - r1]
        values = torch.cat([-one[None], dd.diagonal().sum()[None] - one, *slopes])
        return cls(values, {"p": p, "r": r}, inside, own, {"p": p1, "r": r1}, one, first)

    def promising(self, slope: Tensor, inverse: Tensor, count: int) -> Tensor:
        """The multipliers that move, in order: those from which a Newton step by themselves would gain most."""
        one, p1, r1, G = self.one, self.with_one["p"], self.with_one["r"], len(self.with_one["p"])
        pp, rp, rr = (self.own[name] for name in ("pp", "rp", "rr"))
        lam = 0.5 * (rp.square() + pp * rr[:G])
        f, h = (0.5 * ((v - v1).square() + v * (v - 2.0 * v1 + one)) for v, v1 in ((pp, p1), (rr, r1)))
        gain = slope[2:].square() / (torch.cat([lam, f, h]) + inverse[2:].square())
        best = gain.topk(min(count, len(gain))).indices.sort().values + 2
        return torch.cat([torch.arange(2, device=best.device), best])

    def matrix(self, moving: Tensor) -> Tensor:
        """tr(A_i V A_j V) for the multipliers `moving`, the first of which are t and γ."""
        G = len(self.with_one["p"])
        ends = [2, 2 + G, 2 + 2 * G, self.first.shape[1]]
        lam, f, h = (moving[(moving >= i) & (moving < j)] - i for i, j in zip(ends, ends[1:], strict=False))
        between = Between.of(self, torch.cat([lam, f]).unique(), torch.cat([lam, h]).unique())
        M = self.first.new_empty(len(moving), len(moving))
        M[:2], M[:, :2] = self.first[:, moving], self.first[:, moving].mT
        parts, starts = (lam, f, h), [2, 2 + len(lam), 2 + len(lam) + len(f)]
        for i in range(3):
            for j in range(i, 3):
                block = between.block(PAIRS[i], parts[i], PAIRS[j], parts[j])
                rows, columns = slice(starts[i], starts[i] + len(block)), slice(starts[j], starts[j] + block.shape[1])
                M[rows, columns], M[columns, rows] = block, block.mT
        return M


def _own(p: Tensor, r: Tensor, inside: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """V of each p with itself, of each row with itself, and of the two of each kink."""
    pp, rp, rr = p.square().sum(0), (r[:, : p.shape[1]] * p).sum(0), r.square().sum(0)
    for gone, seeing, p_E, r_E in inside:
        pp.index_add_(0, gone.flatten(), p_E.square().sum(1).expand(gone.shape).flatten())
        rp.index_add_(0, gone.flatten(), (r_E[..., : gone.shape[1]] * p_E).sum(1).flatten())
        rr.index_add_(0, seeing.flatten(), r_E.square().sum(1).flatten())
    return {"pp": pp, "rp": rp, "rr": rr}


@dataclass(frozen=True)
class Between:
    """What V is between some p and some rows. place: where each of all p, and of all rows, is among them."""

    values: dict[str, Tensor]
    place: dict[str, Tensor]
    with_one: dict[str, Tensor]
    one: Tensor

    @classmethod
    def of(cls, newton: Newton, p: Tensor, r: Tensor) -> Between:
        """Between the p and r of these numbers, both ascending."""
        P, S = newton.columns["p"][:, p], newton.columns["r"][:, r]
        values, place = {"pp": P.mT @ P, "rp": S.mT @ P, "rr": S.mT @ S}, {}
        for name, some in (("p", p), ("r", r)):
            place[name] = torch.full_like(newton.with_one[name], -1, dtype=torch.long)
            place[name][some] = torch.arange(len(some), device=some.device)
        for gone, seeing, p_E, r_E in newton.inside:
            gone, seeing = place["p"][gone], place["r"][seeing]
            for name, i, left, j, right in (
                ("pp", gone, p_E, gone, p_E), ("rp", seeing, r_E, gone, p_E), ("rr", seeing, r_E, seeing, r_E)
            ):  # fmt: skip
                added = (left.mT @ right).expand(len(i), -1, -1)
                at_i, at_j = i[:, :, None].expand_as(added), j[:, None].expand_as(added)
                there = (at_i >= 0) & (at_j >= 0)
                values[name].index_put_((at_i[there], at_j[there]), added[there], accumulate=True)
        values["pr"] = values["rp"].mT
        return cls(values, place, newton.with_one, newton.one)

    def block(self, pair: tuple[str, str, int], i: Tensor, other: tuple[str, str, int], j: Tensor) -> Tensor:
        """½ (aᵀVb'·bᵀVa' + aᵀVa'·bᵀVb') for pairs (a, b) of one kind and (a', b') of another."""
        (a, b, less), (a2, b2, less2) = pair, other

        def form(x: str, y: str) -> Tensor:
            return self.values[x + y][self.place[x][i]][:, self.place[y][j]]

        one = self.with_one
        ab, ba, bb = form(a, b2), form(b, a2), form(b, b2)
        if less2:
            ab -= one[a][i][:, None]
            bb -= one[b][i][:, None]
        if less:
            ba -= one[a2][j]
            bb -= one[b2][j] - less2 * self.one
        return ab.mul_(ba).add_(form(a, a2).mul_(bb)).mul_(0.5)
