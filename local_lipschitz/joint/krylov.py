"""What the multipliers of the joint bound are worth, by forward and backward passes (docs/joint_bound.md, section 4).

With D = diag(1, μ) the operator G = K D Kᵀ takes one backward and one forward pass. W⁻¹ is applied by conjugate
gradients, and the largest eigenvalues of S are those of a Krylov space. Nothing here is a bound: certificate.py is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..joint_operator import JointOperator, Passes
from .certificate import Random

WIDE = 2**23  # elements of a layer in single precision: larger ones are new memory in every operation, which is slow
CG_STEPS = 40
CG_TOLERANCE = 0.02  # of the residual; the gradient needs no more, and no bound rests on it
BASIS = 6  # output directions that the multipliers are tuned for, where the outputs are many
SMALL_OUTPUT = 16  # all output directions at once
BLOCK = 2  # directions that a Krylov space starts from
GROWTH = 9  # times it grows by as many, unless told otherwise


def gram(operator: Passes, mu: Tensor, f: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K D Kᵀ (f, v), and the w part of Kᵀ(f, v): (p, m), (p, G), (p, G); a few of p at a time where layers are wide."""
    part, results = max(1, WIDE // operator.widest), []
    for some_f, some_v in zip(f.split(part), v.split(part), strict=True):
        delta, w = operator.adjoint(some_f, some_v)
        results.append((*operator.forward(delta, mu * w), w))
    f, v, w = (torch.cat(x) for x in zip(*results, strict=True))
    return f, v, w


def respond(operator: Passes, mu: Tensor, F: Tensor, guess: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
    """(S F, Y, E) for output directions F (p, m): Y = W⁻¹C F, E = PᵀF + TᵀY.

    None where W is seen not to be ≻ 0, or where numbers are too large for the working dtype.
    """
    p, G = F.shape[0], len(mu)
    if G == 0:
        Y: Tensor | None = F.new_zeros(p, 0)
    else:
        _, C, _ = gram(operator, mu, F, F.new_zeros(p, G))
        Y = _conjugate_gradients(operator, mu, C, guess)
    if Y is None:
        return None
    SF, _, E = gram(operator, mu, F, Y)
    return (SF, Y, E) if bool(torch.isfinite(SF).all()) else None


def _conjugate_gradients(operator: Passes, mu: Tensor, C: Tensor, guess: Tensor | None) -> Tensor | None:
    """W⁻¹C for C (p, G), preconditioned by diag(μ); None where a direction of negative curvature turns up."""

    def W(y: Tensor) -> Tensor:
        _, v, _ = gram(operator, mu, y.new_zeros(y.shape[0], operator.out_size), y)
        return mu * y - v

    y = torch.zeros_like(C) if guess is None else guess
    r = C if guess is None else C - W(y)
    z = r / mu
    d, rz = z, (r * z).sum(1)
    target = CG_TOLERANCE**2 * (C.square() / mu).sum(1)
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
    """Estimates of the best γ (1,) or (K,) for given μ, from below, and the output directions (p, m) to tune μ for."""

    gamma: Tensor
    F: Tensor


def top(operator: Passes, mu: Tensor, F: Tensor, growth: int = GROWTH) -> Top | None:
    """Estimate of the largest eigenvalue of S(μ) from the Krylov space of F[:BLOCK]; None where W is not ≻ 0."""
    if F.shape[0] == operator.out_size:  # F is square and orthogonal
        answer = respond(operator, mu, F, None)
        if answer is None:
            return None
        values = torch.linalg.eigvalsh((F @ answer[0].T).double())
        return Top(values[-1:], F)
    basis = images = F[:0]
    block = torch.linalg.qr(F[:BLOCK].T)[0].T
    for _ in range(min(growth, operator.out_size // BLOCK)):
        answer = respond(operator, mu, block, None)
        if answer is None:
            return None
        basis, images = torch.cat([basis, block]), torch.cat([images, answer[0]])
        block = answer[0]
        for _ in range(2):
            block = torch.linalg.qr((block - (block @ basis.T) @ basis).T)[0].T
    small = (basis @ images.T).double()
    values, vectors = torch.linalg.eigh(0.5 * (small + small.T))
    best = vectors[:, -BASIS:].flip(1).to(F.dtype).T @ basis
    return Top(values[-1:], best)


def estimate(operator: JointOperator, mu: Tensor, C: Tensor | None, F: Tensor) -> Top | None:
    """γ (1,) of the whole output, or (K,) of each of C (K, m); None where W is not ≻ 0."""
    if C is None:
        return top(operator, mu, F)
    answer = respond(operator, mu, C, None)
    return None if answer is None else Top((C * answer[0]).double().sum(1), C)


def directions(count: int, operator: Passes, random: Random) -> Tensor:
    """Output directions (count, m) to start from; all of them where they are few."""
    m = operator.out_size
    return torch.eye(m).to(operator.like) if m <= SMALL_OUTPUT else random.normal(count, m, operator.like)


def least(operator: JointOperator, F: Tensor) -> float:
    """‖F N‖² for orthonormal directions F (p, m): no multipliers make γ smaller."""
    delta, _ = operator.adjoint(F, F.new_zeros(F.shape[0], operator.groups))
    return float(torch.linalg.eigvalsh((delta @ delta.T).double())[-1])
