"""LipLT: the Lipschitz bound of a loop transformation, half of each ReLU being taken as linear.

Paper: Fazlyab, Entesari, Roy & Chellappa, NeurIPS 2023, arXiv 2310.00116 (Certified Robustness via Dynamic Margin
Maximization and Improved Lipschitz Regularization). Quantity: global. Norm: l2 to l2. Rigorous: yes.
Write relu(y) = ½ y + ½ ψ(y); ψ(y) = |y| is 1-Lipschitz. Differences of pre-activations then are
    Δy_k = 2^{1−k} W_k … W_1 Δx + Σ_{j<k} 2^{j−k} W_k … W_{j+1} Δψ_j,   ‖Δψ_j‖ ≤ ‖Δy_j‖,
so ‖Δy_k‖ ≤ m_k ‖Δx‖ with m_k = 2^{1−k} ‖W_k … W_1‖ + Σ_{j<k} 2^{j−k} ‖W_k … W_{j+1}‖ m_j, and m_n bounds f. With
‖W_k … W_j‖ ≤ Π ‖W_i‖ the coefficients add up to one: never above AutoLip. Max pooling counts by its constant.
Cost: a norm for each pair of layers between poolings, by passes: any size.

    python other_methods/liplt.py --network mnist
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from other_methods.common import script
from other_methods.common.network import Link, Network, norm_of


def liplt(net: Network) -> float:
    """The LipLT bound of the global Lipschitz constant, l2 to l2."""
    return net.product(of_segment)


def of_segment(links: Sequence[Link]) -> float:
    """m_n of a chain of affine maps with relu between them."""
    m: list[float] = []
    for k in range(1, len(links) + 1):
        value = 2.0 ** (1 - k) * norm_of(links[:k])
        value += sum(2.0 ** (j - k) * norm_of(links[j:k]) * m[j - 1] for j in range(1, k))
        m.append(value * (1.0 + 1e-15 * (k + 2)))
    return m[-1]


def main() -> None:
    args = script.parser(__doc__, eps=False).parse_args()
    problem = script.problem(args)
    method = script.Method("LipLT", "global", "2 to 2", True, partial(liplt, problem.network))
    script.single(method, args.time_limit, f"{problem.name}, all inputs")


if __name__ == "__main__":
    script.run(main)
