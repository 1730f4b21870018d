"""The largest singular value of a linear operator: an estimate from below and a certified bound from above.

Power iteration and Lanczos approach ‖M‖ from below, so a converged estimate is no upper bound. Here the Lanczos
process itself certifies one (ritz.py). Small operators are solved densely in float64, with no probability at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .ritz import Checks, Ritz

MAX_STEPS = 400
SMALL = 2**23  # elements: ...
LARGE, EVERY = 4_000, 16  # longer vectors are made orthogonal to all earlier ones in two steps out of so many
PIECE = 64  # of a vector, whose length is taken in the vector's dtype
DENSE_SIDE = 256  # a dense eigenvalue problem of this size costs a few milliseconds


@dataclass(frozen=True)
class Operator:
    """A batch of matrices M_b (rows × columns), known by their products with vectors.

    apply: (B, columns) -> (B, rows), adjoint: (B, rows) -> (B, columns). `row_mask`, `column_mask` (B or 1, ...)
    are 0 where a row or column of M_b is known to be zero, or None. `terms`: the largest number of products summed in
    one element of a result, for the rounding slack. `part` gives the operator of some of the matrices (indices), or is
    None where all must be applied together.
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
    part: Callable[[Tensor], Operator] | None = None

    def transpose(self) -> Operator:
        """The batch of M_bᵀ."""
        part = self.part
        return replace(
            self, rows=self.columns, columns=self.rows, apply=self.adjoint, adjoint=self.apply,
            row_mask=self.column_mask, column_mask=self.row_mask,
            part=None if part is None else lambda kept: part(kept).transpose(),
        )  # fmt: skip


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
    live, start = _gaussian(operator, generator)
    steps, everything = min(max_steps, max(1, int(live.max()))), torch.arange(operator.batch)
    lanczos = Lanczos(operator, start, EVERY if operator.columns > LARGE else 1)
    checks, left = Checks(operator.batch, steps), everything
    estimate, upper = torch.zeros(2, operator.batch, dtype=torch.float64)
    while not bool(checks.done.all()):
        while lanczos.steps < checks.soonest:
            lanczos.step()
        due = checks.due_at(lanczos.steps)
        a, b = (x[due[left]] for x in lanczos.coefficients())
        ritz = Ritz.from_steps(a, b, live[due], failure_probability, torch.finfo(operator.dtype).eps)
        fresh = checks.passed(due, lanczos.steps, ritz.missing(tolerance))
        if bool(fresh.any()):
            now = everything[due][fresh]
            if lanczos.lost_orthogonality(torch.isin(left, now).nonzero()[:, 0]):
                lanczos, checks, left = Lanczos(operator, start, 1), Checks(operator.batch, steps), everything
                continue  # from the start, against all vectors in every step
            estimate[now], upper[now] = ritz.lower()[fresh], ritz.upper()[fresh]
        unfinished = ~checks.done[left]
        if operator.part is not None and 0 < 2 * int(unfinished.sum()) <= len(left):
            lanczos.keep(unfinished.nonzero()[:, 0])
            left = left[unfinished]
    upper = upper * (1.0 + rounding_slack(operator.dtype, operator.terms))
    passes = lanczos.products / operator.batch
    return Norms(estimate.to(operator.device), upper.to(operator.device), failure_probability, passes)


