"""The gain of a layer from what it reads, and certificates that are left out."""

import math

import pytest
import torch
from linearised import linearised
from torch import nn

from local_lipschitz.joint.passes import MORE, RAISED
from local_lipschitz.joint_operator import plans
from local_lipschitz.joint_operator.build import Known, _passed_on
from local_lipschitz.product.propagation import LEAST, propagate
from local_lipschitz.product.stage_norms import StageNorms
from local_lipschitz.reading.read import read


class Net(nn.Module):
    """Linear on a small ball: all its neurons are on. `skip`: the third layer reads the first one as well."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.skip, widths = skip, (5, 8, 6, 8, 3) if skip else (5, 8, 6, 7, 3)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        for k, layer in enumerate(self.layers):
            nn.init.constant_(layer.bias, 30.0 ** (k + 1))

    def forward(self, x):
        a = torch.relu(self.layers[0](x))
        c = self.layers[2](torch.relu(self.layers[1](a)))
        return self.layers[3](torch.relu(c + a if self.skip else c))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("shrunk", [(0.1, 0.5), (0.5, 0.1), (1.0, 0.0), (0.0, 0.0)])
def test_a_gain_is_passed_on_by_norms(skip, shrunk):
    torch.manual_seed(3)
    net, x0 = Net(skip).double().eval(), torch.randn(1, 5).double()
    norm = [float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) for layer in net.layers]
    graph, eps = read(net, x0), torch.tensor([1e-3])
    product = propagate(graph, x0, eps, StageNorms(x0.dtype, graph, 1e-3, 1e-9, True, 0)).sources
    blocks, _ = plans(graph)
    first, second = (factor * float(product[plan.name].gain) for factor, plan in zip(shrunk, blocks, strict=False))
    none = torch.zeros(1)
    known = {plan.name: Known(none, none, none, gain) for plan, gain in zip(blocks, (first, second), strict=False)}
    passed_on = _passed_on(blocks[2], known, product)
    needed = norm[2] * second + (first if skip else 0.0)
    most = norm[2] * norm[1] * norm[0] + (norm[0] if skip else 0.0)
    assert needed <= passed_on <= 1.0001 * max(shrunk) * most + LEAST
    assert skip or passed_on <= 1.0001 * needed + LEAST


@pytest.mark.parametrize("skip", [False, True])
def test_a_certificate_is_left_out_where_it_would_save_few_kinks(skip):
    torch.manual_seed(4)
    net, x0 = Net(skip).eval(), torch.zeros(1, 5)
    for layer in net.layers:
        nn.init.constant_(layer.bias, 0.02)
    operator, groups = linearised(net, x0, 0.3)
    groups.tuned = False  # as where passes are dear
    certified = groups.layer_gain(operator, math.inf)
    found = math.sqrt(RAISED * float(groups._top(operator, 12, 6).gamma))
    share = MORE * operator.groups / max(1, operator.blocks[-1].count)
    assert operator.groups > 0 and certified < math.inf
    just, beyond = found * (1.0 + 0.9 * share), found * (1.0 + 1.5 * share)
    assert groups.layer_gain(operator, just) == just
    assert groups.layer_gain(operator, beyond) < beyond
