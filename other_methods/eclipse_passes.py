"""ECLipsE-Fast by passes: for layers too large to be matrices, convolutions between poolings.

Paper and quantity as in eclipse.py, whose fast form this is: Λ_k = 2/s_k, M_k = (2/s_k)(I − S_k/(2 s_k)) with any
s_k ≥ ‖S_k‖, S_{k+1} = W_{k+1} M_k⁻¹ W_{k+1}ᵀ, L² = ‖S_n‖. As ‖S_k/(2 s_k)‖ ≤ ½,
    M_k⁻¹ = (s_k/2) Σ_i (S_k/(2 s_k))^i ⪯ (s_k/2) [Σ_{i<J} (S_k/(2 s_k))^i + 2^{1−J} I],
and a larger S_k gives a larger M_k⁻¹, so the sum with its remainder keeps every S_k an upper one. Applied to a vector
that is J passes of the layers before, each of which is J passes of those before it: for two or three layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from local_lipschitz.layers.linear_maps import size
from other_methods.common.network import Link, by_passes

TERMS = 12  # J: the remainder is 2^{1−J} of ‖W‖² s/2
DEEPEST = 3
TOLERANCE = 2e-3

Product = Callable[[Tensor], Tensor]


def eclipse_fast(links: Sequence[Link]) -> float:
    """The ECLipsE-Fast bound of a chain of affine maps with relu between them, l2 to l2; never above AutoLip.

    Rounding: each product with a W errs by at most u‖W‖, and the terms of the sum shrink by ½, so that S_n is off by
    less than 8 u in units of Π‖W‖² for each layer and each layer after it.
    RuntimeError for more than DEEPEST layers.
    """
    if len(links) > DEEPEST:
        raise RuntimeError(f"ECLipsE-Fast by passes nests its sums: at most {DEEPEST} layers between poolings")
    S, s = _first(links[0]), links[0].norm ** 2
    for link in links[1:]:
        S = _next(S, s, link)
        n = size(link.out_shape)
        s = min(by_passes(n, n, S, S, 0.0, TOLERANCE), link.norm**2 * s)
    largest = math.prod(link.norm for link in links)
    lost = 8.0 * len(links) ** 2 * max(link.rounding / link.norm for link in links if link.norm > 0)
    return min(math.sqrt(s) + lost * largest, largest)


def _first(link: Link) -> Product:
    return lambda y: link.apply(link.adjoint(y.reshape(-1, *link.out_shape))).flatten(1)


def _next(S: Product, s: float, link: Link) -> Product:
    """y ↦ W M⁻¹ Wᵀ y, with the sum cut off and its remainder."""

    def apply(y: Tensor) -> Tensor:
        x = link.adjoint(y.reshape(-1, *link.out_shape)).flatten(1)
        total = term = x
        for _ in range(TERMS - 1):
            term = S(term) / (2.0 * s)
            total = total + term
        total = 0.5 * s * (total + 2.0 ** (1 - TERMS) * x)
        return link.apply(total.reshape(-1, *link.in_shape)).flatten(1)

    return apply
