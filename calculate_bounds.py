"""Lipschitz bounds against ε: random and gradient lower bounds, global, local and joint upper bounds.

    python calculate_bounds.py
    python calculate_bounds.py --network cifar10 --no-random --eps-max 2 --points 30
    python calculate_bounds_plot.py

Writes data/<network>/{random,gradient,global,local,joint}.npz, each ε as soon as it is known. The same command goes on
where a stopped one left off; other settings are refused unless --overwrite is given. To switch the network, edit the
import below or give --network; to put your own in, see networks/template.py.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from local_lipschitz.lower_bounds import gradient_lower_bound, random_lower_bound
from networks import mnist as network
from script_tools import command_line, results
from script_tools.batches import in_batches
from script_tools.certificates import CERTIFICATES, Certificate
from script_tools.timing import costly_time

compute_random = True
compute_gradient = True
compute_global = True
compute_local = True
compute_joint = True

LOWER = ("random", "gradient")
JOINT_EVERY = 1  # the joint bound, the costly one, at every n-th ε
MINUTES = 60  # where it would take longer, it has to be asked for with --joint
LARGEST_BATCH = 3_000_000  # numbers in the inputs that a batch of ε may hold in the widest layer


def arguments() -> argparse.Namespace:
    """The command line; the switches above are its defaults."""
    options = command_line.parser(__doc__, network)
    switches = {
        "random": compute_random,
        "gradient": compute_gradient,
        "global": compute_global,
        "local": compute_local,
        "joint": compute_joint,
    }
    for name in [*LOWER, *CERTIFICATES]:
        costly = name in CERTIFICATES and CERTIFICATES[name].costly
        where = f" (default: where it takes less than {MINUTES} minutes)" if costly else ""
        default = switches.get(name, True)
        options.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, default=None if costly and default else default,
            help=f"the {name} bound{where}",
        )  # fmt: skip
    options.add_argument("--eps-min", type=float, help="smallest ε, normalised units (default: the network's)")
    options.add_argument("--eps-max", type=float, help="largest ε (default: the network's)")
    options.add_argument("--points", type=int, default=30, help="number of ε, evenly spaced in log ε (default: 30)")
    options.add_argument("--samples", type=int, default=20_000, help="random samples an ε (default: 20000)")
    options.add_argument(
        "--joint-every", type=int, default=JOINT_EVERY, help=f"joint bound at every n-th ε (default: {JOINT_EVERY})"
    )
    options.add_argument("--tolerance", type=float, default=2e-3, help="of one spectral norm (default: 2e-3)")
    options.add_argument("--overwrite", action="store_true", help="start anew instead of resuming")
    return options.parse_args()


def sweep(path: Path, eps: Tensor, settings: dict[str, Any], batch: int, compute: Callable[[Tensor], Tensor]) -> None:
    """Fill `path` with compute(eps) for every ε, `batch` at a time, saved after each; goes on where a run stopped."""
    value = np.full(len(eps), np.nan)
    earlier = results.resume(path, settings)
    done = int(np.isfinite(earlier["value"]).sum()) if earlier else 0
    value[:done] = earlier["value"][:done] if earlier else []
    with tqdm(total=len(eps), initial=done, desc=f"{path.stem:>9}", unit="ε") as progress:
        for part, bound in in_batches(lambda part: compute(eps[part]), done, len(eps), batch):
            value[part] = bound.cpu().numpy()
            results.save(path, {"eps": eps.cpu().numpy(), "value": value}, settings)
            progress.update(part.stop - part.start)


def methods(net: nn.Module, x0: Tensor, args: argparse.Namespace) -> dict[str, Callable[[Tensor], Tensor]]:
    """What each switched-on method computes for several ε at once."""
    points = min(1000, 30 * batch_of(net, x0))
    everything: dict[str, Callable[[Tensor], Tensor]] = {
        "random": lambda eps: random_lower_bound(net, x0, eps, args.samples, args.seed, batch=points),
        "gradient": lambda eps: gradient_lower_bound(net, x0, eps, seed=args.seed, batch=points),
    }
    for name, certificate in CERTIFICATES.items():
        everything[name] = partial(upper_bounds, net, x0, certificate, args)
    return {name: compute for name, compute in everything.items() if getattr(args, name)}


def upper_bounds(
    net: nn.Module, x0: Tensor, certificate: Certificate, args: argparse.Namespace, eps: Tensor
) -> Tensor:
    """A certified bound at each ε."""
    ball = (eps,) if certificate.of_eps else ()
    bound = certificate.function(net, x0, *ball, tolerance=args.tolerance, seed=args.seed)
    return bound.value.expand(len(eps))


def main() -> None:
    args = arguments()
    network, net, x0 = command_line.load_network(args)
    eps_min = network.eps_min if args.eps_min is None else args.eps_min
    eps_max = network.eps_max if args.eps_max is None else args.eps_max
    if not 0 < eps_min <= eps_max < math.inf:
        raise ValueError(f"--eps-min {eps_min} --eps-max {eps_max}: positive, finite numbers in this order are wanted")
    for name in ("points", "samples", "joint_every"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: a positive number is wanted")
    eps = torch.logspace(np.log10(eps_min), np.log10(eps_max), args.points, dtype=torch.float64, device=x0.device)
    common = {"network": network.name, "weights": results.fingerprint(net, x0), "random_weights": args.random_weights}
    common |= {"seed": args.seed, "eps_min": eps_min, "eps_max": eps_max, "points": args.points}
    few = eps[:: args.joint_every]
    costly = [name for name, certificate in CERTIFICATES.items() if certificate.costly]
    for name in costly:
        if (switch := getattr(args, name)) is not False:
            setattr(args, name, worth_it(net, x0, name, len(few), asked_for=switch is True))

    of_method = {"random": {"samples": args.samples}, "gradient": {}}
    of_method |= {name: {"tolerance": args.tolerance} for name in CERTIFICATES}
    of_method |= {name: {"tolerance": args.tolerance, "every": args.joint_every} for name in costly}
    batches = {name: len(eps) for name, certificate in CERTIFICATES.items() if not certificate.of_eps}
    for name, compute in methods(net, x0, args).items():
        path = network.data_dir / f"{name}.npz"
        if args.overwrite:
            path.unlink(missing_ok=True)
        batch = batches.get(name, 1 if name in LOWER or name in costly else batch_of(net, x0))
        sweep(path, few if name in costly else eps, common | of_method[name], batch, compute)
    print(f"results in {network.data_dir}; the figure: python calculate_bounds_plot.py --network {args.network}")


def worth_it(net: nn.Module, x0: Tensor, name: str, points: int, asked_for: bool) -> bool:
    """Whether to compute a costly bound; says how long that takes."""
    minutes = points * costly_time(net, x0, CERTIFICATES[name].passes) / 60
    verdict = asked_for or minutes <= MINUTES
    hint = f"--no-{name} leaves it out" if verdict else f"left out; --{name} computes it all the same"
    print(f"{name} bound at {points} ε: estimated {max(1, round(minutes))} minutes ({hint})", flush=True)
    return verdict


def batch_of(net: nn.Module, x0: Tensor) -> int:
    """How many ε to compute at once: as many as keep the widest layer's batch moderate."""
    widest = [x0.numel()]

    def note(module: nn.Module, inputs: tuple, out: Any) -> None:
        widest.append(out.numel() if isinstance(out, Tensor) else 0)

    hooks = [module.register_forward_hook(note) for module in net.modules()]
    with torch.no_grad():
        net(x0)
    for hook in hooks:
        hook.remove()
    return max(1, LARGEST_BATCH // max(widest))


if __name__ == "__main__":
    command_line.run(main)
