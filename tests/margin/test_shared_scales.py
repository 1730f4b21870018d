"""Ends of whole layers by scales tuned for all their rows, where these see a part of the network or all of it."""

from __future__ import annotations

import pytest
import torch
from shares import shares
from test_reduced import dense, kinks, of
from torch import Tensor, nn

from local_lipschitz import margin_bound
from local_lipschitz.margin import bound, ends
from local_lipschitz.margin.ball import scaled
from local_lipschitz.margin.fields import Field
from local_lipschitz.margin.kinks import Interval, KinkRows, Rows
from local_lipschitz.margin.layered import kinds, rescaled, shared_scales
from local_lipschitz.margin.reduced import Reduced
from local_lipschitz.margin.small_fields import together
from local_lipschitz.margin.solve import Wanted, solve_all
from local_lipschitz.margin.start import plain, starts


def pooled(seed: int) -> tuple[nn.Sequential, Tensor]:
    """Two convolutions, the first of them pooled, on a digit with a constant background."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)
    )
    x0 = torch.zeros(1, 1, 10, 10).double()
    x0[..., 3:7, 3:7] = torch.randn(4, 4).double()
    return net.double().eval().requires_grad_(False), x0


@pytest.mark.parametrize("seed", range(3))
def test_no_point_of_the_ball_is_below_and_nothing_is_lost(seed, monkeypatch):
    net, x0 = pooled(seed)
    widths = []

    def watched(kinks: KinkRows, rows: Rows, given: Interval) -> Interval:
        before, after = ends.by_lines(kinks, rows, given), by_certificate(kinks, rows, given)
        assert bool((after[0] >= before[0]).all()) and bool((after[1] <= before[1]).all())
        widths.append([float((high - low).sum()) for low, high in (before, after)])
        return after

    by_certificate = bound.by_certificate
    monkeypatch.setattr(ends, "SMALL", 0.0)
    monkeypatch.setattr(bound, "by_certificate", watched)
    ours = margin_bound(net, x0, 0.8, effort=2)
    assert ours.status == ["margin"] and min(after / before for before, after in widths) < 0.97
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(300, 1, 10, 10, generator=generator, dtype=torch.float64)
    delta = (0.8 * delta / delta.flatten(1).norm(dim=1)[:, None, None, None]).requires_grad_()
    for k in range(3):
        slope = torch.autograd.grad(net(x0 + delta)[:, k].sum(), delta)[0]
        worst = x0 - 0.8 * slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
        assert float(net(worst)[:, k].min()) >= float(ours.lower[0, k])
        assert float(net(x0 + delta.detach())[:, k].min()) >= float(ours.lower[0, k])


@pytest.mark.parametrize("seed", range(3))
def test_scales_serve_all_functions_better_and_are_one_for_each_layer(seed):
    found, _ = kinks(seed, False)
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(7, n, generator=generator, dtype=torch.float64) for n in (5, len(found))]
    y0 = torch.randn(7, generator=generator, dtype=torch.float64)
    ball = scaled(found, Rows(y0, *draw, torch.zeros(7).double()))
    mu = of(seed, False)[2]
    tuned = shared_scales(ball.relaxation, ball.functions, y0, mu)
    G, ratio = len(found), (tuned / mu)[0]
    for first, end in found.layers():
        same = torch.cat([ratio[2 + i * G + first : 2 + i * G + end] for i in range(3)])
        torch.testing.assert_close(same, same[:1].expand_as(same))
    before = shares(ball.relaxation, mu, ball.functions)[1]
    better, after = shares(ball.relaxation, tuned, ball.functions)
    assert float((y0 - after).log().sum()) < float((y0 - before).log().sum()) - 0.1
    for k in range(7):  # the bound is that of the whole matrix
        Z = dense(ball.relaxation, better[k] * tuned, float(after[k]) - 1e-6, ball.functions[k])
        assert float(torch.linalg.eigvalsh(Z)[0]) > -1e-8


@pytest.mark.parametrize("seed", range(3))
def test_several_starts_with_scales_by_layers_and_kinds(seed):
    """Parts add up; what they prove is more than any of the starts does, and true of the whole matrix."""
    found, last = kinks(seed, False)
    ball = scaled(found, last)
    relaxation, c = ball.relaxation, ball.functions[:1]
    first, second = plain(ball), starts(found, last)[1][:1]
    weights = found.lines(last).weights[0]
    torch.testing.assert_close(relaxation.weights(c[0]), weights * found.upper)
    parts = kinds(relaxation, first, weights < 0)
    torch.testing.assert_close(parts.sum(0), torch.cat([torch.zeros(1).double(), first[0, 1:]]))
    signs = [len((weights[i:j] < 0).unique()) for i, j in found.layers()]
    assert len(parts) == 1 + 2 * sum(signs) > 1 + 2 * len(signs) and bool(((parts != 0).sum(0) <= 1).all())
    both = [shares(relaxation, mu, c)[0][:, None] * mu for mu in (second, first)]
    both.sort(key=lambda mu: -float(relaxation.attained(mu, c)))
    before = float(relaxation.attained(both[0], c))
    point = rescaled(Reduced.of(relaxation), c, both, float("inf"), float("inf"))
    assert point is not None and point.t > before + 0.01 * abs(before)
    Z = dense(relaxation, point.mu[None], point.t - 1e-6, ball.functions[0])
    assert float(torch.linalg.eigvalsh(Z)[0]) > -1e-8
    solved = solve_all(ball, [first, second], Wanted(torch.full_like(last.y0, torch.inf), 1e-3, 0))
    assert float(solved.t[0]) > before


@pytest.mark.parametrize("seed", range(2))
def test_rows_that_see_few_kinks_get_the_best_ends(seed):
    """Many fields at once: as the interior-point method alone finds them, and no point of the ball is outside."""
    generator = torch.Generator().manual_seed(seed)
    found = [kinks(s, False)[0] for s in (seed, seed + 1)]
    rows = []
    for k in found:
        draw = [torch.randn(1, n, generator=generator, dtype=torch.float64) for n in (5, len(k))]
        y0 = torch.randn(1, generator=generator, dtype=torch.float64)
        rows.append(Rows(y0, *draw, torch.zeros(1).double()))
    problems = [Field(torch.arange(1), k, r) for k, r in zip(found, rows, strict=True)]
    for k, r, lower in zip(found, rows, together(problems), strict=True):
        both = Rows.join(r, -r)
        ball = scaled(k, both)
        alone = solve_all(ball, starts(k, both), Wanted(torch.full_like(both.y0, torch.inf), 1e-4, 25))
        assert bool((lower <= alone.primal + 1e-4).all())
        assert bool((lower >= alone.t - 0.03 * (both.y0 - alone.t)).all())
