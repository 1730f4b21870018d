"""The soundness campaign in small, and that it would see a bound that is too small."""

import campaign
import campaign_smooth
import pytest
import torch
from campaign_cases import draw
from exact import evaluate, vector
from torch import nn


@pytest.mark.parametrize("part", range(4))
def test_no_violation_in_300_cases(part):
    outcomes = [campaign.attempt(2_000_000 + 75 * part + i) for i in range(75)]
    report = campaign.report(outcomes)
    assert not any(outcome.violations for outcome in outcomes), report
    assert "75 cases, 0 violations" in report
    assert sum(outcome.exact for outcome in outcomes) > 5, report
    assert {name for outcome in outcomes for name in outcome.slack} == {"local", "joint", "global", "radius"}


def test_cases_and_outcomes_follow_their_seed():
    first, again = campaign.run_case(2_000_007), campaign.run_case(2_000_007)
    assert first == again
    assert draw(2_000_007).what != draw(2_000_008).what


def test_cases_differ_as_promised():
    cases = [draw(seed) for seed in range(300)]
    assert {str(case.x0.dtype) for case in cases} == {"torch.float32", "torch.float64"}
    assert {len(case.x0) for case in cases} == {1, 2, 3}
    eps = [float(case.eps[0]) for case in cases]
    assert min(eps) < 1e-11 and max(eps) > 1e5
    sizes = [float(p.detach().abs().max()) for case in cases for p in case.net.parameters()]
    assert min(size for size in sizes if size > 0) < 1e-11 and max(sizes) > 1e11
    kinds = " ".join(case.what for case in cases)
    layers = ("Conv2d", "MaxPool2d", "Residual", "Beside", "LeakyReLU", "PReLU", "Hardtanh", "ReLU6")
    operations = ("MaxMin", "Largest", "ClampEach", "Softshrink", "Conv3d", "repeated", "centred", "mixed", "bilinear")
    assert all(word in kinds for word in (*layers, *operations, "dead", "kinks", "none"))
    pools = [module for case in cases for module in case.net.modules() if isinstance(module, nn.MaxPool2d)]
    assert any(pool.ceil_mode for pool in pools) and any(pool.dilation == 2 for pool in pools)


def test_the_exact_judge_computes_what_torch_computes():
    """Where nothing lies at a kink, and cancels: all layers of the cases, in rational arithmetic."""
    for case in map(draw, range(80)):
        if "kinks" in case.what or "none" in case.what:
            continue
        x = case.x0[0].double()
        y = torch.tensor([float(value) for value in evaluate(case.net64, vector(x), tuple(x.shape))[0]]).double()
        theirs = case.net64(x[None])[0].detach()
        assert float((y - theirs).norm()) <= 1e-5 * float(theirs.norm())


@pytest.mark.parametrize("part", range(2))
def test_no_violation_with_smooth_activations(part):
    outcomes = [campaign.attempt(2_000_000 + 60 * part + i, campaign_smooth.run_case) for i in range(60)]
    report = campaign.report(outcomes)
    assert not any(outcome.violations for outcome in outcomes), report
    assert {name for outcome in outcomes for name in outcome.slack} == {"local", "joint", "global", "radius"}
    kinds = " ".join(outcome.what for outcome in outcomes)
    assert all(word in kinds for word in ("Tanh", "GELU", "Mish", "ELU", "float32", "float64"))


@pytest.mark.parametrize("name", ["local_bound", "global_bound", "joint_bound"])
@pytest.mark.parametrize(("module", "first"), [(campaign, 3_000_018), (campaign_smooth, 3_001_086)])
def test_a_bound_that_is_too_small_is_found(module, first, name, monkeypatch):
    """Each bound made a millionth too small: some case must show it, and exact arithmetic confirm it."""
    honest = getattr(module, name)

    def too_small(*args, **options):
        bound = honest(*args, **options)
        bound.value.mul_(1.0 - 1e-6)
        return bound

    monkeypatch.setattr(module, name, too_small)
    found = next((o for o in map(module.run_case, range(first, first + 60, 3)) if o.violations), None)
    assert found is not None
    assert name in found.violations[0] and name in campaign.report([found])
