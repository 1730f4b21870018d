"""What the multipliers of the joint bound are worth, by forward and backward passes (docs/joint_bound.md, section 4).

With D = diag(1, μ) the operator G = K D Kᵀ takes one backward and one forward pass. W⁻¹ is applied by conjugate
gradients, and γ is that of a Krylov space of G. Nothing here is a bound: certificate.py is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..joint_operator import Passes, at_once

INSIDE = 0.03  # part of diag(μ) that W is to exceed: μ that are found so have room for ‖H‖
CG_STEPS = 40
CG_TOLERANCE = 0.02  # of the residual; the gradient needs no more, and no bound rests on it
BASIS = 6  # output directions that the multipliers are tuned for, where the outputs are many
SMALL_OUTPUT = 16  # all output directions at once
RIDGE = 1e-6  # of ‖f‖² on a Krylov space, of vectors of length 1: single precision


def gram(operator: Passes, mu: Tensor, f: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K D Kᵀ (f, v), and the w part of Kᵀ(f, v): (p, m), (p, G), (p, G); a few of p at a time where layers are wide."""
    part, results = at_once(operator.widest), []
    for some_f, some_v in zip(f.split(part), v.split(part), strict=True):
        delta, w = operator.adjoint(some_f, some_v)
        results.append((*operator.forward(delta, mu * w), w))
    f, v, w = (torch.cat(x) for x in zip(*results, strict=True))
    return f, v, w


def respond(
    operator: Passes, mu: Tensor, F: Tensor, guess: Tensor | None, inside: float, probes: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """(S F, Y, E) for output directions F (p, m): Y = W⁻¹C F, E = PᵀF + TᵀY.

    probes (j, G): Y and E go on with W⁻¹ and TᵀW⁻¹ of these. None where W is seen not to be ≻ 0, or where numbers are
    too large for the working dtype.
    """
    p, G = F.shape[0], len(mu)
    if G == 0:
        Y: Tensor | None = F.new_zeros(p, 0)
    else:
        _, C, _ = gram(operator, mu, F, F.new_zeros(p, G))
        Y = solve(operator, mu, C if probes is None else torch.cat([C, probes]), guess, inside)
    if Y is None:
        return None
    SF, _, E = gram(operator, mu, torch.cat([F, F.new_zeros(len(Y) - p, F.shape[1])]), Y)
    return (SF[:p], Y, E) if bool(torch.isfinite(SF).all()) else None


def solve(
    operator: Passes, mu: Tensor, C: Tensor, guess: Tensor | None, inside: float, tolerance: float = CG_TOLERANCE
) -> Tensor | None:
    """W⁻¹C for C (p, G), preconditioned by diag(μ); None where a direction of negative curvature turns up.

    tolerance: of the residual.
    """

    def W(y: Tensor) -> Tensor:
        _, v, _ = gram(operator, mu, y.new_zeros(y.shape[0], operator.out_size), y)
        return (1.0 - inside) * mu * y - v

    y = torch.zeros_like(C) if guess is None else guess
    r = C if guess is None else C - W(y)
    z = r / mu
    d, rz = z, (r * z).sum(1)
    target = tolerance**2 * (C.square() / mu).sum(1)
    for _ in range(CG_STEPS):
        active = rz > target
        if not bool(active.any()):
            break
        Wd = W(d)
        curvature = (d * Wd).sum(1)
        if bool((curvature[active] <= 0).any()) or not bool(torch.isfinite(curvature).all()):
            return None
        step = torch.where(active, rz / curvature, 0.0)[:, None]
        y, r = y + step * d, r - step * Wd
        z = r / mu
        new = (r * z).sum(1)
        d = z + torch.where(active, new / rz.clamp(min=torch.finfo(rz.dtype).tiny), 0.0)[:, None] * d
        rz = new
    return y


@dataclass
class Top:
    """What γ has to be for given μ, from below; where, as output directions F (p, m); and the first one's δ (1, n)."""

    gamma: Tensor  # (1,) float64
    F: Tensor
    delta: Tensor


def top(operator: Passes, mu: Tensor, start: Tensor, steps: int, count: int = 1) -> Top | None:
    """From a Krylov space of G, a pass a step, that `start` (1, m) begins; `count` directions. None where not finite.

    γ‖f‖² ≥ yᵀ(G − diag(0, μ))y has to hold for every y = (f, v). Here it does for those in the space, which is that
    of G scaled by diag(γ, μ), with a guess of γ from below.
    """
    m, groups, tiny = operator.out_size, len(mu), torch.finfo(start.dtype).tiny
    f, v, _ = gram(operator, mu, _unit(start), start.new_zeros(1, groups))
    guess = f.norm().clamp(min=tiny)
    scale = torch.cat([guess.sqrt().expand(m), mu.sqrt()])
    y = torch.cat([f, v], 1) / scale
    basis = images = y[:0]
    for _ in range(min(steps, m + groups)):
        for _ in range(2):
            y = _unit(y - (y @ basis.T) @ basis)
        basis = torch.cat([basis, y])
        y = torch.cat(gram(operator, mu, *(y / scale).split([m, groups], 1))[:2], 1) / scale
        images = torch.cat([images, y])
        if not bool(torch.isfinite(y).all()):
            return None
        sizes, rest = basis[:, :m] @ basis[:, :m].T, basis @ images.T - basis[:, m:] @ basis[:, m:].T
        values, vectors = _generalised(rest.double(), sizes.double())
        best = vectors[:, -1:].T.to(basis)
        y = best @ (images - basis)
        y[:, :m] = best @ images[:, :m] / values[-1].clamp(min=1.0) - best @ basis[:, :m]
    largest = vectors[:, -count:].flip(1).T.to(basis) @ basis / scale
    delta, _ = operator.adjoint(*largest[:1].split([m, groups], 1))
    F = torch.linalg.qr(largest[:, :m].T)[0].T
    return Top((values[-1:] * guess).clamp(min=0.0), F, delta)


def _generalised(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending λ with A x = λ B x, and x, for small symmetric A and B ⪰ 0, but for the rounding of B."""
    sizes, axes = torch.linalg.eigh(B)
    half = axes * (sizes.clamp(min=0.0) + RIDGE).rsqrt()
    values, vectors = torch.linalg.eigh(half.T @ (0.5 * (A + A.T)) @ half)
    return values, half @ vectors


def _unit(y: Tensor) -> Tensor:
    return y / y.norm().clamp(min=torch.finfo(y.dtype).tiny)


def least(operator: Passes, F: Tensor) -> float:
    """‖F N‖² for orthonormal directions F (p, m): no multipliers make γ smaller."""
    delta, _ = operator.adjoint(F, F.new_zeros(F.shape[0], operator.groups))
    return float(torch.linalg.eigvalsh((delta @ delta.T).double())[-1])
