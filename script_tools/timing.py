"""How long things take here: medians, and the time of one forward-plus-adjoint pass as the unit."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from local_lipschitz.reading.read import read

SECONDS_A_CUBE = 3.5e-11  # read on the MNIST network, on average over its ε
MOST_KINKS = 6000  # about as many as dense algebra is used for


def median_time(work: Callable[[], object], device: torch.device, runs: int) -> float:
    """Median wall time of `runs` runs after a warm-up, in seconds."""
    times = []
    for _ in range(runs + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@torch.no_grad()
def pass_time(net: nn.Module, x0: Tensor, runs: int = 5) -> float:
    """Seconds of a pass: every affine layer and its adjoint, applied once to a single input."""
    work = []
    for stage in read(net, x0[:1]).stages:
        inputs = {name: torch.randn(1, *shape).to(x0) for name, shape in stage.in_shapes.items()}
        work.append((stage.to(x0.dtype), inputs, torch.randn(1, *stage.out_shape).to(x0)))

    def run() -> None:
        for stage, inputs, y in work:
            stage.apply(inputs)
            stage.adjoint(y)

    return median_time(run, x0.device, runs)


def dense_time(net: nn.Module, x0: Tensor) -> float:
    """Seconds, roughly, of the joint bound's dense algebra at one of many ε, on two CPU cores: cubic in the kinks."""
    kinks = sum(math.prod(stage.out_shape) for stage in read(net, x0[:1]).stages[:-1])
    return SECONDS_A_CUBE * min(kinks, MOST_KINKS) ** 3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
