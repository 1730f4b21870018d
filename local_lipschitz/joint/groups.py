"""The uncertain groups with their rows [Q T] at hand, and the matrix W of their multipliers.

Rounding: each row has its proven error, |v_g − ṽ_g| ≤ ε_g‖δ‖; `slack` covers the algebra (docs/joint_bound.md,
sections 3 and 6).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .certificate import shift
from .first_kinks import Sets

# τ_g in |w_g|² ≤ (1 + τ_g)ṽ_g² + (1 + 1/τ_g)ε_g²‖δ‖²: the least, and in units of ε_g/|ṽ_g|
TAU, CANCELLED = 1e-7, 1e3
SMALL = 3e8  # times what the ε_g of one group may add to γ, at most
RESULT_SLACK = 1e-14  # of single results
ROOM = 2.0  # times the slack that is asked for, so that a factor still serves when it has grown


class Groups:
    """Q, QQᵀ and T of the groups so far, in the order of the layers, and their multipliers μ; in float64.

    spans: (first, end) of each layer of kinks. T is strictly lower triangular by these layers.
    """

    def __init__(self, like: Tensor, inputs: int) -> None:
        self.Q = like.new_zeros(0, inputs)
        self.QQ, self.T = like.new_zeros(0, 0), like.new_zeros(0, 0)
        # of each group: μ; ε; τ; √(1 + τ), by which its columns of P and T are stretched; the least μ for the sake of ε
        self.mu, self.error, self.tau, self.stretch, self.least = (like.new_zeros(0) for _ in range(5))
        self.spans: list[tuple[int, int]] = []
        self._factor: tuple[Tensor, float, Tensor | None] | None = None  # μ, its slack and the factor: the last one

    def extend(self, rows: tuple[Tensor, Tensor, Tensor, Tensor], mu: Tensor, error: Tensor, tau: Tensor) -> None:
        """A layer of k groups: their Q, T (stretched), Q times the earlier Qᵀ and QQᵀ."""
        Q, T_rows, cross, own = rows
        k, G = len(Q), len(self.mu)
        self.QQ = torch.cat([torch.cat([self.QQ, cross.T], 1), torch.cat([cross, own], 1)])
        self.Q = torch.cat([self.Q, Q])
        T = T_rows.new_zeros(G + k, G + k)
        T[:G, :G], T[G:, :G] = self.T, T_rows
        self.T, self.mu, self.error = T, torch.cat([self.mu, mu]), torch.cat([self.error, error])
        self.tau = torch.cat([self.tau, tau])
        self.stretch = torch.cat([self.stretch, (1.0 + tau).sqrt() * (1.0 + RESULT_SLACK)])
        self.least = torch.cat([self.least, least_mu(error, tau)])
        self.spans.append((G, G + k))

    def first_sets(self) -> Sets | None:
        """The kinks of the first layers, as many layers as T couples in small sets; None before there are any."""
        known: Sets | None = None
        for _, end in self.spans:
            more = Sets.of(self.T[:end, :end])
            if more is None:
                break
            known = more
        return known

    def slack(self, m: int) -> float:
        """Of W and S, outward, for m functions together: their sums, Cholesky factor and triangular solves."""
        terms = self.Q.shape[1] + len(self.mu)
        return 4.0 * shift(m + len(self.mu), terms)

    def rounding(self, mu: Tensor) -> float:
        """The factor of γ for the ε_g: 1 + Σ_g ε_g²/(τ_g μ_g), for columns that are stretched."""
        return 1.0 + 1.01 * float((self.error.square() / (self.tau * mu)).sum())

    def gram(self, mu: Tensor) -> Tensor:
        """The lower triangle of QQᵀ + T diag(μ) Tᵀ."""
        gram = self.QQ.clone()
        add_gram(gram, self.T * mu.sqrt(), self.spans)
        return gram

    def factor(self, mu: Tensor, m: int) -> Tensor | None:
        """The Cholesky factor of W(μ) less what ε and the slack for m functions take; None where that is not ≻ 0."""
        if self._factor is None or self._factor[0] is not mu or self._factor[1] < self.slack(m):
            slack = ROOM * self.slack(m)
            self._factor = mu, slack, _factor(self.gram(mu), mu, self.least, slack)
        return self._factor[2]

    def extend_factor(self, X: Tensor, S: Tensor) -> None:
        """The same with the layer of k groups that was added last: X = L⁻¹C (G, k) and S (k, k) of its rows before."""
        G, k = X.shape
        slack, L = self._factor[1:] if self._factor is not None else (ROOM * self.slack(k), X.new_zeros(0, 0))
        corner = _factor(S, self.mu[G:], self.least[G:], slack)
        if L is None or corner is None:
            self._factor = None
            return
        grown = L.new_zeros(G + k, G + k)
        grown[:G, :G], grown[G:, :G], grown[G:, G:] = L, -X.T, corner
        self._factor = self.mu, slack, grown


def _factor(gram: Tensor, mu: Tensor, least: Tensor, slack: float) -> Tensor | None:
    """The Cholesky factor of diag(μ) − gram, less least and μ·slack; gram is used up."""
    scale = mu.rsqrt()
    W = gram.neg_().mul_(scale[:, None]).mul_(scale)
    W.diagonal().add_(1.0 - slack - least / mu)
    L, info = torch.linalg.cholesky_ex(W)
    return None if int(info) or not bool(torch.isfinite(L.diagonal()).all()) else L.div_(scale[:, None])


def least_mu(error: Tensor, tau: Tensor) -> Tensor:
    """The least μ of groups with these ε and τ."""
    return SMALL * error.square() / tau


def add_gram(gram: Tensor, T: Tensor, spans: list[tuple[int, int]], sign: float = 1.0) -> None:
    """gram ± T Tᵀ, in place and in the lower triangle, for a T that is strictly lower triangular by layers."""
    for first, end in spans[1:]:
        gram[first:, first:end].addmm_(T[first:, :first], T[first:end, :first].T, alpha=sign)
