"""LipSDP: a Lipschitz bound from a semidefinite programme over multipliers of the ReLUs' slope restriction.

Paper: Fazlyab, Robey, Hassani, Morari & Pappas, NeurIPS 2019, arXiv 1906.04893. Quantity: global, or local (all pairs
of points of the set) when a set is given: neurons that cannot change sign on it are then linear. Norm: l2 to l2.
Rigorous: forms "neuron" (a multiplier a neuron) and "layer" (one a layer), because what the solver returns is repaired:
its multipliers are checked in float64 and the smallest ρ that satisfies the matrix inequality with them is taken.
Form "chordal" is "neuron" solved in pieces (Xue, Lindemann, Robey, Hassani, Pappas & Alur, CDC 2022, arXiv 2204.00846):
the matrix is block tridiagonal, so it is positive semidefinite if and only if it is a sum of positive semidefinite
matrices of two neighbouring layers each. Global only: on a set, active neurons link layers that are no neighbours.
Form "network" (a multiplier for each pair of neurons) is UNSOUND: its inequality does not hold for all pairs of points
(Pauli et al., IEEE L-CSS 2022, arXiv 2005.02929), and on compnet two points exceed it. Kept to compare with the paper.
Cost: one SDP of size n_0 + hidden neurons; seconds for 50 hidden neurons, minutes for a few hundred.

    python other_methods/lipsdp.py --network compnet --form neuron
    python other_methods/lipsdp.py --network compnet --form neuron --local --eps 0.1
    python other_methods/lipsdp.py --network compnet --save-weights weights.mat     # for the authors' MATLAB code
    python other_methods/lipsdp.py --weight-path weights.mat
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.io
import scipy.sparse
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from other_methods.chain import Array, Ball, Chain, Domain
from other_methods.common import script
from other_methods.common.certify import repaired_bound, smallest_rho
from other_methods.common.preactivation import preactivation_bounds
from other_methods.common.reduced import Reduced, reduce
from other_methods.common.sdp import cvxpy, solve

FORMS = ("neuron", "chordal", "layer", "network")
MAX_SIDE = 3_000  # rows of the matrix inequality
LARGE = 60  # unknowns in two neighbouring layers above which SCS, first order, beats CLARABEL, interior point


def lipsdp(
    chain: Chain,
    form: str = "neuron",
    domain: Domain | None = None,
    solver: str | None = None,
    time_limit: float | None = None,
) -> float:
    """The LipSDP bound of ‖f(x) − f(x')‖₂ / ‖x − x'‖₂ for all pairs, or all pairs of a convex `domain`.

    Rigorous for "neuron", "chordal" and "layer", at any accuracy of the solver; "network" is the paper's, and no bound.
    solver: a cvxpy solver for semidefinite programmes; None picks CLARABEL for small networks, SCS for larger ones.
    time_limit: seconds for the solver; what it has by then is repaired as well.
    Raises ValueError for an unknown form or a solver that is not installed, RuntimeError for a failed solve or a
    network that is too large.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; one of {', '.join(FORMS)} is wanted")
    if form == "network" and domain is not None:
        raise ValueError("the network form, which is unsound, is kept in its global version only")
    if form == "chordal" and domain is not None:
        raise ValueError("the chordal form has a global version only: active neurons link all layers")
    chain, unit = chain.normalised()
    net = reduce(chain, None if domain is None else preactivation_bounds(chain, domain))
    if len(net.layer) == 0:
        return unit * repaired_bound(net, np.zeros(0))
    if net.output.shape[1] > MAX_SIDE:
        raise RuntimeError(
            f"the semidefinite programme would have a matrix of {net.output.shape[1]:,} rows, {net.inputs:,} inputs "
            f"and {len(net.layer):,} neurons; at most {MAX_SIDE:,} are tried"
        )
    solver = solver or ("CLARABEL" if _largest_block(net, domain) <= LARGE else "SCS")
    gains = np.ones(len(chain.weights)) if form == "network" else _gains(chain)  # pairs of neurons do not scale
    if form == "chordal":
        Lam, status = _solve_chordal(chain, gains, solver, time_limit)
    else:
        Lam, status = _solve(net, gains, form, solver, time_limit)
    bound = float(np.sqrt(smallest_rho(net, Lam))) if form == "network" else repaired_bound(net, Lam)
    if not np.isfinite(bound):
        raise RuntimeError(f"{solver} ended as {status!r} without usable multipliers: allow more time or try another")
    return unit * bound


def _gains(chain: Chain) -> Array:
    """Π ‖W_j‖ up to each layer: the scale of its differences. It is what keeps a deep network's SDP well scaled."""
    norms = [max(float(np.linalg.norm(W, 2)), 1e-12) for W in chain.weights]
    return np.cumprod(np.array(norms))


def _largest_block(net: Reduced, domain: Domain | None) -> int:
    """Size of the largest dense block: two neighbouring layers, or everything where active neurons link others."""
    if domain is not None:
        return net.output.shape[1]
    counts = [net.inputs, *np.bincount(net.layer)]
    return max(m + n for m, n in pairwise(counts))


def _solve(net: Reduced, gains: Array, form: str, solver: str, time_limit: float | None) -> tuple[Array, str]:
    """min ρ subject to M(ρ, Λ) ⪰ 0 (see certify.multiplier_matrix): (the multipliers, the solver's status).

    The multipliers are (n,), or (n, n) for "network".
    """
    cp = cvxpy()
    n_0, n = net.inputs, len(net.layer)
    scale = np.concatenate([np.ones(n_0), gains[net.layer]])  # unknowns (x, z/gain)
    G = scipy.sparse.csr_array(net.hidden * scale / scale[n_0:, None])
    F = net.output * scale / gains[-1]
    S = scipy.sparse.eye_array(n, n_0 + n, k=n_0)  # z = S (x, z)

    rho, constraints = cp.Variable(), []
    if form == "network":
        Lam = cp.Variable((n, n), symmetric=True)  # Σ λ_ii e_i e_iᵀ + Σ λ_ij (e_i − e_j)(e_i − e_j)ᵀ with all λ ≥ 0:
        constraints = [cp.multiply(1.0 - np.eye(n), Lam) <= 0, cp.sum(Lam, axis=1) >= 0]
        half = S.T @ Lam @ (G - S)
        quadratic = half + half.T
    else:
        free = cp.Variable(n if form == "neuron" else len(np.unique(net.layer)), nonneg=True)
        each = np.arange(n) if form == "neuron" else np.unique(net.layer, return_inverse=True)[1]
        quadratic = cp.reshape(_outer_products(S, (G - S).tocsr(), each) @ free, (n_0 + n, n_0 + n), order="F")
    corner = scipy.sparse.diags_array(np.concatenate([np.ones(n_0), np.zeros(n)]))
    problem = cp.Problem(cp.Minimize(rho), [rho * corner - F.T @ F - quadratic >> 0, *constraints])
    status = solve(problem, solver, time_limit)
    value = Lam.value if form == "network" else free.value
    if value is None:
        raise RuntimeError(f"{solver} ended as {status!r} without multipliers")
    if form == "network":
        return gains[-1] ** 2 * value / np.outer(scale[n_0:], scale[n_0:]), status
    return gains[-1] ** 2 * np.maximum(value, 0.0)[each] / scale[n_0:] ** 2, status


def _solve_chordal(chain: Chain, gains: Array, solver: str, time_limit: float | None) -> tuple[Array, str]:
    """The same by cliques: min ρ subject to [[S_{k−1}, −W_kᵀΛ_k], [−Λ_kW_k, 2Λ_k − S_k]] ⪰ 0 for each hidden layer k.

    S_0 = ρI, S_n = WᵀW of the last layer, and the S_k between, symmetric, are free: they share out block k of the
    matrix between its two cliques. In the unknowns (x, z/gain), as above.
    """
    cp = cvxpy()
    before = np.concatenate([[1.0], gains[:-1]])
    weights = [W * (b / g) for W, b, g in zip(chain.weights, before, gains, strict=True)]
    rho = cp.Variable()
    left, constraints, multipliers = rho * np.eye(chain.widths[0]), [], []
    for W, W_next in pairwise(weights):
        last, n = W_next is weights[-1], len(W)
        lam = cp.Variable(n, nonneg=True)
        S = W_next.T @ W_next if last else cp.Variable((n, n), symmetric=True)
        side = -cp.diag(lam) @ W
        constraints.append(cp.bmat([[left, side.T], [side, 2.0 * cp.diag(lam) - S]]) >> 0)
        multipliers.append(lam)
        left = S
    status = solve(cp.Problem(cp.Minimize(rho), constraints), solver, time_limit)
    if any(lam.value is None for lam in multipliers):
        raise RuntimeError(f"{solver} ended as {status!r} without multipliers")
    each = [np.maximum(lam.value, 0.0) / gain**2 for lam, gain in zip(multipliers, gains, strict=False)]
    return gains[-1] ** 2 * np.concatenate(each), status


def _outer_products(S: scipy.sparse.sparray, H: scipy.sparse.sparray, each: NDArray[np.int_]) -> scipy.sparse.csc_array:
    """The matrix that takes λ to vec Σ_i λ_each(i) (s_i h_iᵀ + h_i s_iᵀ), with s_i, h_i the rows of S and H."""
    H, size = H.tocoo(), H.shape[1]
    unit = S.tocoo().col[H.row]
    rows = np.concatenate([unit + size * H.col, H.col + size * unit])
    data, columns = np.tile(H.data, 2), np.tile(each[H.row], 2)
    return scipy.sparse.csc_array((data, (rows, columns)), shape=(size * size, int(each.max()) + 1))


def save_weights(chain: Chain, path: str | Path) -> None:
    """The weights as the MATLAB code of the paper reads them: a .mat file with a 1×n cell array `weights`."""
    cells = np.empty((1, len(chain.weights)), dtype=object)
    cells[0, :] = chain.weights
    script.write(Path(path), lambda file: scipy.io.savemat(file, {"weights": cells}))


def load_weights(path: str | Path) -> Chain:
    """A chain from such a file; it has no biases (the global bound does not depend on them), so they are 0."""
    if not Path(path).is_file():
        raise ValueError(f"no file {path}")
    try:
        cells = scipy.io.loadmat(path, variable_names=["weights"])["weights"]
        if cells.dtype != object:
            raise TypeError(f"'weights' is an array of {cells.dtype}")
        weights = tuple(np.atleast_2d(np.asarray(cell, dtype=np.float64)) for cell in cells.ravel())
    except Exception as error:
        raise ValueError(f"{path} has no cell array 'weights' of matrices ({type(error).__name__}: {error})") from None
    return Chain(weights, tuple(np.zeros(len(W)) for W in weights))


def main() -> None:
    options = script.parser(__doc__)
    options.add_argument("--form", choices=FORMS, default="neuron", help='default: neuron; "network" is unsound')
    options.add_argument("--local", action="store_true", help="on the l2 ball of radius --eps about x0")
    options.add_argument("--solver", help="as cvxpy calls it (default: CLARABEL, SCS for larger networks)")
    options.add_argument(
        "--save-weights", metavar="FILE", nargs="?", const="weights.mat",
        help="write the weights, without biases, to a .mat file (weights.mat) and end",
    )  # fmt: skip
    options.add_argument("--weight-path", metavar="FILE", help="read the weights from such a file instead of a network")
    args = options.parse_args()
    if args.weight_path and args.local:
        raise ValueError("--local needs biases, which the file of --weight-path does not have")
    if args.weight_path:
        chain, name, domain = load_weights(args.weight_path), args.weight_path, None
    else:
        problem = script.problem(args)
        chain, name = problem.chain, problem.name
        domain = Ball(problem.x0, args.eps, 2) if args.local else None
    if args.save_weights:
        save_weights(chain, args.save_weights)
        print(f"wrote {args.save_weights}: the weights of {name}, layers {'-'.join(map(str, chain.widths))}")
        return
    compute = partial(lipsdp, chain, args.form, domain, args.solver, 0.7 * args.time_limit)
    title = f"LipSDP-{args.form.capitalize()}" + (" (unsound)" if args.form == "network" else "")
    where = f"l2 ball of radius {args.eps:g} about x0" if args.local else "all inputs"
    quantity = "local" if args.local else "global"
    method = script.Method(title, quantity, "2 to 2", args.form != "network", compute)
    script.single(method, args.time_limit, f"{name}, {where}")


if __name__ == "__main__":
    script.run(main)
