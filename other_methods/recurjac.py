"""RecurJac and FastLip: elementwise bounds of the Jacobian over a ball, and the Lipschitz constant that follows.

Papers: RecurJac, Zhang, Zhang & Hsieh, AAAI 2019, arXiv 1810.11783; FastLip, Weng et al., ICML 2018, arXiv 1804.09699.
Quantity: local, the largest ‖J(x)‖_p on the set (for a convex set, all pairs of its points); scalar and vector outputs.
Norm: p to p, p = 1, 2 or inf. Rigorous: yes. As the set shrinks it becomes exact for p = 1, inf and for one output; for
p = 2 and several outputs the paper's ‖max(|L|, |U|)‖₂ becomes the norm of |J|, elementwise.
Cost: FastLip two passes for each input element; RecurJac two for each output, each element that a layer reads and each
layer after it; through convolutions only of what is reached. Where that is too much for a layer (WORK in
common/jacobian_bounds.py), its bounds are those of interval arithmetic from the next layer's: rigorous all the same.

    python other_methods/recurjac.py --network compnet --eps 0.1 --form recurjac
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from other_methods.chain import Ball, Chain, Domain
from other_methods.common import script
from other_methods.common.jacobian_bounds import forward_bounds, jacobian_bounds
from other_methods.common.network import Network, as_network
from other_methods.common.preactivation import ULP, preactivation_bounds
from other_methods.common.preactivation_passes import ranges, ranges_of_bounds

FORMS = ("recurjac", "fastlip")
NORMS = {"1": 1, "2": 2, "inf": np.inf}


def recurjac(
    net: Network | Chain, domain: Domain, p: float = 2, form: str = "recurjac", relaxation: str = "crown"
) -> float:
    """An upper bound of sup ‖J(x)‖_p over the domain, p = 1, 2 or inf. form: "recurjac" or "fastlip".

    domain: a Ball, or for a chain of matrices a Box. relaxation: what bounds pre-activations, "crown" or "interval".
    """
    if p not in NORMS.values():
        raise ValueError(f"p is {p}; 1, 2 or inf is wanted")
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; one of {', '.join(FORMS)} is wanted")
    if isinstance(net, Chain):
        chain, net = net, as_network(net)
        known = ranges_of_bounds(net, preactivation_bounds(chain, domain, relaxation))
    else:
        known = ranges(net, domain, relaxation)
    low, high = jacobian_bounds(net, known)[0] if form == "recurjac" else forward_bounds(net, known)
    largest = torch.maximum(low.abs(), high.abs()).numpy()
    return float(np.linalg.norm(largest, ord=p)) * (1.0 + 8.0 * sum(largest.shape) * ULP)


def main() -> None:
    options = script.parser(__doc__)
    options.add_argument("--form", choices=FORMS, default="recurjac", help="default: recurjac")
    options.add_argument("--norm", choices=NORMS, default="2", help="of the ball, and on both sides (default: 2)")
    options.add_argument("--relaxation", choices=("crown", "interval"), default="crown", help="of pre-activations")
    args = options.parse_args()
    problem, p = script.problem(args), NORMS[args.norm]
    compute = partial(recurjac, problem.network, Ball(problem.x0, args.eps, p), p, args.form, args.relaxation)
    name = {"recurjac": "RecurJac", "fastlip": "FastLip"}[args.form]
    method = script.Method(name, "local", f"{args.norm} to {args.norm}", True, compute)
    script.single(method, args.time_limit, f"{problem.name}, l{args.norm} ball of radius {args.eps:g} about x0")


if __name__ == "__main__":
    script.run(main)
