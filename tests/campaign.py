"""The soundness campaign: on random networks of every scale, no lower bound may exceed an upper bound.

    python tests/campaign.py --cases 10000 --seed 0 --processes 2

Every case draws a network, inputs and radii (campaign_cases.py), searches the ball for the largest quotient
‖f(x) − f(x0)‖/‖x − x0‖ (samples, gradient ascent, top directions of Jacobians at many points), and compares it with
local_bound, global_bound and joint_bound. Quotients are evaluated by passing differences through the layers, and once
more by the torch module itself where its rounding allows. What comes within a thousandth of a bound is decided in exact
rational arithmetic (exact.py). Jacobian norms anywhere in the ball are compared with the global bound, which holds for
every pair of points; the bounds that are anchored at x0 need not exceed them. Within a certified radius no class may
change.

Prints violations (there must be none), the slack upper/lower − 1 of each method, and the tightest and the loosest case
with their seeds; exit status 1 if there was a violation. `--only SEED` runs a single case.
"""

from __future__ import annotations

import argparse
import copy
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "helpers"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from campaign_cases import Case, draw
from exact import change, evaluate, exceeds, vector, within
from explicit import jacobians
from torch import Tensor, nn
from tqdm import tqdm

from local_lipschitz import global_bound, joint_bound, local_bound, margin_bound
from local_lipschitz.layers.graph import Graph
from local_lipschitz.layers.linear_maps import size
from local_lipschitz.lower_bounds import ball_samples, quotients
from local_lipschitz.radius import certified_radius
from local_lipschitz.reading.read import read

SAMPLES, ROUNDS, STARTS = 48, 4, 8
CLOSE = 1e-3  # slack under which exact arithmetic decides
INSIDE = 1.0 - 1e-12  # so that rounding never puts a point outside its ball
JOINT_EVERY, LARGE_JOINT_EVERY, RADIUS_EVERY = 3, 150, 5
SMALL = 250  # activations, up to which joint bounds take little time
TINY, MARGIN_EVERY = 60, 20  # and margin bounds
ORDER, TINIEST = 2e-3, 1e-290  # the tolerance of margin bounds


@dataclass
class Outcome:
    """Of one case: violations, the smallest slack of each method, and how many points were decided exactly."""

    seed: int
    what: str
    violations: list[str] = field(default_factory=list)
    slack: dict[str, float] = field(default_factory=dict)
    exact: int = 0

    def note(self, method: str, slack: float) -> None:
        self.slack[method] = min(slack, self.slack.get(method, math.inf))


def run_case(seed: int) -> Outcome:
    """Draw the case and compare every bound with the strongest lower bound found."""
    case = draw(seed)
    outcome = Outcome(seed, case.what)
    graph64 = read(case.net64, case.x0.double())
    local = local_bound(case.net, case.x0, case.eps, seed=seed).value.tolist()
    anywhere = float(global_bound(case.net, case.x0[:1], seed=seed))
    uppers = [{"local": value, "global": anywhere} for value in local]
    activations = sum(size(layer.shape) for layer in graph64.layers if not layer.is_linear)
    small = activations <= SMALL
    if activations <= TINY and seed % MARGIN_EVERY == 0:
        check_order(outcome, case, size(graph64.out_shape))
    if seed % JOINT_EVERY == 0 and (small or seed % LARGE_JOINT_EVERY == 0):
        effort = 40 if small and seed % 10 == 0 else 2
        uppers[0]["joint"] = float(joint_bound(case.net, case.x0[:1], case.eps[:1], effort=effort, seed=seed))
        if uppers[0]["joint"] > uppers[0]["local"] * (1.0 + 1e-12):  # a batch may be rounded otherwise
            outcome.violations.append("joint_bound above local_bound")
    for b, eps in enumerate(case.eps.tolist()):
        x0 = case.x0[b : b + 1].double()
        delta, jacobian = search(case.net64, graph64, x0, eps, torch.Generator().manual_seed(seed))
        compare(outcome, case, graph64, x0, eps, delta, uppers[b])
        if jacobian > uppers[b]["global"] * (1.0 + 1e-9):
            outcome.violations.append(f"a Jacobian norm of {jacobian} exceeds global_bound {uppers[b]['global']}")
    if seed % RADIUS_EVERY == 0 and graph64.out_shape[0] > 1:
        check_radius(outcome, case, graph64, joint_bound if small and seed % 50 == 0 else local_bound)
    return outcome


