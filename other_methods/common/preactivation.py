"""Bounds of every pre-activation over a set of inputs: intervals and CROWN's linear relaxation.

Papers: interval arithmetic as in Gowal et al., arXiv 1810.12715; CROWN, Zhang et al., NeurIPS 2018, arXiv 1811.00866,
with its adaptive lower slope. Guaranteed: l ≤ y_k(x) ≤ u for every x of the set, in exact arithmetic with the given
float64 weights: the rounding of our own sums is bounded from the magnitudes of the summands and added outward.
Cost: intervals one pass; CROWN a backward pass for every layer, O(n³) for each pair of layers of width n.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from other_methods.chain import Array, Chain, Domain, Mask

ULP = float(np.finfo(np.float64).eps)


class Bounds(NamedTuple):
    """lower ≤ y_k ≤ upper of one ReLU layer, (n_k,) each."""

    lower: Array
    upper: Array

    @property
    def active(self) -> Mask:
        """True where relu is the identity on the whole set."""
        return self.lower >= 0

    @property
    def inactive(self) -> Mask:
        """True where relu is 0 on the whole set."""
        return (self.upper <= 0) & ~self.active

    @property
    def uncertain(self) -> Mask:
        """True where the neuron may change sign."""
        return ~self.active & ~self.inactive


def preactivation_bounds(chain: Chain, domain: Domain, relaxation: str = "crown") -> list[Bounds]:
    """One Bounds for each ReLU layer. relaxation: "interval", or "crown" (intersected with the intervals)."""
    if relaxation not in ("interval", "crown"):
        raise ValueError(f"relaxation is {relaxation!r}; 'interval' or 'crown' is wanted")
    if domain.centre.shape != (chain.widths[0],):
        raise ValueError(f"the set of inputs has {domain.centre.size} elements, the network reads {chain.widths[0]}")
    bounds: list[Bounds] = []
    sizes = [np.abs(domain.centre) + domain.halfwidth]  # |z_k| at most
    for k in range(len(chain.weights) - 1):
        box = _interval(chain, domain, bounds, sizes, k)
        if relaxation == "crown" and k > 0:
            upper = _crown_upper(chain, domain, bounds, sizes, k, +1.0)
            lower = -_crown_upper(chain, domain, bounds, sizes, k, -1.0)
            box = Bounds(np.maximum(box.lower, lower), np.minimum(box.upper, upper))
        bounds.append(box)
        sizes.append(np.maximum(box.upper, 0.0))
    return bounds


def _interval(chain: Chain, domain: Domain, bounds: list[Bounds], sizes: list[Array], k: int) -> Bounds:
    """l, u = W⁺ relu(l) + W⁻ relu(u) + b, …; the first layer exactly, from the shape of the set."""
    W, b = chain.weights[k], chain.biases[k]
    slack = gamma(W.shape[1]) * (np.abs(W) @ sizes[k] + np.abs(b))
    if k == 0:
        middle, reach = W @ domain.centre + b, domain.reach(W)
        return Bounds(middle - reach - slack, middle + reach + slack)
    positive, negative = np.maximum(W, 0.0), np.minimum(W, 0.0)
    low, high = np.maximum(bounds[-1].lower, 0.0), np.maximum(bounds[-1].upper, 0.0)
    return Bounds(positive @ low + negative @ high + b - slack, positive @ high + negative @ low + b + slack)


def _crown_upper(chain: Chain, domain: Domain, bounds: list[Bounds], sizes: list[Array], k: int, sign: float) -> Array:
    """Upper bounds of sign·y_k: replace every relu by the line above or below it, from the last layer back."""
    A, d = sign * chain.weights[k], sign * chain.biases[k]
    slack = gamma(A.shape[1]) * (np.abs(A) @ sizes[k] + np.abs(d))
    for j in range(k - 1, -1, -1):
        (l, u), W, b = bounds[j], chain.weights[j], chain.biases[j]  # noqa: E741
        uncertain, active = bounds[j].uncertain, bounds[j].active
        slope = np.where(uncertain, u / np.where(uncertain, u - l, 1.0), active)
        offset = np.where(uncertain, -l * slope, 0.0)  # relu(y) ≤ slope·y + offset
        below = np.where(uncertain, u > -l, active)  # relu(y) ≥ below·y
        positive, negative = np.maximum(A, 0.0), np.minimum(A, 0.0)
        d = d + positive @ offset
        A = positive * slope + negative * below
        slack = slack + gamma(W.shape[1]) * (np.abs(A) @ (np.abs(W) @ sizes[j] + np.abs(b)) + positive @ offset)
        d, A = d + A @ b, A @ W
    return A @ domain.centre + d + domain.reach(A) + slack + gamma(A.shape[1]) * (np.abs(A) @ sizes[0])


def gamma(terms: int) -> float:
    """Relative rounding error of a sum of this many products, with room for the terms around it."""
    return 4.0 * ULP * (terms + 8)
