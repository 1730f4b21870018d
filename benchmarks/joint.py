"""The joint bound beside the product bound and a lower bound: values, uncertain groups, seconds, passes, memory.

    python benchmarks/joint.py                                        the MNIST network
    python benchmarks/joint.py --effort 300 --eps 0.1 0.2
    python benchmarks/joint.py --network cifar10 --eps 0.001 0.004 0.01
    python benchmarks/joint.py --network vgg16 --random-weights --eps 1e-4 --starts 0
    python benchmarks/joint.py --figure docs/joint_bound.png          and draw why it is tighter

Prints a row of a Markdown table for each ε. The lower bound is the better one of gradient ascent and ‖J(x0)‖, by power
iteration. "s" is the time that passed, "CPU s" that of all threads. --figure: on the left the bounds against ε, on the
right what each of the two says of the growth ‖Δ‖/‖x − x0‖ from layer to layer, at the last ε.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from local_lipschitz import Bound, joint_bound, local_bound
from local_lipschitz.lower_bounds import gradient_lower_bound
from networks import mnist as network
from script_tools import command_line

POWER_STEPS = 40
COLUMNS = (
    "| network | ε | lower | joint | joint/lower | product | product/joint "
    "| before | groups | way | s | CPU s | passes | GB |"
)


def main() -> None:
    options = command_line.parser(__doc__, network)
    options.add_argument("--eps", type=float, nargs="+", default=[0.001, 0.01, 0.1, 0.2])
    options.add_argument("--effort", type=int, default=60)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument(
        "--starts", type=int, default=8, help="of gradient ascent; 0: only ‖J(x0)‖, for large networks"
    )
    options.add_argument("--figure", type=Path, metavar="FILE")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    network_module, net, x0 = command_line.load_network(args)

    print(f"{COLUMNS}\n|{'---|' * (COLUMNS.count('|') - 1)}")
    jacobian, rows = jacobian_norm(net, x0), []
    for eps in args.eps:
        lower = jacobian
        if args.starts:
            lower = max(lower, float(gradient_lower_bound(net, x0, eps, starts=args.starts)))
        began, cpu = time.perf_counter(), time.process_time()
        joint = joint_bound(net, x0, eps, effort=args.effort, seed=args.seed)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        product = local_bound(net, x0, eps, seed=args.seed)
        rows.append((eps, lower, joint, product))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"| {network_module.name} | {eps:g} | {lower:.4g} | {float(joint):.4g} | {float(joint) / lower:.2f} "
            f"| {float(product):.4g} | {float(product) / float(joint):.1f} | {float(joint.before_refinement):.4g} "
            f"| {joint.groups[0]} | {joint.status[0]} | {seconds:.1f} | {cpu:.1f} | {joint.passes:.0f} "
            f"| {memory:.1f} |",
            flush=True,
        )
    if args.figure:
        draw(rows, args.figure)


def jacobian_norm(net: nn.Module, x0: Tensor) -> float:
    """‖J(x0)‖ from below, by power iteration."""
    v, norm = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0), 0.0
    for _ in range(POWER_STEPS):
        _, u = torch.autograd.functional.jvp(net, x0, v / v.norm())
        _, v = torch.autograd.functional.vjp(net, x0, u)
        norm = float(u.norm())
    return norm


def growth(bound: Bound) -> tuple[list[str], list[float]]:
    """Names of the layers and the bound of ‖Δ‖/‖x − x0‖ after each."""
    names, values, value = [], [], 1.0
    for name, factor in bound.per_layer:
        value *= float(factor)
        if not name.startswith("pool"):
            names.append(name)
            values.append(value)
        else:  # one step with the layer before it, as in the joint bound
            values[-1] = value
    return names, values


def draw(rows: list[tuple[float, float, Bound, Bound]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    eps = [row[0] for row in rows]
    for values, label, style in (
        ([float(row[3]) for row in rows], "product of layer norms", "o-r"),
        ([float(row[2]) for row in rows], "joint bound", "s-b"),
        ([row[1] for row in rows], "lower bound", "^--g"),
    ):
        left.plot(eps, values, style, label=label, markersize=4)
    left.set(xscale="log", yscale="log", xlabel="ε", ylabel="local Lipschitz bound", title="The bounds against ε")
    left.legend()
    _, _, joint, product = rows[-1]
    curves = (product, "product of layer norms", "o-r"), (joint, "joint bound of the layers so far", "s-b")
    for bound, label, style in curves:
        names, values = growth(bound)
        right.plot(range(len(values) + 1), [1.0, *values], style, label=label, markersize=4)
    right.set_xticks(range(len(names) + 1), ["input", *names])
    right.set(yscale="log", ylabel="‖Δ layer‖ / ‖x − x0‖ at most", title=f"From layer to layer, ε = {eps[-1]:g}")
    right.legend()
    for axes in (left, right):
        axes.grid(True, which="both", linewidth=0.3)
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


if __name__ == "__main__":
    command_line.run(main)
