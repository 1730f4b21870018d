"""The inverse Hessians of L-BFGS, for several problems at once (J. Nocedal, Mathematics of Computation 35, 1980)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

MEMORY = 12  # pairs that are kept
CURVED = 1e-12  # cosine between a step and what it changed in the gradient, at least


class Pairs:
    """The last steps s of B problems and how they changed the gradients, y; zero where there is no curvature."""

    def __init__(self, like: Tensor) -> None:
        """like: (B, G)."""
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y, 1/(s·y)
        self.last, self.inner = torch.zeros_like(like), torch.zeros_like(like[:, 0])  # y and s·y of the last pair

    def add(self, s: Tensor, y: Tensor) -> None:
        """A step and its change of the gradient, (B, G) each."""
        inner = vecdot(s, y)
        curved = inner > CURVED * vector_norm(s, dim=1) * vector_norm(y, dim=1)
        if not bool(curved.any()):
            return
        self.inner = torch.where(curved, inner, self.inner)
        s, y = (torch.where(curved[:, None], x, 0.0) for x in (s, y))
        self.last = torch.where(curved[:, None], y, self.last)
        self.pairs = [*self.pairs[-MEMORY + 1 :], (s, y, torch.where(curved, 1.0 / inner, 0.0))]

    def direction(self, gradient: Tensor, scale: Tensor) -> Tensor:
        """−H·gradient, H the inverse Hessian that starts from diag(1/scale); where that leads uphill, without pairs."""
        found = self._two_loop(gradient, scale)
        uphill = ~(vecdot(gradient, found) < 0.0)
        if not bool(uphill.any()):
            return found
        keep = (~uphill).to(gradient)
        self.inner = self.inner * keep
        self.pairs = [(s * keep[:, None], y * keep[:, None], inverse * keep) for s, y, inverse in self.pairs]
        return torch.where(uphill[:, None], -gradient / scale, found)

    def _two_loop(self, gradient: Tensor, scale: Tensor) -> Tensor:
        q, kept = gradient, list[Tensor]()
        for s, y, inverse in reversed(self.pairs):
            a = vecdot(s, q) * inverse
            q = q - a[:, None] * y
            kept.append(a)
        own = torch.where(self.inner > 0.0, self.inner / vecdot(self.last, self.last / scale), 1.0)
        q = q / scale * own[:, None]
        for (s, y, inverse), a in zip(self.pairs, reversed(kept), strict=True):
            q = q + (a - vecdot(y, q) * inverse)[:, None] * s
        return -q
