"""How long things take here: medians, and the time of one forward-plus-adjoint pass as the unit."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from local_lipschitz.layers.stage import Stage
from local_lipschitz.reading.read import read

SECONDS_A_CUBE = 3.5e-11  # of the joint bound, cubic in the kinks; read on the MNIST network, on average over its ε
MOST_KINKS = 6000  # about as many as dense algebra is used for


def median_time(work: Callable[[], object], device: torch.device, runs: int) -> float:
    """Median wall time of `runs` runs after a warm-up, in seconds."""
    work()
    return statistics.median(_time(work, device) for _ in range(runs))


def pass_time(net: nn.Module, x0: Tensor, runs: int = 5) -> float:
    """Median seconds of a pass: every affine layer and its adjoint, applied once to a single input."""
    return median_time(_a_pass(read(net, x0[:1]).stages, x0), x0.device, runs)


def costly_time(net: nn.Module, x0: Tensor, passes: float) -> float:
    """Seconds, roughly, of a bound at one of many ε: that many passes, and dense algebra on two CPU cores.

    By the fastest of some passes on one thread: other work on the machine does not decide it. Threads that wait for one
    another would make a pass a hundred times as long there.
    """
    stages = read(net, x0[:1]).stages
    work, times, threads = _a_pass(stages, x0), list[float](), torch.get_num_threads()
    torch.set_num_threads(1)
    work()
    while len(times) < 10 and sum(times) < 2.0:
        times.append(_time(work, x0.device))
    torch.set_num_threads(threads)
    kinks = sum(math.prod(stage.out_shape) for stage in stages[:-1])
    return passes * min(times) + SECONDS_A_CUBE * min(kinks, MOST_KINKS) ** 3


def _a_pass(stages: Sequence[Stage], x0: Tensor) -> Callable[[], None]:
    prepared = []
    for stage in stages:
        inputs = {name: torch.randn(1, *shape).to(x0) for name, shape in stage.in_shapes.items()}
        prepared.append((stage.to(x0.dtype), inputs, torch.randn(1, *stage.out_shape).to(x0)))

    @torch.no_grad()
    def run() -> None:
        for stage, inputs, y in prepared:
            stage.apply(inputs)
            stage.adjoint(y)

    return run


def _time(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
