"""ECLipsE and ECLipsE-Fast: LipSDP taken apart into one small problem a layer.

Paper: Xu & Sivaranjani, NeurIPS 2024, arXiv 2404.04375. Quantity: global. Norm: l2 to l2. Rigorous: yes.
LipSDP's matrix is block tridiagonal, so it is positive semidefinite if its Cholesky blocks are, one layer at a time:
    M_0 = I,   M_k = Λ_k − ¼ Λ_k S_k Λ_k ≻ 0 with S_k = W_k M_{k-1}⁻¹ W_kᵀ,   L² = ‖S_n‖.
ECLipsE chooses each diagonal Λ_k by a small SDP that looks one layer ahead; ECLipsE-Fast takes Λ_k = 2/‖S_k‖ · I.
Every stage's M_k ≻ 0 is checked in float64, Λ_k being scaled down a little (where a solver overshot, a smaller multiple
is feasible), and at the end all multipliers together are proved on LipSDP's whole matrix.
Cost: an SDP of the size of two layers for each layer; the fast form eigenvalues only, seconds for 8 layers of 400.
Here by matrices, for chains of affine layers and ReLU; eclipse_passes.py has the fast form for convolutions.

    python other_methods/eclipse.py --network compnet --form fast
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import scipy.linalg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from other_methods.chain import Array, Chain
from other_methods.common import script
from other_methods.common.certify import is_positive_semidefinite, smallest_rho, spectral_norm
from other_methods.common.preactivation import ULP, gamma
from other_methods.common.reduced import reduce
from other_methods.common.sdp import cvxpy, solve
from other_methods.lipsdp import LARGE

FORMS = ("sdp", "fast")


def eclipse(chain: Chain, form: str = "sdp", solver: str | None = None, time_limit: float | None = None) -> float:
    """The ECLipsE bound ("sdp") or the ECLipsE-Fast bound ("fast") of the global Lipschitz constant, l2 to l2.

    solver: a cvxpy solver for semidefinite programmes; None picks CLARABEL, or SCS for wide layers.
    time_limit: seconds for all solves together, shared equally.
    Raises ValueError for an unknown form or a solver that is not installed, RuntimeError for a failed solve.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; one of {', '.join(FORMS)} is wanted")
    if not chain.hidden:
        return spectral_norm(chain.weights[0])
    if not all(W.any() for W in chain.weights):
        return 0.0  # f is constant
    deadline = None if time_limit is None else time.monotonic() + time_limit
    root = chain.weights[0]  # S_k = root rootᵀ
    multipliers = []
    for k, W_next in enumerate(chain.weights[1:]):
        scale = max(float(np.linalg.norm(root, 2)), 1e-150)  # √‖S_k‖
        Lam = np.ones(len(root))
        if form == "sdp":
            left = None if deadline is None else (deadline - time.monotonic()) / (len(chain.hidden) - k)
            Lam = _stage(root / scale, W_next, solver, left, k + 1)
        Lam, L = _checked(root / scale, Lam, k + 1)  # M_k = L Lᵀ / scale²
        multipliers.append(Lam * (2.0 / scale) / scale)
        root = scale * scipy.linalg.solve_triangular(L, W_next.T, lower=True).T
    rho = smallest_rho(reduce(chain), 0.5 * np.linalg.norm(root, 2) ** 2 * np.concatenate(multipliers))
    if not np.isfinite(rho):
        raise RuntimeError("the multipliers could not be proved in float64: allow the solver more time")
    return float(np.sqrt(rho)) * (1.0 + 4.0 * ULP)


def _stage(root: Array, W_next: Array, solver: str | None, time_limit: float | None, number: int) -> Array:
    """ECLipsE's Λ for S = root rootᵀ of norm 1, as a multiple of 2: max c with Λ − ¼ΛSΛ ⪰ c W_nextᵀ W_next, Λ ≥ 0.

    By a Schur complement that is linear in (Λ, c): [[Λ − c W_nextᵀ W_next, ½ Λ root], [½ rootᵀ Λ, I]] ⪰ 0.
    """
    cp = cvxpy()
    n = len(root)
    if root.shape[1] > n:
        values, vectors = scipy.linalg.eigh(root @ root.T)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
    ahead = W_next / max(float(np.linalg.norm(W_next, 2)), 1e-150)
    lam, c = cp.Variable(n, nonneg=True), cp.Variable()
    Lam = cp.diag(lam)
    side = 0.5 * Lam @ root
    block = cp.bmat([[Lam - c * (ahead.T @ ahead), side], [side.T, np.eye(root.shape[1])]])
    problem = cp.Problem(cp.Maximize(c), [block >> 0])
    solver = solver or ("CLARABEL" if sum(root.shape) <= LARGE else "SCS")
    status = solve(problem, solver, time_limit)
    if lam.value is None or not np.isfinite(lam.value).all() or lam.value.max() <= 0:
        raise RuntimeError(f"layer {number}: {solver} ended as {status!r} without multipliers")
    return 0.5 * lam.value


def _checked(root: Array, Lam: Array, number: int) -> tuple[Array, Array]:
    """(Λ, L): Λ > 0 scaled down until 2Λ − ΛSΛ is positive definite in float64, and its Cholesky factor L.

    With N = Λ − ¼ΛSΛ ⪰ 0 the multiple (1 − t)Λ gives (1 − t)((1 − t)N + tΛ) ≻ 0.
    """
    Lam = np.maximum(Lam, 1e-9 * Lam.max())
    for t in 10.0 ** np.arange(-7.0, 0.0, 0.5):
        scaled = (1.0 - t) * Lam
        side = scaled[:, None] * root
        M = 2.0 * np.diag(scaled) - side @ side.T
        error = gamma(root.shape[1]) * (2.0 * np.diag(scaled) + np.abs(side) @ np.abs(side).T)
        if is_positive_semidefinite(M, error):
            return scaled, scipy.linalg.cholesky(M, lower=True)
    raise RuntimeError(f"layer {number}: its multipliers are infeasible")


def main() -> None:
    options = script.parser(__doc__, eps=False)
    options.add_argument("--form", choices=FORMS, default="sdp", help="default: sdp, that is ECLipsE")
    options.add_argument("--solver", help="as cvxpy calls it (default: CLARABEL, SCS for wide layers)")
    args = options.parse_args()
    problem = script.problem(args)
    compute = partial(eclipse, problem.chain, args.form, args.solver, 0.7 * args.time_limit)
    name = {"sdp": "ECLipsE", "fast": "ECLipsE-Fast"}[args.form]
    method = script.Method(name, "global", "2 to 2", True, compute)
    script.single(method, args.time_limit, f"{problem.name}, all inputs")


if __name__ == "__main__":
    script.run(main)
