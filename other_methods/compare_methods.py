"""The rows of the comparison: every method on the same network, the same l2 ball, and in the l2 norm.

Where a method knows another norm or set, the row says so and the number is converted, without losing rigour:
    ‖J‖₂ ≤ √(‖J‖₁‖J‖_∞),    ‖J‖₂ ≤ ‖J‖_F ≤ √(Σ_i ‖∇f_i‖₁²),    and the l2 ball lies in the l∞ ball of the same radius.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch

import local_lipschitz
from other_methods.common.chain import Array, Ball, Chain, as_module
from other_methods.common.script import Method, Problem
from other_methods.eclipse import eclipse
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
    chain, x0, solver_limit = problem.chain, problem.x0, 0.7 * time_limit
    ball = Ball(x0, eps, 2)
    ours = [
        Method("local_bound (the paper)", "anchored", "l2", True, partial(own, "local_bound", chain, x0, eps)),
        Method("joint_bound (ours)", "anchored", "l2", True, partial(own, "joint_bound", chain, x0, eps)),
    ]
    local = [
        Method("FastLip", "local", "l2", True, partial(recurjac, chain, ball, 2, "fastlip")),
        Method("RecurJac", "local", "l2", True, partial(recurjac, chain, ball, 2)),
        Method("LiPopt, local", "local", LIPOPT_NORM, True, partial(lipopt_l2, chain, ball, solver_limit)),
        Method("LipMIP", "local", LIPMIP_NORM, True, partial(lipmip_l2, chain, x0, eps, solver_limit)),
        Method("LipSDP-Layer, local", "local", "l2", True, partial(lipsdp, chain, "layer", ball, None, solver_limit)),
        Method("LipSDP-Neuron, local", "local", "l2", True, partial(lipsdp, chain, "neuron", ball, None, solver_limit)),
    ]
    everywhere = [
        Method("AutoLip", "global", "l2", True, partial(autolip, chain)),
        Method("global_bound (the paper)", "global", "l2", True, partial(own, "global_bound", chain, x0)),
        Method("SeqLip, greedy", "global", "l2", False, partial(seqlip, chain, "greedy")),
        Method("SeqLip, exact", "global", "l2", True, partial(seqlip, chain, "exact")),
        Method("LiPopt", "global", LIPOPT_NORM, True, partial(lipopt_l2, chain, None, solver_limit)),
        Method("ECLipsE-Fast", "global", "l2", True, partial(eclipse, chain, "fast")),
        Method("ECLipsE", "global", "l2", True, partial(eclipse, chain, "sdp", None, solver_limit)),
        Method("LipSDP-Layer", "global", "l2", True, partial(lipsdp, chain, "layer", None, None, solver_limit)),
        Method("LipSDP-Neuron", "global", "l2", True, partial(lipsdp, chain, "neuron", None, None, solver_limit)),
    ]
    if unsound:
        network_form = partial(lipsdp, chain, "network", None, None, solver_limit)
        everywhere.append(Method("LipSDP-Network (unsound)", "global", "l2", False, network_form))
    return ours + local + everywhere


def own(name: str, chain: Chain, x0: Array, *eps: float) -> float:
    """A bound of this project: global_bound, local_bound or joint_bound."""
    return float(getattr(local_lipschitz, name)(as_module(chain), torch.from_numpy(x0)[None], *eps))


def lipmip_l2(chain: Chain, x0: Array, eps: float, time_limit: float) -> float:
    """LipMIP's two norms on the l∞ ball, as a bound of the l2 norm on the l2 ball."""
    ball = Ball(x0, eps, np.inf)
    if chain.widths[-1] == 1:
        return lipmip(chain, ball, "inf", time_limit).value  # ‖∇f‖₂ ≤ ‖∇f‖₁
    of_outputs, of_inputs = (lipmip(chain, ball, norm, 0.5 * time_limit) for norm in ("inf", "1"))
    return min(
        np.sqrt(of_outputs.value * of_inputs.value),
        np.linalg.norm(of_outputs.per_part), np.linalg.norm(of_inputs.per_part),
    ) * (1.0 + 1e-12)  # fmt: skip


def lipopt_l2(chain: Chain, ball: Ball | None, time_limit: float) -> float:
    """LiPopt's bound for each output, as a bound of the l2 norm; on the l2 ball itself, or over all inputs."""
    deadline = time.monotonic() + time_limit
    each = [lipopt(chain.output(i), ball, deadline - time.monotonic()) for i in range(chain.widths[-1])]
    return float(np.linalg.norm(each)) * (1.0 + 1e-12)
