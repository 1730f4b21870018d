"""AutoLip and SeqLip: Lipschitz bounds from the singular value decompositions of the layers.

Paper: Virmaux & Scaman, NeurIPS 2018, arXiv 1805.10965. Quantity: global. Norm: l2 to l2.
AutoLip, the product of the spectral norms: rigorous, cheap. SeqLip splits each layer's singular values between its two
neighbouring ReLU layers and maximises over the slopes of one ReLU layer at a time,
    Π_k max_{σ ∈ [0,1]^n_k} ‖Σ̃_{k+1} V_{k+1}ᵀ diag(σ) U_k Σ̃_k‖,   Σ̃ = Σ at the two ends, Σ^½ between.
A convex function of σ is largest in a corner. Form "exact" enumerates the corners, all 2^n_k of them but for those
that a bound (ours, see _form) rules out: rigorous. Form "greedy" climbs over the corners and may miss the largest: an
ESTIMATE, not a bound. Form "relaxed" (ours) is that bound of the undecided corner: rigorous, never above AutoLip.
Max pooling counts by its constant, and the two ends are those of a run of layers between poolings. Layers that are too
large to decompose have their leading singular pairs taken: "greedy" leaves the rest out, as the paper does, "relaxed"
bounds it (see Factors), "exact" refuses.
Cost: AutoLip and greedy a few decompositions, or passes; exact seconds for layers of 40 neurons, then exponential.

    python other_methods/seqlip.py --network compnet --form exact
    python other_methods/seqlip.py --network alexnet --random-weights --form greedy --time-limit 900
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from other_methods.common import script
from other_methods.common.leading import RANK, leading
from other_methods.common.network import Link, Network
from other_methods.common.preactivation import gamma

FORMS = ("exact", "greedy", "relaxed", "autolip")
TOLERANCE = 1e-9  # relative: a corner that is better by less is not looked for, and the result is raised by as much
MAX_CORNERS = 2_000_000
FLIPS = 1e9  # operations that looking at every single flip once may take


@dataclass(frozen=True)
class Factors:
    """A (r_{k+1}, n) and B (n, r_k) of one ReLU layer, and norms of what the leading pairs leave out of each.

    With the rest, [A; A'] diag(σ) [B, B'] is a matrix of four blocks, and its norm at most that of their norms,
    ‖[[‖AσB‖, ‖A‖b'], [a'‖B‖, a'b']]‖ for ‖A'‖ ≤ a', ‖B'‖ ≤ b'.
    """

    A: Tensor
    B: Tensor
    a_rest: float
    b_rest: float

    def with_rest(self, leading_part: float) -> float:
        """A bound of ‖[A; A'] diag(σ) [B, B']‖ from one of ‖A diag(σ) B‖."""
        if self.a_rest == 0.0 and self.b_rest == 0.0:
            return leading_part
        blocks = torch.tensor(
            [
                [leading_part, _norm(self.A) * self.b_rest],
                [self.a_rest * _norm(self.B), self.a_rest * self.b_rest],
            ]
        )
        return _norm(blocks.double()) * (1.0 + TOLERANCE)


def autolip(net: Network) -> float:
    """Π ‖W_k‖₂, and √overlap for max pooling: an upper bound of the global Lipschitz constant, l2 to l2."""
    return net.product(lambda links: math.prod(link.norm for link in links))


def seqlip(net: Network, form: str = "exact", seed: int = 0, rank: int = RANK) -> float:
    """SeqLip's product: an upper bound of the global Lipschitz constant (l2), but for "greedy", an estimate.

    seed: of the random corners that the greedy search starts from, beside the one with all slopes 1. rank: the number
    of leading pairs of a layer that is too large to decompose.
    RuntimeError where the exact form would have to visit more than MAX_CORNERS corners or partial corners, or where a
    layer is too large to decompose.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; one of {', '.join(FORMS)} is wanted")
    if form == "autolip":
        return autolip(net)

    def of_segment(links: Sequence[Link]) -> float:
        product = math.prod(_largest(pair, form, seed) for pair in factors(links, rank, form != "greedy"))
        if form == "greedy":
            return product
        largest = math.prod(link.norm for link in links)
        # computed decompositions are those of matrices within a rounding of the weights
        terms = sum(link.stage.terms for link in links)
        return min(product + gamma(terms) * len(links) * largest, largest)

    return net.product(of_segment)


