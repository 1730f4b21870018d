"""The soundness campaign on smooth activations: no quotient, in extended precision, may exceed a bound.

    python tests/campaign_smooth.py --cases 10000 --seed 0 --processes 2

Every case draws a network of Linear layers, residual branches, smooth activations and ReLUs, at scales from where φ is
a parabola to where it is straight, searches the ball as campaign.py does, and evaluates the best points in extended
precision (mpmath), which alone decides. No point within a certified radius may be of another class. Printed is what
campaign.py prints; exit status 1 if there was a violation. `--only SEED` runs a single case.
"""

from __future__ import annotations

import copy
import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from campaign import JOINT_EVERY, RADIUS_EVERY, Outcome, command, search, steepness
from campaign_cases import Case
from exact import Residual, within
from extended import evaluate, length, numbers
from mpmath import mp, mpf
from torch import Tensor, nn

from local_lipschitz import certified_radius, global_bound, joint_bound, local_bound
from local_lipschitz.reading.read import read

KINDS = [nn.Tanh, nn.Sigmoid, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.SiLU, nn.Mish, nn.Hardswish, nn.GELU,
         nn.ELU, nn.SELU, nn.CELU, nn.Softplus, lambda: nn.GELU("tanh"), lambda: nn.ELU(-0.5), lambda: nn.CELU(0.25),
         lambda: nn.Softplus(4.0), nn.ReLU, lambda: nn.Hardtanh(-0.5, 0.75)]  # fmt: skip
DIGITS = 60
DECIDED = 6  # points of a case that are evaluated in extended precision


def draw(seed: int) -> Case:
    """The case of this seed: one to four activations, pre-activations from all but 0 to where φ is straight."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    dtype = rng.choice([torch.float32, torch.float64])
    widest = rng.choice([1, 3, 6])  # where all have one unit, the product bound is tight
    widths = [rng.randint(1, widest) for _ in range(rng.randint(2, 4))]
    decades = rng.choice([0.0, 1.0, 3.0])
    layers: list[nn.Module] = []
    for n, m in zip(widths, widths[1:], strict=False):
        layers += [_linear(n, m, decades, rng, generator), rng.choice(KINDS)()]
        if rng.random() < 0.25:
            layers.append(Residual(nn.Sequential(_linear(m, m, decades, rng, generator), rng.choice(KINDS)())))
    layers.append(_linear(widths[-1], rng.randint(1, 4), decades, rng, generator))
    net = nn.Sequential(*layers).to(dtype).eval()
    x0 = torch.randn(1, widths[0], generator=generator, dtype=torch.float64) * 10.0 ** rng.uniform(-decades, decades)
    eps = 10.0 ** (rng.uniform(-12, 6) if rng.random() < 0.5 else rng.uniform(-3, 1))
    if rng.random() < 0.2:  # at the point of symmetry, where Tanh and its kind are steepest
        x0.zero_()
        for module in net.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
    what = "-".join(str(module) for module in net.modules() if not isinstance(module, nn.Sequential | Residual))
    what = f"{what} {str(dtype)[6:]} ε={eps:.2g} weights 1e±{decades:g}"
    return Case(seed, net, copy.deepcopy(net).double(), x0.to(dtype), torch.tensor([eps], dtype=torch.float64), what)


def _linear(n: int, m: int, decades: float, rng: random.Random, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(n, m).double()
    with torch.no_grad():
        W = torch.randn(m, n, generator=generator, dtype=torch.float64)
        layer.weight.copy_((W.abs() if rng.random() < 0.3 else W) * 10.0 ** rng.uniform(-decades, decades))
        layer.bias.copy_(torch.randn(m, generator=generator, dtype=torch.float64) * 10.0 ** rng.uniform(-6, 2))
    return layer


def run_case(seed: int) -> Outcome:
    """Draw the case and compare every bound with the strongest lower bound found."""
    case = draw(seed)
    outcome, eps = Outcome(seed, case.what), float(case.eps)
    uppers = {"local": float(local_bound(case.net, case.x0, eps, seed=seed))}
    uppers["global"] = float(global_bound(case.net, case.x0, seed=seed))
    if seed % JOINT_EVERY == 0:
        uppers["joint"] = float(joint_bound(case.net, case.x0, eps, effort=20 if seed % 10 == 0 else 2, seed=seed))
    x0 = case.x0.double()
    graph = read(case.net64, x0)
    delta, _ = search(case.net64, graph, x0, eps, torch.Generator().manual_seed(seed))
    best = delta[steepness(graph, x0, delta).topk(DECIDED).indices]
    lower = largest_quotient(case.net64, x0[0], best)
    outcome.exact += len(best)
    if not all(within(step, eps) for step in best):
        outcome.violations.append(f"the search left the ball of radius {eps}")
    for name, upper in uppers.items():
        outcome.note(name, float(mpf(upper) / lower - 1) if lower > 0 else math.inf)
        if not lower <= upper:
            outcome.violations.append(f"{name}_bound {upper!r} at ε = {eps!r} is exceeded: {mp.nstr(lower, 20)}")
    if seed % RADIUS_EVERY == 0 and graph.out_shape[0] > 1:
        check_radius(outcome, case)
    return outcome


def largest_quotient(net: nn.Module, x0: Tensor, deltas: Tensor) -> mpf:
    """max ‖f(x0 + δ) − f(x0)‖/‖δ‖ over the δ (N, n)."""
    with mp.workdps(DIGITS):
        before, largest = evaluate(net, numbers(x0)), mpf(0)
        for step in map(numbers, deltas):
            if any(step):
                after = evaluate(net, [a + b for a, b in zip(numbers(x0), step, strict=True)])
                change = length([a - b for a, b in zip(after, before, strict=True)])
                largest = max(largest, change / length(step))
        return largest


def check_radius(outcome: Outcome, case: Case) -> None:
    """No point within the certified radius may be of another class."""
    result = certified_radius(case.net, case.x0, bound=local_bound, seed=outcome.seed)
    radius, label, x0 = float(result.radius), int(result.label), case.x0.double()
    if radius == 0.0:
        return
    graph = read(case.net64, x0)
    delta, _ = search(case.net64, graph, x0, radius, torch.Generator().manual_seed(outcome.seed))
    y = graph.forward(x0) + graph.difference(x0, delta)
    others = torch.cat([y[:, :label], y[:, label + 1 :]], 1).amax(1)
    closest = delta[(y[:, label] - others).argmin()]
    with mp.workdps(DIGITS):
        start = evaluate(case.net64, numbers(x0[0]))
        logits = evaluate(case.net64, [a + b for a, b in zip(numbers(x0[0]), numbers(closest), strict=True)])
        margin, left = (y[label] - max(y[:label] + y[label + 1 :]) for y in (start, logits))
    outcome.exact += 1
    outcome.note("radius", float(left / (margin - left)) if left < margin else math.inf)
    if within(closest, radius) and left < 0:
        outcome.violations.append(f"the class changes within the certified radius {radius!r}")


if __name__ == "__main__":
    sys.exit(command(run_case, __doc__))
