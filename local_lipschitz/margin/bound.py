"""The margin bound: certified lower bounds of scalar functions of the output on a whole ball (docs/margin.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..inputs import check_eps, check_input, check_outputs
from ..joint.bound import Job as JointJob
from ..joint.bound import Result as JointResult
from ..joint.descent import affordable
from ..layers.graph import Graph
from ..layers.linear_maps import size
from ..layers.rounding import logits
from ..precision import no_tf32
from ..printing import certainty, values
from ..product.bound import finish
from ..product.propagation import EPS_MIN, Source, propagate
from ..product.stage_norms import StageNorms
from ..reading.read import read
from .ball import scaled
from .bends import Limit, NotDense
from .box import Box, Region, check_box
from .ends import by_certificate
from .intervals import Given, Local, local_network
from .solve import Wanted, proven, solve_all
from .start import starts

ROWS = 6000  # kinks whose rows are formed
LARGE = 4500  # kinks whose multipliers are improved: what time and memory allow
DEAR, LEAST_STEPS = 1500, 4  # kinks from which fewer steps are taken, since each is dearer; and how few
UP = 1e-14  # outward, for a few operations


@dataclass(frozen=True)
class MarginBound:
    """Lower bounds on the ball of each of the `outputs` functions, for each input of the batch; lists of length B.

    lower: (B, K) float64, outputs_k·f(x) ≥ lower for every x of the ball. nominal: (B, K), values at x0, rounded down.
    fall: (B, K) ≥ (outputs_k·f(x0) − lower)/eps, never negative: at which rate they may fall. before_refinement: (B,
    K), lower with the multipliers of the start. uncertain: {stage: kinks} that may bend on the ball. kinks: their
    total. steps: of the interior-point method. status: "margin", or why it is what a cheaper bound gives.
    failure_probability: of the product bound's norms, over our own random vectors; 0.0 if all were dense. box: whether
    they hold on a part of the ball only, that inside of a box.
    """

    lower: Tensor
    nominal: Tensor
    fall: Tensor
    before_refinement: Tensor
    uncertain: list[dict[str, int]]
    kinks: list[int]
    steps: list[int]
    status: list[str]
    failure_probability: float
    box: bool = False

    @property
    def value(self) -> Tensor:
        """None: this is no bound of a norm."""
        raise ValueError("a margin bound is of scalar functions, not of a norm; margins='pairwise' is wanted")

    def __repr__(self) -> str:
        lines = [f"MarginBound {values(self.lower)}", "lower bounds of the outputs on the ball"]
        return "\n".join([*lines, f"{certainty(self.failure_probability)}; {values(self.steps)} steps"])


@no_tf32()
@torch.no_grad()
def margin_bound(
    net: nn.Module, x0: Tensor, eps: float | Tensor, *, outputs: Tensor | None = None, target: float | None = None,
    least: float | None = None, smallest: bool = False, by_passes: bool = True, effort: int = 40,
    tolerance: float = 1e-3, failure_probability: float = 1e-9, seed: int = 0,
    box: tuple[Tensor | float, Tensor | float] | None = None,
) -> MarginBound:  # fmt: skip
    """Lower bounds of the functions outputs_k·f on ‖x − x0‖ ≤ eps, by the margin certificate.

    Guaranteed: no x of the ball has a smaller value, for the network with its given weights in exact arithmetic; what
    floating point may have changed is proven and taken off. Never below what `local_bound` gives. The one part that may
    fail, with `failure_probability`, are spectral norms that were not solved densely.

    net, x0, eps: as in `local_bound`. outputs: (K, m) or (B, K, m); None is every output by itself. target: the work on
    a function ends once its bound is known to be above `target`, or never to reach it; None is as tight as `effort`,
    steps of the interior-point method for a function, and `tolerance`, relative to how far the bound lies below the
    nominal value, allow. least: below `target`, what is worth the work where the target is out of reach; None is only
    the target. smallest: only the smallest of the K bounds is made as tight; the work on the others ends once they are
    above it. by_passes: as in `joint_bound`; without them, where dense algebra ends there, it ends here. box: (lowest,
    highest), numbers or what expands to (1, *shape): the bounds are then of the points of the ball with lowest ≤ x ≤
    highest. Raises as `local_bound` does, and ValueError where x0 is outside of the box. Source: docs/margin.md.
    """
    check_input(x0)
    if effort < 1:
        raise ValueError(f"effort is {effort}; a positive number of steps is wanted")
    eps = check_eps(eps, x0).clamp(min=EPS_MIN)
    box = check_box(box, x0)
    graph = read(net, x0)
    if outputs is None:
        outputs = torch.eye(size(graph.out_shape), dtype=torch.float64)
    outputs = check_outputs(outputs, size(graph.out_shape), eps.shape[0]).to(x0.device)
    norms = StageNorms(x0.dtype, graph, 2e-3, 0.5 * failure_probability, True, seed)
    product = propagate(graph, x0, eps, norms)
    local = finish(graph, product, norms, outputs)
    assert local.fall is not None
    x0 = x0.expand(eps.shape[0], *x0.shape[1:])
    job = Job(graph, target, least, smallest, by_passes, effort, tolerance, 0.5 * failure_probability, seed, box)
    results = [
        job(x0[b : b + 1], float(eps[b]), outputs[b], product.only(b), fall) for b, fall in enumerate(local.fall)
    ]
    lower, nominal, before, high = (torch.stack(each) for each in zip(*(r.values for r in results), strict=True))
    fall = ((high - lower) / eps[:, None] * (1.0 + UP)).clamp(min=0.0)
    fall = torch.minimum(fall, torch.stack([r.fall for r in results]))
    return MarginBound(
        lower, nominal, fall, before, [r.uncertain for r in results], [sum(r.uncertain.values()) for r in results],
        [r.steps for r in results], [r.status for r in results],
        norms.failure_spent + max(r.failure for r in results), box is not None,
    )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """Of one input. values: lower, nominal, lower before refinement, nominal rounded up instead of down; each (K,).

    fall: (K,), what the product and the joint bound know of it.
    """

    values: tuple[Tensor, Tensor, Tensor, Tensor]
    fall: Tensor
    uncertain: dict[str, int]
    steps: int
    status: str
    failure: float = 0.0

    @property
    def margin(self) -> bool:
        """Whether the certificate has been tried."""
        return self.status == "margin"


def fallen(nominal: Tensor, fall: Tensor, eps: Tensor | float) -> Tensor:
    """nominal − ε·fall, rounded down."""
    return nominal - eps * fall * (1.0 + UP) - UP * nominal.abs()


@dataclass(frozen=True)
class Job:
    """What is the same for every input of a batch."""

    graph: Graph
    target: float | None
    least: float | None
    smallest: bool
    by_passes: bool
    effort: int
    tolerance: float
    failure_probability: float
    seed: int
    box: Box | None

    def __call__(self, x0: Tensor, eps: float, C: Tensor, product: dict[str, Source], fall: Tensor) -> Result:
        """For x0 (1, *shape) and functions C (K, m), of which the product bound knows `fall` (K,)."""
        y, off = logits(self.graph, x0)
        nominal, off = C @ y[0], C.abs() @ (off[0] + UP * y[0].abs())
        low, high = nominal - off, nominal + off
        lower = fallen(low, fall, eps)
        result = Result((lower, low, lower, high), fall, {}, 0, "product bound: it is above the target")
        open_ = self.open(lower)
        if not bool(open_.any()):
            return result
        joint = self.joint(x0, eps, C[open_], product, low[open_])
        fall = fall.masked_scatter(open_, torch.minimum(fall[open_], joint.bound))
        lower = fallen(low, fall, eps)
        result = Result((lower, low, lower, high), fall, {}, 0, "joint bound: it is above the target", joint.failure)
        if joint.status != "dense" and not self.by_passes:  # what is too much for it is too much for what follows
            return replace(result, status=joint.status)
        given = Given(product, joint.layers)
        for region in (Region(eps), *([] if self.box is None else [Region(eps, self.box)])):
            if bool(self.open(result.values[0]).any()):  # what holds on the whole ball holds on a part of it
                result = self.on(region, x0, C, given, result)
        return result

    def open(self, lower: Tensor) -> Tensor:
        """Which functions need a better bound than `lower`, (K,)."""
        return torch.ones_like(lower, dtype=torch.bool) if self.target is None else lower <= self.target

    def joint(self, x0: Tensor, eps: float, C: Tensor, product: dict[str, Source], nominal: Tensor) -> JointResult:
        """The joint bound, with half of the steps."""
        effort = max(1, self.effort // 2)
        job = JointJob(self.graph, effort, 2e-3, self.failure_probability, self.seed, self.by_passes, layers=True)
        target = None if self.target is None else ((nominal - self.target) / eps).clamp(min=0.0)
        return job(x0, eps, C, target, product)

    def on(self, region: Region, x0: Tensor, C: Tensor, given: Given, known: Result) -> Result:
        """On a region around x0 (1, *shape), on which `known` holds too."""
        try:
            local = local_network(self.graph, x0, region, C, given, by_certificate, Limit(ROWS))
        except NotDense as error:
            return known if known.margin else replace(known, status=f"joint bound: {error}")
        off = local.functions.error * (1.0 + UP) + UP * local.functions.y0.abs()
        lines = torch.maximum(known.values[0], local.kinks.lines(local.functions).lower)
        nominal = torch.maximum(known.values[1], local.functions.y0 - off)
        high = torch.minimum(known.values[3], local.functions.y0 + off)
        result = replace(known, values=(lines, nominal, lines, high), uncertain=local.uncertain)
        if len(local.kinks) > LARGE:
            status = f"joint bound or lines: {len(local.kinks)} kinks may bend, {LARGE} are what dense algebra takes"
            return result if known.margin else replace(result, status=status)
        lower, steps = self.refined(local, lines)
        return replace(result, values=(lower, nominal, lines, high), steps=known.steps + steps, status="margin")

    def refined(self, local: Local, lines: Tensor) -> tuple[Tensor, int]:
        """Better bounds of the functions that are still open, (K,), and the steps taken."""
        open_ = self.open(lines)
        if not bool(open_.any()) or len(local.kinks) == 0:
            return lines, 0
        rows = local.functions.pick(open_)
        ball = scaled(local.kinks, rows)
        targets = torch.full_like(lines[open_], torch.inf if self.target is None else self.target)
        few = affordable(self.effort, len(local.kinks), DEAR, 3, LEAST_STEPS)
        steps = few if self.target is None else self.effort  # with a target, they end where they do not help
        least = torch.inf if self.least is None else self.least
        wanted = Wanted(targets, self.tolerance, steps, self.smallest, seed=self.seed, least=least)
        solved = solve_all(ball, starts(local.kinks, rows), wanted)
        better = lines.clone()
        better[open_] = torch.maximum(lines[open_], proven(ball, solved))
        return better, solved.steps
