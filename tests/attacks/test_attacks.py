"""The attacks against closed forms, against the certificates, and what they return evaluated once more."""

import math

import pytest
import torch
from test_radius import affine, classifiers, relu_network
from torch import nn

from local_lipschitz import certified_radius
from local_lipschitz.attacks.gradient import carlini_wagner, ddn, fgsm, gradient_ascent, iterated_fgsm, pixel_distance

BOX = (torch.tensor(-5.0), torch.tensor(5.0))
ATTACKS = {
    "fgsm": fgsm,
    "iterated_fgsm": iterated_fgsm,
    "gradient_ascent": gradient_ascent,
    "carlini_wagner": lambda net, x0, label=None: carlini_wagner(net, x0, BOX, label, targets=2, steps=25),
    "ddn": lambda net, x0, label=None: ddn(net, x0, BOX, label, steps=200),
}


def check(net, x0, result):
    """Every distance is that of a verified misclassification, or inf."""
    label = net(x0).argmax(1)
    found = result.distance.isfinite()
    assert result.x.dtype == torch.float64 and (result.found_class[~found] == -1).all()
    assert result.x[~found].equal(x0[~found].double())
    y = net(result.x)[found]
    assert y.argmax(1).equal(result.found_class[found]) and (y.argmax(1) != label[found]).all()
    distance = (result.x - x0).flatten(1).norm(dim=1)
    assert distance[found] == pytest.approx(result.distance[found], rel=1e-9)


@pytest.mark.parametrize("name", ATTACKS)
def test_linear_classifiers(name):
    """The least distance is |margin|/‖w‖; the sign's is √n·|margin|/‖w‖₁, for two classes."""
    for seed in range(2):
        net, x0, exact = affine(2, 8, seed)
        result = ATTACKS[name](net, x0)
        check(net, x0, result)
        assert float(result.distance) >= exact
        if "fgsm" in name:
            w = (net[0].weight[0] - net[0].weight[1]).detach()
            exact *= math.sqrt(8) * float(w.norm() / w.abs().sum())
        assert float(result.distance) <= 1.05 * exact
        if name in ("fgsm", "iterated_fgsm", "gradient_ascent"):
            assert float(result.distance) == pytest.approx(exact, rel=1e-6)
    net, x0, exact = affine(6, 8)
    if name in ("gradient_ascent", "carlini_wagner"):  # DDN has no target: it ends at the boundary it meets
        assert exact <= float(ATTACKS[name](net, x0).distance) <= 1.05 * exact


def test_nothing_is_found_within_a_certified_radius():
    found = 0
    for net, x0 in classifiers(50, seed=100):
        radius = certified_radius(net, x0, rtol=1e-2).radius
        for attack in (fgsm, gradient_ascent, lambda net, x0: iterated_fgsm(net, x0, iterations=4)):
            result = attack(net, x0)
            check(net, x0, result)
            assert (radius <= result.distance).all()
            found += int(result.distance.isfinite())
    assert found > 80


@pytest.mark.parametrize("name", ["carlini_wagner", "ddn"])
def test_nothing_is_found_within_a_certified_radius_by_foolbox(name):
    for net, x0 in classifiers(2, seed=102):
        x0 = x0.clamp(-5, 5)
        result = ATTACKS[name](net, x0)
        check(net, x0, result)
        assert result.valid_images and float(result.x.abs().max()) <= 5 + 1e-9
        assert (certified_radius(net, x0, rtol=1e-2).radius <= result.distance).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_batches_in_float32(name):
    net, x0 = relu_network([6, 16, 12, 4], seed=2).float(), torch.randn(5, 6)
    result = ATTACKS[name](net, x0)
    check(net.double(), x0.double(), result)
    assert result.distance.isfinite().all()
    single = ATTACKS[name](net.float(), x0[2:3])
    assert float(single.distance) == pytest.approx(float(result.distance[2]), rel=0.02)


def test_seeds_and_the_callers_random_state():
    net, x0 = relu_network([6, 16, 4]), torch.randn(2, 6).double()
    for attack in (gradient_ascent, lambda *a, seed: ddn(*a, BOX, steps=50, seed=seed)):
        torch.manual_seed(1)
        one = attack(net, x0, seed=3)
        state = torch.get_rng_state()
        two = attack(net, x0, seed=3)
        assert one.x.equal(two.x) and state.equal(torch.get_rng_state())


@pytest.mark.parametrize("name", ATTACKS)
def test_inf_where_there_is_no_adversarial_example(name):
    net, x0 = relu_network([3, 4, 2]), torch.randn(2, 3).double()
    with torch.no_grad():
        net[2].weight.zero_()  # a constant network
    result = ATTACKS[name](net, x0)
    check(net, x0, result)
    assert result.distance.tolist() == [math.inf, math.inf]
    assert pixel_distance(result, x0, torch.tensor(0.3)).tolist() == [math.inf, math.inf]


def test_gradient_ascent_leaves_a_flat_place():
    """Where all neurons are dead the gradient is zero; a step to the side finds the way out."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[0].bias.copy_(torch.tensor([-1.01, -1.01]))
        net[2].weight.copy_(torch.tensor([[0.0, 0.0], [50.0, 50.0]]))
        net[2].bias.copy_(torch.tensor([1.0, 0.0]))
    x0 = torch.ones(1, 2).double()
    distances = [float(gradient_ascent(net, x0, seed=seed).distance) for seed in range(10)]
    assert min(distances) < 0.2


def test_distances_in_pixels():
    net, x0 = relu_network([6, 16, 4]), torch.rand(2, 6).double()
    scale = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    result = gradient_ascent(net, x0)
    assert pixel_distance(result, x0, scale) == pytest.approx(((result.x - x0) * scale).norm(dim=1))


def test_refusals():
    net, x0 = relu_network([3, 4, 2]), torch.randn(1, 3).double()
    wrong = 1 - net(x0).argmax(1)
    for attack in ATTACKS.values():
        with pytest.raises(ValueError, match="not as its label"):
            attack(net, x0, wrong)
        with pytest.raises(ValueError, match="one output"):
            attack(relu_network([3, 4, 1]), x0)
        with pytest.raises(ValueError, match="training mode"):
            attack(relu_network([3, 4, 2]).train(), x0)
    for attack in (carlini_wagner, ddn):
        with pytest.raises(ValueError, match="outside the box"):
            attack(net, x0, (x0 + 1, x0 + 2))


def test_carlini_wagner_ends_where_the_next_class_brings_nothing(monkeypatch):
    """Two classes lie equally near: the second run gains nothing and is the last of four."""
    from local_lipschitz.attacks import with_foolbox

    net = nn.Sequential(nn.Linear(2, 5, bias=False)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.0, 0.5]]))
    net[0].bias = nn.Parameter(torch.tensor([0.2, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    runs, original = [], with_foolbox._run_foolbox

    def counted(search, attack, i, *rest):
        runs.append(i.tolist())
        original(search, attack, i, *rest)

    monkeypatch.setattr(with_foolbox, "_run_foolbox", counted)
    x0 = torch.zeros(1, 2, dtype=torch.float64)
    attack = carlini_wagner(net, x0, (torch.tensor(-1.0), torch.tensor(1.0)), steps=60)
    assert runs == [[0], [0]]
    assert float(attack.distance) == pytest.approx(0.2, rel=0.02) and float(attack.distance) >= 0.2
