"""The uncertain groups with their rows [Q T] at hand, and the matrix W of their multipliers.

Rounding: each row has its proven error, |v_g − ṽ_g| ≤ ε_g‖δ‖; `slack` covers the algebra (docs/joint_bound.md,
sections 3 and 6).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .certificate import shift
from .factor import Factor
from .first_kinks import Sets, pays
from .triangles import add_gram

# τ_g in |w_g|² ≤ (1 + τ_g)ṽ_g² + (1 + 1/τ_g)ε_g²‖δ‖²: the least, and in units of ε_g/|ṽ_g|
TAU, CANCELLED = 1e-7, 1e3
SMALL = 3e8  # times what the ε_g of one group may add to γ, at most
RESULT_SLACK = 1e-14  # of single results
ROOM = 2.0  # times the slack that is asked for, so that a factor still serves when it has grown


class Groups:
    """Q and T of the groups so far, in the order of the layers, and their multipliers μ; in float64.

    spans: (first, end) of each layer of kinks that has some; layers: its number among all layers of kinks of the
    network. T is strictly lower triangular by these layers.
    """

    def __init__(self, like: Tensor, inputs: int) -> None:
        self.Q = like.new_zeros(0, inputs)
        self.T = like.new_zeros(0, 0)
        # of each group: μ; ε; τ; √(1 + τ), by which its columns of P and T are stretched; the least μ for the sake of ε
        self.mu, self.error, self.tau, self.stretch, self.least = (like.new_zeros(0) for _ in range(5))
        self.spans: list[tuple[int, int]] = []
        self.layers: list[int] = []
        self._factor: tuple[Tensor, float, Factor | None] | None = None  # μ, its slack and the factor: the last one
        self._QQ = self.T
        self._sets: tuple[int, Sets | None] = 0, None  # how many layers there were, and their sets

    def extend(self, layer: int, rows: tuple[Tensor, Tensor], mu: Tensor, error: Tensor, tau: Tensor) -> None:
        """A layer of k groups: their rows of Q and T (stretched)."""
        Q, T_rows = rows
        k, G = len(Q), len(self.mu)
        self.Q = torch.cat([self.Q, Q])
        T = T_rows.new_zeros(G + k, G + k)
        T[:G, :G], T[G:, :G] = self.T, T_rows
        self.T, self.mu, self.error = T, torch.cat([self.mu, mu]), torch.cat([self.error, error])
        self.tau = torch.cat([self.tau, tau])
        self.stretch = torch.cat([self.stretch, (1.0 + tau).sqrt() * (1.0 + RESULT_SLACK)])
        self.least = torch.cat([self.least, least_mu(error, tau)])
        self.spans.append((G, G + k))
        self.layers.append(layer)

    @property
    def QQ(self) -> Tensor:
        """QQᵀ."""
        known = len(self._QQ)
        if known < len(self.Q):
            new = self.Q[known:] @ self.Q.T
            self._QQ = torch.cat([torch.cat([self._QQ, new[:, :known].T], 1), new])
        return self._QQ

    def first_sets(self) -> Sets | None:
        """The kinks of the first layers, as many layers as T couples in small sets; None where there are none."""
        if self._sets[0] < len(self.spans):
            known: Sets | None = None
            for _, end in self.spans:
                more = Sets.of(self.T[:end, :end])
                if more is None:
                    break
                known = more
            self._sets = len(self.spans), known
        return self._sets[1]

    def eliminated(self) -> Sets | None:
        """Those that are eliminated from W: the same, where that pays."""
        sets = self.first_sets()
        return sets if sets is not None and pays(self.Q.shape[1], len(sets.place), len(self.mu)) else None

    def slack(self, m: int) -> float:
        """Of W and S, outward, for m functions together: their sums, Cholesky factor and triangular solves."""
        n, G = self.Q.shape[1], len(self.mu)
        return max(4.0 * shift(m + G, n + G), 2.0 * shift(m + 2 * G + n, 1) if self.eliminated() is not None else 0.0)

    def rounding(self, mu: Tensor) -> float:
        """The factor of γ for the ε_g: 1 + Σ_g ε_g²/(τ_g μ_g), for columns that are stretched."""
        return 1.0 + 1.01 * float((self.error.square() / (self.tau * mu)).sum())

    def gram(self, mu: Tensor) -> Tensor:
        """The lower triangle of QQᵀ + T diag(μ) Tᵀ."""
        gram = self.QQ.clone()
        add_gram(gram, self.T * mu.sqrt(), self.spans)
        return gram

    def factor(self, mu: Tensor, m: int) -> Factor | None:
        """The Cholesky factor of W(μ) less what ε and the slack for m functions take; None where that is not ≻ 0."""
        if self._factor is None or self._factor[0] is not mu or self._factor[1] < self.slack(m):
            slack = ROOM * self.slack(m)
            sets = self.eliminated()
            first = self.QQ if sets is None else sets
            found = Factor.of((self.Q, self.T), self.spans, first, mu, self.least, slack)
            self._factor = mu, slack, found
        return self._factor[2]

    def extend_factor(self, X: Tensor, S: Tensor) -> None:
        """The same with the layer of k groups that was added last: X (k, ·) and S (k, k) of its rows before."""
        if self._factor is None or self._factor[2] is None:
            return
        before, (first, _) = self._factor[2], self.spans[-1]
        sets = self.eliminated()
        gone = 0 if before.first is None else len(before.first.kinks.sets.place)
        if gone != (0 if sets is None else len(sets.place)):
            self._factor = None
            return
        grown = before.grown(X, S, self.mu[first:], self.least[first:])
        self._factor = None if grown is None else (self.mu, before.slack, grown)


def least_mu(error: Tensor, tau: Tensor) -> Tensor:
    """The least μ of groups with these ε and τ."""
    return SMALL * error.square() / tau
