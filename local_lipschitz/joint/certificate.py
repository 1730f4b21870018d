"""What the joint bound rests on: one Cholesky factorisation where groups are few, a certified ‖H‖ where they are many.

docs/joint_bound.md, sections 4 and 6.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from ..joint_operator import JointOperator, at_once
from ..joint_operator.row_errors import SAFE
from ..norms.cholesky import proven_positive_definite, proven_with_border
from ..norms.lanczos import Operator
from ..norms.spectral_norm import lanczos_norms
from ..numerics import UNDERFLOW, of_computed

ATTEMPTS, LATER = 4, 0.2  # with a larger γ each time; of what is left of the failure probability, for later ones
LEAST = 1e-200  # of γ and μ, so that no product underflows or overflows to anything that matters
VECTORS = 10  # Gaussian ones, for the norms of maps that only rounding is multiplied by
CLOSE, TWICE = 0.01, 20  # so many where the tolerance is finer: such norms are found several times smaller
LARGEST = 0.5  # η that γ is raised for
FEW = 0.01  # of the failure probability of a certificate: for these


@dataclass
class Random:
    """Our own random vectors: where they come from, the failure probability of each certificate, and their sum.

    Bounds at different eps, as in the search for a radius, draw different vectors.
    """

    share: float
    tolerance: float
    seed: int
    eps: float = 0.0
    spent: float = 0.0

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(struct.pack("<qd", self.seed, self.eps), digest_size=7).digest()
        self.generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))

    def normal(self, rows: int, columns: int, like: Tensor) -> Tensor:
        return torch.randn(rows, columns, generator=self.generator, dtype=torch.float64, device="cpu").to(like)


def shift(size: int, terms: int) -> float:
    """What `is_proven` needs of room in I − B for a B of this size, with `terms` products in each sum."""
    return size * (of_computed(terms + 12) + 2.0 * of_computed(size + 4)) + UNDERFLOW


def is_proven(gram: Tensor, bound: Tensor, terms: int) -> bool:
    """Whether diag(bound) − (the matrix that was computed as `gram`) ⪰ 0 is certain; in float64, on the CPU.

    gram (k, k) = K diag(1, μ) Kᵀ, the lower triangle of it, with `terms` products in a sum, bound (k,) > 0. Scaled to
    I − B, the diagonal of B is at most 1, so each entry of B is off by γ at most, and the whole by k·γ.
    """
    if not bool((bound > LEAST).all()):
        return False
    return bool(proven_positive_definite(_scaled(gram, bound, len(bound), terms)[None]))


def are_proven(gram: Tensor, mu: Tensor, borders: tuple[Tensor, Tensor], gamma: Tensor, terms: int) -> Tensor:
    """(k,) bool: the same for k matrices of one row more than `gram` (G, G), with the bounds (μ, γ_k).

    borders: their last rows, (k, G) and (k,).
    """
    if not bool((mu > LEAST).all()):
        return torch.zeros_like(gamma, dtype=torch.bool)
    cross, own = borders
    least = gamma.clamp(min=LEAST)
    row = -(cross * mu.rsqrt() * least.rsqrt()[:, None]).cpu()
    corner = (1.0 - own / least - (len(mu) + 1) * of_computed(terms + 12) - UNDERFLOW).cpu()
    proven = proven_with_border(_scaled(gram, mu, len(mu) + 1, terms), row, corner).to(gamma.device)
    zero = (gamma == 0.0) & (own == 0.0) & (cross == 0.0).all(1)
    return (proven & (gamma > LEAST)) | zero


def _scaled(gram: Tensor, bound: Tensor, size: int, terms: int) -> Tensor:
    """I − B for the matrix of `size` rows that this is a part of, less how far it may be off."""
    scale = bound.rsqrt()
    A = (gram * scale[:, None]).mul_(scale).neg_()
    A.diagonal().add_(1.0 - size * of_computed(terms + 12) - UNDERFLOW)
    return A.cpu()  # some libraries for GPUs invert blocks on the diagonal


class Tails:
    """What rounding may add to each of the rows that go back with it, place by place (docs/joint_bound.md, section 6).

    Called like `RowErrors` on the way back of some y: at each place of the network the error is at most
    γ⟨|r|, reach⟩ ≤ γ√n‖reach∘r‖ for the r that a unit y becomes there.
    """

    def __init__(self) -> None:
        self.places: list[Tensor] = []  # (p,) each

    def add(self, r: Tensor, reach: Tensor, n: int) -> None:
        """As in `Errors`."""
        lengths = torch.linalg.vector_norm((r * reach).flatten(1), dim=1, dtype=torch.float64).cpu()
        root = math.sqrt(max(1, int((reach > 0).sum())))
        self.places.append(SAFE * of_computed(n, r.dtype) * (lengths * root + UNDERFLOW))


def certify(
    operator: JointOperator, mu: Tensor, gamma: Tensor, outputs: Tensor | None, random: Random, tolerance: float
) -> Tensor:
    """γ' ≥ γ (K,) for which ‖Δf‖² ≤ γ'‖δ‖² (or, for outputs (K, m), |outputs_k · Δf|² ≤ γ'_k‖δ‖²).

    γ is first divided by (1 − η)², η being what rounding may add to ‖H‖. With certified s ≥ ‖H(γ, μ)‖²: for s ≤ 1 that
    is γ' = γ. For s > 1 the multipliers μ s^k of kink layer k and γ' = γ s^(depth + 1) have s = 1, because T is
    triangular (docs/joint_bound.md, section 4). That power is dear in deep networks, and mostly it was γ that was
    estimated too low: so γ is raised and tried again. In float64.
    """
    exact = operator.to(torch.float64)
    mu, outputs = mu.double(), None if outputs is None else outputs.double()
    gamma = gamma.double().clamp(min=LEAST)
    vectors = VECTORS if tolerance > CLOSE else TWICE
    eta = tail_norms(exact, mu, gamma, outputs, random, random.share, vectors)  # of a larger γ it is no larger
    gamma = gamma / (1.0 - eta.to(gamma).clamp(max=LARGEST)) ** 2  # √s + η ≤ 1 leaves no more room
    best = before = torch.full_like(gamma, torch.inf)
    stuck, share = exact.depth == 0, (1.0 - FEW) * (1.0 - LATER) * random.share
    for attempt in range(1, ATTEMPTS + 1):
        last = stuck or attempt == ATTEMPTS
        norms = lanczos_norms(
            scaled_operator(exact, mu, gamma, outputs, eta), tolerance, share * LATER ** (attempt - 1),
            random.generator, enough=0.0 if exact.depth == 0 else 1.0,
            hopeless=math.inf if last else 1.0 + tolerance,
        )  # fmt: skip
        low, s = norms.estimate.square(), norms.upper.square()
        if exact.depth == 0:
            best = gamma * s
            break
        larger = s.clamp(min=1.0) ** (exact.depth + 1)
        best = torch.fmin(best, gamma * larger)  # not NaN after an overflow
        if last or bool((larger <= 1.0 + 2.0 * tolerance).all()) or not bool(torch.isfinite(s).all()):
            break
        stuck = bool(((s <= 1.0) | (low >= before)).all())  # it is not γ that is too small
        before, gamma = low, torch.where(s > 1.0, gamma * (low.clamp(min=1.0) * (1.0 + tolerance)) ** attempt, gamma)
    random.spent += random.share
    if exact is not operator:
        operator.work += exact.work
    return best


def scaled_operator(
    operator: JointOperator, mu: Tensor, gamma: Tensor, outputs: Tensor | None, eta: Tensor
) -> Operator:
    """H(γ, μ) of the whole output, or a batch of K with γ (K,) of each of the `outputs` (K, m); η: its rounding."""
    n, G = math.prod(operator.in_shape), len(mu)
    scale, root = mu.sqrt(), gamma.sqrt()[:, None]

    def apply(x: Tensor) -> Tensor:
        f, v = operator.forward(x[:, :n], scale * x[:, n:])
        f = f if outputs is None else (f * outputs).sum(1, keepdim=True)
        return torch.cat([f / root, v / scale], 1)

    def adjoint(y: Tensor) -> Tensor:
        f, v = y[:, : y.shape[1] - G] / root, y[:, y.shape[1] - G :] / scale
        delta, w = operator.adjoint(f if outputs is None else f * outputs, v)
        return torch.cat([delta, scale * w], 1)

    m = operator.out_size if outputs is None else 1
    return Operator(len(gamma), m + G, n + G, apply, adjoint, mu.dtype, mu.device, eta.to(mu.device))


def tail_norms(
    operator: JointOperator, mu: Tensor, gamma: Tensor, outputs: Tensor | None, random: Random, share: float,
    vectors: int = VECTORS,
) -> Tensor:
    """η (K,) of H(γ, μ), or of that of each of the `outputs`, except with probability FEW of a certificate's share."""
    K, columns, root = len(gamma), operator.out_size if outputs is None else 1, gamma.sqrt()[:, None, None]
    y = random.normal(K * vectors, columns, mu).reshape(K, vectors, columns) / root
    f = y if outputs is None else y * outputs[:, None]
    return _eta(operator, f.flatten(0, 1), random.normal(K * vectors, len(mu), mu) / mu.sqrt(), share, vectors)


def output_tails(operator: JointOperator, random: Random) -> Tensor:
    """η (1,) of the whole output alone, |y · (Δf − Ñδ − P̃w)| ≤ η‖δ‖ for every unit y."""
    y = random.normal(VECTORS, operator.out_size, operator.like)
    return _eta(operator, y, y.new_zeros(VECTORS, operator.groups), random.share, VECTORS)


def _eta(operator: JointOperator, f: Tensor, v: Tensor, share: float, vectors: int) -> Tensor:
    """From so many Gaussian y for each matrix: the sum over all places of the norm of what is added there.

    For a map M, ‖M y‖ ≥ θ‖M‖ for one of the y, except with probability (θ√(2/π))^vectors.
    """
    sizes, part = [], at_once(operator.widest)
    for some_f, some_v in zip(f.split(part), v.split(part), strict=True):
        tails = Tails()
        operator.adjoint(some_f, some_v, tails)
        sizes.append(torch.stack(tails.places))
    longest = torch.cat(sizes, 1).unflatten(1, (-1, vectors)).amax(2)
    theta = math.sqrt(0.5 * math.pi) * (FEW * share / max(1, len(longest))) ** (1.0 / vectors)
    return longest.sum(0) / theta
