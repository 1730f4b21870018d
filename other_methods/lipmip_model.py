"""LipMIP's mixed-integer programme for one output or one input: the network, its derivative, and an l1 norm.

All variables are scaled to about [-1, 1], so that the solver's absolute tolerances mean the same at any radius and for
any size of the weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import Bounds as Range
from scipy.optimize import LinearConstraint, linprog, milp
from scipy.sparse import csr_array, diags_array, eye_array, vstack
from torch import Tensor

from other_methods.chain import Array, Domain
from other_methods.common.preactivation import Bounds, gamma
from other_methods.common.reduced import Reduced

TOLERANCE = 1e-9
HIGHS = {
    "mip_rel_gap": 0.0, "mip_abs_gap": TOLERANCE, "mip_feasibility_tolerance": TOLERANCE,
    "primal_feasibility_tolerance": TOLERANCE, "dual_feasibility_tolerance": TOLERANCE,
    "small_matrix_value": 1e-12,  # the default silently drops coefficients below 1e-9
}  # fmt: skip


@dataclass(frozen=True)
class Tangent:
    """A derivative as a chain of switches: v = v0 + R t, t = a·v for the 0/1 slopes a of the neurons, w = w0 + C t.

    w is the row ∂f_o/∂x of the Jacobian (backward) or its column ∂f/∂x_j (forward); with elementwise bounds of v and w.
    """

    v0: Array
    R: Array
    w0: Array
    C: Array
    v: Bounds
    w: Bounds

    @property
    def upper(self) -> float:
        """‖w‖₁ at most."""
        return float(np.maximum(-self.w.lower, self.w.upper).sum()) * (1.0 + gamma(len(self.w0)))


def backward(net: Reduced, known: list[tuple[Tensor, Tensor]]) -> list[Tangent]:
    """For each output o: v = ∂f_o/∂z, w = ∂f_o/∂x. known: RecurJac's bounds of ∂f/∂x, ∂f/∂z_1, ∂f/∂z_2, …"""
    tangents = []
    for o in range(len(net.output)):
        of_v = [[float(known[k + 1][side][o, i]) for k, i in _neurons(net)] for side in (0, 1)]
        of_w = [known[0][side][o].numpy() for side in (0, 1)]
        tangents.append(_tangent(net.P[o], net.T.T, net.N[o], net.Q.T, Bounds(*map(np.array, of_v)), Bounds(*of_w)))
    return tangents


def forward(net: Reduced) -> list[Tangent]:
    """For each input j: v = ∂y/∂x_j, w = ∂f/∂x_j."""
    anything = [Bounds(np.full(size, -np.inf), np.full(size, np.inf)) for size in (len(net.layer), len(net.output))]
    return [_tangent(net.Q[:, j], net.T, net.N[:, j], net.P, *anything) for j in range(net.inputs)]


def _tangent(v0: Array, R: Array, w0: Array, C: Array, v: Bounds, w: Bounds) -> Tangent:
    """With the given bounds, narrowed by interval arithmetic along the switches: t in [min(0, v), max(0, v)]."""
    low, high = np.zeros_like(v0), np.zeros_like(v0)
    remaining = range(len(v0)) if (np.triu(R) == 0).all() else range(len(v0) - 1, -1, -1)
    v = Bounds(v.lower.copy(), v.upper.copy())
    for i in remaining:
        box = _affine(v0[i : i + 1], R[i : i + 1], low, high)
        v.lower[i], v.upper[i] = max(v.lower[i], box.lower[0]), min(v.upper[i], box.upper[0])
        low[i], high[i] = min(0.0, v.lower[i]), max(0.0, v.upper[i])
    box = _affine(w0, C, low, high)
    return Tangent(v0, R, w0, C, v, Bounds(np.maximum(w.lower, box.lower), np.minimum(w.upper, box.upper)))


def _affine(constant: Array, A: Array, low: Array, high: Array) -> Bounds:
    """constant + A t for low ≤ t ≤ high, outward."""
    positive, negative = np.maximum(A, 0.0), np.minimum(A, 0.0)
    slack = gamma(A.shape[1]) * (np.abs(constant) + np.abs(A) @ np.maximum(-low, high))
    lower, upper = positive @ low + negative @ high, positive @ high + negative @ low
    return Bounds(constant + lower - slack, constant + upper + slack)