def _largest(pair: Factors, form: str, seed: int) -> float:
    if form == "relaxed":
        return pair.with_rest(largest_relaxed(pair.A, pair.B))
    if form == "exact" and (pair.a_rest or pair.b_rest):
        raise RuntimeError(
            f"a layer of width {pair.A.shape[1]:,} is too large to decompose, and to try its corners; "
            "the relaxed form is a bound, the greedy form an estimate"
        )
    greedy = largest_greedy(pair.A, pair.B, seed)
    return largest_exact(pair.A, pair.B, greedy) if form == "exact" else greedy


def factors(links: Sequence[Link], rank: int = RANK, bounded: bool = True) -> list[Factors]:
    """The factors for each ReLU layer within a segment, SeqLip being Π max_σ ‖A diag(σ) B‖; `bounded` as `leading`."""
    pairs, before = [], None
    for k, link in enumerate(links):
        M = leading(link, k > 0, rank, bounded)
        if before is not None:
            # whole singular values at the two ends, their roots between; of the rest as well
            at_end = k == len(links) - 1
            A = (M.S if at_end else M.S.sqrt())[:, None] * M.V
            B = before.U * (before.S if k == 1 else before.S.sqrt())
            a_rest = M.rest if at_end else math.sqrt(M.rest)
            b_rest = before.rest if k == 1 else math.sqrt(before.rest)
            pairs.append(Factors(A, B, a_rest, b_rest))
        before = M
    return pairs


def largest_relaxed(A: Tensor, B: Tensor) -> float:
    """An upper bound of max ‖A diag(σ) B‖ over all corners: of `_form` with nothing decided, or ‖A‖‖B‖."""
    a, b = _norm(A), _norm(B)
    if a == 0.0 or b == 0.0:
        return 0.0
    A, B = A / a, B / b
    t = _balance(A, B, 150 if A.shape[1] <= 2000 else 20)
    nothing = torch.zeros(1, A.shape[0], B.shape[1], dtype=torch.float64)
    bound = float(torch.linalg.eigvalsh(_form(A, B, t, nothing))[0, -1])
    return min(bound, 1.0) * a * b * (1.0 + TOLERANCE)


def largest_greedy(A: Tensor, B: Tensor, seed: int = 0, starts: int = 4) -> float:
    """The largest ‖A diag(σ) B‖ that a climb over the corners finds, from σ = 1 and from random corners."""
    n, generator = A.shape[1], torch.Generator().manual_seed(seed)
    corners = [torch.ones(n)] + [torch.randint(0, 2, (n,), generator=generator) for _ in range(starts - 1)]
    return max(_climb(A, B, sigma.double()) for sigma in corners)


def _climb(A: Tensor, B: Tensor, sigma: Tensor) -> float:
    """Alternate between the top singular pair (u, v) and the best σ for it, then flip single slopes while it helps.

    Single slopes only where there are few of them, for FLIPS.
    """
    value = -1.0
    while True:
        U, S, Vh = torch.linalg.svd(A @ (sigma[:, None] * B), full_matrices=False)
        if float(S[0]) <= value * (1.0 + 1e-12):
            break
        value, best = float(S[0]), sigma
        sigma = ((U[:, 0] @ A) * (B @ Vh[0]) > 0).double()  # uᵀA diag(σ)B v = Σ σ_i (u·a_i)(b_i·v)
    if A.shape[1] * min(A.shape[0], B.shape[1]) ** 3 > FLIPS:
        return value
    M, signs = A @ (best[:, None] * B), 1.0 - 2.0 * best
    while True:
        flipped = torch.cat([_norms(M + _terms(A, B, chunk, signs)) for chunk in torch.arange(len(signs)).split(64)])
        i = int(flipped.argmax())
        if float(flipped[i]) <= value * (1.0 + 1e-12):
            return value
        value, M = float(flipped[i]), M + signs[i] * torch.outer(A[:, i], B[i])
        signs[i] = -signs[i]


