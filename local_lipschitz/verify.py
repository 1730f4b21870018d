"""Does the class hold on this ball? A cascade from the cheapest proof to branching, and a search for a way out."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attacks.on_ball import BallAttack
from .inputs import check_eps, check_input, check_label, other_classes
from .joint.bound import Job as JointJob
from .layers.graph import Graph
from .layers.rounding import logits
from .margin.ball import Ball, scaled
from .margin.bends import Limit, NotDense
from .margin.bound import DEAR, LARGE, UP, fallen
from .margin.box import Box, Region, check_box
from .margin.branching import Node, branch
from .margin.ends import by_shares
from .margin.intervals import Given, Local, local_network
from .margin.solve import Wanted, proven, solve_all
from .margin.start import moments, starts
from .precision import no_tf32
from .printing import bar, certainty, values
from .product.bound import finish
from .product.propagation import EPS_MIN, Source, propagate
from .product.stage_norms import StageNorms
from .reading.read import read

NODES = 100_000
BRANCHED = 1200  # the size of a relaxation up to which there is time for more than a few nodes
SHORT = 20  # steps of the joint bound


@dataclass(frozen=True)
class Verdict:
    """Whether each input of the batch keeps its class on its ball.

    verdict: "verified", "falsified" or "unknown", a list of length B. stage: by what it was decided, "product",
    "attack", "joint", "margin" or "branching"; of an unknown one where it ended. lower: (B, m − 1) float64, lower
    bounds of f_label − f_c on the ball over the other classes c in ascending order. label: (B,). counterexample: (B,
    *shape) float64, a misclassified point of the ball where falsified, else x0. nodes: (B,) parts of the ball that
    branching solved. seconds: (B,). failure_probability: of any verdict "verified", over our own random vectors. box:
    whether all of this is about the part of the ball inside of a box.
    """

    verdict: list[str]
    stage: list[str]
    lower: Tensor
    label: Tensor
    counterexample: Tensor
    nodes: Tensor
    seconds: Tensor
    failure_probability: float
    box: bool = False

    def __repr__(self) -> str:
        how = f"by {values(self.stage)}; {values(self.seconds)} s"
        part = "ball inside of the box" if self.box else "ball"
        lines = [f"Verdict {values(self.verdict)}", f"whether every x of the {part} is of class {values(self.label)}"]
        return "\n".join([*lines, f"{certainty(self.failure_probability)}; {how}"])


@no_tf32()
@torch.no_grad()
def verify(
    net: nn.Module, x0: Tensor, eps: float | Tensor, label: Tensor | None = None, *, effort: int = 40,
    time_limit: float = 60.0, failure_probability: float = 1e-9, seed: int = 0, progress: bool = False,
    box: tuple[Tensor | float, Tensor | float] | None = None,
) -> Verdict:  # fmt: skip
    """Prove that no x with ‖x − x0‖₂ ≤ eps is of another class than x0, or find one that is.

    Guaranteed: "verified" is a proof for the network with the given weights in exact arithmetic, rounding included,
    but for `failure_probability` (spectral norms of large layers rest on our own random vectors). "falsified" comes
    with a point of the ball to which the network, evaluated in float64, gives another class. `lower` is valid wherever
    the work stopped.

    In order, each for the inputs and classes that are still open: the product bound; gradient descent on the margins;
    the margin certificate (docs/margin.md), or the joint bound where too many kinks may bend; branching on kinks.

    net, x0, eps: as in `local_bound`. label: (B,) the class of each input; None is the predicted one. effort: steps of
    the interior-point method for a class. time_limit: seconds an input; no step is begun that is expected to end later.
    progress: a bar counts the inputs. box: (lowest, highest), numbers or what expands to (1, *shape): only the points
    of the ball with lowest ≤ x ≤ highest count, for proofs and counterexamples; x0 outside of it raises ValueError.
    Raises ValueError for a network of one output, an input that is not of its `label`, and what `local_bound` refuses.
    """
    began = time.monotonic()
    check_input(x0)
    if effort < 1:
        raise ValueError(f"effort is {effort}; a positive number of steps is wanted")
    if not time_limit >= 0.0:
        raise ValueError(f"time_limit is {time_limit}; seconds are wanted")
    eps = check_eps(eps, x0).clamp(min=EPS_MIN)
    box = check_box(box, x0)
    graph = read(net, x0)
    x0 = x0.expand(eps.shape[0], *x0.shape[1:])
    y, off = logits(graph, x0)
    label = check_label(label, y)
    others = other_classes(label, y.shape[1])
    unit = torch.eye(y.shape[1], dtype=torch.float64, device=x0.device)
    C = unit[label][:, None] - unit[others]
    norms = StageNorms(x0.dtype, graph, 2e-3, 0.5 * failure_probability, True, seed)
    product = propagate(graph, x0, eps, norms)
    local = finish(graph, product, norms, C)
    assert local.fall is not None
    nominal = (C @ y[..., None])[..., 0] - (C.abs() @ (off + UP * y.abs())[..., None])[..., 0]  # rounded down
    lower = fallen(nominal, local.fall, eps[:, None])
    attack = BallAttack(net, x0, eps, label, seed, box)
    open_ = (lower <= 0).nonzero()
    attack.descend(open_[:, 0], others[open_[:, 0], open_[:, 1]])
    how = _How(graph, effort, 0.5 * failure_probability, seed, box)
    jobs = [_Input(how, attack, b, x0[b : b + 1], float(eps[b]), C[b], nominal[b], lower[b]) for b in range(len(x0))]
    shared = (time.monotonic() - began) / len(x0)
    for b, job in enumerate(bar(jobs, progress, "input")):
        job.decide(product.only(b), shared, time_limit)
    failure = norms.failure_spent + max(job.failure for job in jobs)
    found = [attack.found.get(b, x0[b].double()) for b in range(len(x0))]
    return Verdict(
        [job.verdict for job in jobs], [job.stage for job in jobs], torch.stack([job.lower for job in jobs]), label,
        torch.stack(found), torch.tensor([job.nodes for job in jobs]),
        torch.tensor([job.seconds for job in jobs], dtype=torch.float64), failure, box is not None,
    )  # fmt: skip


@dataclass(frozen=True)
class _How:
    """What is the same for every input."""

    graph: Graph
    effort: int
    failure_probability: float  # of the joint bound
    seed: int
    box: Box | None


@dataclass
class _Input:
    """The stages of one input x0 (1, *shape); lower (m − 1,) rises from one to the next. nominal: rounded down."""

    how: _How
    attack: BallAttack
    number: int
    x0: Tensor
    eps: float
    C: Tensor
    nominal: Tensor
    lower: Tensor
    verdict: str = "unknown"
    stage: str = "product"
    nodes: int = 0
    seconds: float = 0.0
    failure: float = 0.0

    @property
    def open(self) -> Tensor:
        return ~(self.lower > 0)

    def decide(self, product: dict[str, Source], already: float, time_limit: float) -> None:
        """Through the stages until it is decided."""
        began = time.monotonic() - already
        deadline = began + time_limit
        if self.number in self.attack.found:
            self.verdict, self.stage = "falsified", "attack"
        elif bool(self.open.any()) and time.monotonic() < deadline:
            self._certify(product, deadline)
        if self.verdict == "unknown" and not bool(self.open.any()):
            self.verdict = "verified"
        self.seconds = time.monotonic() - began

    def _certify(self, product: dict[str, Source], deadline: float) -> None:
        """The margin certificate at once where few kinks may bend, and else after the joint bound and what it knows."""
        self.stage = "margin"
        try:
            self._margin(self._local(Given(product), Limit(DEAR, deadline)), deadline)
        except NotDense:
            self._joint_first(product, deadline)

    def _joint_first(self, product: dict[str, Source], deadline: float) -> None:
        if time.monotonic() > deadline:
            return
        self.stage = "joint"
        job = JointJob(self.how.graph, SHORT, 2e-3, self.how.failure_probability, self.how.seed, layers=True)
        open_, lower = self.open, self.nominal[self.open]
        joint = job(self.x0, self.eps, self.C[open_], lower.clamp(min=0.0) / self.eps, product)
        self.failure = joint.failure
        self.lower[open_] = torch.maximum(self.lower[open_], fallen(lower, joint.bound, self.eps))
        if not bool(self.open.any()):
            return
        try:
            local = self._local(Given(product, joint.layers), Limit(LARGE, deadline))
        except NotDense:
            return
        self.stage = "margin"
        self._margin(local, deadline)

    def _local(self, given: Given, limit: Limit) -> Local:
        region = Region(self.eps, self.how.box)
        return local_network(self.how.graph, self.x0, region, self.C, given, by_shares, limit)

    def _margin(self, local: Local, deadline: float) -> None:
        self.lower = torch.maximum(self.lower, local.kinks.lines(local.functions).lower)
        if not bool(self.open.any()) or time.monotonic() > deadline:
            return
        open_ = self.open.nonzero()[:, 0]
        rows = local.functions.pick(open_)
        ball = scaled(local.kinks, rows)
        targets = torch.zeros_like(self.lower[open_])
        wanted = Wanted(targets, 1e-3, self.how.effort, deadline=deadline, seed=self.how.seed)
        solved = solve_all(ball, starts(local.kinks, rows), wanted)
        self.lower[open_] = torch.maximum(self.lower[open_], proven(ball, solved))
        left = self.open[open_].nonzero()[:, 0].tolist()
        if not left or time.monotonic() > deadline or ball.relaxation.size > BRANCHED:
            return
        interior = moments(ball, self.how.seed)
        for k in sorted(left, key=lambda k: float(solved.t[k])):
            if time.monotonic() > deadline or self.verdict != "unknown":
                return
            self.stage = "branching"
            c, X = int(open_[k]), interior if solved.X[k] is None else solved.X[k]
            root = Node(ball.only(k), solved.mu[k : k + 1], X, interior, float(self.lower[c]))
            result = branch(root, 0.0, NODES - self.nodes, deadline, 1e-7, lambda ball, xi: self._try(ball, xi, c))
            self.nodes += result.nodes
            self.lower[c] = max(float(self.lower[c]), result.lower)
            if self.number in self.attack.found:
                self.verdict = "falsified"

    def _try(self, ball: Ball, xi: Tensor, c: int) -> bool:
        """Whether a few steps from where a node has its minimum lead to a counterexample."""
        delta = ball.points(xi, self.eps).reshape(-1, *self.x0.shape[1:])
        i = torch.full((len(delta),), self.number, device=delta.device)
        classes = self.C[c].argmin().expand(len(delta))
        self.attack.descend(i, classes, self.x0.double() + delta, steps=5)
        return self.number in self.attack.found