class Programme:
    """maximise ‖w‖₁ over x in the set, with the pre-activations, slopes and derivatives that belong to it.

    Columns: ξ (x = centre + halfwidth·ξ), z, slopes a, t, and of those w whose sign is unknown magnitudes s, signs p;
    z, t and s in units of the largest |y|, |v| and |w|.
    """

    def __init__(self, net: Reduced, bounds: list[Bounds], domain: Domain, tangent: Tangent) -> None:
        self.net, self.domain, self.tangent = net, domain, tangent
        n_0, n = net.inputs, len(net.layer)
        l, u = (np.array([bounds[k][side][i] for k, i in _neurons(net)]) for side in (0, 1))  # noqa: E741
        (vl, vu), (wl, wu) = tangent.v, tangent.w
        y_unit, t_unit = np.maximum(-l, u), np.maximum(np.maximum(-vl, vu), 1e-150)
        l, u, vl, vu = l / y_unit, u / y_unit, vl / t_unit, vu / t_unit  # noqa: E741
        mixed = np.flatnonzero((wl < 0) & (wu > 0))
        sizes = [n_0, n, n, n, len(mixed), len(mixed)]
        self.start = np.cumsum([0, *sizes])
        total = self.start[-1]
        X, Z, A, T, S, P = (eye_array(size, total, k=k).tocsr() for size, k in zip(sizes, self.start, strict=False))

        centre, halfwidth = domain.centre, domain.halfwidth
        Y = csr_array(net.Q * halfwidth / y_unit[:, None]) @ X + csr_array(net.T * y_unit / y_unit[:, None]) @ Z
        y_0 = (net.q + net.Q @ centre) / y_unit
        V, v_0 = csr_array(tangent.R * t_unit / t_unit[:, None]) @ T, tangent.v0 / t_unit
        W, w_0 = csr_array(tangent.C * t_unit) @ T, tangent.w0
        self.rows = [
            (Y - Z, -y_0),  # z ≥ y
            (Z - Y - _diagonal(l) @ A, y_0 - l),  # z ≤ y − l(1 − a)
            (Z - _diagonal(u) @ A, np.zeros(n)),  # z ≤ u a
            (T - _diagonal(vu) @ A, np.zeros(n)),  # t ≤ v_u a
            (_diagonal(vl) @ A - T, np.zeros(n)),  # t ≥ v_l a
            (T - V - _diagonal(vl) @ A, v_0 - vl),  # t ≤ v − v_l(1 − a)
            (V - T + _diagonal(vu) @ A, vu - v_0),  # t ≥ v − v_u(1 − a)
        ]
        w_unit = np.maximum(-wl, wu)[mixed]
        wl, wu, M, m_0 = wl[mixed] / w_unit, wu[mixed] / w_unit, _diagonal(1.0 / w_unit) @ W[mixed], w_0[mixed] / w_unit
        self.rows += [
            (S - M - _diagonal(2 * wl) @ P, m_0 - 2 * wl),  # s ≤ w − 2 w_l(1 − p)
            (S + M - _diagonal(2 * wu) @ P, -m_0),  # s ≤ −w + 2 w_u p
        ]
        sign = np.where(tangent.w.lower >= 0, 1.0, -1.0)
        sign[mixed] = 0.0
        self.constant = float(sign @ w_0)
        self.objective = W.T @ sign + S.T @ w_unit
        one, signs = np.ones(n), np.ones(len(mixed))
        self.lower = np.concatenate([-np.ones(n_0), 0 * one, 0 * one, np.minimum(vl, 0.0), 0 * signs, 0 * signs])
        self.upper = np.concatenate([np.ones(n_0), u, one, np.maximum(vu, 0.0), np.maximum(-wl, wu), signs])
        self.integer = np.concatenate([np.zeros(n_0), 0 * one, one, 0 * one, 0 * signs, signs])

    def solve(self, seconds: float) -> tuple[float, list[Array]]:
        """(a certified upper bound of ‖w‖₁, points of the set that may attain it), after `seconds` at most.

        The bound is the solver's own and its tolerances: by weak duality a reduced cost that is off by the tolerance
        costs at most that times the range of its variable.
        """
        if seconds <= 0:
            return np.inf, []
        scale = max(self.tangent.upper, 1e-150)
        matrices, right = zip(*self.rows, strict=True)
        constraints = LinearConstraint(vstack(matrices), -np.inf, np.concatenate(right))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unrecognized options")  # scipy passes them to HiGHS as they are
            result = milp(
                -self.objective / scale, integrality=self.integer, bounds=Range(self.lower, self.upper),
                constraints=constraints, options=HIGHS | {"time_limit": seconds},
            )  # fmt: skip
        if result.status not in (0, 1):
            raise RuntimeError(f"HiGHS ended without a bound: {result.message}")
        points = [] if result.x is None else list(self._points(result.x))
        if result.mip_dual_bound is None or not np.isfinite(result.mip_dual_bound):
            return np.inf, points
        slack = TOLERANCE * (1.0 + float((self.upper - self.lower).sum()))
        return self.constant + scale * (slack - result.mip_dual_bound), points

    def _points(self, columns: Array) -> Iterator[Array]:
        """The solution's x, and a point inside the linear region of its slopes, where there is one.

        The solution tends to lie on the border of its region, where the Jacobian may be that of a neighbour.
        """
        n_0, n = self.net.inputs, len(self.net.layer)
        centre, halfwidth = self.domain.centre, self.domain.halfwidth
        yield centre + halfwidth * np.clip(columns[:n_0], -1.0, 1.0)
        a = np.round(columns[self.start[2] : self.start[3]])
        y_given_z = np.column_stack([self.net.q + self.net.Q @ centre, self.net.Q * halfwidth])
        y = solve_triangular(np.eye(n) - self.net.T * a, y_given_z, lower=True, unit_diagonal=True)
        y *= ((2 * a - 1) / np.maximum(np.abs(y).sum(1), 1e-300))[:, None]
        # with these slopes, the region is y_0 + Y ξ ≥ 0; its depth r is maximised
        depth = np.abs(y[:, 1:]).sum(1, keepdims=True)
        inside = linprog(
            np.append(np.zeros(n_0), -1.0), A_ub=np.hstack([-y[:, 1:], depth]), b_ub=y[:, 0],
            bounds=[(-1, 1)] * n_0 + [(0, None)],
        )  # fmt: skip
        if inside.status == 0 and inside.x[-1] > 0:
            yield centre + halfwidth * inside.x[:n_0]


def _neurons(net: Reduced) -> list[tuple[int, int]]:
    """(ReLU layer, place in it) of each uncertain neuron."""
    return list(zip(net.layer.tolist(), net.index.tolist(), strict=True))


def _diagonal(values: Array) -> csr_array:
    return csr_array(diags_array(values)) if len(values) else csr_array((0, 0))
