"""Lower bounds to check the methods against: the largest values found of the three quantities, l2 to l2.

anchored: sup ‖f(x) − f(x0)‖/‖x − x0‖ on the ball; local: sup ‖J(x)‖ on the ball; global: sup ‖J(x)‖ over all x.
Each is attained at a point that was visited, so no rigorous bound of that quantity may be below it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from local_lipschitz.lower_bounds import ball_samples, gradient_lower_bound
from other_methods.chain import Array, Chain, as_module

ROUNDS = 12
STEPS = 15  # of an ascent from a random point
WORK = 4e8  # multiplications a round of the search may take


def lower_bounds(chain: Chain, x0: Array, eps: float, seed: int = 0, points: int = 10_000) -> dict[str, float]:
    """The best found of "anchored", "local" and "global", the ball being ‖x − x0‖₂ ≤ eps; in ascending order.

    points: tried in each round of the search, fewer for large networks.
    """
    anchored = float(gradient_lower_bound(as_module(chain), torch.from_numpy(x0)[None], eps, seed=seed))

    def into_ball(x: Array) -> Array:
        length = np.linalg.norm(x - x0, axis=-1, keepdims=True)
        return np.where(length < eps, x, x0 + (x - x0) * ((1.0 - 1e-12) * eps / np.maximum(length, eps)))

    local = largest_jacobian(chain, x0, eps, into_ball, seed, points)
    reach = max(float(np.linalg.norm(x0)), *(float(np.abs(b).max()) for b in chain.biases), eps)
    everywhere = largest_jacobian(chain, x0, 10.0 * reach, lambda x: x, seed, points)
    local = max(anchored, local)
    return {"anchored": anchored, "local": local, "global": max(local, everywhere)}


def lower_bounds_by_passes(net: nn.Module, x0: Tensor, eps: float, seed: int = 0, points: int = 24) -> dict[str, float]:
    """The same for any network, x0 (1, *input shape): quotients of nearby pairs, by ascent from `points` random points.
    """
    net, x0 = copy.deepcopy(net).double(), x0.double()
    generator = torch.Generator().manual_seed(seed)
    anchored = float(gradient_lower_bound(net, x0, eps, seed=seed))

    def largest_quotient(radius: float, near: float) -> float:
        around = ball_samples(x0, radius - near, points, generator)
        return max(
            float(gradient_lower_bound(net, x, near, starts=1, steps=STEPS, seed=seed))
            for x in (x0 + around).split(1)
        )

    local = max(anchored, largest_quotient(eps, 1e-3 * eps))
    reach = 10.0 * max(float(x0.norm()), eps)
    return {"anchored": anchored, "local": local, "global": max(local, largest_quotient(reach, 1e-6 * reach))}


def largest_jacobian(
    chain: Chain, x0: Array, radius: float, project: Callable[[Array], Array], seed: int = 0, points: int = 10_000
) -> float:
    """The largest ‖J(x)‖₂ found by random points within about `radius` of x0 and random steps from the best ones."""
    rng = np.random.default_rng(seed)
    cost = sum(W.size for W in chain.weights) * len(x0)
    count = int(np.clip(WORK / cost, 200, points))
    best_x, best = np.zeros((0, len(x0))), np.zeros(0)
    for round_number in range(ROUNDS):
        if round_number == 0:
            x = x0 + _directions(rng, count, len(x0)) * radius * rng.uniform(size=(count, 1)) ** (1.0 / len(x0))
        else:  # around the best, near and far
            length = radius * 10.0 ** rng.uniform(-4.0, 0.0, size=(count, 1))
            x = best_x[rng.integers(len(best_x), size=count)] + length * _directions(rng, count, len(x0))
        x = project(x)
        norms = np.linalg.norm(chain.jacobian(x), 2, axis=(-2, -1)) * chain.slopes_certain(x)
        best_x, best = np.concatenate([best_x, x]), np.concatenate([best, norms])
        order = np.argsort(-best)[:40]
        best_x, best = best_x[order], best[order]
    return float(best[0]) * (1.0 - 1e-12)


def _directions(rng: np.random.Generator, count: int, size: int) -> Array:
    """Unit vectors (count, size)."""
    x = rng.normal(size=(count, size))
    return x / np.linalg.norm(x, axis=1, keepdims=True)