def check_order(outcome: Outcome, case: Case, m: int) -> None:
    """margin ≥ joint ≥ product, as lower bounds of outputs: how fast they fall."""
    C, eps, net = torch.eye(m, dtype=torch.float64)[:2], case.eps[:1], case.net
    product, joint = (f(net, case.x0[:1], eps, outputs=C, seed=outcome.seed).fall for f in (local_bound, joint_bound))
    margin = margin_bound(net, case.x0[:1], eps, outputs=C, seed=outcome.seed, effort=120)  # half of it for joint_bound
    assert product is not None and joint is not None
    if bool((joint > product * (1.0 + 1e-12)).any()):
        outcome.violations.append(f"joint_bound: {joint.tolist()} is above {product.tolist()}")
    if bool((margin.fall > joint * (1.0 + ORDER) + TINIEST).any()):
        outcome.violations.append(f"margin_bound: {margin.fall.tolist()} is above {joint.tolist()}")


def search(net: nn.Module, graph: Graph, x0: Tensor, eps: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """Points δ (N, *shape) of the ball, and the largest Jacobian norm seen there."""
    eps = eps * INSIDE
    samples = ball_samples(x0, eps, SAMPLES, generator)
    scales = 10.0 ** (-6.0 * torch.rand(SAMPLES, generator=generator, dtype=torch.float64))
    scales[: SAMPLES // 2] = 1.0
    samples = samples * _shaped(scales, samples)
    best = steepness(graph, x0, samples).topk(STARTS // 2).indices
    points = torch.cat([torch.zeros_like(x0), samples[: STARTS // 2 - 1], samples[best]])
    radius = eps * torch.logspace(0, -4, len(points), dtype=torch.float64)
    found, largest = [samples], 0.0
    for _ in range(ROUNDS):
        J = jacobians(net, x0 + points)
        _, s, Vh = torch.linalg.svd(J, full_matrices=False)
        largest = max(largest, float(s[:, 0].max()))
        top = Vh[:, 0].reshape(points.shape)  # the direction in which the Jacobian there is largest
        uphill = (J.mT @ graph.difference(x0, points).flatten(1)[:, :, None]).reshape(points.shape)
        radii = (radius, torch.full_like(radius, eps))
        new = [_to_sphere(direction, r) for direction in (top, -top, uphill) for r in radii]
        found += new
        everything = torch.cat(new)
        points = everything[steepness(graph, x0, everything).topk(len(points)).indices]
    return torch.cat(found), largest


def steepness(graph: Graph, x0: Tensor, delta: Tensor) -> Tensor:
    """The quotient of each δ (N, *shape) in plain floating point, by which a search goes on; it is judged otherwise."""
    change, length = (v.flatten(1).norm(dim=1) for v in (graph.difference(x0, delta), delta))
    return torch.where(length > 0, change / length, 0.0).nan_to_num(0.0)


def compare(
    outcome: Outcome, case: Case, graph: Graph, x0: Tensor, eps: float, delta: Tensor, uppers: dict[str, float]
) -> None:
    """The largest quotient over the δ (N, *shape) against each upper bound."""
    q = torch.maximum(quotients(graph, x0, delta), plain_quotients(case.net64, x0, delta))
    best = int(q.argmax())
    lower, step = float(q[best]), delta[best]
    for name, upper in uppers.items():
        if not (math.isfinite(upper) and upper >= 0.0):
            outcome.violations.append(f"{name}_bound is {upper}")
            continue
        if lower > 0.0:
            outcome.note(name, upper / lower - 1.0)
        if lower * (1.0 + CLOSE) > upper and lower > 0.0:
            outcome.exact += 1
            if not within(step, eps):
                outcome.violations.append(f"the search left the ball of radius {eps}")
            elif exceeds(case.net64, x0[0], step, upper):
                outcome.violations.append(f"{name}_bound {upper!r} at ε = {eps!r} is exceeded by {lower - upper:.2g}")


def plain_quotients(net: nn.Module, x0: Tensor, delta: Tensor) -> Tensor:
    """‖f(x0 + δ) − f(x0)‖/‖δ‖ by the torch module alone, less all that rounding may have added; often 0."""
    absolute = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in absolute.parameters():
            parameter.abs_()
        scale = absolute(x0.abs() + delta.abs()).flatten(1).norm(dim=1)
        difference = (net(x0 + delta) - net(x0)).flatten(1).norm(dim=1)
    length = delta.flatten(1).norm(dim=1)
    certain = (difference - 1e-13 * scale).clamp(min=0.0)
    return torch.where(length > 0, certain / length, 0.0)


def check_radius(outcome: Outcome, case: Case, graph: Graph, bound: Callable) -> None:
    """No point within the certified radius may be of another class: gradients of the margins, and samples."""
    result = certified_radius(case.net, case.x0, bound=bound, seed=outcome.seed)
    for b, radius in enumerate(result.radius.tolist()):
        label, x0 = int(result.label[b]), case.x0[b : b + 1].double()
        if radius == 0.0:
            continue
        generator = torch.Generator().manual_seed(outcome.seed)
        points = ball_samples(x0, radius * INSIDE, SAMPLES, generator)
        for _ in range(3):
            J = jacobians(case.net64, x0 + points[-8:])
            downhill = (J - J[:, label : label + 1]).flatten(0, 1).reshape(-1, *x0.shape[1:])
            lengths = torch.full((len(downhill),), radius * INSIDE, dtype=torch.float64)
            points = torch.cat([points, _to_sphere(downhill, lengths)])
        y = graph.forward(x0) + graph.difference(x0, points)
        others = torch.cat([y[:, :label], y[:, label + 1 :]], 1).amax(1)
        closest = int((others - y[:, label]).argmax())
        start = graph.forward(x0)[0]
        margin = float(start[label] - torch.cat([start[:label], start[label + 1 :]]).max())
        left = float(y[closest, label] - others[closest])
        outcome.note("radius", left / (margin - left) if left < margin else math.inf)
        near = left < CLOSE * margin
        outcome.exact += near
        if near and within(points[closest], radius) and class_changes(case.net64, x0[0], points[closest], label):
            outcome.violations.append(f"the class changes within the certified radius {radius!r} ({bound.__name__})")


def class_changes(net: nn.Module, x0: Tensor, delta: Tensor, label: int) -> bool:
    """Whether another output is larger than that of `label` at x0 + δ, exactly."""
    before, _ = evaluate(net, vector(x0), tuple(x0.shape))
    after = [a + b for a, b in zip(before, change(net, x0, delta), strict=True)]
    return max(after) > after[label]


def _to_sphere(direction: Tensor, radius: Tensor) -> Tensor:
    """direction (N, *shape) at the lengths radius (N,); zeros stay zero."""
    flat = direction.flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=1e-300)
    length = flat.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return (flat / length * radius[:, None].to(flat)).reshape(direction.shape)


def _shaped(factor: Tensor, like: Tensor) -> Tensor:
    return factor.reshape(-1, *(1,) * (like.dim() - 1))


def attempt(seed: int, run: Callable[[int], Outcome] = run_case) -> Outcome:
    """`run`; an exception is a fault like any other, and is told with its seed."""
    torch.set_num_threads(1)
    try:
        return run(seed)
    except Exception as error:
        return Outcome(seed, f"run it with --only {seed}", [f"{type(error).__name__}: {error}"])


def campaign(run: Callable[[int], Outcome], cases: int, seed: int, processes: int = 1) -> list[Outcome]:
    """The outcomes of `cases` cases, whose seeds are seed·10⁶, seed·10⁶ + 1, …; violations are printed as they come."""
    seeds = range(seed * 1_000_000, seed * 1_000_000 + cases)
    one = partial(attempt, run=run)
    if processes == 1:
        return [_told(one(s)) for s in tqdm(seeds, unit="case")]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return [_told(o) for o in tqdm(pool.imap(one, seeds, chunksize=8), total=cases, unit="case")]


def _told(outcome: Outcome) -> Outcome:
    for text in outcome.violations:
        tqdm.write(f"case {outcome.seed}: {text}", file=sys.stderr)
    return outcome


def report(outcomes: list[Outcome]) -> str:
    """What happened, for people."""
    violations = [f"case {o.seed}: {text}\n    {o.what}" for o in outcomes for text in o.violations]
    lines = [*violations, f"{len(outcomes)} cases, {len(violations)} violations"]
    lines.append(f"{sum(o.exact for o in outcomes)} comparisons were close enough to be decided in exact arithmetic")
    lines.append(f"{'method':8} {'cases':>7} {'smallest':>10} {'median':>10} {'largest':>10}   slack upper/lower − 1")
    for method in ("local", "joint", "global", "radius"):
        slacks = sorted((o.slack[method], o.seed) for o in outcomes if method in o.slack)
        if not slacks:
            continue
        (smallest, tightest), (largest, loosest) = slacks[0], slacks[-1]
        median = statistics.median(slack for slack, _ in slacks)
        lines.append(
            f"{method:8} {len(slacks):7d} {smallest:10.2g} {median:10.2g} {largest:10.2g}   "
            f"tightest: case {tightest}, loosest: case {loosest}"
        )
    lines.append("radius: the margin left where an attack came closest, over the margin it used up")
    lines.append("a slack below zero that is no violation: rounding of the quotient, as exact arithmetic has shown")
    return "\n".join(lines)


def command(run: Callable[[int], Outcome], description: str | None) -> int:
    """The script's command line; the exit status."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=10_000, help="number of cases (default: 10000)")
    options.add_argument("--seed", type=int, default=0, help="other seeds are other cases (default: 0)")
    options.add_argument("--processes", type=int, default=1, help="processes side by side (default: 1)")
    options.add_argument("--only", type=int, metavar="SEED", help="run the single case of this seed, as printed")
    args = options.parse_args()
    outcomes = [run(args.only)] if args.only is not None else campaign(run, args.cases, args.seed, args.processes)
    if args.only is not None:
        print(outcomes[0].what)
    print(report(outcomes))
    return 1 if any(o.violations for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(command(run_case, __doc__))
