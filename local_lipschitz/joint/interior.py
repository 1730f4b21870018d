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
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .descent import GROWTH, STALL, Point, descend, inverse_of, log_norm, mixing, newton
from .first_kinks import Acts, FirstKinks
from .groups import Groups
from .triangles import add_gram, minus_gram

# p of the norm that smooths the largest eigenvalue; τ of the barrier, times the number of groups
STAGES = ((8.0, 0.3), (16.0, 0.05), (64.0, 0.01), (256.0, 0.002), (1000.0, 0.0005))
CENTRAL = (8.0, 2.0)  # before these, where no Newton steps but many others are to come: away from the boundary
EASY = 0.1  # τ of the stages in which Newton steps are not needed, at least
NEWTON = 1000  # groups, from which they do not pay
SINGLE = 500  # groups, from which the other steps are in single precision
FEWEST = 10  # quasi-Newton steps of a stage, of those that are left
STALLED = 5e-3  # of τ: a fall of the objective that is not worth waiting for in a stage without Newton steps
SURE = {torch.float64: 1e-6, torch.float32: 1e-3}  # that values are below their targets before they are proven
FAR = 1.1  # times its target: a value that is seen to stay above that


@dataclass(frozen=True)
class Wanted:
    """Functions [N P] whose S is to become small: N (k, n), P (k, G), NNᵀ (k, k) or, for each by itself, its diagonal.

    target: of their bounds, (1,) or for each (k,); None: as small as the steps allow.
    """

    delta: Tensor
    P: Tensor
    NN: Tensor
    target: Tensor | None

    @property
    def each(self) -> bool:
        return self.NN.dim() == 1

    @property
    def relative(self) -> Wanted:
        """Each function in units of its target, so that 1 is the target of all."""
        if self.target is None:
            return self
        unit = self.target[:, None]
        return Wanted(self.delta / unit, self.P / unit, self.NN / self.target.square(), torch.ones_like(self.target))


