"""What the scripts here share: the command line, a time limit that holds, the table, and files that are whole."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from other_methods.chain import Array, Chain, as_module, random_chain
from other_methods.common.network import Network, matrices_of, network_of
from script_tools import command_line, results

START_UP = 300.0  # seconds that a process may take to begin
SLOW = ("torch", "scipy.optimize", "scipy.io", "matplotlib.pyplot")
LONGEST = 1e6  # time limit, seconds: more is no limit, and what waits for a process takes no more than 2^31 ms


@dataclass(frozen=True)
class Problem:
    """A network, its nominal input (1, *input shape), and what it is called."""

    module: nn.Module
    input: Tensor
    name: str

    @cached_property
    def network(self) -> Network:
        """The network as linear maps and units."""
        return network_of(self.module, self.input)

    @cached_property
    def chain(self) -> Chain:
        """The network as matrices; UnsupportedLayerError or ValueError, with the reason, where it is none."""
        return matrices_of(self.network)

    @property
    def x0(self) -> Array:
        """The nominal input, flattened."""
        # a copy: handing a tensor to another process moves it to shared memory, away from under its numpy views
        return self.input.flatten().double().cpu().numpy().copy()


def problem_of(chain: Chain, name: str) -> Problem:
    """A chain of matrices, about 0."""
    return Problem(as_module(chain), torch.zeros(1, chain.widths[0], dtype=torch.float64), name)


@dataclass(frozen=True)
class Converted:
    """A value in l2, and those in the method's own norms that it comes from."""

    value: float
    own: Mapping[str, float]

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Method:
    """One number to compute: what it is called, what it bounds and how. `compute` gives something float() takes."""

    name: str
    quantity: str  # "anchored", "local" or "global"
    norm: str
    rigorous: bool
    compute: Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """What came of it; result None and the reason in `failure` where there is no number."""

    method: Method
    result: Any
    seconds: float
    failure: str = ""

    @property
    def value(self) -> float | None:
        return None if self.result is None else float(self.result)

    @property
    def own(self) -> dict[str, float]:
        """The values in the method's own norms; {} where there is none."""
        if isinstance(self.result, Converted):
            return dict(self.result.own)
        return {} if self.value is None else {self.method.norm: self.value}


def parser(description: str | None, eps: bool = True) -> argparse.ArgumentParser:
    """The options that every method has."""
    formatter = argparse.RawDescriptionHelpFormatter
    options = command_line.Parser(description=description, formatter_class=formatter, allow_abbrev=False)
    command_line.network_options(options, "compnet")
    options.add_argument("--input", metavar="FILE", help="nominal input: an image, or an array in a .npy file")
    options.add_argument("--widths", type=int, nargs="+", metavar="N", help="instead: random layers, as in 5 20 20 3")
    options.add_argument("--seed", type=command_line.seed, default=0, help="of random layers and weights (default: 0)")
    if eps:
        options.add_argument("--eps", type=float, default=0.1, help="radius about x0, of local bounds (default: 0.1)")
    options.add_argument("--time-limit", type=float, default=60.0, metavar="S", help="seconds a method (default: 60)")
    return options


def check_options(args: argparse.Namespace) -> None:
    """ValueError for a radius or a time limit that is none."""
    if not 0 < getattr(args, "eps", 1.0) < np.inf:
        raise ValueError(f"--eps {args.eps:g}; a positive, finite radius is wanted")
    if not 0 < args.time_limit <= LONGEST:
        raise ValueError(f"--time-limit {args.time_limit:g}; a number of seconds, at most {LONGEST:g}, is wanted")


def problem(args: argparse.Namespace) -> Problem:
    """The network that the options name."""
    check_options(args)
    if args.widths is not None:
        return problem_of(random_chain(args.widths, args.seed), "random " + "-".join(map(str, args.widths)))
    network = command_line.chosen_network(args)
    return Problem(command_line.load_net(network, args), command_line.nominal_input(network, args), network.name)


