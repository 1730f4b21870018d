"""Better multipliers with the rows at hand: an interior-point method in two kinds of step.

The objective is the log of a p-norm of S's eigenvalues, or of the S_ii in units of their targets, or the mean of
log S_ii where there are none, plus the barrier −τ log det(W scaled to unit diagonal μ), for falling τ and growing p.
Its derivatives in log μ are differences of two positive parts, which together are about the curvature that a group has
by itself. So quasi-Newton steps that start from these parts, one Cholesky factorisation and the diagonals of two
inverses each, come close in single precision. Newton steps are ten times as dear and pay where the groups are few
(docs/joint_bound.md, section 4).

Nothing here is a bound: functions.py proves one for whatever multipliers are found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .descent import FIRST_STEP, STALL, Point, descend, newton
from .first_kinks import Acts, FirstKinks, Sets
from .problems import Axis, Problem, side_by_side
from .sizes import log_norm, mean_log, mixing
from .triangles import add_gram, inverse_of, minus_gram

# p of the norm that smooths the largest eigenvalue; τ of the barrier, times the number of groups
STAGES = ((8.0, 0.3), (16.0, 0.05), (64.0, 0.01), (256.0, 0.002), (1000.0, 0.0005))
CENTRAL = (8.0, 2.0)  # before these, where no Newton steps but many others are to come: away from the boundary
EASY = 0.1  # τ of the stages in which Newton steps are not needed, at least
NEWTON = 1000  # groups, from which they do not pay
SINGLE = 500  # groups, from which the other steps are in single precision
FEWEST = 10  # quasi-Newton steps of a stage, of those that are left
STALLED = 5e-3  # of τ: a fall of the objective that is not worth waiting for in a stage without Newton steps
SURE = {torch.float64: 1e-6, torch.float32: 1e-3}  # that values are below their targets before they are proven
KEPT = 26  # bits of the multipliers that are found; near its least the bound hardly depends on further ones
FAR = 1.1  # times its target: a value that is seen to stay above that


def improve(problems: Sequence[Problem]) -> list[Tensor]:
    """Better multipliers of each. Ends where targets are met, or seen to be out of reach.

    The problems are alike: as many steps, the same kind of functions, and sizes on the same side of SINGLE and NEWTON.
    """
    first, size = problems[0], max(len(p.mu) for p in problems)
    newtons, last, aims = size <= NEWTON, first.last, first.wanted.target is not None
    rough = Interior(problems, torch.float64 if size <= SINGLE else torch.float32, newtons)
    exact, mu = rough, rough.start
    left = torch.full_like(rough.sizes, first.steps, dtype=torch.long)
    longest = torch.full_like(rough.sizes, FIRST_STEP)
    stages = (CENTRAL, *STAGES) if last and first.steps >= FEWEST and not newtons else STAGES
    for p, scaled_tau in stages:
        tau = scaled_tau / rough.sizes
        if scaled_tau > EASY or not newtons:
            share = left if (p, scaled_tau) == stages[-1] else torch.minimum(left, (left // 2).clamp(min=FEWEST))
            stall, evaluate = STALL if newtons else max(STALL, STALLED * scaled_tau), partial(rough.point, p=p, tau=tau)
            mu, used, point, longest = descend(evaluate, mu, share, stall, longest)  # the boundary is where it was
        else:
            if exact.dtype is not torch.float64:
                exact = Interior(problems, torch.float64)
            mu, used, point = newton(partial(exact.point, p=p, tau=tau, second=True), mu, left, 0.1 * scaled_tau)
        left = torch.where(point.goes_on, left - used, 0)
        if aims:
            hidden = 1.1 * scaled_tau + rough.counts.log() / p
            left = torch.where(point.excess - hidden > 2.0 * math.log(FAR), 0, left)
        if not bool((left > 1).any()):
            break
    return [rounded(mu[b, at]) for b, at in enumerate(rough.places)]


def rounded(mu: Tensor) -> Tensor:
    """To KEPT bits: problems beside it change the last digits of the results of one, and these are forgotten here."""
    mantissa, exponent = torch.frexp(mu)
    return torch.ldexp((mantissa * 2.0**KEPT).round() * 2.0**-KEPT, exponent)


@dataclass(frozen=True)
class Solved:
    """At some μ: S (B, k, k), or its diagonal (B, k); Y and E (B, G, k); the diagonals of W⁻¹ and TᵀW⁻¹T (B, G).

    log_det: (B,) of W scaled by μ; −∞ where W is not ≻ 0, and then the rest means nothing. full: W⁻¹ and what else the
    second derivative takes, where that was asked for.
    """

    S: Tensor
    Y: Tensor
    E: Tensor
    diagonal: Tensor
    through: Tensor
    log_det: Tensor
    full: Full | None


class Interior:
    """The objectives of alike problems in a dtype of its own, in units of the multipliers at the start (B, G).

    real: (B, G) 1 for kinks, 0 for places that are only filled up. sizes, counts: (B,) kinks and functions of each.
    first: the kinks that are eliminated at each μ (first_kinks.py), where that pays, of a problem by itself whose W
    need not be whole; T and P are of the others.
    """

    def __init__(self, problems: Sequence[Problem], dtype: torch.dtype, whole: bool = True) -> None:
        functions, (kinks, spans) = Axis.of_functions(problems), Axis.of_kinks(problems)
        own, self.dtype = problems[0].wanted, dtype
        self.each, self.aims = own.each, own.target is not None
        self.start, self.places = side_by_side([p.mu for p in problems], kinks, fill=1.0), kinks.places
        self.real = side_by_side([torch.ones_like(p.mu) for p in problems], kinks)
        self.sizes, self.counts = (self.start.new_tensor(axis.counts) for axis in (kinks, functions))
        self.slack = self.start.new_tensor([p.groups.slack(len(p.wanted.P)) for p in problems])[:, None]
        self.least = side_by_side([p.groups.least / p.mu for p in problems], kinks)
        sets = None if whole or len(problems) > 1 else problems[0].groups.eliminated()
        self.first, k = None, 0
        if sets is not None:
            k = len(sets.place)
            self.first, self.others, self.acts = _first(problems[0], sets, dtype)
        self.spans = [(a - k, b - k) for a, b in spans if a >= k]
        P, T, *products = zip(*(_scaled(p, dtype, k) for p in problems), strict=True)
        self.P, self.T = side_by_side(P, functions, kinks), side_by_side(T, kinks, kinks)
        if self.first is None:
            QQ, NQ, NN = products
            self.QQ, self.NQ = side_by_side(QQ, kinks, kinks), side_by_side(NQ, functions, kinks)
            self.NN = side_by_side(NN, functions) if self.each else side_by_side(NN, functions, functions)

    def solve(self, x: Tensor, second: bool) -> Solved | None:
        """W at μ = x·start, with its Cholesky factor L Lᵀ; None where none is ≻ 0."""
        diagonal = ((1.0 - self.slack) * x - self.least).to(self.dtype)
        k, gone = x.shape[1] - self.T.shape[1], None
        if self.first is not None:
            gone = self.first.eliminate(x[0, :k], diagonal[0, :k])
            if gone is None:
                return None
            H = gone.reduced(self.others, self.acts)
            rest, own = H.split([self.T.shape[1], len(self.P[0])], 1)
            W, NQ = minus_gram(rest)[None], (own.T @ rest)[None]
            NN = (own.square().sum(0) if self.each else own.T @ own)[None]
        else:
            W, NQ, NN = self.QQ.neg(), self.NQ, self.NN
        later = x[:, k:]
        add_gram(W, self.T * later.sqrt()[:, None], self.spans, -1.0)
        W.diagonal(dim1=1, dim2=2).add_(diagonal[:, k:])
        L, definite = _cholesky(W)
        if not bool(definite.any()):
            return None
        P = self.P * later[:, None]
        X = torch.linalg.solve_triangular(L, (NQ + P @ self.T.mT).mT, upper=False)
        Y = torch.linalg.solve_triangular(L.mT, X, upper=True)
        E = self.P.mT + self.T.mT @ Y
        S = NN + ((P * self.P).sum(2) + X.square().sum(1) if self.each else P @ self.P.mT + X.mT @ X)
        log_dets = 2.0 * L.diagonal(dim1=1, dim2=2).double().log() - later.double().log()
        log_det = (log_dets * self.real[:, k:]).sum(1)
        full = Full(L, self.T, self.spans) if second else None
        inverse, through = (full.diagonal, full.through) if full is not None else diagonals(L, self.T, self.spans)
        if gone is not None:
            Y, E = (torch.cat(both)[None] for both in zip(gone.response(H, self.acts, Y[0]), (Y[0], E[0]), strict=True))
            before = gone.diagonals(rest, self.acts, L[0])
            inverse, through = (torch.cat(both)[None] for both in zip(before, (inverse[0], through[0]), strict=True))
            log_det = log_det + gone.log_det
        return Solved(S, Y, E, inverse, through, log_det.where(definite, -math.inf), full)

    def point(self, mu: Tensor, p: float, tau: Tensor, second: bool = False) -> Point:
        """Values and derivatives in log μ: ∂S/∂μ_g = E_gE_gᵀ − Y_gY_gᵀ with Y = W⁻¹C, E = Pᵀ + TᵀY; tau (B,)."""
        x = (mu / self.start).to(self.dtype)
        solved = self.solve(x, second)
        if solved is None:
            return Point.nowhere(mu)
        S, Y, E, by_norm = solved.S.double(), solved.Y, solved.E, self.aims or not self.each
        if not self.each:
            S, basis = torch.linalg.eigh(S)
            E, Y = E @ basis.to(self.dtype), Y @ basis.to(self.dtype)
        S = S.clamp(min=torch.finfo(torch.float64).tiny)
        value, slopes = log_norm(S, p) if by_norm else mean_log(S, self.counts)
        weight, own_tau = slopes[:, :, None].to(self.dtype), (tau[:, None] * self.real).to(self.dtype)
        up = x * ((E.square() @ weight)[:, :, 0] + own_tau * solved.through) + own_tau
        down = x * ((Y.square() @ weight)[:, :, 0] + own_tau * solved.diagonal)

        def hessian() -> Tensor:
            # d²S = 2 RᵀW⁻¹R with R = T dμ E − dμ Y; what makes the logarithms concave is left out
            assert solved.full is not None
            EE, YE, YY = ((A * weight.mT) @ B.mT for A, B in ((E, E), (Y, E), (Y, Y)))
            H = solved.full.second(EE, YE, YY, tau[:, None, None].to(self.dtype))
            if by_norm:
                i, j, factors = mixing(S, p, turning=not self.each)
                J = E[:, :, i] * E[:, :, j] - Y[:, :, i] * Y[:, :, j]
                slope = (E.square() - Y.square()) @ weight
                H += (J * factors[:, None].to(self.dtype)) @ J.mT + (1.0 - p) * slope @ slope.mT
            return H * x[:, :, None] * x[:, None]

        enough = (S.amax(1) <= 1.0 - SURE[self.dtype]) & self.aims
        return Point(value - tau * solved.log_det, up.double(), down.double(), self.sizes, value, enough, hessian)


def _scaled(problem: Problem, dtype: torch.dtype, k: int) -> list[Tensor]:
    """P and T of all but the first k kinks, in units of √μ at the start; where these are all, also QQᵀ, NQᵀ and NNᵀ."""
    groups, wanted, unit = problem.groups, problem.wanted.relative, problem.mu.sqrt()
    parts = [(wanted.P * unit)[:, k:], (groups.T[k:, k:] / unit[k:, None]).mul_(unit[k:])]
    if k == 0:
        parts += [(groups.QQ / unit[:, None]).div_(unit), (wanted.delta @ groups.Q.T) / unit, wanted.NN]
    return [part.to(dtype) for part in parts]


def _first(problem: Problem, sets: Sets, dtype: torch.dtype) -> tuple[FirstKinks, Tensor, Acts]:
    """The kinks that are eliminated, the rows [Q₂; N] of the others and the functions, and how these depend on them."""
    groups, wanted, unit, k = problem.groups, problem.wanted.relative, problem.mu.sqrt(), len(sets.place)
    Q, T = (groups.Q / unit[:, None]).to(dtype), (groups.T[k:, :k] / unit[k:, None]).mul_(unit[:k])
    acts = Acts(sets, torch.cat([T, wanted.P[:, :k] * unit[:k]]).T, dtype)
    return FirstKinks(sets.scaled(unit[:k], dtype), Q[:k]), torch.cat([Q[k:], wanted.delta.to(dtype)]), acts


def _cholesky(W: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (B, G, G), and (B,) whether there is one; the unit matrix where there is none."""
    L, info = torch.linalg.cholesky_ex(W)
    definite = (info == 0) & torch.isfinite(L.diagonal(dim1=1, dim2=2)).all(1)
    if not bool(definite.all()):
        L = L.where(definite[:, None, None], torch.eye(L.shape[1], dtype=L.dtype, device=L.device))
    return L, definite


