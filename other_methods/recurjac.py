"""RecurJac and FastLip: elementwise bounds of the Jacobian over a ball, and the Lipschitz constant that follows.

Papers: RecurJac, Zhang, Zhang & Hsieh, AAAI 2019, arXiv 1810.11783; FastLip, Weng et al., ICML 2018, arXiv 1804.09699.
Quantity: local, the largest ‖J(x)‖_p on the set (for a convex set, all pairs of its points); scalar and vector outputs.
Norm: p to p, p = 1, 2 or inf. Rigorous: yes. As the set shrinks it becomes exact for p = 1, inf and for one output; for
p = 2 and several outputs the paper's ‖max(|L|, |U|)‖₂ becomes the norm of |J|, elementwise.
Cost: FastLip one pass with matrices; RecurJac O(outputs · n³) for each pair of layers of width n.

    python other_methods/recurjac.py --network compnet --eps 0.1 --form recurjac
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from other_methods.common import script
from other_methods.common.chain import Ball, Chain, Domain
from other_methods.common.preactivation import ULP, Bounds, gamma, preactivation_bounds

FORMS = ("recurjac", "fastlip")
NORMS = {"1": 1, "2": 2, "inf": np.inf}


def recurjac(chain: Chain, domain: Domain, p: float = 2, form: str = "recurjac", relaxation: str = "crown") -> float:
    """An upper bound of sup ‖J(x)‖_p over the domain, p = 1, 2 or inf. form: "recurjac" or "fastlip".

    relaxation: what bounds the pre-activations, "crown" or "interval".
    """
    if p not in NORMS.values():
        raise ValueError(f"p is {p}; 1, 2 or inf is wanted")
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; one of {', '.join(FORMS)} is wanted")
    bounds = preactivation_bounds(chain, domain, relaxation)
    low, high = jacobian_bounds(chain, bounds)[0] if form == "recurjac" else forward_bounds(chain, bounds)[-1]
    largest = torch.maximum(low.abs(), high.abs()).numpy()
    return float(np.linalg.norm(largest, ord=p)) * (1.0 + 8.0 * sum(largest.shape) * ULP)


def jacobian_bounds(chain: Chain, bounds: list[Bounds]) -> list[tuple[Tensor, Tensor]]:
    """RecurJac: L ≤ Y_k ≤ U, elementwise, for Y_k = W_n D_{n-1} … D_k W_k and all slopes D that `bounds` allow.

    Y_k is the Jacobian of f with respect to z_{k-1}: one pair (outputs, n_{k-1}) for k = 1 … n, the first for f itself.
    """
    weights = [torch.from_numpy(W) for W in chain.weights]
    known = [(weights[-1], weights[-1])]
    for k in range(len(weights) - 2, -1, -1):
        high = _recursive_upper(weights, bounds, known, k, +1.0)
        low = -_recursive_upper(weights, bounds, known, k, -1.0)
        known.insert(0, (low, high))
    return known


def _recursive_upper(
    weights: list[Tensor], bounds: list[Bounds], known: list[tuple[Tensor, Tensor]], k: int, sign: float
) -> Tensor:
    """Elementwise upper bound of sign·Y_k, (outputs, n_{k-1}), from the bounds `known` of Y_{k+1} … Y_n.

    Y_k = Y_{k+1} D_k W_k. Where the sign of an entry of Y_{k+1} is certain, its worst slope is known and the product
    with W_k is carried on to Y_{k+2} as one matrix; where it is not, the entry's own bounds are spent here.
    """
    # bounded is Y_{j+1} D_j M, with an M (n_j, n_{k-1}) for each output
    M = (sign * weights[k]).expand(weights[-1].shape[0], -1, -1)
    rounding = torch.zeros_like(M)
    total = torch.zeros(M.shape[0], M.shape[2], dtype=M.dtype)
    for j, (low, high) in enumerate(known, start=k):
        low, high = low[:, :, None], high[:, :, None]  # of Y_{j+1}: (outputs, n_j, 1)
        active, uncertain = (torch.from_numpy(mask)[:, None] for mask in (bounds[j].active, bounds[j].uncertain))
        mixed = uncertain & (low < 0) & (high > 0)
        # a slope in [0, 1] and Y of certain sign: the worst of s·Y·M is Y·M where that is positive, else 0
        rising = uncertain & ~mixed & torch.where(low >= 0, M > 0, M < 0)
        total = total + torch.where(mixed, torch.where(M > 0, high, low) * M, 0.0).sum(1)
        total = total + (torch.maximum(low.abs(), high.abs()) * (rounding + gamma(M.shape[1]) * M.abs())).sum(1)
        M = torch.where(active | rising, M, 0.0)
        if j < len(weights) - 2:
            W = weights[j + 1]
            M, rounding = W @ M, gamma(W.shape[1]) * (W.abs() @ M.abs())
    return total + (weights[-1][:, :, None] * M).sum(1)


def forward_bounds(chain: Chain, bounds: list[Bounds]) -> list[tuple[Tensor, Tensor]]:
    """FastLip: L ≤ W_k D_{k-1} … D_1 W_1 ≤ U, elementwise, from the first layer on; one pair (n_k, n_0) for k = 1 … n.

    The Jacobian of y_k with respect to x, in interval arithmetic; the last pair bounds that of f.
    """
    weights = [torch.from_numpy(W) for W in chain.weights]
    known = [(weights[0], weights[0])]
    for W, bound in zip(weights[1:], bounds, strict=True):
        low, high = known[-1]
        active, uncertain = (torch.from_numpy(mask)[:, None] for mask in (bound.active, bound.uncertain))
        low = torch.where(active, low, torch.where(uncertain, low.clamp(max=0.0), 0.0))
        high = torch.where(active, high, torch.where(uncertain, high.clamp(min=0.0), 0.0))
        positive, negative = W.clamp(min=0.0), W.clamp(max=0.0)
        rounding = gamma(W.shape[1]) * (W.abs() @ torch.maximum(low.abs(), high.abs()))
        known.append((positive @ low + negative @ high - rounding, positive @ high + negative @ low + rounding))
    return known


def main() -> None:
    options = script.parser(__doc__)
    options.add_argument("--form", choices=FORMS, default="recurjac", help="default: recurjac")
    options.add_argument("--norm", choices=NORMS, default="2", help="of the ball, and on both sides (default: 2)")
    options.add_argument("--relaxation", choices=("crown", "interval"), default="crown", help="of pre-activations")
    args = options.parse_args()
    problem, p = script.problem(args), NORMS[args.norm]
    compute = partial(recurjac, problem.chain, Ball(problem.x0, args.eps, p), p, args.form, args.relaxation)
    name = {"recurjac": "RecurJac", "fastlip": "FastLip"}[args.form]
    method = script.Method(name, "local", f"{args.norm} to {args.norm}", True, compute)
    script.single(method, args.time_limit, f"{problem.name}, l{args.norm} ball of radius {args.eps:g} about x0")


if __name__ == "__main__":
    script.run(main)
