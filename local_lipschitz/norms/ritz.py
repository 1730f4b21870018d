"""What the coefficients of the Lanczos process tell: how large the largest singular value can be, and when to look.

From a random start the polynomial of the process is too large beyond λ_up to be missed, except with a probability that
the caller chooses (van Dorsselaer, Hochstenbach & van der Vorst, SIAM J. Matrix Anal. Appl. 22(3), 2000). In numpy: on
a few numbers torch takes several times as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

# steps before the first check; between checks a multiple of GRID, and at most FURTHEST
FIRST, GRID, FURTHEST = 8, 2, 32
NEWTON, LOG_LEAST = 12, math.log(1e-20)  # steps of Newton's method; the least log x
TINY, NOISE = 1e-300, 0.1  # NOISE: what a step adds to the drift, in units of rounding

Array = np.ndarray  # float64, or bool


@dataclass(frozen=True)
class Ritz:
    """What k Lanczos steps tell of the largest eigenvalue λ_1 of MᵀM, for a batch of B matrices.

    With Ritz values θ_1 > … > θ_k and off-diagonal entries β_1 … β_k, p_k(λ) = Π(λ − θ_i)/Πβ_j satisfies
    |γ_1| p_k(λ_1) ≤ 1 for the start vector's component γ_1 along the top eigenvector, and |γ_1| ≥ t = η√(π/2n) with
    probability 1 − η. So λ_1 ≤ θ_1 + x as soon as log p_k(θ_1 + x) = Σ log(x + gap_i) − Σ log β_j ≥ −log t.

    unit: (B,) the scale of M, taken out of the rest. top: (B,) θ_1. gaps: (B, k) θ_1 − θ_i. target: (B,)
    Σ log β_j − log t.
    exhausted: (B,) the basis spans the whole space, θ_1 = λ_1.
    """

    unit: Array
    top: Array
    gaps: Array
    target: Array
    exhausted: Array

    @classmethod
    def from_steps(cls, a: Array, b: Array, live: Array, eta: float, eps: float) -> Ritz:
        """From a, b (B, k) with α_j = a_j², β_j = a_j b_j; live (B,) dimensions; eps of the products' dtype."""
        unit = np.maximum(a.max(1), np.finfo(np.float64).tiny)
        a, b = a / unit[:, None], b / unit[:, None]
        beta, k = a * b, np.arange(a.shape[1])
        T = np.zeros((*a.shape, a.shape[1]))
        T[:, k, k], T[:, k[1:], k[:-1]] = a**2, beta[:, :-1]  # the lower triangle: that is all that is read
        theta = torch.linalg.eigvalsh(torch.from_numpy(T)).numpy()  # ascending; numpy's has threads of its own
        top = np.maximum(theta[:, -1], 0.0)
        # a β below the rounding of the products is noise: the Krylov space is exhausted, but not to more than this
        log_beta = np.log(np.maximum(beta, eps)).sum(1)
        log_t = math.log(eta) + 0.5 * np.log(math.pi / (2.0 * np.maximum(live, 1)))
        exhausted = (live <= a.shape[1]) | (top == 0.0)
        return cls(unit, top, np.maximum(top[:, None] - theta, 0.0), log_beta - log_t, exhausted)

    def missing(self, tolerance: float | Array) -> Array:
        """What Σ log(x + gap_i) lacks for √λ_1 ≤ √θ_1·(1 + tolerance) to be certain enough, (B,); 0 if it is."""
        with np.errstate(divide="ignore"):  # of a matrix that is zero
            missing = self.target - self._log_p(self.top * ((1.0 + tolerance) ** 2 - 1.0))
        return np.where(self.exhausted, 0.0, np.maximum(missing, 0.0))

    def _log_p(self, x: Array) -> Array:
        return np.log(x[:, None] + self.gaps).sum(1)

    def lower(self) -> Array:
        """√θ_1, (B,)."""
        return self.unit * np.sqrt(self.top)

    def upper(self) -> Array:
        """√(θ_1 + x) for the smallest certified x, (B,): by Newton's method in log x.

        Σ log(x + gap_i) is convex in log x, so that a step from a certified x never passes the smallest one.
        """
        log_x = np.maximum(self.target / self.gaps.shape[1], LOG_LEAST)  # certified, since every gap ≥ 0
        for _ in range(NEWTON):
            x = np.exp(log_x)
            slope = (x[:, None] / (x[:, None] + self.gaps)).sum(1)
            log_x = np.maximum(log_x - (self._log_p(x) - self.target) / slope, LOG_LEAST)
        return self.unit * np.sqrt(self.top + np.where(self.exhausted, 0.0, np.exp(log_x)))


