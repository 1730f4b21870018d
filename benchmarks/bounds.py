"""What one certified local_bound costs: seconds, and forward-plus-adjoint passes of the same layers.

    python benchmarks/bounds.py                      the MNIST network, one thread
    python benchmarks/bounds.py --network vgg16 --random-weights --threads 2 --eps 0.1 --tolerance 5e-3 --points 0

Prints a row of a Markdown table: medians of several runs. "pass" is one application of every affine layer and of its
adjoint to a single input; "overhead" is the time of the bound over the time of its passes.
"""

from __future__ import annotations

import platform
import resource
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from local_lipschitz import local_bound
from networks import mnist as network
from script_tools import command_line
from script_tools.timing import median_time, pass_time


def main() -> None:
    options = command_line.parser(__doc__, network)
    options.add_argument("--eps", type=float, default=0.1)
    options.add_argument("--points", type=int, default=30, help="ε in the batch, from the network's range; 0: no batch")
    options.add_argument("--tolerance", type=float, default=2e-3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--runs", type=int, default=5)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    network_module, net, x0 = command_line.load_network(args)

    bound = local_bound(net, x0, args.eps, tolerance=args.tolerance)
    single = median_time(lambda: local_bound(net, x0, args.eps, tolerance=args.tolerance), x0.device, args.runs)
    a_pass = pass_time(net, x0, max(20, args.runs))
    each = float("nan")
    if args.points:
        eps = torch.logspace(0, 1, args.points, network_module.eps_max / network_module.eps_min).to(x0)
        eps = eps * network_module.eps_min
        batch = median_time(lambda: local_bound(net, x0, eps, tolerance=args.tolerance), x0.device, args.runs)
        each = batch / args.points
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    machine = torch.cuda.get_device_name() if x0.is_cuda else f"{platform.machine()}, {args.threads} thread(s)"

    print(
        f"| network | machine | one bound | passes | one pass | overhead | each of {args.points} ε at once | memory |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {network_module.name} | {machine} | {1e3 * single:.1f} ms | {bound.passes:.0f} | {1e3 * a_pass:.2f} ms "
        f"| {single / (bound.passes * a_pass):.2f}× | {1e3 * each:.1f} ms | {memory:.1f} GB |"
    )


if __name__ == "__main__":
    command_line.run(main)
