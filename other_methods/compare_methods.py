"""The rows of the comparison: every method on the same network, the same l2 ball, and in the l2 norm.

A method of matrices that the network does not fit, by its kind or its size, is a row that says why. Max pooling counts
by its constant in the global methods, and what they bound are the runs of layers between (Network.product).
Where a method knows another norm or set, the row says so and the number is converted, without losing rigour:
    ‖J‖₂ ≤ √(‖J‖₁‖J‖_∞),    ‖J‖₂ ≤ ‖J‖_F ≤ √(Σ_i ‖∇f_i‖₁²),    and the l2 ball lies in the l∞ ball of the same radius.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import local_lipschitz
from other_methods.aol import aol
from other_methods.chain import Array, Ball, Chain
from other_methods.common.network import Link, chain_of_segment
from other_methods.common.script import Converted, Method, Problem
from other_methods.eclipse import eclipse
from other_methods.eclipse_passes import eclipse_fast
from other_methods.liplt import liplt
from other_methods.lipmip import lipmip
from other_methods.lipopt import lipopt
from other_methods.lipsdp import lipsdp
from other_methods.recurjac import recurjac
from other_methods.seqlip import autolip, seqlip

LIPMIP_NORM = "l2 (from l∞, l1 on the l∞ ball)"
LIPOPT_NORM = "l2 (from l∞ of each output)"


def methods(problem: Problem, eps: float, time_limit: float, unsound: bool = False) -> list[Method]:
    """All methods, weakest quantity first. unsound: LipSDP's network form as well.

    Solvers get a part of the time limit, and what they have by then is made into a bound in the rest of it.
    """
    net, x0, limit = problem.network, problem.x0, 0.7 * time_limit
    ball = Ball(x0, eps, 2)
    matrices, runs = partial(partial, on_chain, problem), partial(partial, on_runs, problem)
    sdp_limit = limit / max(1, sum(len(run) > 1 for run in net.segments))
    rows: list[tuple[str, str, str, bool, Callable[[], Any]]] = [
        ("local_bound (the paper)", "anchored", "l2", True, partial(own, "local_bound", problem, eps)),
        ("joint_bound (ours)", "anchored", "l2", True, partial(own, "joint_bound", problem, eps)),
        ("FastLip", "local", "l2", True, partial(recurjac, net, ball, 2, "fastlip")),
        ("RecurJac", "local", "l2", True, partial(recurjac, net, ball, 2)),
        ("LiPopt, local", "local", LIPOPT_NORM, True, matrices(lipopt_l2, ball, limit)),
        ("LipMIP", "local", LIPMIP_NORM, True, matrices(lipmip_l2, x0, eps, limit)),
        ("LipSDP-Layer, local", "local", "l2", True, matrices(lipsdp, "layer", ball, None, limit)),
        ("LipSDP-Neuron, local", "local", "l2", True, matrices(lipsdp, "neuron", ball, None, limit)),
        ("AOL", "global", "l2", True, partial(aol, net)),
        ("AutoLip", "global", "l2", True, partial(autolip, net)),
        ("global_bound (the paper)", "global", "l2", True, partial(own, "global_bound", problem)),
        ("LipLT", "global", "l2", True, partial(liplt, net)),
        ("SeqLip, greedy", "global", "l2", False, partial(seqlip, net, "greedy")),
        ("SeqLip, relaxed", "global", "l2", True, partial(seqlip, net, "relaxed")),
        ("SeqLip, exact", "global", "l2", True, partial(seqlip, net, "exact")),
        ("LiPopt", "global", LIPOPT_NORM, True, matrices(lipopt_l2, None, limit)),
        ("ECLipsE-Fast", "global", "l2", True, partial(net.product, eclipse_fast_of)),
        ("ECLipsE", "global", "l2", True, runs(eclipse, "sdp", None, sdp_limit)),
        ("LipSDP-Layer", "global", "l2", True, runs(lipsdp, "layer", None, None, sdp_limit)),
        ("LipSDP-Neuron", "global", "l2", True, runs(lipsdp, "neuron", None, None, sdp_limit)),
        ("LipSDP-Neuron, chordal", "global", "l2", True, runs(lipsdp, "chordal", None, None, sdp_limit)),
    ]
    if unsound:
        network_form = runs(lipsdp, "network", None, None, sdp_limit)
        rows.append(("LipSDP-Network (unsound)", "global", "l2", False, network_form))
    return [Method(*row) for row in rows]


def on_chain(problem: Problem, method: Callable[..., Any], *args: Any) -> Any:
    """The method on the network as matrices; RuntimeError, with the reason, where it is none or too large."""
    return method(_matrices(lambda: problem.chain), *args)


def on_runs(problem: Problem, method: Callable[..., Any], *args: Any) -> float:
    """The method on each run of layers between poolings, as matrices; RuntimeError where one is too large."""
    return problem.network.product(lambda run: method(_matrices(lambda: chain_of_segment(run)), *args))


def eclipse_fast_of(run: Sequence[Link]) -> float:
    """ECLipsE-Fast of a run of layers: of matrices where they fit, else by passes."""
    try:
        return eclipse(chain_of_segment(run), "fast")
    except ValueError:
        return eclipse_fast(run)


def _matrices(build: Callable[[], Chain]) -> Chain:
    try:
        return build()
    except (local_lipschitz.UnsupportedLayerError, ValueError) as error:
        raise RuntimeError(str(error)) from None


def own(name: str, problem: Problem, *eps: float) -> float:
    """A bound of this project: global_bound, local_bound or joint_bound."""
    return float(getattr(local_lipschitz, name)(problem.module, problem.input, *eps))


def lipmip_l2(chain: Chain, x0: Array, eps: float, time_limit: float) -> Converted:
    """LipMIP's two norms on the l∞ ball, as a bound of the l2 norm on the l2 ball."""
    ball = Ball(x0, eps, np.inf)
    if chain.widths[-1] == 1:
        gradient = lipmip(chain, ball, "inf", time_limit).value
        return Converted(gradient, {"inf to inf": gradient})  # ‖∇f‖₂ ≤ ‖∇f‖₁
    of_outputs, of_inputs = (lipmip(chain, ball, norm, 0.5 * time_limit) for norm in ("inf", "1"))
    value = min(
        np.sqrt(of_outputs.value * of_inputs.value),
        np.linalg.norm(of_outputs.per_part), np.linalg.norm(of_inputs.per_part),
    ) * (1.0 + 1e-12)  # fmt: skip
    return Converted(float(value), {"inf to inf": of_outputs.value, "1 to 1": of_inputs.value})


def lipopt_l2(chain: Chain, ball: Ball | None, time_limit: float) -> Converted:
    """LiPopt's bound for each output, as a bound of the l2 norm; on the l2 ball itself, or over all inputs."""
    deadline = time.monotonic() + time_limit
    each = [lipopt(chain.output(i), ball, deadline - time.monotonic()) for i in range(chain.widths[-1])]
    value = float(np.linalg.norm(each)) * (1.0 + 1e-12)
    return Converted(value, {f"inf to |.|, output {i}": bound for i, bound in enumerate(each)})
