"""certified_radius against closed forms, its own certificate re-evaluated, and points sampled from the ball."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from random_networks import random_network
from torch import nn

from local_lipschitz import Bound, certified_radius, global_bound, joint_bound, local_bound, margin_bound
from local_lipschitz.layers.rounding import logits
from local_lipschitz.reading.read import read
from networks import mnist


def affine(m, n, seed=0, bias=True):
    """A linear classifier (float64), an input, and the distance of the nearest boundary, min |margin|/‖w_t − w_c‖."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(n, m, bias=bias)).double().eval()
    x0 = torch.randn(1, n, dtype=torch.float64)
    y, W = net(x0)[0].detach(), net[0].weight.detach()
    t = int(y.argmax())
    exact = min(float((y[t] - y[c]) / (W[t] - W[c]).norm()) for c in range(m) if c != t)
    return net, x0, exact


def relu_network(widths, seed=0):
    torch.manual_seed(seed)
    layers = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double().eval()


def classifiers(count, seed=0):
    """Random networks of two outputs or more, none of them tied at its input."""
    found = []
    while len(found) < count:
        net, x0 = random_network(seed)
        seed += 1
        y = net(x0).detach().sort(descending=True)[0]
        if y.shape[1] > 1 and y[0, 0] - y[0, 1] > 1e-6:
            found.append((net, x0))
    return found


@pytest.mark.parametrize("bound", [local_bound, global_bound, joint_bound])
@pytest.mark.parametrize("m", [2, 5])
def test_linear_classifier_is_certified_exactly(bound, m):
    for seed in range(5):
        net, x0, exact = affine(m, 7, seed)
        radius = float(certified_radius(net, x0, bound).radius)
        assert 0.999 * exact <= radius <= exact


def test_paper_rule_on_a_linear_classifier():
    net, x0, _ = affine(3, 7)
    y = net(x0)[0].detach().sort(descending=True)[0]
    rule = float((y[0] - y[1]) / (math.sqrt(2) * torch.linalg.matrix_norm(net[0].weight.detach(), 2)))
    for bound in (local_bound, global_bound):
        assert float(certified_radius(net, x0, bound, "paper").radius) == pytest.approx(rule, rel=2e-4)


def test_global_bound_is_a_closed_form():
    net, x0 = relu_network([6, 10, 4]), torch.randn(3, 6).double()
    result = certified_radius(net, x0, global_bound, "paper")
    y = net(x0).detach().sort(1, descending=True)[0]
    margin, L = y[:, 0] - y[:, 1], global_bound(net, x0).value
    assert result.radius == pytest.approx(margin / (math.sqrt(2) * L), rel=1e-9)
    assert result.evaluations.tolist() == [1, 1, 1]
    published = (margin + math.sqrt(2)) / L  # what the paper's code has, and no certificate
    assert (published > math.sqrt(2) * result.radius).all()


@pytest.mark.parametrize("scale", [1e-12, 1e-7, 1e-3, 1.0, 1e3, 1e6])
def test_radii_of_every_size(scale):
    """x -> f(x/s) has s times the radius of f."""
    net, x0 = relu_network([5, 12, 9, 3], seed=3), torch.ones(1, 5).double()
    radius = float(certified_radius(net, x0).radius)
    with torch.no_grad():
        net[0].weight /= scale / radius  # the radius becomes `scale`
    result = certified_radius(net, x0 * scale / radius)
    assert float(result.radius) == pytest.approx(scale, rel=2e-4)
    assert int(result.evaluations) <= 20


def test_the_certificate_holds_at_the_radius_and_not_beyond():
    for net, x0 in classifiers(10):
        result = certified_radius(net, x0)
        y, t, m = net(x0)[0].detach(), int(result.label), net(x0).shape[1]
        C = torch.eye(m).double()
        C = C[t] - C[[c for c in range(m) if c != t]]
        for factor, holds in ((1.0, True), (1.0003, False)):
            eps = factor * float(result.radius)
            if holds or eps < 1e9:  # the largest that is searched
                assert bool((eps * local_bound(net, x0, eps, outputs=C).fall[0] < C @ y).all()) == holds