def diagonals(L: Tensor, T: Tensor, spans: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Those of W⁻¹ and of TᵀW⁻¹T, from W = L Lᵀ, layer by layer of the triangle; (B, G) each."""
    B, G = L.shape[:2]
    diagonal, through = L.new_empty(B, G), L.new_zeros(B, G)
    for first, end in spans:
        unit = torch.eye(G - first, end - first, dtype=L.dtype, device=L.device).expand(B, -1, -1)
        inverse = torch.linalg.solve_triangular(L[:, first:, first:], unit, upper=False)
        diagonal[:, first:end] = inverse.square().sum(1)
        columns = torch.linalg.solve_triangular(L[:, end:, end:], T[:, end:, first:end], upper=False)
        through[:, first:end] = columns.square().sum(1)
    return diagonal, through


class Full:
    """W⁻¹, W⁻¹T and TᵀW⁻¹T."""

    def __init__(self, L: Tensor, T: Tensor, spans: list[tuple[int, int]]) -> None:
        self.inverse = inverse_of(L)
        self.half, self.full = torch.zeros_like(L), torch.zeros_like(L)
        for first, end in spans:  # T is strictly lower triangular by these layers
            self.half[:, :, first:end] = self.inverse[:, :, end:] @ T[:, end:, first:end]
        for first, end in spans:
            self.full[:, first:end] = T[:, end:, first:end].mT @ self.half[:, end:]
        self.diagonal, self.through = (A.diagonal(dim1=1, dim2=2) for A in (self.inverse, self.full))

    def second(self, EE: Tensor, YE: Tensor, YY: Tensor, tau: Tensor) -> Tensor:
        """The second derivative of S weighted, and of the barrier."""
        cross = self.half * YE
        H = 2.0 * (self.full * EE - cross - cross.mT + self.inverse * YY)
        squares = self.inverse.square() - self.half.square() - self.half.mT.square() + self.full.square()
        return H.addcmul_(squares, tau)
