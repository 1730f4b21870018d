"""Structured networks: sums that are rounded in one direction, what is alive beside dead rows, products that vanish."""

from fractions import Fraction

import exact
import pytest
import torch
from torch import Tensor, nn

from local_lipschitz import certified_radius, local_bound
from local_lipschitz import radius as search
from local_lipschitz.layers.rounding import affine_rounding, logits, norm_rounding, row_norms
from local_lipschitz.layers.short_sums import in_short_sums
from local_lipschitz.layers.stage import Stage
from local_lipschitz.numerics import gamma_n
from local_lipschitz.product import stage_norms
from local_lipschitz.reading.read import read


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 0.81, 1.1])
def test_a_constant_image_into_equal_weights(value):
    """The sum is rounded in one direction; exactly the unit is active, by less than an ulp of the sum."""
    n = 3072
    net = nn.Sequential(nn.Linear(n, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).double().eval()
    total = Fraction(value) * n
    b = -float(total)
    while Fraction(b) + total <= 0:
        b = float(torch.nextafter(torch.tensor(b, dtype=torch.float64), torch.zeros((), dtype=torch.float64)))
    with torch.no_grad():
        net[0].weight.fill_(1.0), net[0].bias.fill_(b), net[2].weight.fill_(1.0)
    x0 = torch.full((1, n), value, dtype=torch.float64)
    assert float(local_bound(net, x0, 1e-12)) >= 2.0 * n**0.5
    stage = read(net, x0).stages[0]
    computed, off = stage.affine({"input": x0})[0, 0], affine_rounding(stage, {"input": x0})[0, 0]
    assert abs(Fraction(float(computed)) - total - Fraction(b)) <= Fraction(float(off))


@pytest.mark.parametrize("scale", [1e-12, 1e-24, 1e-30])
def test_a_dead_row_hides_nothing(scale, monkeypatch):
    """One row of size 1 is dead on the ball; all that is alive is so small that its squares vanish in float32."""
    monkeypatch.setattr(stage_norms, "DENSE_SIDE", 0)
    net = nn.Sequential(nn.Linear(40, 400), nn.ReLU(), nn.Linear(400, 30)).eval()
    with torch.no_grad():
        net[0].weight.copy_(normal(400, 40)), net[2].weight.copy_(normal(30, 400, seed=1))
        net[0].weight[1:] *= scale
        net[0].bias.fill_(50 * scale)
        net[0].bias[0] = -1e6
    A, B = net[0].weight[1:].double(), net[2].weight[:, 1:].double()
    product = float(torch.linalg.matrix_norm(A.detach(), 2) * torch.linalg.matrix_norm(B.detach(), 2))
    bound = local_bound(net, torch.zeros(1, 40), 0.1)
    assert product <= float(bound) <= 1.005 * product


def test_an_input_keeps_its_value_beside_one_that_needs_float64():
    net = nn.Sequential(nn.Linear(300, 290), nn.ReLU(), nn.Linear(290, 3)).eval()
    with torch.no_grad():
        net[0].weight.copy_(normal(290, 300) / 17), net[0].weight[1:].mul_(1e-14), net[0].bias.zero_()
        net[0].bias[1:] = 1.0
        net[2].weight.copy_(normal(3, 290))
    x0 = torch.zeros(2, 300)
    x0[1] = -300.0 * net[0].weight[0].detach()  # here the large row is dead
    together = local_bound(net, x0, 0.1).value
    alone = torch.cat([local_bound(net, x0[i : i + 1], 0.1).value for i in range(2)])
    assert together[0] > 1e6 * together[1] > 0
    assert together == pytest.approx(alone, rel=1e-6)


def test_products_of_subnormal_layers_are_refused():
    down = [nn.Linear(1, 1, bias=False) for _ in range(5)]
    up = [nn.Linear(1, 1, bias=False) for _ in range(5)]
    for small, large in zip(down, up, strict=True):
        small.weight.data.fill_(1e-38), large.weight.data.fill_(1e38)
    with pytest.raises(ValueError, match="scale them by powers of two"):
        local_bound(nn.Sequential(*down, nn.ReLU(), *up).eval(), torch.zeros(1, 1), 1.0)
    three = nn.Sequential(*down[:3], nn.ReLU(), *up[:3]).eval()
    truth = exact.change(three.double(), torch.zeros(1).double(), torch.ones(1).double())[0]
    for net in (three.float(), three.double()):
        x0 = torch.zeros(1, 1, dtype=net[0].weight.dtype)
        assert truth <= Fraction(float(local_bound(net, x0, 1.0))) <= truth * Fraction(1.0001)


def test_batch_norm_that_cancels():
    """The folded shift is a difference of large numbers: the error of y0 counts with what it was subtracted from."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        net[1].running_mean.fill_(1e8 / 3)
        net[0].bias.copy_(net[1].running_mean), net[1].bias.fill_(1e-9)
    x0 = torch.zeros(1, 3, dtype=torch.float64)
    stage = read(net, x0).stages[0]
    off = affine_rounding(stage, {"input": x0})
    assert (off >= 1e8 / 3 * 2**-53).all() and (off < 1e-6).all()


def test_logits_with_what_two_units_share():
    """z_i − z_j = 0.5 with terms of 2^53 in both: no certificate for the class that only rounding sees."""
    net = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    big = 2.0**53
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net[0].weight.copy_(torch.tensor([[big, 1.0, -big, 0.0], [big, -big, 0.0, 0.5]]))
        net[0].bias.fill_(1e6)
        net[2].weight[0] = torch.tensor([1.0, -1.0])
    x0 = torch.ones(1, 4, dtype=torch.float64)
    truth, _ = exact.evaluate(net, exact.vector(x0[0]), (4,))
    y, off = logits(read(net, x0), x0)
    for computed, most, true in zip(y[0].tolist(), off[0].tolist(), truth, strict=True):
        assert abs(Fraction(computed) - true) <= Fraction(most)
    assert float(certified_radius(net, x0).radius) == 0.0


def test_every_evaluation_of_a_search_has_a_seed_of_its_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double().eval()
    seeds = []

    def watched(net, x0, eps, seed=0, **options):
        seeds.append(seed)
        return local_bound(net, x0, eps, seed=seed, **options)

    certified_radius(net, normal(2, 5), watched)
    assert len(set(seeds)) == len(seeds) > 1
    again, seeds = seeds, []
    certified_radius(net, normal(1, 5), watched)
    assert seeds[: len(again)] == again[: len(seeds)]  # whatever lies beside it in a batch
    assert search._seed(0, local_bound, 1) != search._seed(1, local_bound, 1)


@pytest.mark.parametrize(
    "layer", [nn.Linear(3000, 10), nn.Conv2d(300, 20, 3, padding=1), nn.Conv2d(20, 300, 5, stride=2, padding=2)]
)
def test_short_sums_are_the_same_map(layer):
    layer = nn.Sequential(layer.double()).eval()
    x0 = normal(2, 3000) if isinstance(layer[0], nn.Linear) else normal(2, layer[0].in_channels, 5, 6)
    stage: Stage = read(layer, x0).stages[0]
    short = in_short_sums(stage)
    assert short.terms < stage.terms
    y = stage.apply({"input": x0})
    assert torch.allclose(short.apply({"input": x0}), y, rtol=1e-10, atol=1e-10)
    assert torch.allclose(short.adjoint(y)["input"], stage.adjoint(y)["input"], rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "layers",
    [
        [nn.Flatten(), nn.Linear(98, 30)],
        [nn.Conv2d(2, 3, 3, stride=2, padding=1)],
        [nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3, dilation=2)],
        [nn.Flatten(), nn.Linear(98, 40), nn.Linear(40, 20)],
        [nn.AvgPool2d(3, 2)],
    ],
    ids=["matrix", "convolution", "two convolutions", "two matrices", "averages"],
)
def test_rounding_of_a_norm_counts_all_sizes(layers, dtype):
    """γ‖R |A_L| … |A_1| D‖ at least, whichever of its bounds is taken, and at scales whose squares float64 lacks."""
    torch.manual_seed(0)
    x0 = torch.zeros(2, 2, 7, 7, dtype=torch.float64)
    stage: Stage = read(nn.Sequential(*layers).double().eval(), x0).stages[0]
    live, scale = torch.rand(2, 2, 7, 7) < 0.7, 1.0 if dtype is torch.float32 else 1e-200
    r = scale * torch.rand(2, *stage.out_shape, dtype=torch.float64)
    rounding = norm_rounding(stage, "input", r * row_norms(stage, "input", live), r, live, dtype)
    sizes = stage.entries(Tensor.abs).matrix("input", x0)
    for b in range(2):
        M = (r[b] / scale).flatten()[:, None] * sizes * live[b].flatten()
        assert float(rounding[b]) >= gamma_n(stage.terms, dtype) * scale * float(torch.linalg.matrix_norm(M, 2))


def test_only_norms_by_passes_share_the_failure_probability():
    net = nn.Sequential(nn.Linear(300, 280), nn.ReLU(), nn.Linear(280, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    assert 0.999e-9 < local_bound(net, normal(1, 300).float(), 0.1).failure_probability <= 1e-9
