"""Functions of the uncertain groups, given by their rows [N P]: S(μ), bounds and proofs, and better multipliers.

docs/joint_bound.md, sections 3, 4 and 6.
"""

from __future__ import annotations

import math
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor

from ..joint_operator import Passes, RowErrors
from .certificate import ATTEMPTS, is_proven
from .descent import Point, inverse_of, log_norm, mixing, newton
from .passes import Infeasible

CHUNK = 2**22  # elements of the largest layer times rows, a backward pass
# p of the norm that smooths the largest eigenvalue; τ of the barrier, times the number of groups
STAGES = ((8.0, 0.3), (16.0, 0.05), (64.0, 0.01), (256.0, 0.002), (1000.0, 0.0005))
RESULT_SLACK = 1e-14  # of single results
SURE = 1e-6  # that values are below their targets before they are proven
FAR = 1.1  # times its target: a value that is seen to stay above that


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


class Groups(Protocol):
    """What functions need of the groups that they stand on (dense.py says what each is)."""

    mu: Tensor
    Q: Tensor
    T: Tensor
    stretch: Tensor
    first: int

    def slack(self, m: int) -> float: ...

    def rounding(self, mu: Tensor) -> float: ...

    def gram(self, mu: Tensor) -> Tensor: ...

    def factor(self, mu: Tensor, m: int) -> Tensor | None: ...


class Rows:
    """Functions [N P] on top of the groups: their matrix S(μ), what it depends on, and better multipliers."""

    def __init__(self, groups: Groups, delta: Tensor, w: Tensor, error: Tensor, stretched: bool = False) -> None:
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
        return (gamma.clamp(min=0.0) * self.groups.rounding(mu)).sqrt() * (1.0 + RESULT_SLACK) + error

    def part(self, kept: Tensor | slice) -> Rows:
        """Some of the functions: indices, or (k,) bool."""
        return Rows(self.groups, self.delta[kept], self.P[kept], self.error[kept], stretched=True)

    def top(self, mu: Tensor, count: int) -> Rows:
        """The functions F·[N P] for the `count` directions F in which S(μ) is largest: the others hardly matter."""
        F = torch.linalg.eigh(self.matrix(mu))[1][:, -count:].T
        return Rows(self.groups, F @ self.delta, F @ self.P, F.abs() @ self.error, stretched=True)

    def improve(
        self, mu: Tensor, steps: int, each: bool, target: Tensor | None = None, stages=STAGES
    ) -> Tensor:
        """Better multipliers for the mean of log S_ii (`each`), or else for the largest eigenvalue of S.

        An interior-point method: the objective plus −τ log det(W scaled to unit diagonal μ), for falling τ; the largest
        eigenvalue is smoothed to a p-norm, for growing p. Ends where the bounds are below their targets, or far above
        with no more than what barrier and p-norm may hide.
        """
        for p, tau in stages:
            tau = tau / len(mu)
            if steps <= 1:
                break
            objective = partial(self._point, p=None if each else p, tau=tau, target=target)
            mu, used = newton(objective, mu, steps, 0.1 * tau * len(mu))
            steps -= used
            if target is not None:
                log = 2.0 * (self.bounds(mu, each) / target).log()  # as in the objective
                hidden = 1.1 * tau * len(mu) + (0.0 if each else math.log(len(self.delta)) / p)
                if bool((log <= 0.0).all()) or float(log.mean()) - hidden > 2.0 * math.log(FAR):
                    break
        return mu

    def _point(self, mu: Tensor, p: float | None, tau: float, target: Tensor | None) -> Point | None:
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

        enough = target is not None and bool(((1.0 - SURE) * target.square() >= S).all())
        return Point(value - tau * float(barrier), mu * gradient + tau, hessian, enough)
