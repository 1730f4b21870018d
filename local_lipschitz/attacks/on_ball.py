"""A misclassified input within a given ball: gradient descent on every margin, kept to the ball (and to a box)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

Box = tuple[Tensor, Tensor]

STEPS, STARTS = 40, 2
ELEMENTS = 2**22  # of inputs that are held at a time
INSIDE = 1.0 - 1e-9  # of the radius: what rounding makes of a length must not lead out of the ball


class BallAttack:
    """Looks for inputs of another class around x0 (B, *shape) within eps (B,), and within box (lowest, highest).

    label: (B,). Found ones are checked in float64: strictly another class, inside the ball and the box.
    """

    def __init__(
        self, net: nn.Module, x0: Tensor, eps: Tensor, label: Tensor, seed: int, box: Box | None = None
    ) -> None:
        self.net = copy.deepcopy(net).double().requires_grad_(False)
        self.x0, self.eps, self.label, self.box = x0.double(), eps, label, box
        self.generator = torch.Generator().manual_seed(seed)
        self.found: dict[int, Tensor] = {}  # input -> x (*shape)

    def descend(self, inputs: Tensor, classes: Tensor, starts: Tensor | None = None, steps: int = STEPS) -> None:
        """Follow f_t − f_c downwards for the pairs of an input and a class c, (P,) each, from x0 or from `starts`."""
        part = max(1, ELEMENTS // self.x0[0].numel())
        for first in range(0, len(inputs), part):
            here = slice(first, first + part)
            if starts is not None:
                self._descend(inputs[here], classes[here], starts[here], steps)
                continue
            for start in range(STARTS):
                i = inputs[here]
                i, c = (v[torch.tensor([int(b) not in self.found for b in i])] for v in (i, classes[here]))
                if len(i):
                    shape, double = i.shape + self.x0.shape[1:], torch.float64
                    noise = torch.randn(shape, generator=self.generator, dtype=double, device="cpu")
                    x = self.x0[i] if start == 0 else self._inside(self.x0[i] + noise.to(self.x0), i)
                    self._descend(i, c, x, steps)

    def _descend(self, i: Tensor, c: Tensor, x: Tensor, steps: int) -> None:
        t = self.label[i]
        for step in range(steps + 1):
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                y = self.net(x)
                margin = y.gather(1, t[:, None])[:, 0] - y.gather(1, c[:, None])[:, 0]
                (gradient,) = torch.autograd.grad(margin.sum(), x)
            self._keep(i, x.detach(), y.detach())
            length = 0.5 * 0.9**step
            slope = gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
            x = self._inside(x.detach() - _by(length * self.eps[i] / slope, gradient), i)

    def _keep(self, i: Tensor, x: Tensor, y: Tensor) -> None:
        wrong = y.amax(1) > y.gather(1, self.label[i][:, None])[:, 0]
        inside = (x - self.x0[i]).flatten(1).norm(dim=1) <= self.eps[i]
        if self.box is not None:
            inside &= ((x >= self.box[0].to(x)) & (x <= self.box[1].to(x))).flatten(1).all(1)
        for j in (wrong & inside).nonzero()[:, 0].tolist():
            self.found.setdefault(int(i[j]), x[j])

    def _inside(self, x: Tensor, i: Tensor) -> Tensor:
        """The points drawn back into the box and then, towards x0, into the ball."""
        if self.box is not None:
            x = torch.minimum(torch.maximum(x, self.box[0].to(x)), self.box[1].to(x))
        away = x - self.x0[i]
        length = away.flatten(1).norm(dim=1)
        x = self.x0[i] + _by((INSIDE * self.eps[i] / length.clamp(min=1e-300)).clamp(max=1.0), away)
        return x if self.box is None else torch.minimum(torch.maximum(x, self.box[0].to(x)), self.box[1].to(x))


def _by(factor: Tensor, values: Tensor) -> Tensor:
    return factor.reshape(-1, *(1,) * (values.dim() - 1)) * values
