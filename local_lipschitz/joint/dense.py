"""The joint bound with the rows of all uncertain groups at hand (docs/joint_bound.md, sections 3 to 5).

For networks whose uncertain neurons are a few thousand: one backward pass a group gives its row of [Q T], and from
then on everything is dense linear algebra in the number of groups, in float64, whatever the size of the network.
Rounding (section 6): each row has its proven error, |v_g − ṽ_g| ≤ ε_g‖δ‖; `slack` covers the algebra.
"""

from __future__ import annotations

import math
from functools import cached_property, partial

import torch
from torch import Tensor

from ..joint_operator import Elements, JointOperator, Passes, RowErrors
from ..layers.graph import Graph
from .certificate import ATTEMPTS, Random, is_proven, shift
from .descent import Point, inverse_of, log_norm, mixing, newton
from .krylov import BASIS, BLOCK, SMALL_OUTPUT, directions, top
from .passes import ROUNDS, Infeasible, layer_gain

CHUNK = 2**22  # elements of the largest layer times rows, a backward pass
LIMIT = 3000  # groups
ALONE = 200  # effort from which each output gets multipliers of its own: about a per cent, at twice the cost
MEMORY = 2**27  # elements of all their rows
WORK = 2e12  # multiplications spent on rows, or
ROWS = 600  # times those of the operator
# p of the norm that smooths the largest eigenvalue; τ of the barrier, times the number of groups
STAGES = ((8.0, 0.3), (16.0, 0.05), (64.0, 0.01), (256.0, 0.002), (1000.0, 0.0005))
# τ_g in |w_g|² ≤ (1 + τ_g)ṽ_g² + (1 + 1/τ_g)ε_g²‖δ‖²: the least, and in units of ε_g/|ṽ_g|
TAU, CANCELLED = 1e-7, 1e3
SMALL = 3e8  # times what the ε_g of one group may add to γ, at most
SLACK = 1e-14  # of single results


