"""A chain with the neurons that cannot change sign on the set folded into the affine maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from other_methods.chain import Array, Chain
from other_methods.common.preactivation import Bounds, gamma


@dataclass(frozen=True)
class Reduced:
    """f with the uncertain neurons only: for every x of the set, with z = relu(y) and in layer order,

        y = q + Q x + T z,    f(x) = r + N x + P z.

    hidden = [Q T], (n, n_0 + n); output = [N P], (n_n, n_0 + n); T is strictly lower triangular by layers.
    The two errors bound the rounding in the entries of the matrices, elementwise. layer (n,): the ReLU layer of each
    neuron, from 0; index (n,): its place in that layer.
    """

    hidden: Array
    output: Array
    q: Array
    r: Array
    hidden_error: Array
    output_error: Array
    layer: NDArray[np.int_]
    index: NDArray[np.int_]

    @property
    def inputs(self) -> int:
        return self.output.shape[1] - len(self.layer)

    @property
    def Q(self) -> Array:
        return self.hidden[:, : self.inputs]

    @property
    def T(self) -> Array:
        return self.hidden[:, self.inputs :]

    @property
    def N(self) -> Array:
        return self.output[:, : self.inputs]

    @property
    def P(self) -> Array:
        return self.output[:, self.inputs :]


def reduce(chain: Chain, bounds: list[Bounds] | None = None) -> Reduced:
    """The reduced form over the set that `bounds` are for; None: every neuron may change sign (over all inputs)."""
    masks = [(np.zeros(n, bool), np.ones(n, bool)) for n in chain.hidden]
    if bounds is not None:
        masks = [(bound.active, bound.uncertain) for bound in bounds]
    inputs = chain.widths[0]
    columns = inputs + sum(int(uncertain.sum()) for _, uncertain in masks)
    # the layer's input as a matrix on (x, z) and a constant, and the rounding in the matrix
    z, error = np.eye(inputs, columns), np.zeros((inputs, columns))
    constant = np.zeros(inputs)
    hidden, errors, q, layer, index = [], [], [], [], []
    at = inputs
    for k, (W, b) in enumerate(zip(chain.weights, chain.biases, strict=True)):
        y, y_constant = W @ z, W @ constant + b
        y_error = np.abs(W) @ error
        if k > 0:  # a product with the identity is exact
            y_error += gamma(W.shape[1]) * (np.abs(W) @ np.abs(z))
        if k == len(chain.hidden):
            break
        active, uncertain = masks[k]
        rows = np.flatnonzero(uncertain)
        hidden.append(y[rows])
        errors.append(y_error[rows])
        q.append(y_constant[rows])
        layer.append(np.full(len(rows), k))
        index.append(rows)
        z, error, constant = y * active[:, None], y_error * active[:, None], y_constant * active
        z[rows, at + np.arange(len(rows))] = 1.0
        at += len(rows)
    empty = np.zeros((0, columns))
    return Reduced(
        np.concatenate([empty, *hidden]), y, np.concatenate([np.zeros(0), *q]), y_constant,
        np.concatenate([empty, *errors]), y_error,
        np.concatenate([np.zeros(0, int), *layer]), np.concatenate([np.zeros(0, int), *index]),
    )  # fmt: skip
