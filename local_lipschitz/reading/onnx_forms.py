"""Smooth activations that a graph writes out as products: x·σ(x) becomes SiLU, and so on.

A product is known by its constant and its other factors, in any order and grouping. Constants count as the intended
ones within float32's rounding.

    SiLU       x · Sigmoid(x)                        HardSwish   x · HardSigmoid(x; 1/6, 1/2)
    Mish       x · Tanh(Softplus(x))                             1/6 · x · Clip(x + 3, 0, 6)
    GELU       1/2 · x · (1 + Erf(x/√2))             its tanh form  1/2 · x · (1 + Tanh(√(2/π)·(x + 0.044715·x³)))
                                                    or with x·(1 + 0.044715·x²)
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

SAME = 1e-6  # relative, of constants in float32
CUBIC = 0.044715


@dataclass
class Step:
    """One node of the graph; `name` is also where it stands."""

    name: str
    kind: str
    options: dict[str, Any]
    reads: list[str]
    writes: list[str] = field(default_factory=list)


def with_forms(steps: list[Step], constants: dict[str, Tensor], output: str) -> list[Step]:
    """The steps that the output needs, with the forms above as one step each."""
    forms = Forms(steps, constants)
    steps = [forms.fused(step) if step.kind in ("Mul", "Div") else step for step in steps]
    needed, kept = {output}, []
    for step in reversed(steps):
        if needed.intersection(step.writes):
            needed.update(step.reads)
            kept.append(step)
    return kept[::-1]


class Forms:
    def __init__(self, steps: list[Step], constants: dict[str, Tensor]) -> None:
        self.made = {name: step for step in steps for name in step.writes}
        self.readers = Counter(name for step in steps for name in step.reads)
        self.constants = constants

    def fused(self, step: Step) -> Step:
        """The step, or the activation that it is the last step of."""
        constant, names = self.factors(step.writes[0], whole=True)
        if len(names) != 2:
            return step
        for x, other in (names, names[::-1]):
            if (found := self._gate(constant, x, other)) is not None:
                kind, options = found
                return Step(step.name, kind, options, [x], step.writes)
        return step

    def _gate(self, constant: float, x: str, other: str) -> tuple[str, dict[str, Any]] | None:
        """What constant·x·other is, where it is one of the forms."""
        gate = self.made.get(other)
        if gate is None:
            return None
        if same(constant, 1.0):
            if gate.kind == "Sigmoid" and gate.reads == [x]:
                return "Silu", {}
            if gate.kind == "HardSigmoid" and gate.reads == [x] and same(6.0 * gate.options.get("alpha", 0.2), 1.0):
                return ("HardSwish", {}) if same(gate.options.get("beta", 0.5), 0.5) else None
            inner = self.made.get(gate.reads[0]) if gate.kind == "Tanh" else None
            return ("Mish", {}) if inner is not None and inner.kind == "Softplus" and inner.reads == [x] else None
        if same(6.0 * constant, 1.0):
            shifted = self.plus(gate.reads[0]) if gate.kind == "Clip" and self._limits(gate) == (0.0, 6.0) else None
            return ("HardSwish", {}) if shifted == (3.0, x) else None
        plus = self.plus(other) if same(constant, 0.5) else None
        curve = self.made.get(plus[1]) if plus is not None and plus[0] == 1.0 else None
        if curve is None:
            return None
        scale, names = self.factors(curve.reads[0])
        if curve.kind == "Erf" and names == [x] and same(scale, math.sqrt(0.5)):
            return "Gelu", {"approximate": "none"}
        if curve.kind == "Tanh" and same(scale, math.sqrt(2.0 / math.pi)) and self._is_cubic(names, x):
            return "Gelu", {"approximate": "tanh"}
        return None

    def _is_cubic(self, names: list[str], x: str) -> bool:
        """Whether the product of these is x + 0.044715·x³, or x·(1 + 0.044715·x²)."""
        if x in names and len(names) == 2:
            plus = self.plus(names[1 - names.index(x)])
            return plus is not None and plus[0] == 1.0 and self._is_cubed(plus[1], [x, x])
        step = self.made.get(names[0]) if len(names) == 1 else None
        if step is None or step.kind != "Add" or x not in step.reads:
            return False
        return self._is_cubed(step.reads[1 - step.reads.index(x)], [x, x, x])

    def _is_cubed(self, name: str, powers: list[str]) -> bool:
        """Whether it is 0.044715 times these."""
        scale, names = self.factors(name)
        return same(scale, CUBIC) and names == powers

    def factors(self, name: str, whole: bool = False) -> tuple[float, list[str]]:
        """The constant and the other factors of which it is the product. What several steps read is one factor, x."""
        value, step = self.number(name), self.made.get(name)
        if value is not None:
            return value, []
        if not whole and self.readers[name] > 1:
            return 1.0, [name]
        if step is not None and step.kind == "Mul":
            (c1, first), (c2, second) = map(self.factors, step.reads)
            return c1 * c2, first + second
        if step is not None and step.kind == "Div" and self.number(step.reads[1]):
            constant, names = self.factors(step.reads[0])
            return constant / (self.number(step.reads[1]) or math.nan), names
        if step is not None and step.kind == "Pow" and self.number(step.reads[1]) in (2.0, 3.0):
            constant, names = self.factors(step.reads[0])
            times = int(self.number(step.reads[1]) or 1)
            return constant**times, names * times
        return 1.0, [name]

    def plus(self, name: str) -> tuple[float, str] | None:
        """(constant, what it is added to)."""
        step = self.made.get(name)
        if step is None or step.kind != "Add":
            return None
        for constant, other in (step.reads, step.reads[::-1]):
            if (value := self.number(constant)) is not None:
                return value, other
        return None

    def number(self, name: str) -> float | None:
        """A constant of one element."""
        value = self.constants.get(name)
        return float(value) if value is not None and value.numel() == 1 and value.dim() <= 1 else None

    def _limits(self, clip: Step) -> tuple[float | None, float | None]:
        if "min" in clip.options or "max" in clip.options:
            return clip.options.get("min"), clip.options.get("max")
        low, high = (self.number(clip.reads[i]) if i < len(clip.reads) else None for i in (1, 2))
        return low, high


def same(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= SAME * abs(wanted)