class Lanczos:
    """The Lanczos process on MᵀM from the start vectors (B, n), one `step` at a time, for a batch of B matrices.

    The new vector is made orthogonal to all earlier ones in every step (`every` = 1), or in two steps out of `every`:
    in between the three-term recurrence keeps vectors orthogonal to √eps, which is all that the coefficients need
    (Simon, Linear Algebra Appl. 61, 1984); `lost_orthogonality` says whether that held.
    """

    def __init__(self, operator: Operator, start: Tensor, every: int) -> None:
        self.operator, self.every, self.tiny = operator, every, torch.finfo(start.dtype).tiny
        self.steps = self.products = 0
        self.a: list[Tensor] = []  # α_k = a_k², β_k = a_k b_k: kept as factors, so that nothing overflows in float32
        self.b: list[Tensor] = []  # each (B, 1)
        self.basis: list[Tensor] = []  # blocks (some, B, n)
        self.block = min(max(8, SMALL // start.numel()), 32)
        self.loss = start.new_zeros(())
        self._append(start, self._length(start)[1])

    def step(self) -> None:
        """One application of M and of Mᵀ."""
        v = self._vector(self.steps)
        self.steps += 1
        self.products += len(v)
        u = self.operator.apply(v)
        a, length = self._length(u)
        w = torch.addcmul(self.operator.adjoint(u / length), v, length, value=-1)
        if self.steps > 1 and self.every > 1:
            beta = self.b[-1] * self.a[-1] / a.clamp(min=self.tiny)
            w.addcmul_(self._vector(self.steps - 2), beta.to(w.dtype), value=-1)
        if self.every == 1 or self.steps % self.every < 2:
            w = self._orthogonal(w)
        b, length = self._length(w)
        self.a.append(a)
        self.b.append(b)
        self._append(w, length)

    def keep(self, kept: Tensor) -> None:
        """Go on with the matrices `kept` alone (indices)."""
        assert self.operator.part is not None
        self.operator, kept = self.operator.part(kept), kept.to(self.loss.device)
        self.basis = [block[:, kept] for block in self.basis]
        self.a, self.b = [a[kept] for a in self.a], [b[kept] for b in self.b]

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """(a, b), each (B, steps), on the CPU."""
        return torch.cat(self.a, 1).cpu(), torch.cat(self.b, 1).cpu()

    def lost_orthogonality(self, looked_at: Tensor) -> bool:
        """Whether vectors left to the recurrence, the next ones of `looked_at` (indices) included, drifted beyond √eps."""
        if self.every == 1:
            return False
        v = self._vector(self.steps)
        for part in self._parts():
            for i in looked_at.tolist():  # by itself: a copy of their vectors takes longer
                self._note(part[:, i] @ v[i])
        return float(self.loss) > math.sqrt(torch.finfo(v.dtype).eps)

    def _orthogonal(self, w: Tensor) -> Tensor:
        """w (B, n) less its components along the basis, whose largest is noted."""
        length = None if self.every == 1 else self._length(w)[1]
        for part in self._parts():
            if len(w) == 1:  # a matrix times a vector is faster without the batch
                c = part[:, 0] @ w[0]
                w = torch.addmv(w[0], part[:, 0].T, c, alpha=-1)[None]
            else:
                part = part.transpose(0, 1)
                c = (w[:, None] @ part.mT)[:, 0]
                w = torch.baddbmm(w[:, None], c[:, None], part, alpha=-1)[:, 0]
            if length is not None:
                self._note(c / length)
        return w

    def _note(self, components: Tensor) -> None:
        self.loss = torch.maximum(self.loss, components.abs().amax())

    def _parts(self) -> list[Tensor]:
        """The basis that M was applied to, (at most BLOCK, B, n) each."""
        return [block[: self.steps - i * self.block] for i, block in enumerate(self.basis) if self.steps > i * self.block]

    def _vector(self, k: int) -> Tensor:
        return self.basis[k // self.block][k % self.block]

    def _append(self, w: Tensor, length: Tensor) -> None:
        """w / length as the next basis vectors."""
        if self.steps % self.block == 0:
            self.basis.append(w.new_empty(self.block, *w.shape))
        torch.div(w, length, out=self._vector(self.steps))

    def _length(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Euclidean norms (B, 1) in float64, and in the vectors' dtype to divide by."""
        norm = _norm(v)
        return norm, norm.clamp(min=self.tiny).to(v.dtype)


def _gaussian(operator: Operator, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """(dimension of the space of live columns (B,), start vectors in it (B, columns)).

    One start for the whole batch, so that an input's result does not depend on its neighbours; drawn on the CPU, so
    that a seed gives the same on every device.
    """
    n, batch = operator.columns, operator.batch
    start = torch.randn(n, generator=generator, dtype=torch.float32)
    start = start.to(dtype=operator.dtype, device=operator.device).expand(batch, -1)
    if operator.column_mask is None:
        return torch.full((batch,), n), start
    kept = operator.column_mask.reshape(-1, n) != 0
    return kept.sum(1).cpu().expand(batch), torch.where(kept, start, 0.0)


def _norm(v: Tensor) -> Tensor:
    """Euclidean norms (B, 1) in float64; of long vectors from the norms of short pieces, several times faster."""
    if v.shape[1] > LARGE and v.shape[1] % PIECE == 0:
        v = torch.linalg.vector_norm(v.reshape(len(v), -1, PIECE), dim=2)
    return torch.linalg.vector_norm(v, dim=1, keepdim=True, dtype=torch.float64)