class Drift:
    """How far the vectors v_j of the Lanczos process for one matrix M drift from orthogonal, by its coefficients alone.

    Along an eigenvector of MᵀM, what rounding left in v_j and v_{j−1} grows by the recurrence of the process itself,

        β_j δ_{j+1} = (λ − α_j) δ_j − β_{j−1} δ_{j−1},

    fastest at the ends of the spectrum: at λ = 0 and at the top, which is at most the largest β_{j−1} + α_j + β_j so
    far (Paige, Linear Algebra Appl. 34, 1980; Gershgorin).
    """

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self.unit = self.top = self.beta = 0.0  # the scale of M, taken out of the rest; the top; β_{j−1}
        self.at_top = self.at_zero = (eps, 0.0)  # δ_j, δ_{j−1}

    def next(self, a: float, b: float) -> float:
        """An estimate of the largest |v_{j+1}ᵀv_i| for i < j, from α_j = a², β_j = a b; inf where there is none."""
        self.unit = self.unit or max(a, TINY)
        a, b = a / self.unit, b / self.unit
        alpha, before, self.beta = a * a, self.beta, max(a * b, TINY)
        self.top = max(self.top, before + alpha + self.beta)

        def grown(end: float, now: float, earlier: float) -> tuple[float, float]:
            delta = ((end - alpha) * now - before * earlier) / self.beta
            return delta + math.copysign(NOISE * self.eps, delta), now

        self.at_top, self.at_zero = grown(self.top, *self.at_top), grown(0.0, *self.at_zero)
        largest = abs(self.at_top[0]) + abs(self.at_zero[0])
        return math.inf if math.isnan(largest) else largest  # of a space that is exhausted anything may come

    def reset(self) -> None:
        """The newest vector has been made orthogonal to all earlier ones."""
        self.at_top, self.at_zero = (self.eps, self.at_top[1]), (self.eps, self.at_zero[1])


class Checks:
    """Which matrices of a batch are done, and at which step each is looked at next: a check costs as much as a step.

    What a matrix lacks falls about evenly with the steps, so one foresees when nothing will be missing. Each matrix
    goes by itself and keeps the value it is first done with: the same alone as in any batch.
    """

    def __init__(self, batch: int, last: int) -> None:
        self.last, self.done = last, np.zeros(batch, dtype=bool)
        self.due = np.full(batch, min(FIRST, last))
        self.before, self.missing = np.zeros(batch), np.full(batch, math.inf)

    @property
    def soonest(self) -> int:
        """The step at which a matrix is due."""
        return int(self.due[~self.done].min())

    def due_at(self, step: int) -> Array:
        """The matrices (B,) bool that are to be looked at now."""
        return ~self.done & (self.due == step)

    def passed(self, due: Array, step: int, missing: Array) -> Array:
        """Which of the matrices that are `due` are done now; `missing`: what each of them lacks, 0 for nothing."""
        fresh = (missing <= 0.0) | (step == self.last)
        self.done[due] = fresh
        fall = (self.missing[due] - missing) / (step - self.before[due])
        foreseen = np.isfinite(fall) & (fall > 0)
        ahead = np.where(foreseen, 0.9 * missing / np.where(foreseen, fall, 1.0), FIRST)
        ahead = np.clip(GRID * np.floor(ahead / GRID), GRID, FURTHEST)
        self.due[due] = np.minimum(step + ahead, self.last)
        self.before[due], self.missing[due] = step, missing
        return fresh
