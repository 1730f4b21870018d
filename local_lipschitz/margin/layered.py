"""Few multipliers first: scales for each layer of kinks and the way they enter, one for the ball and one for a box.

The largest t of given multipliers is t(μ) = Z_00 − z_0ᵀ Z_11⁻¹ z_0, with Z for t = 0: a concave function, of which one
Cholesky factorisation gives all. With ξ = (1, −Z_11⁻¹ z_0) its derivatives are ⟨A_i, ξξᵀ⟩ and
−2 (A_i ξ)ᵀ Z_11⁻¹ (A_j ξ). Newton's method in the logarithms of the scales, damped as Levenberg and Marquardt do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from .reduced import Point, Reduced
from .relaxation import Relaxation

STEPS, SHARED_STEPS = 10, 6
ENOUGH = 1e-2  # of how far t is below the nominal value: a step that gains less is the last
OTHERS = 0.2  # of the multipliers to begin with: all but the best
MUCH = 0.1  # of how far t is below the nominal value: by what all are better than the best start alone
TUNED = 32  # functions that stand for all of a layer
FAR = 1.0  # of a logarithm in one step
LEAST = 1e-3  # of a step
DAMPED, CHANGE, MOST = 0.1, 4.0, 1e4  # of the diagonal: what is added to begin with, by what it changes, at most


def groups(relaxation: Relaxation, mu: Tensor) -> Tensor:
    """mu (1, M) in parts (K, M) that add up to it: γ, each layer of kinks, and the other rows."""
    G, ends = relaxation.kinks, [*relaxation.starts, relaxation.kinks]
    parts = [torch.tensor([1], device=mu.device)]
    for i, j in zip(ends, ends[1:], strict=False):
        layer = torch.arange(i, j, device=mu.device)
        parts.append(torch.cat([2 + layer, 2 + G + layer, 2 + 2 * G + layer]))
    if mu.shape[1] > 2 + 3 * G:
        parts.append(torch.arange(2 + 3 * G, mu.shape[1], device=mu.device))
    result = mu.new_zeros(len(parts), mu.shape[1])
    for row, part in zip(result, parts, strict=True):
        row[part] = mu[0, part]
    return result


def kinds(relaxation: Relaxation, mu: Tensor, falling: Tensor) -> Tensor:
    """mu (1, M) in parts (K, M) as `groups` makes them, but λ, f and h of each layer by themselves.

    And those of the kinks that are `falling` (G,), whose p harm the function where they are large, apart from the rest:
    a chord above is what counts of them, of the others the two lines below.
    """
    G, parts = relaxation.kinks, groups(relaxation, mu)
    bounds = torch.tensor([2, 2 + G, 2 + 2 * G, 2 + 3 * G], device=mu.device)
    kind = torch.bucketize(torch.arange(mu.shape[1], device=mu.device), bounds, right=True)
    down = torch.nn.functional.pad(falling.repeat(3), (2, mu.shape[1] - 2 - 3 * G))
    split = torch.cat([torch.where((kind == i) & (down == way), parts, 0.0) for i in range(5) for way in (False, True)])
    return split[(split != 0).any(1)]


def rescaled(reduced: Reduced, c: Tensor, several: list[Tensor], target: float, deadline: float) -> Point | None:
    """The best scales, by layers and kinds, of multipliers (1, M) each for function c (1, N), added up.

    The first of them is the best; the others begin with a small weight, which is tried first. Stops above the target.
    """
    falling = reduced.relaxation.weights(c[0]) < 0
    split = [kinds(reduced.relaxation, mu, falling) for mu in several]
    alone, found = reduced.point(split[0].sum(0), c[0]), None
    if len(several) > 1:
        parts = torch.cat([(1.0 - OTHERS) * split[0], *(OTHERS / (len(split) - 1) * mu for mu in split[1:])])
        found = _climbed(reduced, c, parts, target, deadline)
        if found is not None and (alone is None or found.t - alone.t > MUCH * abs(float(c[0, 0]) - alone.t)):
            return found
    first = _climbed(reduced, c, split[0], target, deadline)
    return max((point for point in (found, first) if point is not None), key=lambda point: point.t, default=None)


def _climbed(reduced: Reduced, c: Tensor, parts: Tensor, target: float, deadline: float) -> Point | None:
    """The best scales of these parts, from 1 on; None where their sum proves nothing."""
    began = time.monotonic()
    now = reduced.point(parts.sum(0), c[0])
    if now is None:
        return None
    took, damping = time.monotonic() - began, DAMPED
    for _ in range(STEPS):
        if now.t > target or time.monotonic() + 1.5 * took > deadline:
            break
        began = time.monotonic()
        better = _step(reduced, c[0], now, parts, damping)
        took = time.monotonic() - began
        if better is None:
            break
        small = better[0].t - now.t < ENOUGH * abs(float(c[0, 0]) - now.t)
        now, parts, damping = better
        if small:
            break
    return now


def _step(reduced: Reduced, c: Tensor, now: Point, parts: Tensor, damping: float) -> tuple[Point, Tensor, float] | None:
    """A better point, its parts and the damping for the next step; None where there is none.

    A step that leaves Z ⪰ 0 or gains nothing is taken again with more damping.
    """
    xi = reduced.xi(now)
    moved = reduced.relaxation.acting(parts, xi)  # A_i ξ, for scales of 1
    slope = moved @ xi
    half = reduced.halves(now, moved)
    H = 2.0 * half.mT @ half
    H.diagonal().add_((-slope).clamp(min=0.0) + 1e-300)
    diagonal = H.diagonal().clone()
    while damping < MOST:
        H.diagonal().copy_((1.0 + damping) * diagonal)
        step = torch.linalg.solve(H, slope).clamp(-FAR, FAR)
        better = step.exp()[:, None] * parts
        found = reduced.point(better.sum(0), c)
        if found is not None and found.t > now.t:
            return found, better, max(damping / CHANGE, LEAST)
        damping *= CHANGE
    return None


def shared_scales(relaxation: Relaxation, functions: Tensor, nominal: Tensor, mu: Tensor) -> Tensor:
    """Multipliers mu (1, M), scaled by layers to serve functions c·ξ (K, N) together, each with a scale of its own.

    nominal: (K,) their values at x0. Makes Σ log (nominal_k − t_k) small, over some that stand for all; one
    factorisation a step serves them all.
    """
    stride, reduced = -(-len(functions) // TUNED), Reduced.of(relaxation)
    functions, nominal = functions[::stride], nominal[::stride]
    best, length = _shared(reduced, functions, nominal, mu), 1.0
    for _ in range(SHARED_STEPS):
        if best is None or length < LEAST:
            break
        found = _shared(reduced, functions, nominal, (length * best.step).exp()[None] @ best.parts)
        if found is None or not found.value < best.value:
            length *= 0.3
            continue
        small, best, length = best.value - found.value < ENOUGH * len(functions), found, min(1.0, 2.0 * length)
        if small:
            break
    return mu if best is None else best.parts.sum(0, keepdim=True)


@dataclass(frozen=True)
class _Shared:
    """Σ log (nominal_k − t_k), the parts of the multipliers, (L, M), and a Newton step of their logarithms, (L,)."""

    value: float
    parts: Tensor
    step: Tensor


def _shared(reduced: Reduced, functions: Tensor, nominal: Tensor, mu: Tensor) -> _Shared | None:
    found = reduced.shared(mu[0], functions)
    if found is None:
        return None
    fall = (nominal - found.t).clamp(min=1e-300)
    parts, weight = groups(reduced.relaxation, mu), found.scale / fall
    moved = torch.stack([reduced.relaxation.acting(parts, xi) for xi in found.xi])  # A_i ξ_k, (K, L, N)
    slope = ((moved * found.xi[:, None]).sum(2) * weight[:, None]).sum(0)
    half = reduced.halves(found.at, (weight.sqrt()[:, None, None] * moved).flatten(0, 1)).reshape(-1, len(parts))
    H = 2.0 * half.mT @ half
    H.diagonal().add_(slope.abs() + 1e-4 * H.diagonal() + 1e-300)
    step = torch.linalg.solve(H, slope)
    return _Shared(float(fall.log().sum()), parts, min(1.0, FAR / max(float(step.abs().max()), 1e-300)) * step)
