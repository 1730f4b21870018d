"""The largest singular value of a linear operator: an estimate from below and a certified bound from above.

Power iteration and Lanczos approach ‖M‖ from below, so a converged estimate is no upper bound. Here the Lanczos
process itself certifies one (lanczos.py, ritz.py). Small operators are solved densely in float64, with no probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .lanczos import LARGE, Lanczos, Operator
from .ritz import Checks, Ritz

MAX_STEPS = 400
DENSE_SIDE = 256  # a dense eigenvalue problem of this size costs a few milliseconds


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


def rounding_slack(dtype: torch.dtype, terms: float) -> float:
    """Relative outward slack for a result that rests on sums of `terms` products in this dtype.

    Errors of long sums grow like √terms in practice; the factor 4 covers what tests/norms/test_spectral.py sees.
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
    live, start = _gaussian(operator, generator)
    steps, everything = min(max_steps, max(1, int(live.max()))), torch.arange(operator.batch)
    lanczos, spent = Lanczos(operator, start, operator.columns <= LARGE), 0
    checks, left = Checks(operator.batch, steps), everything
    estimate, upper = torch.zeros(2, operator.batch, dtype=torch.float64)
    while not bool(checks.done.all()):
        for _ in range(checks.soonest - lanczos.steps):
            lanczos.step()
        due = checks.due_at(lanczos.steps)
        a, b = (x[due[left]] for x in lanczos.coefficients())
        ritz = Ritz.from_steps(a, b, live[due], failure_probability, torch.finfo(operator.dtype).eps)
        fresh = checks.passed(due, lanczos.steps, ritz.missing(tolerance))
        if bool(fresh.any()):
            now = everything[due][fresh]
            if lanczos.lost_orthogonality(torch.isin(left, now).nonzero()[:, 0]):
                spent += lanczos.products
                lanczos, checks, left = Lanczos(operator, start, True), Checks(operator.batch, steps), everything
                continue  # from the start, against all vectors in every step
            estimate[now], upper[now] = ritz.lower()[fresh], ritz.upper()[fresh]
        unfinished = ~checks.done[left]
        lanczos.ignore((~unfinished).nonzero()[:, 0])
        if operator.part is not None and 0 < 2 * int(unfinished.sum()) <= len(left):
            lanczos.keep(unfinished.nonzero()[:, 0])
            left = left[unfinished]
    upper = upper * (1.0 + rounding_slack(operator.dtype, operator.terms))
    passes = (spent + lanczos.products) / operator.batch
    return Norms(estimate.to(operator.device), upper.to(operator.device), failure_probability, passes)


def _gaussian(operator: Operator, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """(dimension of the space of live columns (B,), start vectors in it (B, columns)).

    One start for the whole batch, so that an input's result does not depend on its neighbours; drawn on the CPU, so
    that a seed gives the same on every device.
    """
    n, batch = operator.columns, operator.batch
    start = torch.randn(1, n, generator=generator, dtype=torch.float32)
    start = operator.column_order(start.to(dtype=operator.dtype, device=operator.device)).expand(batch, -1)
    if operator.column_mask is None:
        return torch.full((batch,), n), start
    kept = operator.column_mask.reshape(-1, n) != 0
    return kept.sum(1).cpu().expand(batch), torch.where(kept, start, 0.0)