def limited(seconds: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """(function(*args, **kwargs), the seconds it took) in a process of its own, which is killed when the time is up.

    The process uses one thread, unless OMP_NUM_THREADS says otherwise, so that times compare. Start-up does not count.
    TimeoutError when the time is up, RuntimeError where the process dies; what the function raises is raised here.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "forkserver" in multiprocessing.get_all_start_methods():
        context: Any = multiprocessing.get_context("forkserver")
        # what is slow to import, once and not in every process
        context.set_forkserver_preload(["cvxpy", *(name for name in SLOW if name in sys.modules)])
    else:
        context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, function, args, kwargs), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(START_UP):
            raise RuntimeError("the process of a method did not start")
        here.recv()
        if not here.poll(seconds):
            raise TimeoutError(f"no result within {seconds:g} s: allow more (--time-limit) or take a smaller network")
        outcome, took = here.recv()
    except EOFError:
        process.join()
        code = process.exitcode
        why = "; out of memory?" if code == -signal.SIGKILL else ""
        raise RuntimeError(f"the process ended without a result (exit code {code}){why}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome, took


def _work(connection: Connection, function: Callable[..., Any], args: tuple, kwargs: dict) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the script, which then ends this process
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    connection.send("ready")
    start = time.perf_counter()
    try:
        outcome = function(*args, **kwargs)
    except Exception as error:
        outcome = error
    connection.send((outcome, time.perf_counter() - start))


def measure(method: Method, time_limit: float) -> Row:
    """The method's row; a failure that leaves others be (no time, too large, a solver's) is kept in it."""
    start = time.perf_counter()
    try:
        return Row(method, *limited(time_limit, method.compute))
    except (TimeoutError, RuntimeError, MemoryError, np.linalg.LinAlgError) as error:
        return Row(method, None, time.perf_counter() - start, " ".join(str(error).split()))


def single(method: Method, time_limit: float, title: str) -> Row:
    """The method's row, printed under a title; ValueError with the reason where there is no value."""
    row = measure(method, time_limit)
    if row.value is None:
        raise ValueError(f"{method.name}: {row.failure}")
    header, line = layout([method])
    print(title, header, line(row), sep="\n")
    return row


def table(methods: Sequence[Method], time_limit: float, lower: Mapping[str, float]) -> list[Row]:
    """Compute the methods one after another and print each row as soon as it is known.

    lower: for each quantity the largest value found of it, printed beside what bounds it.
    """
    header, line = layout(methods, lower)
    print(header, flush=True)
    rows = []
    for method in methods:
        rows.append(measure(method, time_limit))
        print(line(rows[-1]), flush=True)
    return rows


def layout(methods: Sequence[Method], lower: Mapping[str, float] | None = None) -> tuple[str, Callable[[Row], str]]:
    """The header of a table of these methods, and what makes a line of a row."""
    name, norm = (max(map(len, column)) for column in zip(*((m.name, m.norm) for m in methods), strict=True))

    def line(row: Row) -> str:
        m, value = row.method, "-" if row.value is None else f"{row.value:.6g}"
        found = "" if lower is None else f"{lower[m.quantity]:>10.6g}  "
        kind = "rigorous" if m.rigorous else "estimate"
        return (
            f"{m.name:<{name}}  {m.quantity:<8}  {m.norm:<{norm}}  {kind:<8}  {value:>10}  {found}{row.seconds:>8.2f}  "
            f"{row.failure}"
        ).rstrip()

    found = "" if lower is None else f"{'found':>10}  "
    return (
        f"{'method':<{name}}  {'bounds':<8}  {'norm':<{norm}}  {'kind':<8}  {'value':>10}  {found}{'seconds':>8}",
        line,
    )


def check_writable(path: Path) -> None:
    """OSError, which names it, unless a file can be written there."""
    if path.is_dir():
        raise OSError(f"{path} cannot be written (it is a folder)")
    if not path.exists():
        write(path, lambda file: None)
        path.unlink()


def write(path: Path, into: Callable[[BinaryIO], object]) -> None:
    """A file that is there whole or as it was: `into` writes it beside its place. OSError names it if it cannot be."""
    with results.replacing(path) as beside, beside.open("wb") as file:
        into(file)


def run(main: Callable[[], None]) -> None:
    """Call main; what a user can mend becomes one clear line on stderr and exit status 2."""

    def interruptible() -> None:
        try:
            main()
        except KeyboardInterrupt:
            print(f"{sys.argv[0]}: interrupted", file=sys.stderr)
            sys.exit(130)

    command_line.run(interruptible)
