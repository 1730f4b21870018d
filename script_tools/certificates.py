"""The certificates that the scripts offer, one row each: a new bound is one row here.

`calculate_bounds.py` takes the curves (rows with a style), `calculate_bounds_adv.py` the methods, and
`calculate_bounds_many.py` the bounds with their rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from local_lipschitz import Bound, global_bound, joint_bound, local_bound
from script_tools.decided_radius import branching_radius, margin_radius

RULES = {"paper": "the paper's rule", "pairwise": "pairwise"}  # from a bound to a radius: `margins` of certified_radius


@dataclass(frozen=True)
class Certificate:
    """A bound, and how the scripts use it."""

    function: Callable[..., Bound]
    label: str  # in tables and figures
    style: dict[str, Any]  # of its curve against ε
    methods: dict[str, str]  # name of a method of calculate_bounds_adv.py: its rule
    of_eps: bool = True  # whether ε enters
    passes: int = 0  # what it roughly takes at one ε, where that is long
    rtol: float = 1e-4  # of a certified radius
    effort: dict[str, int] = field(default_factory=dict)  # `effort` for one input, and for many where that differs

    @property
    def costly(self) -> bool:
        return self.passes > 0

    def title(self, rule: str) -> str:
        """What its radii by this rule are called."""
        return f"{self.label}, {RULES[rule]}"


CERTIFICATES = {
    "global": Certificate(
        global_bound, "global bound", {"label": "global upper bound", "color": "0.35", "marker": ""},
        {"global": "paper"}, of_eps=False,
    ),
    "local": Certificate(
        local_bound, "local bound", {"label": "local upper bound (paper)", "color": "tab:red", "marker": "o"},
        {"paper": "paper", "pairwise": "pairwise"},
    ),
    # for many images a sixth of the effort, which certifies up to a fifth less
    "joint": Certificate(
        joint_bound, "joint bound", {"label": "joint upper bound", "color": "tab:blue", "marker": "s"},
        {"joint-paper": "paper", "joint": "pairwise"}, passes=5000, rtol=0.03, effort={"one": 120, "many": 20},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Deciding:
    """A proof that a class holds on one ball; radius(net, x0, rtol, seed) has (radius, limiting class), (B,) each."""

    radius: Callable[..., tuple[Tensor, Tensor]]
    label: str


DECISIONS = {
    "margin": Deciding(margin_radius, "margin bound"),
    "branching": Deciding(branching_radius, "branching"),
}

METHODS = {method: (row, rule) for row in CERTIFICATES.values() for method, rule in row.methods.items()}
PROOFS = [*METHODS, *DECISIONS]  # what a radius can be certified by
QUICK = [method for method, (certificate, _) in METHODS.items() if not certificate.costly]


def title(method: str) -> str:
    """What a radius that is certified by this method is called."""
    if method in DECISIONS:
        return DECISIONS[method].label
    certificate, rule = METHODS[method]
    return certificate.title(rule)
