"""A whole small network by hand: loops over numpy arrays, no torch and no code of the project, against local_bound.

Convolution, ReLU, max pooling, batch norm, fully connected layers. The matrices of the layers are written out entry by
entry, and each step of the paper's bound is a line of numpy.
"""

import numpy as np
import pytest
import torch
from torch import nn

from local_lipschitz import global_bound, local_bound

IN, SIDE, OUT, KERNEL = 2, 6, 3, 3  # channels, side of the image, channels of the convolution, its kernel
MADE, POOLED, HIDDEN, CLASSES = 4, 2, 5, 3  # side after the convolution, after the pooling, units


class ByHand:
    """Weights, and the nominal input x0, drawn by numpy."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.kernel = rng.normal(size=(OUT, IN, KERNEL, KERNEL)) / 4
        self.kernel_bias = rng.normal(size=OUT) / 2
        self.gamma, self.beta = rng.uniform(0.5, 2, OUT), rng.normal(size=OUT) / 2
        self.mean, self.variance = rng.normal(size=OUT) / 2, rng.uniform(0.5, 2, OUT)
        self.W1, self.b1 = rng.normal(size=(HIDDEN, OUT * POOLED**2)) / 3, rng.normal(size=HIDDEN)
        self.W2, self.b2 = rng.normal(size=(CLASSES, HIDDEN)) / 2, rng.normal(size=CLASSES)
        self.x0 = rng.normal(size=(IN, SIDE, SIDE))

    def convolution(self) -> tuple[np.ndarray, np.ndarray]:
        """Convolution and batch norm as one matrix and bias: rows in the order (channel, row, column)."""
        A, b = np.zeros((OUT * MADE * MADE, IN * SIDE * SIDE)), np.zeros(OUT * MADE * MADE)
        for o in range(OUT):
            scale = self.gamma[o] / np.sqrt(self.variance[o] + 1e-5)
            for i in range(MADE):
                for j in range(MADE):
                    row = (o * MADE + i) * MADE + j
                    b[row] = scale * (self.kernel_bias[o] - self.mean[o]) + self.beta[o]
                    for c in range(IN):
                        for p in range(KERNEL):
                            for q in range(KERNEL):
                                A[row, (c * SIDE + i + p) * SIDE + j + q] = scale * self.kernel[o, c, p, q]
        return A, b

    def windows(self) -> list[list[int]]:
        """The elements that each 2×2 window with stride 2 reads."""
        result = []
        for c in range(OUT):
            for i in range(POOLED):
                for j in range(POOLED):
                    result.append([(c * MADE + 2 * i + p) * MADE + 2 * j + q for p in (0, 1) for q in (0, 1)])
        return result

    def output(self, x: np.ndarray) -> np.ndarray:
        A, b = self.convolution()
        z = np.maximum(A @ x.flatten() + b, 0.0)
        z = np.array([max(z[k] for k in window) for window in self.windows()])
        return self.W2 @ np.maximum(self.W1 @ z + self.b1, 0.0) + self.b2

    def bound(self, eps: float) -> float:
        """The paper's product: ‖R A D‖ · 1 · ‖R W1 D‖ · ‖W2 D‖, the pooling's windows being disjoint."""
        A, b = self.convolution()
        y0 = A @ self.x0.flatten() + b
        L1, r1 = layer(A, np.ones(A.shape[1]), y0, eps)
        alive, z0 = [], []
        for window in self.windows():
            alive.append(float(any(r1[k] > 0 for k in window)))
            z0.append(max(max(y0[k], 0.0) for k in window))
        y1 = self.W1 @ np.array(z0) + self.b1
        L2, r2 = layer(self.W1, np.array(alive), y1, eps * L1)
        L3 = np.linalg.svd(self.W2 * (r2 > 0), compute_uv=False)[0]
        return float(L1 * L2 * L3)

    def network(self) -> nn.Sequential:
        net = nn.Sequential(
            nn.Conv2d(IN, OUT, KERNEL), nn.BatchNorm2d(OUT), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(OUT * POOLED**2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES),
        )  # fmt: skip
        values = (
            self.kernel, self.kernel_bias, self.gamma, self.beta, self.mean, self.variance, np.array(0),
            self.W1, self.b1, self.W2, self.b2,
        )  # fmt: skip
        net.load_state_dict(dict(zip(net.state_dict(), map(torch.as_tensor, values), strict=True)), assign=True)
        return net.double().eval()


def layer(A: np.ndarray, D: np.ndarray, y0: np.ndarray, eps: float) -> tuple[float, np.ndarray]:
    """‖R A D‖ and r of one affine-ReLU layer whose input moves by at most eps."""
    r = np.zeros(len(A))
    for i, row in enumerate(A):
        h = eps * np.sqrt(sum(a * a * d for a, d in zip(row, D, strict=True)))
        if h == 0.0:
            continue  # the element is constant
        if y0[i] >= 0.0:
            r[i] = 1.0
        elif y0[i] + h > 0.0:
            r[i] = (y0[i] + h) / h
    return float(np.linalg.svd(r[:, None] * A * D, compute_uv=False)[0]), r


@pytest.mark.parametrize("seed", range(5))
def test_local_bound_by_hand(seed):
    hand = ByHand(seed)
    net, x0 = hand.network(), torch.as_tensor(hand.x0)[None]
    assert np.allclose(net(x0).detach().numpy()[0], hand.output(hand.x0), rtol=1e-12, atol=1e-12)
    values = []
    for eps in (1e-6, 0.01, 0.1, 0.5, 2.0, 30.0):
        bound = local_bound(net, x0, eps)
        assert float(bound) == pytest.approx(hand.bound(eps), rel=1e-8)
        values.append(float(bound))
    assert len(set(values)) > 3  # the cases differ: units switch, die and come alive
    assert values == sorted(values)


@pytest.mark.parametrize("seed", range(5))
def test_global_bound_by_hand(seed):
    hand = ByHand(seed)
    expected = np.prod([np.linalg.svd(M, compute_uv=False)[0] for M in (hand.convolution()[0], hand.W1, hand.W2)])
    assert float(global_bound(hand.network(), torch.as_tensor(hand.x0)[None])) == pytest.approx(expected, rel=1e-8)


def test_the_bound_by_hand_is_above_what_happens():
    hand, rng = ByHand(0), np.random.default_rng(0)
    f0 = hand.output(hand.x0)
    for eps in (0.1, 2.0):
        limit = hand.bound(eps)
        for _ in range(100):
            delta = rng.normal(size=hand.x0.shape)
            delta *= eps * rng.uniform() / np.linalg.norm(delta)
            assert np.linalg.norm(hand.output(hand.x0 + delta) - f0) <= limit * np.linalg.norm(delta)