def largest_exact(A: Tensor, B: Tensor, known: float) -> float:
    """max ‖A diag(σ) B‖ over all corners σ, and at most a factor 1 + 2·TOLERANCE more; known: a value already found.

    Slopes are decided one after another, the weightiest first; a half-decided corner is dropped when its bound shows
    that no way to complete it beats the best value known.
    """
    n, t = A.shape[1], _balance(A, B)
    order = (A.norm(dim=0) * B.norm(dim=1)).argsort(descending=True)
    rounding = TOLERANCE**1.5 * _norm(A) * _norm(B)
    stack = [(torch.zeros(1, A.shape[0], B.shape[1], dtype=torch.float64), 0)]
    visited, batch = 0, max(1, 2_000_000 // (A.shape[0] * B.shape[1]))
    while stack:
        M, decided = stack.pop()
        i, free = order[decided], order[decided + 1 :]
        M = torch.cat([M, M + torch.outer(A[:, i], B[i])])
        bound = torch.linalg.eigvalsh(_form(A[:, free], B[free], t[free], M))[:, -1]
        visited += len(M)
        if visited > MAX_CORNERS:
            raise RuntimeError(
                f"more than {MAX_CORNERS:,} partial corners of a ReLU layer of width {n} to visit; "
                "use the greedy form, which is an estimate"
            )
        if decided + 1 == n:  # nothing is free: the bound is the norm
            known = max(known, float(bound.max()))
        else:
            M = M[bound > known * (1.0 + TOLERANCE) + rounding]
            stack += [(part, decided + 1) for part in M.split(batch) if len(part)]
    return known * (1.0 + 2.0 * TOLERANCE) + 2.0 * rounding


def _form(A: Tensor, B: Tensor, t: Tensor, M: Tensor) -> Tensor:
    """(batch, r + s, r + s): its largest eigenvalue bounds max_σ ‖M + A diag(σ) B‖, for M (batch, r, s) and any t > 0.

    For unit u, v and p = u·a_i, q = b_i·v: max_σ σpq = (pq + |pq|)/2 ≤ pq/2 + (t p² + q²/t)/4; the sum over i is a
    quadratic form in (u, v)/√2, that of [[G, F], [Fᵀ, H]] with F = M + AB/2, G = A diag(t) Aᵀ/2, H = Bᵀ diag(1/t) B/2.
    The best t is the dual of a semidefinite relaxation.
    """
    F = M + 0.5 * (A @ B)
    G, H = (0.5 * (A * t) @ A.mT).expand(len(M), -1, -1), (0.5 * (B.mT / t) @ B).expand(len(M), -1, -1)
    return torch.cat([torch.cat([G, F], 2), torch.cat([F.mT, H], 2)], 1)


def _balance(A: Tensor, B: Tensor, steps: int = 150) -> Tensor:
    """A t (n,) for which the bound of the undecided corner is small, by Adam on its soft maximum; any t > 0 will do."""
    log_t = (B.norm(dim=1).clamp(min=1e-12) / A.norm(dim=0).clamp(min=1e-12)).log()
    mean, square = torch.zeros_like(log_t), torch.zeros_like(log_t)
    nothing = torch.zeros(1, A.shape[0], B.shape[1], dtype=torch.float64)
    for step in range(1, steps + 1):
        t = log_t.exp()
        eigenvalues, vectors = torch.linalg.eigh(_form(A, B, t, nothing)[0])
        weights = torch.softmax(500.0 * eigenvalues / eigenvalues[-1].clamp(min=1e-300), 0)
        p, q = A.mT @ vectors[: A.shape[0]], B @ vectors[A.shape[0] :]  # (n, r + s)
        gradient = 0.5 * (t[:, None] * p**2 - q**2 / t[:, None]) @ weights
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        log_t = log_t - 0.05 * (mean / (1.0 - 0.9**step)) / ((square / (1.0 - 0.999**step)).sqrt() + 1e-8)
    return log_t.exp()


def _norms(M: Tensor) -> Tensor:
    """Spectral norms of a batch (batch, r, s)."""
    gram = M.mT @ M if M.shape[2] < M.shape[1] else M @ M.mT
    return torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0.0).sqrt()


def _norm(M: Tensor) -> float:
    return float(_norms(M[None]))


def _terms(A: Tensor, B: Tensor, rows: Tensor, signs: Tensor) -> Tensor:
    """signs_i · a_i b_iᵀ for the given i, (len(rows), r, s)."""
    return (signs[rows] * A[:, rows]).mT[:, :, None] * B[rows][:, None, :]


def main() -> None:
    options = script.parser(__doc__, eps=False)
    options.add_argument("--form", choices=FORMS, default="exact", help="default: exact")
    args = options.parse_args()
    problem = script.problem(args)
    name = "AutoLip" if args.form == "autolip" else f"SeqLip, {args.form}"
    compute = partial(seqlip, problem.network, args.form)
    method = script.Method(name, "global", "2 to 2", args.form != "greedy", compute)
    script.single(method, args.time_limit, f"{problem.name}, all inputs")


if __name__ == "__main__":
    script.run(main)
