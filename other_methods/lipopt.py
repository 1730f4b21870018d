"""LiPopt: the Lipschitz constant as a polynomial maximum, bounded by a linear programme.

Paper: Latorre, Rolland & Cevher, ICLR 2020, arXiv 2004.08688. The gradient of a scalar network is a polynomial in the
slopes s of its ReLUs, and its l1 norm the maximum of p(s, t) = Σ_j t_j ∂f/∂x_j over s in [0, 1]^n, t in [-1, 1]^n_0.
Krivine's certificate λ − p = Σ c·Π(factors s, 1 − s, 1 ± t), c ≥ 0, gives λ ≥ p; the first degree that can work is
that of p, the number of layers. Taken are the products of factors along a path of the network, one of each layer, which
is the sparse version. Dual to it is the programme solved here, over moments y ≈ E[t_j Π s] that look like those of a
distribution on each path.
Quantity: global, or local (all pairs of points of the set) when a set is given: neurons that cannot change sign on it
then have a fixed slope, biases included (the original ignores them). Norm: inf to |·|, scalar outputs.
Rigorous: yes, by weak duality from whatever dual solution the solver returns, recomputed in float64.
Cost: one LP with n_0·Π n_k·2^depth rows: small networks only.

    python other_methods/lipopt.py --network compnet --output 0 --local --eps 0.1
"""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, eye_array, hstack, kron, vstack

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from other_methods.chain import Array, Ball, Chain, Domain
from other_methods.common import script
from other_methods.common.preactivation import gamma, preactivation_bounds
from other_methods.common.reduced import Reduced, reduce

MAX_ENTRIES = 20_000_000  # of the programme's matrix


def lipopt(chain: Chain, domain: Domain | None = None, time_limit: float | None = None) -> float:
    """An upper bound of |f(x) − f(x')| / ‖x − x'‖_inf for all pairs of points, or all pairs of a convex `domain`.

    chain: with one output (`chain.output(i)`). time_limit: seconds for the solver; TimeoutError when they are up.
    ValueError for several outputs, RuntimeError where the programme gets too large or HiGHS fails.
    """
    if chain.widths[-1] != 1:
        raise ValueError(f"LiPopt bounds scalar networks; this one has {chain.widths[-1]} outputs: take one of them")
    net = reduce(chain, None if domain is None else preactivation_bounds(chain, domain))
    p = polynomial(net)
    # rounding in p: its terms are products of entries that are each known to within their error
    size = polynomial(replace(net, hidden=np.abs(net.hidden), output=np.abs(net.output)))
    larger = polynomial(
        replace(net, hidden=np.abs(net.hidden) + net.hidden_error, output=np.abs(net.output) + net.output_error)
    )
    rounding = float((larger - size + 2.0 * gamma(len(p.shape)) * larger).sum())
    return _maximum(p, moment_inequalities(p.shape), time_limit) + rounding


def polynomial(net: Reduced) -> Array:
    """The coefficients p[j, i_1, …, i_L] of Π_k s_{k, i_k} in ∂f/∂x_j; the index n_k says "none of layer k".

    The layers are those with neurons that may change sign. f = N x + P z with z = s (Q x + T z), multiplied out.
    """
    layers = [np.flatnonzero(net.layer == k) for k in np.unique(net.layer)]

    def gradient(row: Array, direct: Array, depth: int) -> Array:
        """Of direct·x + row·z, z of the first `depth` layers only: (n_0, n_1 + 1, …, n_depth + 1)."""
        if depth == 0:
            return direct
        through = [row[i] * gradient(net.T[i], net.Q[i], depth - 1) for i in layers[depth - 1]]
        return np.stack([*through, gradient(row, direct, depth - 1)], axis=-1)

    return gradient(net.P[0], net.N[0], len(layers))


