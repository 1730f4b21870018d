"""Functions of the uncertain groups, given by their rows [N P]: S(μ), bounds and proofs, and better multipliers.

docs/joint_bound.md, sections 3, 4 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor

from ..joint_operator import Passes, RowErrors, at_once, unit_rows
from .certificate import ATTEMPTS, LEAST, are_proven, is_proven
from .descent import Infeasible
from .groups import RESULT_SLACK, Groups
from .problems import Problem, Wanted
from .together import Work


def rows(operator: Passes, F: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """[N P] for the output rows F (k, m), or for every output: (k, n), (k, G), and how far each is off, (k,)."""
    deltas, ws, off = [], [], []
    for f in unit_rows(operator) if F is None else F.split(at_once(operator.widest)):
        errors = RowErrors(f)
        delta, w = operator.adjoint(f, f.new_zeros(len(f), operator.groups), errors)
        deltas.append(delta)
        ws.append(w)
        off.append(errors.total)
    return torch.cat(deltas), torch.cat(ws), torch.cat(off)


class Functions:
    """Functions [N P] on top of the groups: their matrix S(μ), what it depends on, and better multipliers.

    among: how many functions a factor of W(μ) has to serve, of which these may be a part.
    """

    def __init__(
        self, groups: Groups, delta: Tensor, w: Tensor, error: Tensor, stretched: bool = False, among: int = 0
    ) -> None:
        self.groups, self.delta, self.error = groups, delta, error
        self.P = w if stretched else w * groups.stretch
        self.NN_diagonal = delta.square().sum(1)
        self.among = max(among, len(delta))
        self._rows: tuple[Tensor, Tensor] | None = None  # the last μ, and X for it

    @property
    def gains(self) -> Tensor:
        """The bound of each by itself, with the multipliers that the groups have."""
        return self.bounds(self.groups.mu, True)

    @cached_property
    def NN(self) -> Tensor:
        return self.delta @ self.delta.T

    @cached_property
    def NQ(self) -> Tensor:
        return self.delta @ self.groups.Q.T

    def rows(self, mu: Tensor) -> Tensor:
        """X (k, ·) with S(μ) = XXᵀ: rows of the factor."""
        if len(mu) == 0:
            return self.delta
        if self._rows is None or self._rows[0] is not mu:
            factor = self.groups.factor(mu, self.among)
            if factor is None:
                raise Infeasible("the multipliers found are not feasible")
            self._rows = mu, factor.rows(self.delta, self.P)
        return self._rows[1]

    def diagonal(self, mu: Tensor) -> Tensor:
        """S_ii(μ), the squared bound of each row by itself."""
        return self.rows(mu).square().sum(1)

    def matrix(self, mu: Tensor) -> Tensor:
        """S(μ)."""
        X = self.rows(mu)
        return X @ X.T

    def bounds(self, mu: Tensor, each: bool) -> Tensor:
        """Of all functions together, (1,), or of each: √ of the largest eigenvalue of S(μ) or of its diagonal.

        Valid for every μ with W(μ) ≻ 0, up to the rounding of an eigenvalue.
        """
        S = self.diagonal(mu) if each else torch.linalg.eigvalsh(self.matrix(mu))[-1:]
        return self._outward(S * (1.0 + 2.0 * self.groups.slack(self.among)), mu, each)

    def proven(self, mu: Tensor, each: bool) -> Tensor:
        """The same, with Cholesky factorisations as their proof; inf where these do not run through."""
        slack = self.groups.slack(self.among)
        gamma = (self.diagonal(mu) if each else torch.linalg.eigvalsh(self.matrix(mu))[-1:]) * (1.0 + 2.0 * slack)
        by_factor = len(mu) > 0 and mu.device.type == "cpu" and self.groups.eliminated() is not None
        check = partial(self._last_rows, mu, each) if by_factor else self._whole_matrix(mu, each)
        for attempt in range(ATTEMPTS):
            proven = check(gamma)
            if bool(proven.all()):
                break
            gamma = torch.where(proven, gamma, gamma * (1.0 + slack * 8.0**attempt))
        else:
            gamma = torch.where(check(gamma), gamma, math.inf)
        return self._outward(gamma, mu, each)

    def _last_rows(self, mu: Tensor, each: bool, gamma: Tensor) -> Tensor:
        """(k,) or (1,) bool: whether the factor of W(μ) goes on with rows for the functions, γ on their diagonal."""
        X, diagonal = self.rows(mu) / gamma.clamp(min=LEAST).sqrt()[:, None], 1.0 - self.groups.slack(self.among)
        zero = (self.delta == 0.0).all(1) & (self.P == 0.0).all(1)
        if each:
            return zero | ((X.square().sum(1) < diagonal) & (gamma > LEAST))
        L, info = torch.linalg.cholesky_ex(torch.diag(X.new_full((len(X),), diagonal)) - X @ X.T)
        return zero.all() | ((info == 0) & torch.isfinite(L).all() & (gamma > LEAST))

    def _whole_matrix(self, mu: Tensor, each: bool) -> Callable[[Tensor], Tensor]:
        """The same of γ by a factorisation of its own."""
        terms, gram = self.delta.shape[1] + len(mu), self.groups.gram(mu)
        cross = self.NQ + (self.P * mu) @ self.groups.T.T
        if each:
            return partial(are_proven, gram, mu, (cross, self.NN_diagonal + (self.P.square() * mu).sum(1)), terms=terms)
        gram = torch.cat([torch.cat([gram, cross.T], 1), torch.cat([cross, self.NN + (self.P * mu) @ self.P.T], 1)])
        return partial(self._together, gram, mu, terms=terms)

    @staticmethod
    def _together(gram: Tensor, mu: Tensor, gamma: Tensor, terms: int) -> Tensor:
        """(1,) bool: whether γ (1,) is certain for the functions in the last rows of `gram`."""
        k = len(gram) - len(mu)
        if float(gamma) == 0.0 and not bool(gram[-k:].any()):
            return gamma == 0.0  # rows that are zero
        return torch.tensor([is_proven(gram, torch.cat([mu, gamma.expand(k)]), terms)], device=gamma.device)

    def _outward(self, gamma: Tensor, mu: Tensor, each: bool) -> Tensor:
        """√γ with what the rounding of the groups' rows and of these adds."""
        error = self.error if each else torch.linalg.vector_norm(self.error, dim=0, keepdim=True)
        return (gamma.clamp(min=0.0) * self.groups.rounding(mu)).sqrt() * (1.0 + RESULT_SLACK) + error

    def part(self, kept: Tensor | slice) -> Functions:
        """Some of the functions: indices, or (k,) bool."""
        some = Functions(self.groups, self.delta[kept], self.P[kept], self.error[kept], True, self.among)
        if self._rows is not None:
            some._rows = self._rows[0], self._rows[1][kept]
        return some

    def some(self, count: int) -> Functions:
        """`count` of the functions, evenly spaced; all where they are fewer."""
        every = -(-len(self.delta) // count)
        return self if every <= 1 else self.part(slice(None, None, every))

    def top(self, mu: Tensor, count: int) -> Functions:
        """The functions F·[N P] for the `count` directions F in which S(μ) is largest: the others hardly matter."""
        F = torch.linalg.eigh(self.matrix(mu))[1][:, -count:].T
        return Functions(self.groups, F @ self.delta, F @ self.P, F.abs() @ self.error, True, self.among)

    def improve(
        self, mu: Tensor, steps: int, each: bool, target: Tensor | None = None, last: bool = True
    ) -> Work[Tensor]:
        """Asks for better multipliers, for the mean of log S_ii (`each`), or else for the largest eigenvalue of S.

        `steps` steps at most. Ends where the bounds are below their targets, or seen to stay far above. last: as in
        problems.py.
        """
        if len(mu) == 0:
            return mu
        NN = self.NN_diagonal if each else self.NN
        found = yield Problem(self.groups, Wanted(self.delta, self.P, NN, target), mu, steps, last)
        for part in (0.0, 0.01, 0.1, 0.5):
            mixed = found + part * (mu - found) if part else found  # the feasible multipliers are a convex set
            if self.groups.factor(mixed, self.among) is not None:
                return mixed
        return mu
