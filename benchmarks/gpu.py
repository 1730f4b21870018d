"""Every row of the README that a GPU changes, in one command of a few minutes: values and seconds, saved as it goes.

    python benchmarks/gpu.py --device cpu          once, on any machine: the values to compare with
    python benchmarks/gpu.py                       on a machine with a GPU: the CUDA tests, then the rows
    python benchmarks/gpu.py --data DIR --only "radius" --overwrite

Prints a row of a Markdown table as soon as it is known, with value and seconds of the CPU beside it where
data/benchmarks/cpu.json has them, and writes data/benchmarks/<device>.json; a row that is there is not run again. A row
is not begun once --limit seconds have passed: those that are left are named, and the same command goes on with them.
The certified values of two devices differ by their start vectors and rounding only: by the tolerance of the norms.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import local_lipschitz
import my_config
import networks
from local_lipschitz import certified_radius, joint_bound, local_bound
from script_tools import command_line, results
from script_tools.timing import median_time

RANDOM = ("alexnet", "vgg16")  # their trained weights are a download
TOLERANCE = {"mnist": 2e-3}  # of one spectral norm; else 5e-3, as in the README's table
ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "data" / "benchmarks"

Row = Callable[[torch.device], tuple[str, float]]  # the value to print, seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default=str(my_config.device), help="cpu or cuda (default: as my_config.py says)")
    options.add_argument("--data", type=Path, metavar="DIR", help="where MNIST lies, for the row of 100 images")
    options.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains this")
    options.add_argument("--limit", type=float, default=480.0, help="seconds after which no row begins (default: 480)")
    options.add_argument("--overwrite", action="store_true", help="run again what is there")
    args = options.parse_args()
    device, began = command_line.device(args.device), time.perf_counter()
    if device.type == "cuda" and not args.only:
        subprocess.run([sys.executable, "-m", "pytest", "-n", "4", "-k", "cuda"], cwd=ROOT, check=False)
    path, cpu = FOLDER / f"{device.type}.json", read(FOLDER / "cpu.json")
    done = {} if args.overwrite and not args.only else read(path)
    print(f"\n{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    print("| | value | s | value on the CPU | s |\n|---|---|---|---|---|")
    left = []
    for name, row in rows(args.data):
        if args.only not in name or (name in done and not args.overwrite):
            continue
        if time.perf_counter() - began > args.limit:
            left.append(name)
            continue
        done[name] = measured(row, device)
        write(path, done)
        (value, seconds), (there, cpu_seconds) = done[name], cpu.get(name, ("", float("nan")))
        print(f"| {name} | {value} | {seconds:.3g} | {there} | {cpu_seconds:.3g} |", flush=True)
    if left:
        print(f"\nno time was left for: {'; '.join(left)}")


def rows(data: Path | None) -> Iterator[tuple[str, Row]]:
    """(name, what to run) of every row, cheap ones first."""
    for name in ("mnist", "cifar10", "alexnet", "vgg16"):
        yield f"local bound, {name}, ε = 0.1", partial(local, name)
    for name in ("mnist", "cifar10"):
        yield f"local bound, {name}, 30 ε at once", partial(sweep, name)
    for eps in (0.001, 0.0975, 0.244, 0.609):
        yield f"joint bound, mnist, ε = {eps}", partial(joint, "mnist", eps)
    yield "joint bound, mnist, 8 ε at once, 0.05 to 0.4", joint_at_once
    yield "joint bound, cifar10, ε = 0.001", partial(joint, "cifar10", 0.001)
    for name, eps in (("alexnet", 1e-4), ("alexnet", 1e-3)):
        yield f"joint bound, {name}, ε = {eps}", partial(joint, name, eps)
    yield "radius of the MNIST digit, joint bound", partial(radius, joint_bound, {"effort": 80})
    if hasattr(local_lipschitz, "margin_bound"):
        yield "radius of the MNIST digit, margin bound", partial(radius, local_lipschitz.margin_bound, {})
    if data is not None:
        yield "100 MNIST images, calculate_bounds_many.py", partial(many, data)
    yield "joint bound, vgg16, ε = 0.0001", partial(joint, "vgg16", 1e-4)


def local(name: str, device: torch.device) -> tuple[str, float]:
    net, x0 = load(name, device)
    call = partial(local_bound, net, x0, 0.1, tolerance=TOLERANCE.get(name, 5e-3))
    return f"{float(call()):.5g}", median_time(call, device, 3)


def sweep(name: str, device: torch.device) -> tuple[str, float]:
    """The value is that of the largest ε."""
    net, x0 = load(name, device)
    network = networks.load(name)
    eps = torch.logspace(0, 1, 30, network.eps_max / network.eps_min, dtype=torch.float64) * network.eps_min
    call = partial(local_bound, net, x0, eps.to(device), tolerance=TOLERANCE.get(name, 5e-3))
    return f"{float(call().value[-1]):.5g}", median_time(call, device, 3)


def joint(name: str, eps: float, device: torch.device) -> tuple[str, float]:
    net, x0 = load(name, device)
    bound, seconds = timed(lambda: joint_bound(net, x0, eps), device)
    return f"{float(bound):.5g} ({bound.groups[0]} kinks, {bound.status[0]})", seconds


def joint_at_once(device: torch.device) -> tuple[str, float]:
    """The value is that of the largest ε."""
    net, x0 = load("mnist", device)
    bound, seconds = timed(lambda: joint_bound(net, x0, torch.linspace(0.05, 0.4, 8, device=device)), device)
    return f"{float(bound.value[-1]):.5g} ({bound.groups[0]} to {bound.groups[-1]} kinks)", seconds


def radius(bound: Callable, bound_options: dict, device: torch.device) -> tuple[str, float]:
    net, x0 = load("mnist", device)
    result, seconds = timed(lambda: certified_radius(net, x0, bound, rtol=0.05, **bound_options), device)
    return f"{float(result.radius):.4g} ({int(result.evaluations)} evaluations)", seconds


def many(data: Path, device: torch.device) -> tuple[str, float]:
    """The value is the number of images with a certified radius; results as from the script itself, begun anew."""
    began = time.perf_counter()
    script = [sys.executable, "calculate_bounds_many.py", "--count", "100", "--overwrite"]
    script += ["--data", str(data.resolve()), "--device", device.type]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return next((line for line in said if "median" in line), said[-1]), time.perf_counter() - began


def load(name: str, device: torch.device) -> tuple[torch.nn.Module, torch.Tensor]:
    network = networks.load(name)
    return network.net(random_weights=name in RANDOM, seed=0).to(device), network.x0.to(device)


def timed(work: Callable, device: torch.device) -> tuple:
    """(what it returns, seconds) of one run."""
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - began


def measured(row: Row, device: torch.device) -> tuple[str, float]:
    """The row; what went wrong is its value, so that the rows after it still run."""
    try:
        return row(device)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", float("nan")


def read(path: Path) -> dict[str, tuple[str, float]]:
    return {name: tuple(row) for name, row in json.loads(path.read_text()).items()} if path.exists() else {}


def write(path: Path, done: dict[str, tuple[str, float]]) -> None:
    with results.replacing(path) as beside:
        beside.write_text(json.dumps(done, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    command_line.run(main)
