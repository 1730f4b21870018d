"""Better multipliers by passes: L-BFGS steps, W⁻¹ by conjugate gradients (docs/joint_bound.md, section 4).

Nothing here is a bound: certificate.py and row_gains.py are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..joint_operator import Passes
from .certificate import Random
from .descent import Point, descend
from .krylov import INSIDE, respond
from .sizes import log_norm, mean_log

# Of S (k, k): what is to become small, (1,), and its derivatives (k,) by vᵀSv for the columns v of a basis, or by S_ii
Objective = Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]


def of_all(S: Tensor) -> tuple[Tensor, Tensor, None]:
    """The mean of log S_ii: each function counts, whatever its size."""
    s = S.diagonal().clamp(min=torch.finfo(S.dtype).tiny)[None]
    value, slopes = mean_log(s, s.new_full((1,), len(S)))
    return value, slopes[0], None


def of_the_worst(S: Tensor, p: float) -> tuple[Tensor, Tensor, None]:
    """The log of the p-norm of the S_ii: those that are largest count, in units that make them comparable."""
    value, slopes = log_norm(S.diagonal()[None], p)
    return value, slopes[0], None


def of_the_whole(S: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor]:
    """The log of the p-norm of the eigenvalues."""
    s, basis = torch.linalg.eigh(0.5 * (S + S.T))
    value, slopes = log_norm(s[None], p)
    return value, slopes[0], basis


@dataclass(frozen=True)
class Barrier:
    """τ times the mean of zᵀ W⁻¹ z over the probes z (J, G), plus τ Σ log μ: it keeps W ≻ 0 from its boundary.

    With random signs for z μ^(−1/2) at the start, the mean is tr W⁻¹ diag(μ) there, up to the chance of the signs.
    """

    probes: Tensor
    tau: float

    @classmethod
    def around(cls, mu: Tensor, count: int, tau: float, random: Random) -> Barrier:
        """tau: times the number of groups."""
        return cls(random.normal(count, len(mu), mu).sign() * mu.sqrt(), tau / max(1, len(mu)))


def improve(
    operator: Passes, mu: Tensor, F: Tensor, steps: int, objective: Objective, gain: float, barrier: Barrier
) -> Tensor | None:
    """Better multipliers for the outputs F (k rows): a smaller objective of F S Fᵀ.

    Ends where a step promises less than `gain`; then it may return `mu` itself. None where W(μ) is not ≻ 0.
    """
    dtype, warm, k = F.dtype, dict[str, Tensor](), len(F)
    tau, probes = barrier.tau, barrier.probes
    share = tau / max(1, len(probes))

    def evaluate(wide: Tensor) -> Point:
        mu = wide[0].to(dtype)
        answer = None
        if bool((torch.isfinite(mu) & (mu > 0)).all()):
            answer = respond(operator, mu, F, warm.get("Y"), INSIDE, probes)
        if answer is None:
            return Point.nowhere(wide)
        SF, Y, E = answer
        value, weight, basis = objective((F @ SF.T).double())
        left, right = (E[:k], Y[:k]) if basis is None else (basis.T.to(dtype) @ x[:k] for x in (E, Y))
        warm["Y"] = Y
        value = value + share * (probes * Y[k:]).sum() + tau * wide.log().sum()
        weight = torch.cat([weight, weight.new_full((len(probes),), share)])
        left, right = torch.cat([left, E[k:]]), torch.cat([right, Y[k:]])
        up, down = (wide * (side.double().square() * weight[:, None]).sum(0) for side in (left, right))
        up, down = up + tau, (1.0 - INSIDE) * down
        promised = ((up - down).square() / (up + down).clamp(min=torch.finfo(torch.float64).tiny)).sum(1)
        return Point(value, up, down, torch.full_like(value, len(mu)), torch.zeros_like(value), promised < gain)

    better, used, point, _ = descend(evaluate, mu.double()[None], torch.tensor([steps], device=mu.device))
    if not bool(torch.isfinite(point.value)):
        return None
    return mu if int(used) == 1 else better[0].to(dtype)
