"""The joint bound with the rows of all uncertain groups at hand (docs/joint_bound.md, sections 3 to 5).

For networks whose uncertain neurons are a few thousand: one backward pass a group gives its row of [Q T], and from
then on everything is dense linear algebra in the number of groups, in float64, whatever the size of the network.
Rounding (section 6): each row has its proven error, |v_g − ṽ_g| ≤ ε_g‖δ‖; `slack` covers the algebra.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..joint_operator import Elements, JointOperator
from ..layers.graph import Graph
from ..norms.lanczos import Operator
from ..norms.spectral_norm import lanczos_norms
from .certificate import FEW, Random, output_tails, shift
from .krylov import BASIS, SMALL_OUTPUT
from .passes import ROUGH, ROUNDS
from .rows import RESULT_SLACK, STAGES, SURE, Rows, rows

LIMIT = 3000  # groups
ALONE = 200  # effort from which each output gets multipliers of its own: about a per cent, at twice the cost
MEMORY = 2**27  # elements of all their rows
WORK = 2e12  # multiplications spent on rows, or
ROWS = 600  # times those of the operator
# τ_g in |w_g|² ≤ (1 + τ_g)ṽ_g² + (1 + 1/τ_g)ε_g²‖δ‖²: the least, and in units of ε_g/|ṽ_g|
TAU, CANCELLED = 1e-7, 1e3
SMALL = 3e8  # times what the ε_g of one group may add to γ, at most


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
        self.stretch = torch.cat([self.stretch, (1.0 + tau).sqrt() * (1.0 + RESULT_SLACK)])
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
        """√λ_max(S(μ)) of the whole output of `operator`, certified; in float64."""
        L = self.factor(self.mu, 1)
        if L is None:
            return math.inf
        share = self.random.share
        eta = output_tails(operator, self.random).eta(FEW * share)
        M = self._root(operator, L, eta.to(L.device))
        norm = lanczos_norms(M, ROUGH, (1.0 - FEW) * share, self.random.generator).upper
        self.random.spent += share
        return float(norm) * math.sqrt(self.rounding(self.mu) * (1.0 + 2.0 * self.slack(1))) * (1.0 + RESULT_SLACK)

    def _root(self, operator: JointOperator, L: Tensor, eta: Tensor) -> Operator:
        """M = [N, P√D, CᵀL⁻ᵀ] with D = diag(μ), L Lᵀ = W(μ), so that M Mᵀ = S(μ): one pass and dense algebra."""
        n, G, mu = self.Q.shape[1], len(self.mu), self.mu

        def apply(x: Tensor) -> Tensor:
            delta, w, X = x.split([n, G, G], 1)
            Y = torch.linalg.solve_triangular(L.T, X.T, upper=True).T
            w = mu.sqrt() * w + mu * (Y @ self.T)
            return operator.forward(delta + Y @ self.Q, self.stretch * w)[0]

        def adjoint(f: Tensor) -> Tensor:
            delta, w = operator.adjoint(f, f.new_zeros(len(f), G))
            w = self.stretch * w
            C = delta @ self.Q.T + (mu * w) @ self.T.T
            return torch.cat([delta, mu.sqrt() * w, torch.linalg.solve_triangular(L, C.T, upper=False).T], 1)

        return Operator(1, operator.out_size, n + 2 * G, apply, adjoint, mu.dtype, mu.device, eta)

    def outputs(
        self, operator: JointOperator, C: Tensor | None, effort: int, target: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Bounds of the whole output (1,) or of each of C (K, m): proven at the end, and before refinement."""
        function, each = Rows(self, *rows(operator, C)), C is not None
        before = function.bounds(self.mu, each)
        best, mu = (before, self.mu), self.mu
        open_ = torch.ones_like(before, dtype=torch.bool) if target is None else before > target * (1.0 - SURE)
        part, wanted = function, target
        if each and target is not None:
            part, wanted, best = function.part(open_), target[open_], (before[open_], mu)
        many = C is None and operator.out_size > SMALL_OUTPUT
        for _ in range((ROUNDS if many else 1) if len(mu) and bool(open_.any()) else 0):
            largest = part.top(mu, 2 * BASIS) if many else part
            mu = largest.improve(mu, max(1, effort // ROUNDS) if many else effort, each, wanted)
            best = min(best, (part.bounds(mu, each), mu), key=lambda found: float(found[0].mean()))
        value = function.proven(best[1], each)
        if not bool(open_.all()):
            value = torch.minimum(value, function.proven(self.mu, each))
        if C is not None and effort >= ALONE and len(mu) and target is None:
            alone = [function.part(slice(k, k + 1)) for k in range(len(C))]
            own = [row.proven(row.improve(mu, effort // 8, True, stages=STAGES[2:]), True) for row in alone]
            value = torch.minimum(value, torch.cat(own))
        return value, torch.maximum(before, value)


class TooManyGroups(Exception):
    """More uncertain groups than the dense path takes."""


def _largest(S: Tensor, random: Random) -> float:
    """The largest eigenvalue of a correlation matrix; of a large one roughly, hardly below it by more than a tenth."""
    if len(S) <= 400:
        return float(torch.linalg.eigvalsh(S)[-1].clamp(min=1.0))
    x = random.normal(len(S), 4, S)
    for _ in range(20):
        x = torch.linalg.qr(S @ x)[0]
    return max(1.0, float(torch.linalg.matrix_norm(S @ x, 2)))