def test_no_point_of_the_ball_is_of_another_class():
    for net, x0 in classifiers(10, seed=500):
        result = certified_radius(net, x0)
        radius = min(float(result.radius), 1e6)
        delta = torch.randn(2000, *x0.shape[1:]).double()
        x = x0 + radius * delta / delta.flatten(1).norm(dim=1).reshape(-1, *[1] * (x0.dim() - 1))
        assert (net(x).argmax(1) == result.label).all()


def test_pairwise_is_never_below_the_papers_rule():
    for net, x0 in classifiers(12, seed=1000):
        for bound in (local_bound, global_bound):
            pairwise, paper = (certified_radius(net, x0, bound, margins).radius for margins in ("pairwise", "paper"))
            assert (pairwise >= (1 - 2e-4) * paper).all()


def test_the_joint_bound_certifies_more():
    for net, x0 in classifiers(3, seed=2000):
        local, joint = (certified_radius(net, x0, bound, rtol=0.01).radius for bound in (local_bound, joint_bound))
        assert joint >= 0.99 * local
    net, x0 = relu_network([4, 10, 8, 3], seed=1), torch.ones(1, 4).double()
    local, joint = (certified_radius(net, x0, bound, "paper", rtol=0.01).radius for bound in (local_bound, joint_bound))
    assert joint > 1.2 * local


def test_mnist_with_few_evaluations():
    net = mnist.net()
    pairwise, paper = (certified_radius(net, mnist.x0, margins=margins) for margins in ("pairwise", "paper"))
    assert pairwise.label.tolist() == [8] and float(pairwise.radius) > float(paper.radius) > 0
    assert max(int(pairwise.evaluations), int(paper.evaluations)) <= 16
    assert 0 < float(pairwise.failure_probability) < 1e-6


def test_a_batch_is_its_inputs():
    net, x0 = relu_network([6, 20, 15, 4]), torch.randn(8, 6).double()
    together = certified_radius(net, x0)
    for i in range(8):
        alone = certified_radius(net, x0[i : i + 1])
        assert float(alone.radius) == pytest.approx(float(together.radius[i]), rel=1e-9)
        assert alone.limiting_class == together.limiting_class[i] and alone.evaluations == together.evaluations[i]


