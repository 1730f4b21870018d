"""Few multipliers first: one scale for each layer of kinks, one for the ball and one for a box.

The largest t of given multipliers is t(μ) = Z_00 − z_0ᵀ Z_11⁻¹ z_0, with Z for t = 0: a concave function, of which one
Cholesky factorisation gives all. With ξ = (1, −Z_11⁻¹ z_0) its derivatives are ⟨A_i, ξξᵀ⟩ and
−2 (A_i ξ)ᵀ Z_11⁻¹ (A_j ξ). Newton's method in the logarithms of the scales.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from .relaxation import Relaxation, objective

STEPS = 8
ENOUGH = 1e-2  # of how far t is below the nominal value: a step that gains less is the last
FAR = 1.5  # of a logarithm in one step
LEAST = 1e-3  # of a step


@dataclass(frozen=True)
class Point:
    """Multipliers mu (1, M) whose t is the largest there is; Z for t = 0, the Cholesky factor of Z_11, and ξ (N,)."""

    mu: Tensor
    Z: Tensor
    L: Tensor
    xi: Tensor

    @property
    def t(self) -> Tensor:
        return self.mu[0, 0]


def point(relaxation: Relaxation, c: Tensor, mu: Tensor, Z: Tensor | None = None) -> Point | None:
    """For function c (1, N) and multipliers mu (1, M), with Z (N, N) where it is known; None where Z_11 is not ≻ 0."""
    mu = mu.clone()
    mu[:, 0] = 0.0
    if Z is None:
        Z = (relaxation.matrix(mu) + objective(c))[0]
    L, info = torch.linalg.cholesky_ex(Z[1:, 1:])
    if int(info):
        return None
    x = torch.cholesky_solve(Z[1:, :1], L)[:, 0]
    mu[0, 0] = Z[0, 0] - Z[0, 1:] @ x
    if not bool(torch.isfinite(mu).all()):
        return None
    return Point(mu, Z, L, torch.cat([torch.ones_like(x[:1]), -x]))


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


def rescaled(relaxation: Relaxation, c: Tensor, mu: Tensor, target: float, deadline: float) -> Point | None:
    """The best scales of multipliers mu (1, M) for function c (1, N), by layers; stops above the target."""
    began = time.monotonic()
    now = point(relaxation, c, mu)
    if now is None:
        return None
    took = time.monotonic() - began
    for _ in range(STEPS):
        if float(now.t) > target or time.monotonic() + 1.5 * took > deadline:
            break
        began = time.monotonic()
        better = _step(relaxation, c, now)
        took = time.monotonic() - began
        if better is None:
            break
        small = float(better.t - now.t) < ENOUGH * abs(float(c[0, 0] - now.t))
        now = better
        if small:
            break
    return now


def _step(relaxation: Relaxation, c: Tensor, now: Point) -> Point | None:
    """A better point, by Newton's method; None where there is none."""
    parts = groups(relaxation, now.mu)
    moved = relaxation.acting(parts, now.xi)  # A_i ξ, for scales of 1
    slope = moved @ now.xi
    half = torch.linalg.solve_triangular(now.L, moved[:, 1:].mT, upper=False)
    H = 2.0 * half.mT @ half
    H.diagonal().add_((-slope).clamp(min=0.0) + 1e-4 * H.diagonal() + 1e-300)
    step = torch.linalg.solve(H, slope)
    length = min(1.0, FAR / max(float(step.abs().max()), 1e-300))
    while length > LEAST:
        found = point(relaxation, c, ((length * step).exp() @ parts)[None])
        if found is not None and float(found.t) > float(now.t):
            return found
        length *= 0.4
    return None
