"""The largest singular value of a linear operator: an estimate from below and a certified bound from above.

Power iteration and Lanczos approach ‖M‖ from below, so a converged estimate is no upper bound. Here the Lanczos
process itself certifies one (lanczos.py, ritz.py). Small operators are solved densely in float64, with no probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..numerics import gamma_n, of_computed, unit_roundoff
from .cholesky import proven_positive_definite
from .lanczos import LARGE, ONCE, PIECE, SELDOM, TWICE, Lanczos, Operator
from .ritz import Checks, Ritz

MAX_STEPS = 400
DENSE_SIDE = 256  # a dense eigenvalue problem of this size costs a few milliseconds
MARGIN, DOUBLINGS = 4.0, 40  # of the shift of a Cholesky factorisation: what the first try allows, and how many tries
LOCAL = 8.0  # roundings of the vectors in one step of the Lanczos process, beside those of the products


@dataclass(frozen=True)
class Norms:
    """Largest singular values of a batch: `estimate` ≤ truth (to rounding), `upper` ≥ truth, both (B,) float64.

    `failure_probability` is that of one `upper`, 0.0 after a dense solve; `passes` counts applications of M and Mᵀ to a
    matrix, on average.
    """

    estimate: Tensor
    upper: Tensor
    failure_probability: float
    passes: float


def dense_norms(matrix: Tensor) -> Norms:
    """Largest singular values of a batch of small matrices (B, m, n), by the eigenvalues of the smaller Gram matrix.

    Guaranteed: `upper` ≥ ‖M‖ with no probability involved. Solved in float64; a Cholesky factorisation of s·I − G
    proves s ≥ ‖G‖, and what rounding may have changed in G = MᵀM is added: γ_n‖M‖_F² for sums of n.
    """
    matrix = matrix.double()
    scale = matrix.abs().amax((1, 2)).clamp(min=torch.finfo(torch.float64).tiny)
    matrix = matrix / scale[:, None, None]
    gram = matrix.mT @ matrix if matrix.shape[2] < matrix.shape[1] else matrix @ matrix.mT
    top = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0.0)
    lost = of_computed(max(matrix.shape[1:]) + 8) * gram.diagonal(dim1=1, dim2=2).sum(1)  # its entries' included
    upper = (_proven_largest(gram, top) + lost).sqrt() * (1.0 + 1e-15)
    return Norms(scale * top.sqrt(), scale * upper, 0.0, 0)


def _proven_largest(gram: Tensor, top: Tensor) -> Tensor:
    """s (B,) for which s·I − G ≻ 0 is proved, G (B, N, N) symmetric; top: an estimate of its largest eigenvalue."""
    N = gram.shape[-1]
    identity = torch.eye(N, dtype=gram.dtype, device=gram.device)
    trace = gram.diagonal(dim1=1, dim2=2).sum(1) * (1.0 + of_computed(N))
    margin = torch.full_like(top, MARGIN * gamma_n(N * (N + 4)))
    for _ in range(DOUBLINGS):
        s = top * (1.0 + margin)
        proven = proven_positive_definite(s[:, None, None] * identity - gram) | (trace == 0.0)
        if bool(proven.all()):
            break
        margin = torch.where(proven, margin, 2.0 * margin)
    return torch.where(proven, s, trace)


def lanczos_norms(
    operator: Operator,
    tolerance: float = 2e-3,
    failure_probability: float = 1e-9,
    generator: torch.Generator | None = None,
    max_steps: int = MAX_STEPS,
    enough: float = 0.0,
    hopeless: float = math.inf,
) -> Norms:
    """Certified largest singular values by Lanczos on MᵀM, or MMᵀ where that is smaller.

    Guaranteed, in the model of docs/rounding.md: for each matrix P(‖M‖ > upper) ≤ failure_probability, over our own
    random start vector and not over the data; `upper` includes the operator's rounding. Stops when upper/estimate − 1 ≤
    tolerance for every matrix (rounding included, as far as it takes no more than half of that), when the Krylov space
    is exhausted, or after `max_steps`; and for a matrix where upper ≤ enough is reached, or the estimate is above
    `hopeless`. `upper` is valid wherever it stops.
    """
    if operator.rows < operator.columns:
        operator = operator.transpose()
    live, start = _gaussian(operator, generator)
    steps, everything = min(max_steps, max(1, int(live.max()))), np.arange(operator.batch)
    lanczos, spent = Lanczos(operator, start, ONCE if operator.columns <= LARGE else SELDOM), 0
    checks, left = Checks(operator.batch, steps), everything
    products = operator.rounding.cpu().expand(operator.batch).numpy()
    estimate, upper = np.zeros((2, operator.batch))
    with torch.inference_mode():  # a step is many small operations, each quicker so
        while not checks.done.all():
            for _ in range(checks.soonest - lanczos.steps):
                lanczos.step()
            due = checks.due_at(lanczos.steps)
            a, b = (x[due[left]] for x in lanczos.coefficients())
            ritz = Ritz.from_steps(a, b, live[due], failure_probability, torch.finfo(operator.dtype).eps)
            lower = ritz.lower()
            rounding = products[due] + _vector_rounding(operator, lanczos.steps) * lower
            size = np.where(lower > 0.0, lower, math.inf)
            share = np.maximum(tolerance - rounding / size, 0.5 * tolerance)
            share = np.maximum(share, (enough - rounding) / size - 1.0)
            missing = np.where(lower > hopeless, 0.0, ritz.missing(share))
            fresh = checks.passed(due, lanczos.steps, missing)
            now = everything[due][fresh]
            if lanczos.cancelled(a, b) or lanczos.lost_orthogonality(np.flatnonzero(np.isin(left, now)).tolist()):
                spent += lanczos.products
                lanczos, checks, left = Lanczos(operator, start, TWICE), Checks(operator.batch, steps), everything
                continue  # from the start, twice against all vectors in every step
            if fresh.any():
                estimate[now], upper[now] = lower[fresh], ritz.upper()[fresh] + rounding[fresh]
            unfinished = ~checks.done[left]
            lanczos.ignore(np.flatnonzero(~unfinished).tolist())
            if operator.part is not None and 0 < 2 * unfinished.sum() <= len(left):
                lanczos.keep(np.flatnonzero(unfinished).tolist())
                left = left[unfinished]
    passes = (spent + lanczos.products) / operator.batch
    values = torch.from_numpy(estimate).to(operator.device), torch.from_numpy(upper).to(operator.device)
    return Norms(*values, failure_probability, passes)


def _vector_rounding(operator: Operator, steps: int) -> float:
    """What the rounding of the vectors and of their lengths may change in a Ritz value's root, relatively.

    A step leaves at most LOCAL·u‖M‖² beside its three terms: together an E with ‖E‖ ≤ 2√k·LOCAL·u‖M‖² in MᵀM. Lengths
    are summed in float64, where it pays from those of PIECE elements. docs/rounding.md.
    """
    lengths = gamma_n(max(operator.rows, operator.columns)) + steps * gamma_n(16)
    return (LOCAL * math.sqrt(steps) + PIECE / 2 + 4) * unit_roundoff(operator.dtype) + lengths


def _gaussian(operator: Operator, generator: torch.Generator | None) -> tuple[np.ndarray, Tensor]:
    """(dimension of the space of live columns (B,), start vectors in it (B, columns)).

    One start for the whole batch, so that an input's result does not depend on its neighbours; drawn on the CPU, so
    that a seed gives the same on every device, and in float64: in float32 one normal in ten million is exactly 0, and
    an element that the operator does not mix with others would never be seen.
    """
    n, batch = operator.columns, operator.batch
    start = torch.randn(1, n, generator=generator, dtype=torch.float64, device="cpu")
    start = operator.column_order(start.to(dtype=operator.dtype, device=operator.device)).expand(batch, -1)
    if operator.column_mask is None:
        return np.full(batch, n), start
    kept = operator.column_mask.reshape(-1, n) != 0
    return kept.sum(1).cpu().expand(batch).numpy(), torch.where(kept, start, 0.0)
