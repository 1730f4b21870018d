"""What certifying costs, and how the attacks compare with foolbox's own.

    python benchmarks/radius.py --data datasets --count 1000 --threads 2
    python benchmarks/radius.py --data datasets --count 0 --attacks 16

Prints, for the first COUNT images of the test set, seconds and evaluations by both rules and how much further the
pairwise one certifies; and for the nominal and the first ATTACKS images, the distances that the attacks here find
relative to the best of foolbox's Carlini & Wagner and DDN at their default settings (half a minute an image).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from local_lipschitz import certified_radius
from local_lipschitz.attacks.gradient import carlini_wagner, ddn, fgsm, gradient_ascent, iterated_fgsm
from networks import mnist as network
from script_tools import command_line


def time_radii(net: nn.Module, x: Tensor, batch: int) -> None:
    """Both rules on all of x; prints a row each, and the ratio of the radii."""
    radii = {}
    print(f"{'rule':10}{'seconds':>9}{'each':>9}{'evaluations':>13}{'most':>6}{'median radius':>15}")
    for margins in ("paper", "pairwise"):
        start = time.perf_counter()
        parts = [certified_radius(net, part, margins=margins) for part in x.split(batch)]
        seconds = time.perf_counter() - start
        evaluations = torch.cat([part.evaluations for part in parts]).double()
        radii[margins] = radius = torch.cat([part.radius for part in parts])
        print(
            f"{margins:10}{seconds:9.1f}{seconds / len(x):9.3f}{float(evaluations.mean()):13.1f}"
            f"{int(evaluations.max()):6}{float(radius.median()):15.4f}"
        )
    ratio = (radii["pairwise"] / radii["paper"])[radii["paper"] > 0]
    print(f"pairwise / paper: {float(ratio.min()):.3f} to {float(ratio.max()):.3f}, median {float(ratio.median()):.3f}")


def compare_attacks(net: nn.Module, x: Tensor, box: tuple[Tensor, Tensor]) -> None:
    """Distances relative to the best of foolbox's defaults, on each of x."""
    import foolbox

    black, white = (end.to(x) for end in box)
    pixels = ((x - black) / (white - black)).clamp(0.0, 1.0)

    class InPixels(nn.Module):
        def forward(self, p: Tensor) -> Tensor:
            return net(black + (white - black) * p)

    model = foolbox.PyTorchModel(InPixels().eval(), bounds=(0, 1), device=x.device)
    with torch.no_grad():
        label = net(x).argmax(1)
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    print(f"{'attack':28}{'seconds':>9}   relative to the best of foolbox's defaults: mean, least, most")
    for name, attack in {
        "foolbox C&W, defaults": foolbox.attacks.L2CarliniWagnerAttack(),
        "foolbox DDN, defaults": foolbox.attacks.DDNAttack(),
    }.items():
        start = time.perf_counter()
        found, _, worked = attack(model, pixels, label, epsilons=None)
        distance = ((found - pixels) * (white - black)).flatten(1).norm(dim=1).double().cpu()
        best = torch.minimum(best, torch.where(worked.cpu(), distance, torch.inf))
        print(f"{name:28}{time.perf_counter() - start:9.1f}")
    for name, own in {
        "FGSM": lambda: fgsm(net, x),
        "I-FGSM": lambda: iterated_fgsm(net, x),
        "gradient ascent": lambda: gradient_ascent(net, x),
        "DDN": lambda: ddn(net, x, box),
        "Carlini & Wagner": lambda: carlini_wagner(net, x, box),
    }.items():
        start = time.perf_counter()
        ratio = own().distance.cpu() / best
        numbers = f"{float(ratio.mean()):.4f}, {float(ratio.min()):.4f}, {float(ratio.max()):.4f}"
        print(f"{name:28}{time.perf_counter() - start:9.1f}   {numbers} (nominal {float(ratio[0]):.4f})", flush=True)


def main() -> None:
    options = command_line.parser(__doc__, network)
    options.add_argument("--data", type=Path, required=True, help="where torchvision finds the test set")
    options.add_argument("--count", type=int, default=1000, help="images to certify (default: 1000)")
    options.add_argument("--attacks", type=int, default=0, help="images to attack (default: 0)")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--threads", type=int, default=2)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    chosen, net, x0 = command_line.load_network(args)
    if chosen.test_set is None:
        raise ValueError(f"{chosen.name} has no test set")
    images = chosen.test_set(args.data)
    x = torch.stack([images[i][0] for i in range(max(args.count, args.attacks))]).to(x0.device)
    if args.count:
        time_radii(net, x[: args.count], args.batch)
    if args.attacks:
        compare_attacks(net, torch.cat([x0, x[: args.attacks]]), chosen.box)


if __name__ == "__main__":
    command_line.run(main)
