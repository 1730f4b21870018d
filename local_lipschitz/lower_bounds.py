"""Lower bounds of the anchored local Lipschitz constant: the largest quotient ‖f(x) − f(x0)‖ / ‖x − x0‖ found.

Points are searched in the network's own dtype; the quotient that is returned is evaluated in float64 at a point that
was really visited, by passing the difference through the layers, so that nothing cancels however small ε is, and less
what rounding may have added, which is proven. So a lower bound never exceeds the truth.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .inputs import check_count, check_eps, check_input
from .layers.changes import change
from .layers.graph import Graph
from .numerics import gamma_n
from .precision import no_tf32
from .reading.read import read

KEEP, KEEP_OF_BATCH = 256, 8  # of all samples of a ball, re-evaluated in float64; of each batch at most


@no_tf32()
@torch.no_grad()
def random_lower_bound(
    net: nn.Module, x0: Tensor, eps: float | Tensor, samples: int = 100_000, seed: int = 0, batch: int = 1000
) -> Tensor:
    """Largest quotient over `samples` points drawn uniformly from each ball ‖x − x0‖ ≤ eps: (B,) float64.

    Guaranteed: attained in the ball, to rounding, which is subtracted. x0 (B, *input shape) and eps as in
    `local_bound`. `batch` points are evaluated at a time. Source: Avant & Morgansen 2023, Section V.
    """
    check_input(x0)
    for name, value, least in (("samples", samples, 1), ("batch", batch, 1)):
        check_count(name, value, least)
    eps, graph = check_eps(eps, x0), read(net, x0)
    generator = torch.Generator(x0.device).manual_seed(check_count("seed", seed, None))
    best = []
    for anchor, radius in zip(x0.expand(eps.shape[0], *x0.shape[1:]).split(1), eps, strict=True):
        f0 = net(anchor)
        promising, roughly = [], []
        for start in range(0, samples, batch):
            delta = ball_samples(anchor, radius, min(batch, samples - start), generator)
            rough, at = (_norm(net(anchor + delta) - f0) / _norm(delta)).topk(min(KEEP_OF_BATCH, len(delta)))
            promising.append(delta[at])
            roughly.append(rough)
        rough = torch.cat(roughly)
        best_of_all = torch.cat(promising)[rough.topk(min(KEEP, len(rough))).indices]
        found = [quotients(graph, anchor, part).amax() for part in best_of_all.split(batch)]
        best.append(torch.stack(found).amax())
    return torch.stack(best)


@no_tf32()
def gradient_lower_bound(
    net: nn.Module, x0: Tensor, eps: float | Tensor, starts: int = 32, steps: int = 40, seed: int = 0, batch: int = 32
) -> Tensor:
    """Largest quotient that gradient ascent on ‖f(x) − f(x0)‖ finds within each ball: (B,) float64.

    Each start ascends on a sphere of its own, of radius eps down to eps/1000, because the quotient need not be largest
    on the boundary. A step turns the direction δ/‖δ‖ towards the gradient; an infinitely long one is a step of power
    iteration on the Jacobian. Guaranteed and arguments as in `random_lower_bound`.
    """
    check_input(x0)
    for name, value, least in (("starts", starts, 1), ("steps", steps, 1), ("batch", batch, 1)):
        check_count(name, value, least)
    eps, graph = check_eps(eps, x0), read(net, x0)
    generator = torch.Generator(x0.device).manual_seed(check_count("seed", seed, None))
    if x0.is_inference() or any(p.is_inference() for p in (*net.parameters(), *net.buffers())):
        net, x0 = copy.deepcopy(net), x0.clone()  # tensors made in inference mode do not pass gradients on
    best = []
    for anchor, radius in zip(x0.expand(eps.shape[0], *x0.shape[1:]).split(1), eps, strict=True):
        spheres = radius * torch.logspace(0, -3, starts, dtype=torch.float64, device=x0.device)
        found = [
            quotients(graph, anchor, _ascend(net, anchor, part, steps, generator)).amax()
            for part in spheres.to(x0.dtype).split(batch)
        ]
        best.append(torch.stack(found).amax())
    return torch.stack(best)


@torch.enable_grad()
def _ascend(net: nn.Module, anchor: Tensor, spheres: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """The best δ (starts, *input shape) of each start on its sphere ‖δ‖ = spheres."""
    with torch.no_grad():
        f0 = net(anchor)
    direction = torch.randn(
        len(spheres), *anchor.shape[1:], generator=generator, device=anchor.device, dtype=anchor.dtype
    )
    direction = direction / _per_start(_norm(direction), direction)
    best, best_value = direction, torch.full_like(spheres, -1.0)
    for step in range(steps + 1):
        delta = (_per_start(spheres, direction) * direction).requires_grad_()
        moved = _norm(net(anchor + delta) - f0)
        (gradient,) = torch.autograd.grad(moved.sum(), delta)
        better = moved.detach() > best_value
        best_value = torch.where(better, moved.detach(), best_value)
        best = torch.where(_per_start(better, direction), delta.detach(), best)
        length = 10.0 * 0.01 ** (step / steps)  # against the unit direction: power iteration first, then small turns
        ascent = gradient / _per_start(_norm(gradient).clamp(min=torch.finfo(gradient.dtype).tiny), gradient)
        direction = direction + length * ascent
        direction = direction / _per_start(_norm(direction), direction)
    return best


@torch.no_grad()
def quotients(graph: Graph, x0: Tensor, delta: Tensor) -> Tensor:
    """‖f(x0 + δ) − f(x0)‖ / ‖δ‖ in float64 for each δ (N, *input shape), less its rounding; 0 for δ = 0."""
    delta = delta.double()
    length, (dy, error) = _norm(delta), change(graph, x0.double(), delta)
    rounded = gamma_n(2 * max(delta[0].numel(), dy[0].numel()) + 8)  # in the lengths and what follows
    least = _norm(dy) * (1.0 - rounded) - _norm(error) * (1.0 + rounded)
    return torch.where(length > 0, (least / length).clamp(min=0.0), 0.0) * (1.0 - rounded)


def ball_samples(x0: Tensor, radius: Tensor | float, count: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` vectors δ (count, *input shape) uniform in the ball ‖δ‖ ≤ radius."""
    shape = (count, *x0.shape[1:])
    delta = torch.randn(shape, generator=generator, dtype=x0.dtype, device=x0.device)
    n = x0[0].numel()
    u = torch.rand(count, generator=generator, dtype=x0.dtype, device=x0.device)
    length = torch.as_tensor(radius, dtype=x0.dtype, device=x0.device) * u ** (1.0 / n)
    return delta * _per_start(length / _norm(delta), delta)


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v.flatten(1), dim=1)


def _per_start(factor: Tensor, like: Tensor) -> Tensor:
    """(N,) shaped to multiply (N, *shape)."""
    return factor.reshape(-1, *(1,) * (like.dim() - 1))
