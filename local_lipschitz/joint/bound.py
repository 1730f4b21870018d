"""The joint bound: the whole network as one operator, so that layers need not be at their worst all at once.

The product of layer norms forgets that the worst directions of the layers do not line up. The joint bound does not: it
tends to ‖J(x0)‖ as ε → 0. docs/joint_bound.md has the theorem, its proof and the algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..inputs import check_count, check_eps, check_input, check_options, check_outputs, check_target
from ..joint_operator import Block, JointOperator, plans
from ..joint_operator.build import build
from ..layers.graph import Graph
from ..layers.linear_maps import size
from ..precision import no_tf32
from ..printing import counter, values
from ..product.bound import Bound, finish
from ..product.propagation import EPS_MIN, TINY, Source, propagate
from ..product.stage_norms import SINGLE, StageNorms, working_dtype
from ..reading.read import read
from .certificate import Random
from .dense import DenseGroups
from .descent import Infeasible, TooManyGroups
from .device import inputs_at_once
from .kink_layers import KinkLayers, kink_layers
from .passes import PassGroups, cheap
from .together import Work, alone, together

VALUE_SLACK = 1e-9  # outward, on the value
ON_THE_WAY = 10  # one step in so many is spent on each layer on the way


@dataclass(frozen=True, kw_only=True, repr=False)
class JointBound(Bound):
    """A Bound with what was done for each input of the batch, lists of length B.

    per_layer holds the growth of the joint bound from block to block; a pooling that directly follows its activation is
    one block with it. before_refinement: the value with the multipliers of the feasible start. uncertain: {block:
    (neurons, pairs of pooling windows)} that may switch. groups: their total. status: "dense" or "passes", the way it
    was computed, or why the product bound is returned.
    """

    before_refinement: Tensor
    uncertain: list[dict[str, tuple[int, int]]]
    groups: list[int]
    status: list[str]

    def __repr__(self) -> str:
        return f"{super().__repr__()}; {values(self.groups)} kinks; {values(list(dict.fromkeys(self.status)))}"


@no_tf32()
def joint_bound(
    net: nn.Module, x0: Tensor, eps: float | Tensor, *, outputs: Tensor | None = None, effort: int = 60,
    target: Tensor | None = None, by_passes: bool = True, tolerance: float = 2e-3, failure_probability: float = 1e-9,
    seed: int = 0, progress: bool = False,
) -> JointBound:  # fmt: skip
    """Bound of ‖f(x) − f(x0)‖ / ‖x − x0‖ over 0 < ‖x − x0‖ ≤ eps, with all layers bounded together.

    Guaranteed: value ≥ the anchored local Lipschitz constant of the network with the given weights, except with
    probability `failure_probability` over our own random vectors (each half of it for this and for the product bound);
    value ≤ `local_bound` at the same x0 and eps. Where the joint bound cannot be computed the product bound is returned
    and `status` says why.

    effort: the number of steps taken on the multipliers of the whole network; a tenth of them is spent on each layer on
    the way, or somewhat more. A step is a Cholesky factorisation in the number of uncertain neurons, or some ten
    forward and backward passes where these are many. The bound is valid after any number. target: (B, K), or (B, 1)
    without `outputs`; the work ends once every value is at most its target, or seen to stay a tenth above it. None: as
    small as `effort` allows. by_passes: whether inputs with too many uncertain neurons for dense algebra are bounded by
    passes even where the network is so large that these take long, and give a looser bound; the product bound is
    returned if not. Other arguments, shapes and errors as in `local_bound`; each of the `outputs` is bounded by itself.
    Inputs of a batch are bounded independently, several at once where they have few uncertain neurons; progress: a bar
    counts them. Source: docs/joint_bound.md.
    """
    check_input(x0)
    seed = check_options(tolerance, failure_probability, seed)
    effort = check_count("effort", effort, 1)
    eps = check_eps(eps, x0).clamp(min=EPS_MIN)
    graph = read(net, x0)
    batch = eps.shape[0]
    outputs = check_outputs(outputs, size(graph.out_shape), batch).to(x0.device)
    targets = [None] * batch if target is None else check_target(target, batch, max(1, outputs.shape[1])).to(x0.device)
    norms = StageNorms(x0.dtype, graph, tolerance, 0.5 * failure_probability, True, seed)
    product = propagate(graph, x0, eps, norms)
    local = finish(graph, product, norms, outputs)
    x0 = x0.expand(batch, *x0.shape[1:])
    job = Job(graph, effort, tolerance, 0.5 * failure_probability, seed, by_passes)
    works = [job.work(x0[b : b + 1], float(eps[b]), outputs[b], targets[b], product.only(b)) for b in range(batch)]
    return _collect(local, _in_step(works, job.at_once(x0.device), counter(batch, progress, "input")))


@dataclass(frozen=True)
class Result:
    """The joint bound of one input: value (K,) or (1,), before refinement, growth (name, gain) of each block.

    layers: what it knows of the kinks, where that was asked for; empty for the product bound.
    """

    value: Tensor
    before: Tensor
    growth: list[tuple[str, float]]
    uncertain: dict[str, tuple[int, int]]
    groups: int
    status: str
    failure: float
    passes: float
    layers: KinkLayers = field(default_factory=dict)

    @property
    def bound(self) -> Tensor:
        """The value in float64 with its slack; ∞ where it is not a number, which an overflow may give."""
        return (self.value.double() * (1.0 + VALUE_SLACK)).nan_to_num(nan=math.inf, posinf=math.inf)


@dataclass(frozen=True)
class Job:
    """What is the same for every input of a batch. layers: whether results tell what is known of the kinks."""

    graph: Graph
    effort: int
    tolerance: float
    failure_probability: float
    seed: int
    by_passes: bool = True
    layers: bool = False  # of a large network they take as much memory as its activations

    @torch.no_grad()
    def __call__(
        self, x0: Tensor, eps: float, outputs: Tensor, target: Tensor | None, product: dict[str, Source]
    ) -> Result:
        """The joint bound at x0 (1, *shape) for outputs (K, m), or (0, m) for the whole output."""
        return alone(self.work(x0, eps, outputs, target, product))

    def at_once(self, device: torch.device) -> int:
        """How many inputs are worked on in step."""
        kinks = sum(size(plan.stage.out_shape) for plan in plans(self.graph)[0])
        return inputs_at_once(kinks, size(self.graph.in_shape), device)

    def work(
        self, x0: Tensor, eps: float, outputs: Tensor, target: Tensor | None, product: dict[str, Source]
    ) -> Work[Result]:
        """The same, in step with others."""
        why: Exception
        for dense in (True, False):
            try:
                return (yield from self._run(x0, eps, outputs, target, product, dense))
            except (Infeasible, torch.linalg.LinAlgError) as error:
                why = error
            except TooManyGroups as error:
                why = error
                if not (self.by_passes or cheap(error.groups, self.graph.cost, x0.device)):
                    break
        nothing = x0.new_full((max(1, len(outputs)),), torch.inf, dtype=torch.float64)
        growth = [(plan.stage.name, float(product[plan.name].gain)) for plan in plans(self.graph)[0]]
        return Result(nothing, nothing, growth, {}, 0, f"product bound: {why}", 0.0, 0.0)

    def _run(
        self, x0: Tensor, eps: float, outputs: Tensor, target: Tensor | None, product: dict[str, Source], dense: bool
    ) -> Work[Result]:
        vanishing = any(0.0 < float(source.gain) < 1.0 / SINGLE for source in product.values())
        exact = dense or vanishing
        dtype = torch.float64 if exact else working_dtype(self.graph.stages, x0.dtype)
        operator = JointOperator(self.graph.in_shape, [], None, x0.new_zeros((), dtype=dtype))
        random = Random(self.failure_probability / (1 + len(self.graph.stages)), self.tolerance, self.seed, eps)
        steps = max(2, self.effort // ON_THE_WAY)
        if dense:
            groups: DenseGroups | PassGroups = DenseGroups(operator.like, self.graph, steps, random)
        else:
            groups = PassGroups(operator.like, self.graph, steps, random, self.by_passes)
        growth = yield from build(self.graph, x0, eps, product, operator, groups)
        value, before = yield from groups.outputs(operator, outputs if len(outputs) else None, self.effort, target)
        uncertain = {block.plan.stage.name: _counts(block) for block in operator.blocks}
        passes, count = operator.work / max(1, self.graph.cost), operator.groups
        layers = kink_layers(operator, groups.mu.double(), eps) if self.layers else {}
        return Result(value, before, growth, uncertain, count, groups.status, random.spent, passes, layers)


@torch.no_grad()
def _in_step(works: list[Work[Result]], at_once: int, done: Callable[[int], None]) -> list[Result]:
    """The results, of so many inputs at once; done: is told how many there are."""
    results: list[Result] = []
    for first in range(0, len(works), at_once):
        results += together(works[first : first + at_once], lambda count: done(len(results) + count))
    return results


def _counts(block: Block) -> tuple[int, int]:
    """(uncertain neurons, uncertain pairs of windows)."""
    pairs = sum(len(kinks.index) for kinks in block.kinks[: len(block.levels)])
    return block.count - pairs, pairs


def _collect(local: Bound, results: list[Result]) -> JointBound:
    """The smaller of product and joint bound for each input, as one record."""
    joint = torch.stack([r.bound for r in results]).to(local.value)
    before = torch.stack([r.before for r in results]).to(local.value)
    joint, before = (x if local.value.dim() == 2 else x[:, 0] for x in (joint, before))
    value = torch.fmin(local.value, joint)
    names = [name for name, _ in results[0].growth]
    growth = torch.tensor([[gain for _, gain in r.growth] for r in results], dtype=torch.float64).to(value)
    top = value.amax(1) if value.dim() == 2 else value
    along = torch.cat([torch.ones_like(top)[:, None], growth, top[:, None]], 1).clamp(min=TINY)
    per_layer = [(name, along[:, i + 1] / along[:, i]) for i, name in enumerate([*names, local.per_layer[-1][0]])]
    failure = local.failure_probability + max(r.failure for r in results)
    passes = local.passes + sum(r.passes for r in results) / len(results)
    fall = None if local.fall is None else torch.fmin(local.fall, joint)
    return JointBound(
        value, per_layer, failure, passes, fall,
        before_refinement=torch.fmin(local.value, before), uncertain=[r.uncertain for r in results],
        groups=[r.groups for r in results], status=[r.status for r in results],
    )  # fmt: skip
