"""A certified ‖H‖ ≤ 1: what the joint bound rests on where groups are many (docs/joint_bound.md, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..joint_operator import JointOperator
from ..norms.lanczos import Operator
from ..norms.spectral_norm import lanczos_norms, rounding_slack

ATTEMPTS = 4  # with a larger γ each time


@dataclass
class Random:
    """Our own random vectors: where they come from, the failure probability of each certificate, and their sum."""

    share: float
    tolerance: float
    seed: int
    spent: float = 0.0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def normal(self, rows: int, columns: int, like: Tensor) -> Tensor:
        return torch.randn(rows, columns, generator=self.generator).to(like)


def certify(
    operator: JointOperator, mu: Tensor, gamma: Tensor, outputs: Tensor | None, random: Random, tolerance: float
) -> Tensor:
    """γ' ≥ γ (K,) for which ‖Δf‖² ≤ γ'‖δ‖² (or, for outputs (K, m), |outputs_k · Δf|² ≤ γ'_k‖δ‖²).

    With certified s ≥ ‖H(γ, μ)‖²: for s ≤ 1 that is γ' = γ. For s > 1 the multipliers μ s^k of kink layer k and
    γ' = γ s^(depth + 1) have s = 1, because T is triangular (docs/joint_bound.md, section 4). That power is dear in
    deep networks, and mostly it was γ that was estimated too low: so γ is raised and tried again.
    """
    best = before = torch.full_like(gamma, torch.inf)
    for attempt in range(1, ATTEMPTS + 1):
        H = scaled_operator(operator, mu, gamma, outputs)
        norms = lanczos_norms(H, tolerance, random.share / ATTEMPTS, random.generator)
        random.spent += norms.failure_probability
        s = (norms.upper * (1.0 + rounding_slack(mu.dtype, operator.terms))).square()
        if operator.depth == 0:
            return gamma * s
        best = torch.fmin(best, gamma * s.clamp(min=1.0) ** (operator.depth + 1))  # not NaN after an overflow
        if bool(((s <= 1.0) | (s >= before)).all()) or not bool(torch.isfinite(s).all()):
            break  # certified; or it is not γ that is too small
        before, gamma = s, torch.where(s > 1.0, gamma * (s * (1.0 + 2.0 * tolerance)) ** attempt, gamma)
    return best


def scaled_operator(operator: JointOperator, mu: Tensor, gamma: Tensor, outputs: Tensor | None) -> Operator:
    """H(γ, μ) of the whole output, or a batch of K with γ (K,) of each of the `outputs` (K, m)."""
    n, G = math.prod(operator.in_shape), len(mu)
    scale, root = mu.sqrt(), gamma.to(mu.dtype).clamp(min=torch.finfo(mu.dtype).tiny).sqrt()[:, None]

    def apply(x: Tensor) -> Tensor:
        f, v = operator.forward(x[:, :n], scale * x[:, n:])
        f = f if outputs is None else (f * outputs).sum(1, keepdim=True)
        return torch.cat([f / root, v / scale], 1)

    def adjoint(y: Tensor) -> Tensor:
        f, v = y[:, : y.shape[1] - G] / root, y[:, y.shape[1] - G :] / scale
        delta, w = operator.adjoint(f if outputs is None else f * outputs, v)
        return torch.cat([delta, scale * w], 1)

    m = operator.out_size if outputs is None else 1
    exact = torch.zeros(1, dtype=torch.float64, device=mu.device)  # its rounding is added by `certify`
    return Operator(len(gamma), m + G, n + G, apply, adjoint, mu.dtype, mu.device, exact)
