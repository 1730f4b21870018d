"""The operator of a network near x0, as joint_bound builds it, and its matrix."""

from typing import Any

import torch
from torch import Tensor, nn

from local_lipschitz.joint.certificate import Random
from local_lipschitz.joint.dense import DenseGroups
from local_lipschitz.joint.passes import PassGroups
from local_lipschitz.joint.together import alone
from local_lipschitz.joint_operator import JointOperator
from local_lipschitz.joint_operator.build import build
from local_lipschitz.product.propagation import propagate
from local_lipschitz.product.stage_norms import StageNorms
from local_lipschitz.reading.read import read


@torch.no_grad()
def linearised(net: nn.Module, x0: Tensor, eps: float) -> tuple[JointOperator, Any]:
    """The operator around x0 with all kinks, as joint_bound builds it: with rows in float64, by passes in float32."""
    graph = read(net, x0)
    operator = JointOperator(graph.in_shape, [], None, x0.new_zeros(()))
    way = DenseGroups if x0.dtype is torch.float64 else PassGroups
    groups = way(operator.like, graph, 3, Random(1e-10, 1e-3, 0))
    product = propagate(graph, x0, torch.tensor([eps]), StageNorms(x0.dtype, graph, 1e-3, 1e-9, True, 0)).sources
    alone(build(graph, x0, eps, product, operator, groups))
    return operator, groups


def matrices(operator: JointOperator) -> Tensor:
    """K = [[N, P], [Q, T]], a column for each unit vector."""
    n, G = int(torch.tensor(operator.in_shape).prod()), operator.groups
    unit = torch.eye(n + G, dtype=torch.float64)
    f, v = operator.forward(unit[:, :n], unit[:, n:])
    return torch.cat([f, v], 1).T


def layers(operator: JointOperator) -> list:
    return [kinks for block in operator.blocks for kinks in block.kinks if len(kinks.index)]
