"""Adversarial bounds: the radius that is proved free of adversarial examples beside the smallest that attacks find.

    python calculate_bounds_adv.py --plot
    python calculate_bounds_adv.py --network cifar10 --input cat.png dog.png --methods pairwise ddn

Writes data/<network>/adversarial.npz, each method as soon as it is done, prints a table and, with --plot, draws the
adversarial images. The same command goes on where a stopped one left off; other settings are refused unless --overwrite
is given. To switch the network, edit the import below or give --network.

Distances are ℓ2, in normalised units (those of the network's input, over all of which the radii are certified) and in
pixel units (black 0, white 1). Ends with status 1 if any attack found less than what is certified.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import calculate_bounds_adv_plot as adv_plot
from local_lipschitz import certified_radius
from local_lipschitz.attacks.gradient import (
    Attack,
    carlini_wagner,
    ddn,
    fgsm,
    gradient_ascent,
    iterated_fgsm,
    pixel_distance,
)
from networks import mnist as network
from script_tools import certificates, command_line, results
from script_tools.certificates import CERTIFICATES, DECISIONS, METHODS, PROOFS
from script_tools.distances import ATTACKS, Distances, contradictions, from_arrays, table, to_arrays

QUICK = [*certificates.QUICK, *ATTACKS]


def arguments() -> argparse.Namespace:
    options = command_line.parser(__doc__, network, nominal=False)
    options.add_argument("--input", nargs="+", type=Path, metavar="IMAGE", help="files (default: the nominal input)")
    options.add_argument(
        "--methods", nargs="+", default=QUICK, choices=[*PROOFS, *ATTACKS], metavar="METHOD",
        help=f"of {', '.join([*PROOFS, *ATTACKS])} (default: all but joint, margin, branching, which take long)",
    )  # fmt: skip
    options.add_argument("--tolerance", type=float, default=2e-3, help="of one spectral norm (default: 2e-3)")
    joint = CERTIFICATES["joint"]
    options.add_argument(
        "--joint-rtol", type=float, default=joint.rtol, help="relative tolerance of those radii (default: %(default)s)"
    )
    options.add_argument(
        "--joint-effort", type=int, default=joint.effort["one"],
        help="steps of the joint bound at each radius (default: %(default)s)",
    )  # fmt: skip
    options.add_argument("--plot", action="store_true", help="draw the images found: data/<network>/adversarial*.png")
    options.add_argument("--overwrite", action="store_true", help="start anew instead of resuming")
    return options.parse_args()


def inputs(network: ModuleType, x0: Tensor, files: list[Path] | None) -> tuple[Tensor, list[str]]:
    """The inputs (N, *shape) and what to call them."""
    if not files:
        return x0, ["nominal"]
    return torch.cat([command_line.read_input(network, f) for f in files]).to(x0.device), [f.name for f in files]


def certified_distances(
    net: nn.Module, x0: Tensor, scale: Tensor | None, args: argparse.Namespace, method: str
) -> Distances:
    """One of the certificates. ‖Δx‖ ≤ r in normalised units holds wherever ‖Δ pixels‖ ≤ r·(smallest std)."""
    start = time.perf_counter()
    if method in DECISIONS:
        radii, limiting = DECISIONS[method].radius(net, x0, args.joint_rtol, args.seed)
    else:
        radii, limiting = by_bound(net, x0, args, method)
    radius = radii.cpu().numpy()
    pixels = np.full_like(radius, np.nan) if scale is None else radius * float(scale.min())
    return Distances(radius, pixels, limiting.cpu().numpy(), time.perf_counter() - start, np.empty(0))


def by_bound(net: nn.Module, x0: Tensor, args: argparse.Namespace, method: str) -> tuple[Tensor, Tensor]:
    """(radius, limiting class) of every input by a bound of the Lipschitz constant."""
    certificate, rule = METHODS[method]
    options: dict[str, Any] = {"rtol": certificate.rtol, "tolerance": args.tolerance, "seed": args.seed}
    if certificate.costly:
        options |= {"rtol": args.joint_rtol, "effort": args.joint_effort}
    result = certified_radius(net, x0, certificate.function, rule, **options)
    return result.radius, result.limiting_class


def attack(
    net: nn.Module, x0: Tensor, scale: Tensor | None, box: tuple[Tensor, Tensor] | None, seed: int, name: str
) -> Distances:
    """One of the attacks. Without a box, C&W and DDN get one."""
    start = time.perf_counter()
    attacks: dict[str, Callable[[], Attack]] = {
        "fgsm": lambda: fgsm(net, x0),
        "ifgsm": lambda: iterated_fgsm(net, x0),
        "gradient": lambda: gradient_ascent(net, x0, seed=seed),
        "cw": lambda: carlini_wagner(net, x0, box or box_around(net, x0, seed), seed=seed),
        "ddn": lambda: ddn(net, x0, box or box_around(net, x0, seed), seed=seed),
    }
    found = attacks[name]()
    pixels = torch.full_like(found.distance, math.nan) if scale is None else pixel_distance(found, x0, scale)
    seconds = time.perf_counter() - start
    distance, other, x = (t.cpu().numpy() for t in (found.distance, found.found_class, found.x))
    return Distances(distance, pixels.cpu().numpy(), other, seconds, x)


def box_around(net: nn.Module, x0: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """x0 ± twice what gradient ascent needs."""
    distance = gradient_ascent(net, x0, seed=seed).distance
    reach = 2.0 * float(distance[distance.isfinite()].max()) if bool(distance.isfinite().any()) else 1.0
    return x0 - reach, x0 + reach


def main() -> None:
    args = arguments()
    if not 0 < args.joint_rtol < 1:
        raise ValueError(f"--joint-rtol {args.joint_rtol}: a number between 0 and 1 is wanted")
    if args.joint_effort < 1:
        raise ValueError(f"--joint-effort {args.joint_effort}: a positive number is wanted")
    network, net, nominal = command_line.load_network(args)
    if args.plot and network.box is None:
        raise ValueError(f"--plot: the input of {network.name} is not an image")
    x0, names = inputs(network, nominal, args.input)
    box = None if network.box is None else tuple(end.to(x0.device) for end in network.box)
    scale = None if network.pixel_scale is None else network.pixel_scale.to(x0.device)
    with torch.no_grad():
        label = net(x0).argmax(1).tolist()

    path = network.data_dir / "adversarial.npz"
    if args.overwrite:
        path.unlink(missing_ok=True)
    settings = {"network": network.name, "weights_and_inputs": results.fingerprint(net, x0), "inputs": names}
    settings |= {"random_weights": args.random_weights, "seed": args.seed, "tolerance": args.tolerance}
    settings |= {"joint_rtol": args.joint_rtol, "joint_effort": args.joint_effort}
    arrays = results.resume(path, settings) or {"x0": x0.cpu().numpy(), "label": np.array(label)}
    wanted = [name for name in [*PROOFS, *ATTACKS] if name in args.methods]
    for name in (progress := tqdm(wanted)):
        progress.set_description(name)
        if f"{name}_distance" not in arrays:
            if name in PROOFS:
                row = certified_distances(net, x0, scale, args, name)
            else:
                row = attack(net, x0, scale, box, args.seed, name)
            arrays |= to_arrays(name, row)
            results.save(path, arrays, settings)
    rows = from_arrays(arrays)
    for i, name in enumerate(names):
        print(table(network, i, name, label[i], rows))
    print("\ncertified: the class that limits the radius; found: the class of the adversarial example")
    print(f"results in {path}")
    if args.plot:
        for picture in adv_plot.draw_all(network, x0.cpu(), names, label, rows):
            print(f"wrote {picture}")
    if broken := contradictions(rows, names):
        sys.exit("CONTRADICTION, a bound or an attack is wrong:\n" + "\n".join(broken))


if __name__ == "__main__":
    command_line.run(main)
