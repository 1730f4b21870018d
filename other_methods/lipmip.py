"""LipMIP: the local Lipschitz constant of a ReLU network, exactly, as a mixed-integer linear programme.

Paper: Jordan & Dimakis, NeurIPS 2020, arXiv 2003.01219. Quantity: local, the largest operator norm of the Jacobian on a
box or an l∞ ball (all pairs of points of the set). Norm: inf to inf (the largest l1 norm of the gradient of an output)
or 1 to 1 (the largest l1 norm of the derivative by an input); one or several outputs.
Rigorous: yes; the certified value is the solver's dual bound with its tolerances added. Exact when the gap is closed.
Assumed of HiGHS: its bounds hold up to its feasibility tolerances, set to 1e-9 here, in each variable and row.
Where a pre-activation is exactly 0 either slope is allowed, as in the paper.
Cost: in the worst case exponential in the neurons that may change sign on the set; a time limit ends it with what is
proved by then. The programmes themselves are in lipmip_model.py.

    python other_methods/lipmip.py --network compnet --eps 0.1 --norm inf
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from other_methods.chain import Array, Ball, Chain, Domain
from other_methods.common import script
from other_methods.common.jacobian_bounds import jacobian_bounds
from other_methods.common.network import as_network
from other_methods.common.preactivation import preactivation_bounds
from other_methods.common.preactivation_passes import ranges_of_bounds
from other_methods.common.reduced import reduce
from other_methods.lipmip_model import Programme, backward, forward

NORMS = {"inf": np.inf, "1": 1}


@dataclass(frozen=True)
class MipBound:
    """value ≥ the local Lipschitz constant ≥ lower, where lower = ‖J(x)‖ at the point x (n_0,) of the set.

    per_part: the certified value for each output (norm inf) or each input (norm 1).
    """

    value: float
    lower: float
    x: Array
    per_part: Array

    @property
    def gap(self) -> float:
        """(value − lower) / value: about 0 where the search was completed."""
        return (self.value - self.lower) / self.value if self.value > 0 else 0.0

    def __float__(self) -> float:
        return self.value


def lipmip(chain: Chain, domain: Domain, norm: str = "inf", time_limit: float | None = None) -> MipBound:
    """max ‖J(x)‖ over x in the domain, the operator norm inf → inf or 1 → 1, between two bounds.

    domain: a Box, or a Ball with p = inf. One programme for each output (inf) or input (1), the most promising first;
    one whose interval bound is below a value already reached is not solved. time_limit: seconds for all together.
    """
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; 'inf' or '1' is wanted")
    if isinstance(domain, Ball) and domain.p != np.inf:
        raise ValueError(f"LipMIP works on a box or an l∞ ball; the set is an l{domain.p:g} ball")
    deadline = time.monotonic() + (np.inf if time_limit is None else time_limit)
    bounds = preactivation_bounds(chain, domain)
    net = reduce(chain, bounds)
    if norm == "1":
        tangents = forward(net)
    else:
        network = as_network(chain)
        tangents = backward(net, jacobian_bounds(network, ranges_of_bounds(network, bounds)))
    per_part = np.array([tangent.upper for tangent in tangents])
    lower, x = _norm_at(chain, domain.centre, norm), domain.centre
    for done, i in enumerate(np.argsort(-per_part)):
        if per_part[i] <= lower or len(net.layer) == 0:
            continue
        share = (deadline - time.monotonic()) / (len(per_part) - done)
        proved, points = Programme(net, bounds, domain, tangents[i]).solve(share)
        per_part[i] = min(per_part[i], proved)
        for point in points:
            reached = _norm_at(chain, point, norm)
            lower, x = (reached, point) if reached > lower else (lower, x)
    return MipBound(float(per_part.max()), lower, x, per_part)


def _norm_at(chain: Chain, x: Array, norm: str) -> float:
    """‖J(x)‖, less its rounding; 0 where a pre-activation is 0 and the Jacobian is not defined."""
    if not chain.slopes_certain(x):
        return 0.0
    return float(np.linalg.norm(chain.jacobian(x), NORMS[norm])) * (1.0 - 1e-12)


def main() -> None:
    options = script.parser(__doc__)
    options.add_argument("--norm", choices=NORMS, default="inf", help="operator norm (default: inf, inf to inf)")
    args = options.parse_args()
    problem = script.problem(args)
    domain = Ball(problem.x0, args.eps, np.inf)
    method = script.Method(
        "LipMIP", "local", f"{args.norm} to {args.norm}", True,
        partial(lipmip, problem.chain, domain, args.norm, 0.7 * args.time_limit),
    )  # fmt: skip
    row = script.single(method, args.time_limit, f"{problem.name}, l∞ ball of radius {args.eps:g} about x0")
    print(f"certified {row.result.value:.6g}, reached {row.result.lower:.6g} in the set: gap {row.result.gap:.2g}")


if __name__ == "__main__":
    script.run(main)
