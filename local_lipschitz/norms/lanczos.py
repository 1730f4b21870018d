"""The Lanczos process on MᵀM for a batch of operators: what it costs, and how its vectors stay orthogonal.

What its coefficients tell is in ritz.py, and what to make of it in spectral_norm.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .ritz import Drift

BLOCK, FEW, SMALL = 128, 8, 2**20  # Krylov vectors in one tensor: at most, at least, and in between by its elements
LARGE = 2_000  # longer vectors are made orthogonal to all earlier ones only where they have drifted
ALWAYS = 8  # steps in which they are made orthogonal anyway: that costs little, and large gaps show soonest
SAFE = 0.2  # of √eps: the drift that is let be
FAR = 0.01  # a drift that is not gone after one round
SELDOM, ONCE, TWICE = 0, 1, 2  # how often in a step new vectors are made orthogonal to all earlier ones
SHORT = 1e-3  # of ‖Mv‖: where a vector cancels to this, or to eps^¼, orthogonal ONCE may not be to √eps in the end
NOISE = 4.0  # roundings of ‖M‖ in a vector of which nothing else is left
PIECE = 64  # of a float32 vector, whose length is taken in float32


def _as_is(v: Tensor) -> Tensor:
    """The order of elements that changes nothing."""
    return v


@dataclass(frozen=True)
class Operator:
    """A batch of matrices M_b (rows × columns), known by their products with vectors.

    apply: (B, columns) -> (B, rows), adjoint: (B, rows) -> (B, columns); both give new memory, which may be written
    to. `row_mask`, `column_mask` (B or 1, ...) are 0 where a row or column of M_b is known to be zero, or None.
    `rounding`: (B or 1,) float64, how far in norm the matrix that is really applied may be from M_b. `part` gives the
    operator of some of the matrices (indices), or is None where all must be applied together. `row_order`,
    `column_order` bring the elements of a vector, as the network has them, into the order that M has them in: the same
    start whatever a layer's layout.
    """

    batch: int
    rows: int
    columns: int
    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    device: torch.device
    rounding: Tensor
    row_mask: Tensor | None = None
    column_mask: Tensor | None = None
    part: Callable[[Tensor], Operator] | None = None
    row_order: Callable[[Tensor], Tensor] = _as_is
    column_order: Callable[[Tensor], Tensor] = _as_is

    def transpose(self) -> Operator:
        """The batch of M_bᵀ."""
        part = self.part
        return replace(
            self, rows=self.columns, columns=self.rows, apply=self.adjoint, adjoint=self.apply,
            row_mask=self.column_mask, column_mask=self.row_mask,
            row_order=self.column_order, column_order=self.row_order,
            part=None if part is None else lambda kept: part(kept).transpose(),
        )  # fmt: skip


class Lanczos:
    """The Lanczos process on MᵀM from the start vectors (B, n), one `step` at a time, for a batch of B matrices.

    The new vectors are made orthogonal to all earlier ones ONCE or TWICE in every step, or (SELDOM) in two steps
    whenever they are estimated to have drifted: in between the three-term recurrence keeps them orthogonal to √eps,
    which is all that the coefficients need (Simon, Linear Algebra Appl. 61, 1984). `cancelled` says whether ONCE was
    too seldom, `lost_orthogonality` whether SELDOM was.
    """

    def __init__(self, operator: Operator, start: Tensor, rounds: int) -> None:
        self.operator, self.tiny, self.eps = operator, torch.finfo(start.dtype).tiny, torch.finfo(start.dtype).eps
        self.rounds, self.batch = rounds, len(start)
        watched = range(len(start)) if rounds == SELDOM else ()
        self.drift = {i: Drift(self.eps) for i in watched}  # of those that it matters for
        self.cleaned = 0  # of the last steps: those that made their vectors orthogonal
        self.loss = start.new_zeros(len(start))  # the largest component along an earlier vector that was seen
        self.steps = self.products = 0
        self.a: list[Tensor] = []  # α_k = a_k², β_k = a_k b_k: kept as factors, so that nothing overflows in float32
        self.b: list[Tensor] = []  # each (B, 1)
        # (B, block, n) each: large tensors would be new memory each time, which is slow
        self.basis: list[Tensor] = []
        self.block = min(max(FEW, SMALL // start.numel()), BLOCK)
        self._append(start, _norm(start))

    def step(self) -> None:
        """One application of M and of Mᵀ."""
        self.steps += 1
        self.products += self.batch
        u = self.operator.apply(self.v)
        a = _norm(u)
        length = self._divisor(a)
        w = self.operator.adjoint(u.div_(length)).addcmul_(self.v, length, value=-1)
        if self.rounds == SELDOM:
            b = self._by_three_terms(w, a)
        else:
            for _ in range(self.rounds):
                self._take_components(w)
            b = _norm(w)
        self.a.append(a)
        self.b.append(b)
        if self.rounds == TWICE:  # what is left of an exhausted space, as often as it is made orthogonal
            w = w.masked_fill(b <= NOISE * self.eps * torch.cat(self.a, 1).amax(1, keepdim=True), 0.0)
        self._append(w, b)

    def keep(self, matrices: list[int]) -> None:
        """Go on with these (indices) alone."""
        assert self.operator.part is not None
        self.drift = {new: self.drift[old] for new, old in enumerate(matrices) if old in self.drift}
        kept = torch.tensor(matrices, device=self.loss.device)
        self.operator, self.batch = self.operator.part(kept), len(matrices)
        self.basis, self.loss = [block[kept] for block in self.basis], self.loss[kept]
        self.a, self.b = [a[kept] for a in self.a], [b[kept] for b in self.b]
        self.v = self._vector(self.steps)

    def ignore(self, matrices: list[int]) -> None:
        """The vectors of these (indices) may drift from now on."""
        for i in matrices:
            self.drift.pop(i, None)

    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """(a, b), each (B, steps)."""
        a, b = torch.stack([torch.cat(self.a, 1), torch.cat(self.b, 1)]).cpu().numpy()
        return a, b

    def cancelled(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether one of the vectors was made ONCE of what had cancelled, by their coefficients; the next is unused."""
        return self.rounds == ONCE and bool((b[:, :-1] < max(SHORT, self.eps**0.25) * a[:, :-1]).any())

    def lost_orthogonality(self, matrices: list[int]) -> bool:
        """Whether vectors of any of `matrices` (indices), the next ones included, drifted further than √eps."""
        if self.rounds != SELDOM or not matrices:
            return False
        v, loss = self.v, self.loss[matrices].amax()
        for i in matrices:  # one by one: to copy their vectors takes longer
            loss = torch.stack([loss, *[(part[i] @ v[i]).abs().amax() for part in self._parts(self.steps)]]).amax()
        return float(loss) > math.sqrt(self.eps)

    def _by_three_terms(self, w: Tensor, a: Tensor) -> Tensor:
        """The norms of w less its component along the vectors before the last ones, and less what has drifted."""
        if self.steps > 1:
            beta = self.b[-1] * (self.a[-1] / a.clamp(min=self.tiny)).clamp(max=1.0 / self.eps)  # a is 0 at the end
            w.addcmul_(self._vector(self.steps - 2), beta.to(w.dtype), value=-1)
        b = _norm(w)
        left_alone = self.cleaned == 0 and self.steps > ALWAYS  # the vectors before
        rounds = self._rounds(a, b)
        for _ in range(rounds):
            components = self._take_components(w)
            if left_alone:
                self._note((torch.cat(components, 2)[:, 0] / self._divisor(b)).abs().amax(1))
            b = _norm(w)
        self.cleaned = self.cleaned + 1 if rounds else 0
        return b

    def _rounds(self, a: Tensor, b: Tensor) -> int:
        """How often the next vectors are to be made orthogonal to all earlier ones, by an estimate of their drift."""
        coefficients = torch.cat([a, b], 1).tolist()
        drift = max((drift.next(*coefficients[i]) for i, drift in self.drift.items()), default=0.0)
        again = self.cleaned == 1  # in two steps in a row: a vector is made of the last two
        if self.steps > ALWAYS and not again and drift <= SAFE * math.sqrt(self.eps):
            return 0
        for known in self.drift.values():
            known.reset()
        return 1 if drift <= FAR else 2

    def _take_components(self, w: Tensor) -> list[Tensor]:
        """Takes from w (B, n), in its memory, its components along each part of the basis: (B, 1, at most block)."""
        row, taken = w[:, None], []
        for part in self._parts(self.steps):
            taken.append(torch.bmm(row, part.mT))
            row.baddbmm_(taken[-1], part, alpha=-1)
        return taken

    def _note(self, removed: Tensor) -> None:
        """The loss of the vectors before those of which `removed` was removed: smaller, or it is measured."""
        if bool((removed[list(self.drift)] > math.sqrt(self.eps)).any()):
            v, removed = self.v[:, None], torch.zeros_like(removed)
            for part in self._parts(self.steps - 1):
                removed = torch.maximum(removed, torch.bmm(v, part.mT).abs().amax((1, 2)))
        self.loss = torch.maximum(self.loss, removed)

    def _parts(self, count: int) -> list[Tensor]:
        """The first `count` vectors of the basis, (B, at most `block`, n) each."""
        whole, rest = divmod(count, self.block)
        return self.basis[:whole] + ([self.basis[whole][:, :rest]] if rest else [])

    def _vector(self, k: int) -> Tensor:
        return self.basis[k // self.block][:, k % self.block]

    def _append(self, w: Tensor, length: Tensor) -> None:
        """w / length as the next basis vectors."""
        if self.steps % self.block == 0:
            self.basis.append(w.new_empty(len(w), self.block, w.shape[1]))
        self.v = torch.div(w, self._divisor(length), out=self._vector(self.steps))

    def _divisor(self, length: Tensor) -> Tensor:
        """Lengths as numbers of the vectors' dtype, and not 0."""
        length = length.clamp(min=self.tiny)
        return length if self.loss.dtype is torch.float64 else length.to(self.loss.dtype)


def _norm(v: Tensor) -> Tensor:
    """Euclidean norms (B, 1) in float64; of long float32 vectors from those of short pieces, several times faster."""
    if v.dtype is not torch.float64 and v.shape[1] > LARGE and v.shape[1] % PIECE == 0:
        v = torch.linalg.vector_norm(v.reshape(len(v), -1, PIECE), dim=2)
    return torch.linalg.vector_norm(v, dim=1, keepdim=True, dtype=torch.float64)
