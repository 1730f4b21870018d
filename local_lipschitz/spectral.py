"""The largest singular value of a linear operator: an estimate from below and a certified bound from above.

Power iteration and Lanczos approach ‖M‖ from below, so a converged estimate is no upper bound. Here the Lanczos
process itself certifies one: from a random start, its polynomial is too large beyond λ_up to be missed, except with
a probability that the caller chooses (van Dorsselaer, Hochstenbach & van der Vorst, SIAM J. Matrix Anal. Appl. 22(3),
2000). Small operators are solved densely in float64, with no probability at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MAX_STEPS = 400
CHECK_EVERY = 6
DENSE_SIDE = 256  # a dense eigenvalue problem of this size costs a few milliseconds


@dataclass(frozen=True)
class Operator:
    """A batch of matrices M_b (rows × columns), known by their products with vectors.

    apply: (B, columns) -> (B, rows), adjoint: (B, rows) -> (B, columns). `row_mask`, `column_mask` (B or 1, ...)
    are 0 where a row or column of M_b is known to be zero, or None. `terms`: the largest number of products summed in
    one element of a result, for the rounding slack.
    """

    batch: int
    rows: int
    columns: int
    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    device: torch.device
    terms: int
    row_mask: Tensor | None = None
    column_mask: Tensor | None = None

    def transpose(self) -> Operator:
        """The batch of M_bᵀ."""
        return replace(
            self, rows=self.columns, columns=self.rows, apply=self.adjoint, adjoint=self.apply,
            row_mask=self.column_mask, column_mask=self.row_mask,
        )  # fmt: skip


@dataclass(frozen=True)
class Norms:
    """Largest singular values of a batch: `estimate` ≤ truth (to rounding), `upper` ≥ truth, both (B,) float64.

    `failure_probability` is that of one `upper`, 0.0 after a dense solve; `passes` counts applications of M and Mᵀ.
    """

    estimate: Tensor
    upper: Tensor
    failure_probability: float
    passes: int


def rounding_slack(dtype: torch.dtype, terms: float) -> float:
    """Relative outward slack for a result that rests on sums of `terms` products in this dtype.

    Errors of long sums grow like √terms in practice; the factor 4 covers what tests/test_spectral.py sees.
    """
    return 4.0 * torch.finfo(dtype).eps * (10.0 + math.sqrt(terms))


def dense_norms(matrix: Tensor) -> Norms:
    """Largest singular values of a batch of small matrices (B, m, n), by the eigenvalues of the smaller Gram matrix.

    Guaranteed: `upper` ≥ ‖M‖ with no probability involved; solved in float64.
    """
    matrix = matrix.double()
    scale = matrix.abs().amax((1, 2)).clamp(min=torch.finfo(torch.float64).tiny)
    matrix = matrix / scale[:, None, None]
    gram = matrix.mT @ matrix if matrix.shape[2] < matrix.shape[1] else matrix @ matrix.mT
    norm = scale * torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0.0).sqrt()
    return Norms(norm, norm * (1.0 + rounding_slack(torch.float64, max(matrix.shape[1:]))), 0.0, 0)


def lanczos_norms(
    operator: Operator,
    tolerance: float = 2e-3,
    failure_probability: float = 1e-9,
    generator: torch.Generator | None = None,
    max_steps: int = MAX_STEPS,
) -> Norms:
    """Certified largest singular values by Lanczos on MᵀM, or MMᵀ where that is smaller.

    Guaranteed: for each matrix P(‖M‖ > upper) ≤ failure_probability, over our own random start vector and not over
    the data; `upper` includes the rounding slack of the operator's dtype. Stops when upper/estimate − 1 ≤ tolerance for
    every matrix, when the Krylov space is exhausted, or after `max_steps`; `upper` is valid wherever it stops.
    """
    if operator.rows < operator.columns:
        operator = operator.transpose()
    batch, n = operator.batch, operator.columns
    tiny = torch.finfo(operator.dtype).tiny
    live, v = torch.full((batch,), n), _gaussian(operator, generator)
    if operator.column_mask is not None:
        kept = operator.column_mask.reshape(-1, n) != 0
        live, v = kept.sum(1).cpu().expand(batch), torch.where(kept, v, 0.0)
    v = v / _norm(v).clamp(min=tiny).to(v)[:, None]

    steps = min(max_steps, max(1, int(live.max())))
    basis = v.new_empty(batch, min(steps, 32), n)
    estimate, upper, done = torch.zeros(batch).double(), torch.zeros(batch).double(), torch.zeros(batch).bool()
    a, b = [], []
    for k in range(1, steps + 1):
        if k > basis.shape[1]:
            basis = torch.cat([basis, torch.empty_like(basis)], 1)
        basis[:, k - 1] = v
        # α_k = a_k², β_k = a_k b_k: kept as factors, so that nothing overflows in float32
        u = operator.apply(v)
        a.append(_norm(u))
        w = operator.adjoint(u / a[-1].clamp(min=tiny).to(v)[:, None])
        for _ in range(2):  # full reorthogonalisation, twice is enough
            w = w - (basis[:, :k].mT @ (basis[:, :k] @ w[:, :, None]))[:, :, 0]
        b.append(_norm(w))
        v = w / b[-1].clamp(min=tiny).to(v)[:, None]
        if k % CHECK_EVERY == 0 or k == steps:
            floor = torch.finfo(operator.dtype).eps
            theta, above = _ritz_bounds(torch.stack(a, 1).cpu(), torch.stack(b, 1).cpu(), live, failure_probability, floor)
            # a matrix keeps the value it first converged to: the same alone as in any batch
            estimate, upper = torch.where(done, estimate, theta), torch.where(done, upper, above)
            done |= upper <= estimate * (1.0 + tolerance)
            if bool(done.all()):
                break
    slack = rounding_slack(operator.dtype, operator.terms)
    to = {"device": operator.device}
    return Norms(estimate.to(**to), (upper * (1.0 + slack)).to(**to), failure_probability, k)


def _ritz_bounds(a: Tensor, b: Tensor, live: Tensor, eta: float, floor: float) -> tuple[Tensor, Tensor]:
    """(√θ_1, √λ_up) from k Lanczos steps: a, b (B, k) with α = a², β = ab; live (B,) the dimension of the space.

    The start vector's component along the top eigenvector exceeds t = η√(π/2n) with probability 1 − η, and
    |γ_1| p_k(λ_1) ≤ 1 for p_k(λ) = Π(λ − θ_i)/Πβ_j: so λ_1 ≤ λ_up where log p_k(λ_up) = −log t.
    """
    k = a.shape[1]
    unit = a.amax(1).clamp(min=torch.finfo(torch.float64).tiny)  # the scale of M
    a, b = a / unit[:, None], b / unit[:, None]
    off = a * b
    T = torch.diag_embed(a**2) + torch.diag_embed(off[:, :-1], 1) + torch.diag_embed(off[:, :-1], -1)
    theta = torch.linalg.eigvalsh(T)  # (B, k), ascending
    top = theta[:, -1:].clamp(min=0.0)
    gaps = (top - theta).clamp(min=0.0)

    # a β below the rounding of the products is noise: the Krylov space is exhausted, but not to more than this
    log_beta = torch.log(off.clamp(min=floor)).sum(1)
    log_t = math.log(eta) + 0.5 * torch.log(math.pi / (2.0 * live.clamp(min=1).double()))
    target = log_beta - log_t  # Σ log(x + gap_i) = target, x = λ_up − θ_1
    low, high = torch.full_like(target, math.log(1e-20)), (target / k).clamp(min=math.log(1e-19))
    for _ in range(60):
        middle = 0.5 * (low + high)
        beyond = torch.log(middle.exp()[:, None] + gaps).sum(1) >= target
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    x = torch.where(live <= k, 0.0, high.exp())  # the basis spans the whole space: θ_1 is the eigenvalue
    nothing = a.amax(1) == 0.0
    top = top[:, 0]
    return unit * top.sqrt(), torch.where(nothing, 0.0, unit * (top + x).sqrt())


def _gaussian(operator: Operator, generator: torch.Generator | None) -> Tensor:
    """One start vector for the whole batch, (B, columns): an input's result does not depend on its neighbours.

    Drawn on the CPU, so that a seed gives the same on every device.
    """
    start = torch.randn(operator.columns, generator=generator, dtype=torch.float32)
    return start.to(dtype=operator.dtype, device=operator.device).expand(operator.batch, -1)


def _norm(v: Tensor) -> Tensor:
    """Euclidean norms (B,) in float64."""
    return torch.linalg.vector_norm(v, dim=1, dtype=torch.float64)
