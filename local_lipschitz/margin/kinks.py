"""The kinks that may bend, as dense rows: what each reads, within which ends, and what rounding makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .box import Box, Sides

THIN, TINY = 1e-7, 1e-250  # the smallest end of a kink, relative to its other end, and at all
THICK = 1e6  # and relative to what its row may be off by

Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rows:
    """Functions y0 + Qδ + T(p − p0) of the ball: y0 (k,), Q (k, n), T (k, G); each off by at most `error` (k,)."""

    y0: Tensor
    Q: Tensor
    T: Tensor
    error: Tensor

    def pick(self, which: Tensor) -> Rows:
        return Rows(self.y0[which], self.Q[which], self.T[which], self.error[which])

    @classmethod
    def join(cls, *several: Rows) -> Rows:
        """The rows of all of them."""
        return cls(*(torch.cat(each) for each in zip(*((r.y0, r.Q, r.T, r.error) for r in several), strict=True)))

    def __neg__(self) -> Rows:
        return Rows(-self.y0, -self.Q, -self.T, self.error)


@dataclass(frozen=True)
class Lines:
    """lower (k,) bounds; weights (k, G) of p of each kink as it was met; reach (k,): ε times the norm that is left."""

    lower: Tensor
    weights: Tensor
    reach: Tensor


@dataclass
class KinkRows:
    """All kinks so far, G of them: y = y0 + Qδ + T(p − p0) in [lower, upper], lower < 0 < upper, off by `error`.

    T is strictly lower triangular; `starts` has the first kink of each layer of kinks. reach: (G,) about how far the
    whole layer of each may go, in norm. joint: (G,) multipliers 1/μ of the joint bound, 0 where it has none. eps: the
    radius. sides: of a box.
    """

    eps: float
    sides: Sides
    y0: Tensor
    Q: Tensor
    T: Tensor
    error: Tensor
    lower: Tensor
    upper: Tensor
    reach: Tensor
    joint: Tensor
    starts: list[int] = field(default_factory=list)

    @classmethod
    def none(cls, x0: Tensor, eps: float, box: Box | None = None) -> KinkRows:
        """For an input x0 (1, *shape)."""
        empty = x0.new_zeros(0, dtype=torch.float64)
        sides = Sides.of(box, x0.double(), eps)
        Q, T = empty.new_zeros(0, x0.numel()), empty.new_zeros(0, 0)
        return cls(eps, sides, empty, Q, T, empty, empty, empty, empty, empty)

    def __len__(self) -> int:
        return len(self.y0)

    @property
    def p0(self) -> Tensor:
        return self.y0.clamp(min=0.0)

    def add(self, rows: Rows, ends: Interval, reach: float, joint: Tensor | None = None) -> None:
        """The next layer of kinks, which lie in `ends`; reach: about how far it may go, in norm; joint: (k,)."""
        G, k = len(self), len(rows.y0)
        if k == 0:
            return
        low, high = ends  # an end much nearer to 0 than the other would ruin the scaling, or one that is all rounding
        least = (THICK * rows.error).clamp(min=TINY)
        low, high = torch.minimum(low, -THIN * high), torch.maximum(high, -THIN * low)
        low, high = torch.minimum(low, -least), torch.maximum(high, least)
        T = self.T.new_zeros(G + k, G + k)
        T[:G, :G], T[G:, :G] = self.T, rows.T
        self.T, self.Q, self.y0 = T, torch.cat([self.Q, rows.Q]), torch.cat([self.y0, rows.y0])
        self.error = torch.cat([self.error, rows.error])
        self.lower, self.upper = torch.cat([self.lower, low]), torch.cat([self.upper, high])
        self.reach = torch.cat([self.reach, torch.full_like(low, max(reach, TINY**0.25))])
        self.joint = torch.cat([self.joint, torch.zeros_like(low) if joint is None else joint])
        self.starts.append(G)

    def layers(self) -> list[tuple[int, int]]:
        """(first, end) of the layers of kinks."""
        return list(zip(self.starts, [*self.starts, len(self)][1:], strict=True))

    def lines(self, rows: Rows) -> Lines:
        """Lower bounds of the rows: each kink replaced by a line above or below it, layer by layer from the last.

        max(y, 0) ≥ αy for α in [0, 1], and ≤ u(y + ℓ)/(u + ℓ) for y in [−ℓ, u]; the one that harms, where p enters.
        (Zhang et al., CROWN, NeurIPS 2018.) Never above the truth; the rounding of the sums is taken off.
        """
        A, B, value = rows.Q, rows.T.clone(), rows.y0 - rows.T @ self.p0
        weights = torch.zeros_like(B)
        size = rows.y0.abs() + rows.T.abs() @ self.p0
        lost = rows.error
        for first, end in reversed(self.layers()):
            here = slice(first, end)
            b, low, high = B[:, here], self.lower[here], self.upper[here]
            weights[:, here] = b
            slope = high / (high - low)
            weight = b.clamp(min=0.0) * (high > -low) + b.clamp(max=0.0) * slope
            offset = b.clamp(max=0.0) @ (-low * slope)
            constant = self.y0[here] - self.T[here] @ self.p0
            value = value + offset + weight @ constant
            size = size + offset.abs() + weight.abs() @ (self.y0[here].abs() + self.T[here].abs() @ self.p0)
            lost = lost + weight.abs() @ self.error[here]
            A, B = A + weight @ self.Q[here], B + weight @ self.T[here]
        reach = self.eps * torch.linalg.vector_norm(A, dim=1)
        return Lines(value - reach - lost - 1e-12 * (size + reach), weights, reach)
