"""What float64 rounding may have changed in nominal values: near a kink, tiny ε turn it into a change of slope.

A secant slope such as (y0 + h)/h depends on y0 relative to h = ε·‖a_i‖·…, and y0 = a_iᵀx + b_i is only known to the
rounding of its largest terms. Hence slopes are taken over y0 ± off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .graph import Stage
from .spectral import rounding_slack


def affine_rounding(stage: Stage, values: Mapping[str, Tensor], y0: Tensor) -> Tensor:
    """What rounding may have changed in y0 = stage.affine(values) for exact values, (B, *out_shape), float64.

    γ(|A||x| + |y0|), with γ the `rounding_slack` of float64; |b| ≤ |y0| + |A||x| is covered by its factor.
    """
    absolute = replace(stage, layers=tuple(layer.entries(lambda a: a.double().abs()) for layer in stage.layers))
    summed = absolute.apply({name: value.abs() for name, value in values.items()})
    # a convolution routine may return a rounding below zero where the sum is zero
    return rounding_slack(torch.float64, stage.terms) * (summed.clamp(min=0.0) + y0.abs())
