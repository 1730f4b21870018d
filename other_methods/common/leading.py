"""The leading singular pairs of a linear map that is too large to decompose, and what is left without them, bounded.

With orthonormal rows U of any origin, M = Uᵀ(U M) + (I − UᵀU)M holds exactly, and so does M = (M Vᵀ)V + M(I − VᵀV). So
the pairs need not be converged for a bound to hold: how large the rest is, is certified by passes of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from local_lipschitz.layers.linear_maps import size
from other_methods.chain import MAX_ENTRIES
from other_methods.common.network import Link, by_passes
from other_methods.common.preactivation import gamma

Product = Callable[[Tensor], Tensor]
RANK = 100  # leading pairs of a map that is too large for all of them
FULL_SIDE = 1024  # the smaller side of a matrix that is decomposed in full
KRYLOV = 2.5  # Krylov vectors for each pair
ELEMENTS = 2**27  # of all Krylov vectors: 1 GB


@dataclass(frozen=True)
class Leading:
    """M = U diag(S) V + rest, with U (rows, r), S (r,), V (r, columns), and ‖rest‖ ≤ `rest`, 0 where r is full.

    Either U = M Vᵀ diag(1/S), with V's rows orthonormal, or V = diag(1/S) UᵀM with U's columns orthonormal; and the
    rest is then M(I − VᵀV), or (I − UUᵀ)M.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    rest: float


def leading(link: Link, left: bool, rank: int = RANK, bounded: bool = True) -> Leading:
    """All singular pairs of the link's map where it fits, else `rank` or fewer. left: U is orthonormal, else V.

    bounded: find a bound of the rest as well, which takes as long as the pairs; else it is inf.
    """
    rows, columns = size(link.out_shape), size(link.in_shape)
    if min(rows, columns) <= FULL_SIDE and rows * columns <= MAX_ENTRIES:
        U, S, V = np.linalg.svd(link.matrix(), full_matrices=False)  # raises LinAlgError if it does not converge
        return Leading(torch.from_numpy(U), torch.from_numpy(S), torch.from_numpy(V), 0.0)
    if not left:
        return _leading_right(link.apply, link.adjoint, link, rank, bounded)
    transposed = _leading_right(link.adjoint, link.apply, link, rank, bounded, turned=True)
    return Leading(transposed.V.mT, transposed.S, transposed.U.mT, transposed.rest)


def _leading_right(
    apply: Product, adjoint: Product, link: Link, rank: int, bounded: bool, turned: bool = False
) -> Leading:
    """Leading pairs with orthonormal V of M, or of Mᵀ for `turned`, from a Krylov space of MᵀM that is kept whole."""
    in_shape, out_shape = (link.out_shape, link.in_shape) if turned else (link.in_shape, link.out_shape)
    m, n = size(out_shape), size(in_shape)

    def forward(v: Tensor) -> Tensor:
        return apply(v.reshape(-1, *in_shape)).reshape(-1, m)

    def back(u: Tensor) -> Tensor:
        return adjoint(u.reshape(-1, *out_shape)).reshape(-1, n)

    steps = max(2, min(int(KRYLOV * rank), ELEMENTS // n, m, n))
    basis = torch.zeros(steps, n, dtype=torch.float64)
    v = torch.randn(1, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    diagonal, beside = [], []
    for k in range(steps):
        basis[k] = v / v.norm()
        v = back(forward(basis[k : k + 1]))
        diagonal.append(float(v[0] @ basis[k]))
        for _ in range(2):
            v = v - (v @ basis[: k + 1].mT) @ basis[: k + 1]
        beside.append(float(v.norm()))
        if beside[-1] <= 1e-12 * max(diagonal):
            break
    T = np.diag(diagonal) + np.diag(beside[:-1][: len(diagonal) - 1], 1) + np.diag(beside[: len(diagonal) - 1], -1)
    vectors = np.linalg.eigh(T)[1][:, ::-1][:, : max(1, min(rank, int(len(diagonal) / KRYLOV)))]
    V = torch.from_numpy(vectors.T.copy()) @ basis[: len(diagonal)]
    del basis
    V = torch.linalg.qr(V.mT)[0].mT.contiguous()  # (r, n)
    U = torch.cat([forward(part) for part in V.split(8)]).mT
    S = U.norm(dim=0).clamp(min=1e-300)
    if not bounded:
        return Leading(U / S, S, V, math.inf)

    def without(x: Tensor) -> Tensor:
        return x - (x @ V.mT) @ V

    # of the products, and twice what makes V and the differences from it inexact
    rounding = link.rounding + 4.0 * gamma(len(V) + n) * float(S.max())
    rest = by_passes(m, n, lambda x: forward(without(x)), lambda y: without(back(y)), rounding, 2e-2)
    return Leading(U / S, S, V, rest)
