"""The soundness campaign in small, and that it would see a bound that is too small."""

import campaign
import pytest
from campaign_cases import draw


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
    assert all(word in kinds for word in ("Conv2d", "MaxPool2d", "Residual", "LeakyReLU", "dead", "kinks", "none"))


@pytest.mark.parametrize("name", ["local_bound", "global_bound", "joint_bound"])
def test_a_bound_that_is_too_small_is_found(name, monkeypatch):
    """Each bound made a millionth too small: some case must show it, and exact arithmetic confirm it."""
    honest = getattr(campaign, name)

    def too_small(*args, **options):
        bound = honest(*args, **options)
        bound.value.mul_(1.0 - 1e-6)
        return bound

    monkeypatch.setattr(campaign, name, too_small)
    found = next((o for o in map(campaign.run_case, range(3_000_000, 3_000_060, 3)) if o.violations), None)
    assert found is not None
    assert name in found.violations[0] and name in campaign.report([found])
