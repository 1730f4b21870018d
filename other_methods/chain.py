"""What the methods of matrices read: f = A_n ∘ relu ∘ A_{n-1} ∘ … ∘ relu ∘ A_1 as matrices, and the set of inputs.

A network comes through common/network.py, so whatever is affine there (convolutions, batch norm, average pooling,
flattening) is one explicit matrix here. float64 throughout: float32 weights are converted exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
MAX_ENTRIES = 20_000_000  # of one explicit matrix: 160 MB


@dataclass(frozen=True)
class Chain:
    """Weights (n_k, n_{k-1}) and biases (n_k,) of the affine maps; relu between them."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    def __post_init__(self) -> None:
        shapes = [W.shape for W in self.weights]
        if not shapes or any(len(shape) != 2 or 0 in shape for shape in shapes):
            raise ValueError(f"weights of shape {shapes}; at least one non-empty matrix (n_k, n_k-1) each is wanted")
        if any(after[1] != before[0] for before, after in pairwise(shapes)):
            raise ValueError(f"weights of shape {shapes} do not follow one another: (n_k, n_k-1) each is wanted")
        if [b.shape for b in self.biases] != [(rows,) for rows, _ in shapes]:
            raise ValueError(f"biases of shape {[b.shape for b in self.biases]} do not fit weights of shape {shapes}")
        if not all(np.isfinite(a).all() for a in (*self.weights, *self.biases)):
            raise ValueError("the weights or biases contain NaN or infinite values")

    @property
    def widths(self) -> tuple[int, ...]:
        """Input size, hidden widths, output size."""
        return (self.weights[0].shape[1], *(W.shape[0] for W in self.weights))

    @property
    def hidden(self) -> tuple[int, ...]:
        """The widths of the ReLU layers."""
        return self.widths[1:-1]

    def preactivations(self, x: Array) -> list[Array]:
        """y_1 … y_{n-1}, each (..., n_k), and the output y_n, at x (..., n_0)."""
        ys: list[Array] = []
        for W, b in zip(self.weights, self.biases, strict=True):
            z = np.maximum(ys[-1], 0.0) if ys else x
            ys.append(z @ W.T + b)
        return ys

    def __call__(self, x: Array) -> Array:
        """f(x), (..., n_n) for x (..., n_0)."""
        return self.preactivations(x)[-1]

    def jacobian(self, x: Array) -> Array:
        """The Jacobian at x, (..., n_n, n_0), with slope 0 where a pre-activation is exactly 0."""
        J = np.broadcast_to(self.weights[0], (*x.shape[:-1], *self.weights[0].shape))
        for W, y in zip(self.weights[1:], self.preactivations(x)[:-1], strict=True):
            J = W @ (J * (y > 0)[..., None])
        return J

    def slopes_certain(self, x: Array) -> Mask:
        """True where no pre-activation at x is 0, nor so near to it that rounding may have decided its sign: (...)."""
        certain, z = np.ones(x.shape[:-1], dtype=bool), x
        for W, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            y = z @ W.T + b
            size = np.abs(z) @ np.abs(W).T + np.abs(b)
            certain &= (np.abs(y) > 1e-12 * size).all(-1)
            z = np.maximum(y, 0.0)
        return certain

    def normalised(self) -> tuple[Chain, float]:
        """(g, c) with f = c·g, where g has weights of norm about 1: solvers have absolute tolerances.

        As relu(c y) = c relu(y), a layer's factor can be taken out; powers of two, so that nothing is rounded.
        """
        norms = np.array([np.linalg.norm(W, 2) for W in self.weights])
        units = np.exp2(np.round(np.log2(np.where(norms > 0, norms, 1.0))))
        so_far = np.cumprod(units)
        weights = tuple(W / unit for W, unit in zip(self.weights, units, strict=True))
        return Chain(weights, tuple(b / c for b, c in zip(self.biases, so_far, strict=True))), float(so_far[-1])

    def output(self, i: int) -> Chain:
        """The scalar network f_i."""
        if not 0 <= i < self.widths[-1]:
            raise ValueError(f"output {i} of a network with {self.widths[-1]} outputs")
        return Chain((*self.weights[:-1], self.weights[-1][i : i + 1]), (*self.biases[:-1], self.biases[-1][i : i + 1]))


def as_module(chain: Chain) -> nn.Sequential:
    """The chain as an nn.Sequential in float64."""
    layers: list[nn.Module] = []
    for W, b in zip(chain.weights, chain.biases, strict=True):
        layers += [nn.Linear(W.shape[1], W.shape[0], dtype=torch.float64), nn.ReLU()]
        layers[-2].weight = nn.Parameter(torch.tensor(W))
        layers[-2].bias = nn.Parameter(torch.tensor(b))
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


def random_chain(widths: Sequence[int], seed: int = 0) -> Chain:
    """Random layers as torch draws them (nn.Linear's default), in order, after torch.manual_seed(seed)."""
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(
            f"widths {list(widths)}; an input size, hidden widths and an output size, all positive, are wanted"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(m, n) for m, n in pairwise(widths)]
    return Chain(
        tuple(layer.weight.detach().double().numpy() for layer in layers),
        tuple(layer.bias.detach().double().numpy() for layer in layers),
    )


@dataclass(frozen=True)
class Ball:
    """The inputs {x : ‖x − x0‖_p ≤ eps}, p = 1, 2 or inf."""

    x0: Array
    eps: float
    p: float = 2.0

    def __post_init__(self) -> None:
        if self.p not in (1.0, 2.0, np.inf):
            raise ValueError(f"p is {self.p}; 1, 2 or inf is wanted")
        if not (self.eps > 0 and np.isfinite(self.eps)):
            raise ValueError(f"eps is {self.eps}; a positive, finite radius is wanted")
        if self.x0.ndim != 1 or not np.isfinite(self.x0).all():
            raise ValueError(f"x0 has shape {self.x0.shape}; a finite vector (n_0,) is wanted")

    @property
    def centre(self) -> Array:
        return self.x0

    @property
    def halfwidth(self) -> Array:
        """Of the smallest box around the set, (n_0,)."""
        return np.full_like(self.x0, self.eps)

    def reach(self, A: Array) -> Array:
        """sup of A (x − centre) over the set, row by row: A (..., n_0) gives (...)."""
        dual = {1.0: np.inf, 2.0: 2, np.inf: 1}[self.p]
        return self.eps * np.linalg.norm(A, ord=dual, axis=-1)


@dataclass(frozen=True)
class Box:
    """The inputs {x : lower ≤ x ≤ upper}, elementwise."""

    lower: Array
    upper: Array

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape or self.lower.ndim != 1:
            raise ValueError(f"a box from {self.lower.shape} to {self.upper.shape}; two vectors (n_0,) are wanted")
        if not (np.isfinite([self.lower, self.upper]).all() and (self.lower <= self.upper).all()):
            raise ValueError("a box needs finite lower ≤ upper")

    @property
    def centre(self) -> Array:
        return 0.5 * (self.lower + self.upper)

    @property
    def halfwidth(self) -> Array:
        return np.maximum(self.upper - self.centre, self.centre - self.lower)

    def reach(self, A: Array) -> Array:
        """sup of A (x − centre) over the set, row by row: A (..., n_0) gives (...)."""
        return np.abs(A) @ self.halfwidth


Domain = Ball | Box