def rows(operator: Passes, F: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """[N P] for the output rows F (k, m), or for every output: (k, n), (k, G), and how far each is off, (k,)."""
    like, m = operator.like, operator.out_size
    deltas, ws, off = [], [], []
    part = max(1, CHUNK // operator.widest)
    for first in range(0, m if F is None else len(F), part):
        if F is None:
            f = like.new_zeros(min(part, m - first), m)
            f[:, first:].fill_diagonal_(1.0)
        else:
            f = F[first : first + part]
        errors = RowErrors(f)
        delta, w = operator.adjoint(f, f.new_zeros(len(f), operator.groups), errors)
        deltas.append(delta)
        ws.append(w)
        off.append(errors.total)
    return torch.cat(deltas), torch.cat(ws), torch.cat(off)


class DenseGroups:
    """The matrices Q, T and multipliers μ of the groups so far, growing in the order of the layers."""

    status = "dense"

    def __init__(self, like: Tensor, graph: Graph, steps: int, random: Random) -> None:
        self.cost, self.steps, self.random = graph.cost, steps, random
        self.Q = like.new_zeros(0, math.prod(graph.in_shape))
        self.QQ, self.T = like.new_zeros(0, 0), like.new_zeros(0, 0)
        # of each group: μ; ε; τ; √(1 + τ), by which its columns of P and T are stretched; the least μ for the sake of ε
        self.mu, self.error, self.tau, self.stretch, self.least = (like.new_zeros(0) for _ in range(5))
        self.first = 0  # groups of the first kink layer: nothing uncertain lies before them

    def slack(self, m: int) -> float:
        """Of W and S, outward, for m functions together: their sums, Cholesky factor and triangular solves."""
        terms = self.Q.shape[1] + len(self.mu)
        return 4.0 * shift(m + len(self.mu), terms)

    def find(self, candidates: Elements) -> Rows:
        operator, count = candidates.operator, candidates.out_size
        total = count + len(self.mu)
        too_dear = operator.work + count * operator.cost > max(WORK, ROWS * self.cost)
        if total > LIMIT or total * self.Q.shape[1] > MEMORY or too_dear:
            raise TooManyGroups
        found = Rows(self, *rows(candidates))
        if len(self.mu):
            self.mu = found.improve(self.mu, self.steps, True)
        return found

    def add(self, found: Rows, kept: Tensor, elements: Elements) -> None:
        """μ ∝ S_gg for the new groups, twice what makes W positive definite."""
        new, k, G = found.part(kept), elements.out_size, len(self.mu)
        S, error = new.matrix(self.mu), new.error
        size = S.diagonal().clamp(min=torch.finfo(S.dtype).tiny)
        tau = (CANCELLED * error / size.sqrt()).clamp(TAU, 1.0)
        least = SMALL * error.square() / tau
        d = size + least
        top = _largest(S / (d.sqrt()[:, None] * d.sqrt()), self.random)
        self.first = self.first or k
        self.QQ = torch.cat([torch.cat([self.QQ, new.NQ.T], 1), torch.cat([new.NQ, new.NN], 1)])
        self.Q = torch.cat([self.Q, new.delta])
        T = new.P.new_zeros(G + k, G + k)
        T[:G, :G], T[G:, :G] = self.T, new.P
        self.T, self.mu = T, torch.cat([self.mu, 2.0 * top * d])
        self.error, self.tau = torch.cat([self.error, error]), torch.cat([self.tau, tau])
        self.stretch = torch.cat([self.stretch, (1.0 + tau).sqrt() * (1.0 + SLACK)])
        self.least = torch.cat([self.least, least])

    def rounding(self, mu: Tensor) -> float:
        """The factor of γ for the ε_g: 1 + Σ_g ε_g²/(τ_g μ_g), for columns that are stretched."""
        return 1.0 + 1.01 * float((self.error.square() / (self.tau * mu)).sum())

    def gram(self, mu: Tensor) -> Tensor:
        """QQᵀ + T diag(μ) Tᵀ."""
        gram, T = self.QQ.clone(), self.T[self.first :] * mu.sqrt()
        gram[self.first :, self.first :] += T @ T.T
        return gram

    def factor(self, mu: Tensor, m: int) -> Tensor | None:
        """The Cholesky factor of W(μ) less what ε and the slack for m functions take; None where that is not ≻ 0."""
        scale = mu.rsqrt()
        W = -(self.gram(mu) * scale[:, None] * scale)
        W.diagonal().add_(1.0 - self.slack(m) - self.least / mu)
        L, info = torch.linalg.cholesky_ex(W)
        return None if int(info) or not bool(torch.isfinite(L).all()) else L / scale[:, None]

    def layer_gain(self, operator: JointOperator) -> float:
        if len(self.mu) == 0:
            return layer_gain(operator, self.mu, self.mu.new_ones(1), self.random)
        found = top(operator, self.mu, directions(BLOCK, operator, self.random))
        return math.inf if found is None else layer_gain(operator, self.mu, found.gamma, self.random)

    def outputs(self, operator: JointOperator, C: Tensor | None, effort: int) -> tuple[Tensor, Tensor]:
        """Bounds of the whole output (1,) or of each of C (K, m): proven at the end, and before refinement."""
        function, each = Rows(self, *rows(operator, C)), C is not None
        before = function.bounds(self.mu, each)
        best, mu = (before, self.mu), self.mu
        many = C is None and operator.out_size > SMALL_OUTPUT
        for _ in range((ROUNDS if many else 1) if len(mu) else 0):
            part = function.top(mu, 2 * BASIS) if many else function
            mu = part.improve(mu, max(1, effort // ROUNDS) if many else effort, each)
            best = min(best, (function.bounds(mu, each), mu), key=lambda found: float(found[0].mean()))
        value = function.proven(best[1], each)
        if C is not None and effort >= ALONE and len(mu):
            alone = [function.part(slice(k, k + 1)) for k in range(len(C))]
            own = [row.proven(row.improve(mu, effort // 8, True, STAGES[2:]), True) for row in alone]
            value = torch.minimum(value, torch.cat(own))
        return value, torch.maximum(before, value)


class TooManyGroups(Exception):
    """More uncertain groups than the dense path takes."""


class Rows:
    """Functions [N P] on top of the groups: their matrix S(μ), what it depends on, and better multipliers."""

    def __init__(self, groups: DenseGroups, delta: Tensor, w: Tensor, error: Tensor, stretched: bool = False) -> None:
        self.groups, self.delta, self.error = groups, delta, error
        self.P = w if stretched else w * groups.stretch
        self.NN_diagonal, self.NQ = delta.square().sum(1), delta @ groups.Q.T

    @property
    def gains(self) -> Tensor:
        """The bound of each by itself, with the multipliers that the groups have."""
        return self.bounds(self.groups.mu, True)

    @cached_property
    def NN(self) -> Tensor:
        return self.delta @ self.delta.T

    def _solve(self, mu: Tensor) -> tuple[Tensor, Tensor] | None:
        L = self.groups.factor(mu, len(self.delta))
        if L is None:
            return None
        C = self.NQ + (self.P * mu) @ self.groups.T.T
        return L, torch.linalg.solve_triangular(L, C.T, upper=False)

    def _feasible(self, mu: Tensor) -> tuple[Tensor, Tensor]:
        solved = self._solve(mu)
        if solved is None:
            raise Infeasible("the multipliers found are not feasible")
        return solved

    def diagonal(self, mu: Tensor) -> Tensor:
        """S_ii(μ), the squared bound of each row by itself."""
        if len(mu) == 0:
            return self.NN_diagonal
        _, X = self._feasible(mu)
        return self.NN_diagonal + (self.P.square() * mu).sum(1) + X.square().sum(0)

    def matrix(self, mu: Tensor) -> Tensor:
        """S(μ)."""
        if len(mu) == 0:
            return self.NN
        _, X = self._feasible(mu)
        return self.NN + (self.P * mu) @ self.P.T + X.T @ X

    def bounds(self, mu: Tensor, each: bool) -> Tensor:
        """Of all functions together, (1,), or of each: √ of the largest eigenvalue of S(μ) or of its diagonal.

        Valid for every μ with W(μ) ≻ 0, up to the rounding of an eigenvalue.
        """
        S = self.diagonal(mu) if each else torch.linalg.eigvalsh(self.matrix(mu))[-1:]
        return self._outward(S * (1.0 + 2.0 * self.groups.slack(len(self.delta))), mu, each)

    def proven(self, mu: Tensor, each: bool) -> Tensor:
        """The same, each with a Cholesky factorisation as its proof; inf where that does not run through."""
        k, G, n = len(self.delta), len(mu), self.delta.shape[1]
        slack = self.groups.slack(k)
        gamma = (self.diagonal(mu) if each else torch.linalg.eigvalsh(self.matrix(mu))[-1:]) * (1.0 + 2.0 * slack)
        cross, gram = self.NQ + (self.P * mu) @ self.groups.T.T, self.groups.gram(mu)
        gram = torch.cat([torch.cat([gram, cross.T], 1), torch.cat([cross, self.NN + (self.P * mu) @ self.P.T], 1)])
        groups = torch.arange(G, device=mu.device)
        for i in range(len(gamma)):
            own = groups.new_tensor([G + i]) if each else torch.arange(G, G + k, device=mu.device)
            at = torch.cat([groups, own])
            part = gram[at][:, at]
            for attempt in range(ATTEMPTS):
                if float(gamma[i]) == 0.0 and not bool(part[G:].any()):
                    break  # rows that are zero
                bound = torch.cat([mu, gamma[i].expand(len(at) - G)])
                if is_proven(part, bound, n + G):
                    break
                gamma[i] = gamma[i] * (1.0 + slack * 8.0**attempt) if attempt + 1 < ATTEMPTS else math.inf
        return self._outward(gamma, mu, each)

    def _outward(self, gamma: Tensor, mu: Tensor, each: bool) -> Tensor:
        """√γ with what the rounding of the groups' rows and of these adds."""
        error = self.error if each else torch.linalg.vector_norm(self.error, dim=0, keepdim=True)
        return (gamma.clamp(min=0.0) * self.groups.rounding(mu)).sqrt() * (1.0 + SLACK) + error

    def part(self, kept: Tensor | slice) -> Rows:
        """Some of the functions: indices, or (k,) bool."""
        return Rows(self.groups, self.delta[kept], self.P[kept], self.error[kept], stretched=True)

    def top(self, mu: Tensor, count: int) -> Rows:
        """The functions F·[N P] for the `count` directions F in which S(μ) is largest: the others hardly matter."""
        F = torch.linalg.eigh(self.matrix(mu))[1][:, -count:].T
        return Rows(self.groups, F @ self.delta, F @ self.P, F.abs() @ self.error, stretched=True)

    def improve(self, mu: Tensor, steps: int, each: bool, stages=STAGES) -> Tensor:
        """Better multipliers for the mean of log S_ii (`each`), or else for the largest eigenvalue of S.

        An interior-point method: the objective plus −τ log det(W scaled to unit diagonal μ), for falling τ; the largest
        eigenvalue is smoothed to a p-norm, for growing p.
        """
        for p, tau in stages:
            tau = tau / len(mu)
            if steps <= 1:
                break
            objective = partial(self._point, p=None if each else p, tau=tau)
            mu, used = newton(objective, mu, steps, 0.1 * tau * len(mu))
            steps -= used
        return mu

    def _point(self, mu: Tensor, p: float | None, tau: float) -> Point | None:
        """Value and derivatives in log μ: ∂S/∂μ_g = E_gE_gᵀ − Y_gY_gᵀ with Y = W⁻¹C, E = Pᵀ + TᵀY."""
        solved = self._solve(mu)
        if solved is None:
            return None
        L, X = solved
        T = self.groups.T
        Y = torch.linalg.solve_triangular(L.T, X, upper=True)  # (G, k)
        E = self.P.T + T.T @ Y
        if p is None:
            S = self.NN_diagonal + (self.P.square() * mu).sum(1) + X.square().sum(0)
            S = S.clamp(min=torch.finfo(S.dtype).tiny)
            value, weight = float(S.log().mean()), 1.0 / (S * len(S))
        else:
            S, basis = torch.linalg.eigh(self.NN + (self.P * mu) @ self.P.T + X.T @ X)
            value, weight = log_norm(S, p)
            E, Y = E @ basis, Y @ basis
        slope = (E.square() - Y.square()) @ weight
        inverse = inverse_of(L)
        first = self.groups.first  # rows of T before it are zero
        half = inverse[:, first:] @ T[first:]
        full = T[first:].T @ half[first:]
        barrier = 2.0 * L.diagonal().log().sum() - mu.log().sum()
        gradient = slope - tau * (inverse.diagonal() - full.diagonal())

        def hessian() -> Tensor:
            # d²S = 2 RᵀW⁻¹R with R = T dμ E − dμ Y; what makes the logarithms concave is left out
            cross = half * ((Y * weight) @ E.T)
            H = full * ((E * weight) @ E.T) - cross - cross.T + inverse * ((Y * weight) @ Y.T)
            H = 2.0 * H + tau * (inverse.square() - half.square() - half.T.square() + full.square())
            if p is not None:
                for i, j, factor in mixing(S, p):
                    J = E[:, i] * E[:, j] - Y[:, i] * Y[:, j]
                    H.addr_(J, J, alpha=factor)
                H.addr_(slope, slope, alpha=1.0 - p)
            return H * mu[:, None] * mu

        return Point(value - tau * float(barrier), mu * gradient + tau, hessian)


def _largest(S: Tensor, random: Random) -> float:
    """The largest eigenvalue of a correlation matrix; of a large one roughly, hardly below it by more than a tenth."""
    if len(S) <= 400:
        return float(torch.linalg.eigvalsh(S)[-1].clamp(min=1.0))
    x = random.normal(len(S), 4, S)
    for _ in range(20):
        x = torch.linalg.qr(S @ x)[0]
    return max(1.0, float(torch.linalg.matrix_norm(S @ x, 2)))