def moment_inequalities(shape: tuple[int, ...]) -> csr_array:
    """B, one row for each path (i_1, …, i_L) and each of its 2^L outcomes e: B y = E[Π s^e (1 − s)^{1−e}] ≥ 0.

    y are the moments E[Π_k s_{k, i_k}], flattened from (n_1 + 1, …, n_L + 1).
    """
    none = [size - 1 for size in shape[1:]]
    paths = np.array(list(itertools.product(*map(range, none))), dtype=int).reshape(math.prod(none), len(none))
    if len(paths) * 3 ** len(none) * 4 * shape[0] > MAX_ENTRIES:
        raise RuntimeError(
            f"the linear programme would have a matrix of more than {MAX_ENTRIES:,} entries; it is for small networks"
        )
    rows, columns, data = [], [], []
    outcomes = list(itertools.product((0, 1), repeat=len(none)))
    for e, outcome in enumerate(outcomes):
        for chosen in outcomes:  # Π (1 − s) multiplied out
            if all(a >= b for a, b in zip(chosen, outcome, strict=True)):
                index = np.where(np.array(chosen, dtype=bool), paths, none)
                columns.append(np.ravel_multi_index(tuple(index.T), shape[1:]) if len(none) else np.zeros(1, dtype=int))
                rows.append(np.arange(len(paths)) * len(outcomes) + e)
                data.append(np.full(len(paths), (-1.0) ** (sum(chosen) - sum(outcome))))
    size = (len(paths) * len(outcomes), math.prod(shape[1:]))
    return csr_array((np.concatenate(data), (np.concatenate(rows), np.concatenate(columns))), shape=size)


def _maximum(p: Array, B: csr_array, time_limit: float | None) -> float:
    """max Σ_j p_j·y_j over moments y of the slopes and y_j ≈ E[t_j Π s] with |B y_j| ≤ B y, bounded by weak duality.

    For any λ ≥ 0 the maximum of c·y subject to A y ≤ 0 is at most that of (c − Aᵀλ)·y over the box of the moments.
    """
    n_0, size = len(p), B.shape[1]
    A = vstack([hstack([kron(np.ones((n_0, 1)), -B), sign * kron(eye_array(n_0), B)]) for sign in (1.0, -1.0)]).tocsr()
    c = np.concatenate([np.zeros(size), p.ravel()])
    scale = max(float(np.abs(c).sum()), 1e-150)
    low, high = np.concatenate([np.zeros(size), -np.ones(n_0 * size)]), np.ones((n_0 + 1) * size)
    low[size - 1] = 1.0  # E[1] = 1
    if time_limit is not None and time_limit <= 0:
        raise TimeoutError("no time is left for the solver")
    options = {"run_crossover": "off"} | ({} if time_limit is None else {"time_limit": time_limit})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unrecognized options")  # scipy passes them to HiGHS as they are
        result = linprog(
            -c / scale, A_ub=A, b_ub=np.zeros(A.shape[0]), bounds=np.column_stack([low, high]),
            method="highs-ipm", options=options,
        )  # fmt: skip
    if result.status == 1:
        raise TimeoutError(f"the solver did not finish in the {time_limit:.3g} s that were left for it")
    if result.ineqlin is None or result.ineqlin.marginals is None:
        raise RuntimeError(f"HiGHS ended without a dual solution: {result.message}")
    Lam = scale * np.maximum(-result.ineqlin.marginals, 0.0)
    rest = c - A.T @ Lam
    rounding = gamma(int(np.diff(A.tocsc().indptr).max())) * float((np.abs(c) + abs(A).T @ Lam).sum())
    return float(np.maximum(rest * low, rest * high).sum()) + rounding


def main() -> None:
    options = script.parser(__doc__)
    options.add_argument("--output", type=int, default=0, metavar="I", help="output to bound (default: 0)")
    options.add_argument("--local", action="store_true", help="on the l∞ ball of radius --eps about x0")
    args = options.parse_args()
    problem = script.problem(args)
    domain = Ball(problem.x0, args.eps, np.inf) if args.local else None
    where = f"l∞ ball of radius {args.eps:g} about x0" if args.local else "all inputs"
    compute = partial(lipopt, problem.chain.output(args.output), domain, 0.7 * args.time_limit)
    method = script.Method("LiPopt", "local" if args.local else "global", "inf to |.|", True, compute)
    script.single(method, args.time_limit, f"{problem.name}, output {args.output}, {where}")


if __name__ == "__main__":
    script.run(main)