def test_a_tie_has_radius_zero():
    net = nn.Sequential(nn.Linear(3, 3, bias=False)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
    x0 = torch.tensor([[2.0, 2.0, 1.0], [3.0, 1.0, 0.0]]).double()
    for bound in (local_bound, global_bound, joint_bound):
        result = certified_radius(net, x0, bound)
        assert result.radius[0] == 0.0 and result.limiting_class[0] == 1
        assert float(result.radius[1]) == pytest.approx(math.sqrt(2), rel=1e-3)


def test_a_constant_network_has_the_largest_radius_searched():
    net = relu_network([3, 4, 2])
    with torch.no_grad():
        net[2].weight.zero_()
    assert float(certified_radius(net, torch.ones(1, 3).double()).radius) == 1e9


@pytest.mark.parametrize("bound", [local_bound, global_bound, joint_bound, margin_bound])
def test_a_search_reads_the_network_once(bound):
    calls = []

    class Noting(nn.Sequential):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    net, x0 = Noting(*relu_network([6, 20, 15, 3], seed=5)).eval(), torch.randn(1, 6).double()
    read(net, x0)
    once = len(calls)
    assert float(certified_radius(net, x0, bound, rtol=0.1).radius) > 0.0 and len(calls) == 2 * once


def test_a_function_of_ones_own_is_given_the_network():
    net, x0 = relu_network([6, 20, 15, 3], seed=5), torch.randn(1, 6).double()
    own = certified_radius(net, x0, lambda net, *args, **options: local_bound(net.eval(), *args, **options))
    assert float(own.radius) == pytest.approx(float(certified_radius(net, x0).radius), rel=1e-3)


def test_a_bound_that_is_not_monotone():
    """The end of the bracket that is returned is one that held, however much the bound wavers."""
    evaluated = {}

    def wavering(net, x0, eps, outputs=None, **options):
        exact = local_bound(net, x0, eps, outputs=outputs, **options)
        factor = 1.0 + 2e-3 * torch.frac(eps * 1e7).abs()[:, None]
        value = exact.value * factor
        for e, v in zip(eps.tolist(), value, strict=True):
            evaluated[e] = v
        return Bound(value, exact.per_layer, exact.failure_probability, exact.passes)

    net, x0 = relu_network([6, 20, 15, 3], seed=5), torch.randn(1, 6).double()
    exact, result = certified_radius(net, x0), certified_radius(net, x0, wavering)
    y = net(x0)[0].detach()
    margins = torch.stack([y[result.label[0]] - y[c] for c in range(3) if c != result.label[0]])
    assert (float(result.radius) * evaluated[float(result.radius)] < margins).all()
    assert float(exact.radius) * 0.997 <= float(result.radius) <= float(exact.radius) * 1.0001
    assert int(result.evaluations) <= 30


def test_a_bound_that_breaks_down_certifies_nothing():
    def broken(net, x0, eps, outputs=None, **options):
        value = torch.full((len(x0), outputs.shape[1]), math.nan).double()
        return Bound(value, [], 0.0, 0.0)

    net, x0 = relu_network([3, 4, 2]), torch.randn(1, 3).double()
    assert float(certified_radius(net, x0, broken).radius) == 0.0


def test_a_looser_tolerance_takes_fewer_evaluations():
    net, x0 = relu_network([6, 20, 15, 4]), torch.randn(8, 6).double()
    fine, coarse = certified_radius(net, x0), certified_radius(net, x0, rtol=0.05)
    assert coarse.evaluations.sum() < fine.evaluations.sum()
    assert (coarse.radius >= 0.95 * fine.radius).all() and (coarse.radius <= 1.0001 * fine.radius).all()


def test_the_rounding_of_margins_is_covered():
    """Against exact rational arithmetic, with large terms that cancel in the first layer."""
    for seed in range(20):
        net, x0 = relu_network([6, 8, 3], seed), 10.0 ** (seed % 9) * torch.randn(1, 6).double()
        with torch.no_grad():
            net[0].bias += torch.randn(8) - net[0](x0)[0]
        y, off = logits(read(net, x0), x0)
        exact = [Fraction(v) for v in x0[0].tolist()]
        for layer in (net[0], net[2]):
            terms = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            exact = [sum((Fraction(a) * v for a, v in zip(row, exact, strict=True)), Fraction(b)) for row, b in terms]
            exact = exact if layer is net[2] else [max(v, Fraction(0)) for v in exact]
        errors = [abs(e - Fraction(v)) for e, v in zip(exact, y[0].tolist(), strict=True)]
        assert all(error <= Fraction(most) for error, most in zip(errors, off[0].tolist(), strict=True))
        assert max(errors) > 0


def test_refusals():
    net, x0 = relu_network([3, 4, 2]), torch.randn(2, 3).double()
    label = net(x0).argmax(1)
    assert certified_radius(net, x0, label=label).label.equal(label)
    with pytest.raises(ValueError, match=f"input 1 is classified as {int(label[1])}, not as its label"):
        certified_radius(net, x0, label=torch.stack([label[0], 1 - label[1]]))
    for wrong in (torch.tensor([0]), torch.tensor([0, 2]), torch.tensor([0.0, 1.0])):
        with pytest.raises(ValueError, match="2 classes from 0 to 1 are wanted"):
            certified_radius(net, x0, label=wrong)
    with pytest.raises(ValueError, match="one output"):
        certified_radius(relu_network([3, 4, 1]), x0)
    with pytest.raises(ValueError, match="margins is 'papr'"):
        certified_radius(net, x0, margins="papr")
    with pytest.raises(ValueError, match="rtol is 0"):
        certified_radius(net, x0, rtol=0)
    with pytest.raises(ValueError, match="NaN"):
        certified_radius(net, x0 * math.nan)
    with pytest.raises(ValueError, match="training mode"):
        certified_radius(relu_network([3, 4, 2]).train(), x0)