def improve(groups: Groups, wanted: Wanted, mu: Tensor, steps: int, last: bool = True) -> Tensor:
    """Better multipliers μ; `steps` steps at most. Ends where targets are reached, or seen to be out of reach.

    last: whether they are as good as they get after this, and not improved again for other functions.
    """
    dtype, newtons = torch.float64 if len(mu) <= SINGLE else torch.float32, len(mu) <= NEWTON
    wanted = wanted.relative
    rough = Interior(groups, wanted, mu, dtype, newtons)
    start = mu
    stages = (CENTRAL, *STAGES) if last and steps >= FEWEST and not newtons else STAGES
    for p, scaled_tau in stages:
        if steps <= 1:
            break
        tau = scaled_tau / len(mu)
        if scaled_tau > EASY or not newtons:
            share = steps if (p, scaled_tau) == stages[-1] else max(FEWEST, steps // 2)
            stall, growth = (STALL, math.inf) if newtons else (max(STALL, STALLED * scaled_tau), GROWTH)
            mu, used, point = descend(partial(rough.point, p=p, tau=tau), mu, min(steps, share), stall, growth)
        else:
            exact = rough if rough.dtype is torch.float64 else Interior(groups, wanted, start, torch.float64)
            mu, used, point = newton(partial(exact.point, p=p, tau=tau, second=True), mu, steps, 0.1 * scaled_tau)
        steps -= used
        if point is None or point.enough:
            break
        if wanted.target is not None:
            hidden = 1.1 * scaled_tau + math.log(len(wanted.NN)) / p
            if point.excess - hidden > 2.0 * math.log(FAR):
                break
    return mu


@dataclass(frozen=True)
class Solved:
    """At some μ: S, or its diagonal; Y and E (G, k); the diagonals of W⁻¹ and TᵀW⁻¹T; log det of W scaled by μ.

    full: W⁻¹ and what else the second derivative takes, where that was asked for.
    """

    S: Tensor
    Y: Tensor
    E: Tensor
    diagonal: Tensor
    through: Tensor
    log_det: float
    full: Full | None


class Interior:
    """The objective in a dtype of its own, in units of the multipliers at the start.

    first: the kinks that are eliminated at each μ (first_kinks.py), where that pays and W need not be whole; T and P
    are of the others.
    """

    def __init__(self, groups: Groups, wanted: Wanted, start: Tensor, dtype: torch.dtype, whole: bool = True) -> None:
        unit = start.sqrt()
        self.start, self.dtype, self.each, self.aims = start, dtype, wanted.each, wanted.target is not None
        self.slack, self.least = groups.slack(len(wanted.P)), groups.least / start
        sets = None if whole else groups.eliminated()
        k = 0 if sets is None else len(sets.place)
        P, N = (wanted.P * unit).to(dtype), wanted.delta.to(dtype)
        self.P, self.T = P[:, k:], (groups.T[k:, k:] / unit[k:, None]).mul_(unit[k:]).to(dtype)
        self.spans = [(a - k, b - k) for a, b in groups.spans if a >= k]
        self.first = None
        if sets is not None:
            Q = (groups.Q / unit[:, None]).to(dtype)
            T = (groups.T[k:, :k] / unit[k:, None]).mul_(unit[:k])
            self.first = FirstKinks(sets.scaled(unit[:k], dtype), Q[:k])
            self.others = torch.cat([Q[k:], N])
            self.acts = Acts(sets, torch.cat([T, wanted.P[:, :k] * unit[:k]]).T, dtype)
        else:
            self.QQ = (groups.QQ / unit[:, None]).div_(unit).to(dtype)
            self.NQ, self.NN = ((wanted.delta @ groups.Q.T) / unit).to(dtype), wanted.NN.to(dtype)

    def solve(self, x: Tensor, second: bool) -> Solved | None:
        """W at μ = x·start, with its Cholesky factor L Lᵀ; None where it is not ≻ 0."""
        diagonal = ((1.0 - self.slack) * x - self.least).to(self.dtype)
        k, gone = len(x) - len(self.T), None
        if self.first is not None:
            gone = self.first.eliminate(x[:k], diagonal[:k])
            if gone is None:
                return None
            H = gone.reduced(self.others, self.acts)
            rest, own = H[:, : len(self.T)], H[:, len(self.T) :]
            W, NQ, NN = minus_gram(rest), own.T @ rest, own.square().sum(0) if self.each else own.T @ own
        else:
            W, NQ, NN = self.QQ.neg(), self.NQ, self.NN
        later = x[k:]
        add_gram(W, self.T * later.sqrt(), self.spans, -1.0)
        W.diagonal().add_(diagonal[k:])
        L, info = torch.linalg.cholesky_ex(W)
        if int(info) or not bool(torch.isfinite(L.diagonal()).all()):
            return None
        P = self.P * later
        X = torch.linalg.solve_triangular(L, (NQ + P @ self.T.T).T, upper=False)
        Y = torch.linalg.solve_triangular(L.T, X, upper=True)
        E = self.P.T + self.T.T @ Y
        S = NN + ((P * self.P).sum(1) + X.square().sum(0) if self.each else P @ self.P.T + X.T @ X)
        log_det = float(2.0 * L.diagonal().double().log().sum() - x[k:].double().log().sum())
        full = Full(L, self.T, self.spans) if second else None
        inverse, through = (full.diagonal, full.through) if full is not None else diagonals(L, self.T, self.spans)
        if gone is not None:
            Y, E = (torch.cat(both) for both in zip(gone.response(H, self.acts, Y), (Y, E), strict=True))
            before, through_before = gone.diagonals(rest, self.acts, L)
            inverse, through = torch.cat([before, inverse]), torch.cat([through_before, through])
            log_det += gone.log_det
        return Solved(S, Y, E, inverse, through, log_det, full)

    def point(self, mu: Tensor, p: float, tau: float, second: bool = False) -> Point | None:
        """Value and derivatives in log μ: ∂S/∂μ_g = E_gE_gᵀ − Y_gY_gᵀ with Y = W⁻¹C, E = Pᵀ + TᵀY."""
        x = (mu / self.start).to(self.dtype)
        solved = self.solve(x, second)
        if solved is None:
            return None
        S, Y, E, by_norm = solved.S.double(), solved.Y, solved.E, self.aims or not self.each
        if not self.each:
            S, basis = torch.linalg.eigh(S)
            E, Y = E @ basis.to(self.dtype), Y @ basis.to(self.dtype)
        S = S.clamp(min=torch.finfo(torch.float64).tiny)
        value, weight = log_norm(S, p) if by_norm else (float(S.log().mean()), 1.0 / (S * len(S)))
        weight = weight.to(self.dtype)
        up = x * (E.square() @ weight + tau * solved.through) + tau
        down = x * (Y.square() @ weight + tau * solved.diagonal)

        def hessian() -> Tensor:
            # d²S = 2 RᵀW⁻¹R with R = T dμ E − dμ Y; what makes the logarithms concave is left out
            assert solved.full is not None
            slope = E.square() @ weight - Y.square() @ weight
            H = solved.full.second((E * weight) @ E.T, (Y * weight) @ E.T, (Y * weight) @ Y.T, tau)
            if by_norm:
                for i, j, factor in mixing(S, p, turning=not self.each):
                    J = E[:, i] * E[:, j] - Y[:, i] * Y[:, j]
                    H.addr_(J, J, alpha=factor)
                H.addr_(slope, slope, alpha=1.0 - p)
            return H * x[:, None] * x

        enough = self.aims and float(S.amax()) <= 1.0 - SURE[self.dtype]
        return Point(value - tau * solved.log_det, up.double(), down.double(), hessian, value, enough)


def diagonals(L: Tensor, T: Tensor, spans: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Those of W⁻¹ and of TᵀW⁻¹T, from W = L Lᵀ, layer by layer of the triangle."""
    diagonal, through = L.new_empty(len(L)), L.new_zeros(len(L))
    for first, end in spans:
        unit = L.new_zeros(len(L) - first, end - first)
        unit.fill_diagonal_(1.0)
        diagonal[first:end] = torch.linalg.solve_triangular(L[first:, first:], unit, upper=False).square().sum(0)
        columns = torch.linalg.solve_triangular(L[end:, end:], T[end:, first:end], upper=False)
        through[first:end] = columns.square().sum(0)
    return diagonal, through


class Full:
    """W⁻¹, W⁻¹T and TᵀW⁻¹T."""

    def __init__(self, L: Tensor, T: Tensor, spans: list[tuple[int, int]]) -> None:
        self.inverse = inverse_of(L)
        self.half, self.full = torch.zeros_like(L), torch.zeros_like(L)
        for first, end in spans:  # T is strictly lower triangular by these layers
            self.half[:, first:end] = self.inverse[:, end:] @ T[end:, first:end]
        for first, end in spans:
            self.full[first:end] = T[end:, first:end].T @ self.half[end:]
        self.diagonal, self.through = self.inverse.diagonal(), self.full.diagonal()

    def second(self, EE: Tensor, YE: Tensor, YY: Tensor, tau: float) -> Tensor:
        """The second derivative of S weighted, and of the barrier."""
        cross = self.half * YE
        H = 2.0 * (self.full * EE - cross - cross.T + self.inverse * YY)
        squares = self.inverse.square() - self.half.square() - self.half.T.square() + self.full.square()
        return H.add_(squares, alpha=tau)
