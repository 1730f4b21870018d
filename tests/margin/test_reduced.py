"""The relaxation without the p that few rows see, against dense algebra with all of them."""

from __future__ import annotations

import pytest
import torch
from shares import shares
from torch import Tensor

from local_lipschitz.margin.ball import Ball, scaled
from local_lipschitz.margin.fields import fields
from local_lipschitz.margin.kinks import KinkRows, Rows
from local_lipschitz.margin.newton import Newton
from local_lipschitz.margin.reduced import Reduced
from local_lipschitz.margin.relaxation import Relaxation, objective

INPUTS = 5


def kinks(seed: int, boxed: bool) -> tuple[KinkRows, Rows]:
    """Windows of three kinks, a fourth over each, ten kinks that read those, and three that read the ten; functions."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    box = (torch.full((1, INPUTS), -0.2), torch.full((1, INPUTS), 0.3)) if boxed else None
    found = KinkRows.none(torch.zeros(1, INPUTS), 0.7, box)

    def add(count: int, T: Tensor) -> None:
        rows = Rows(0.1 * draw(count), draw(count, INPUTS), T, torch.zeros(count).double())
        width = 0.7 * rows.Q.norm(dim=1) + rows.T.abs().sum(1) + 0.5
        found.add(rows, (rows.y0 - 0.8 * width, rows.y0 + width), 0.7)

    windows = 4
    add(2 * windows, draw(2 * windows, 0))
    pairs = torch.eye(windows).double().repeat_interleave(2, 1)
    add(windows, pairs * draw(windows, 2 * windows))
    add(windows, torch.cat([pairs, torch.eye(windows).double()], 1) * draw(windows, 3 * windows))
    add(10, torch.cat([torch.zeros(10, 3 * windows), draw(10, windows)], 1))
    add(3, torch.cat([torch.zeros(3, 4 * windows), draw(3, 10)], 1))
    return found, Rows(draw(2), draw(2, INPUTS), draw(2, len(found)), torch.zeros(2).double())


def of(seed: int, boxed: bool) -> tuple[Ball, Reduced, Tensor]:
    """A ball, reduced, and multipliers with Z_11 ≻ 0."""
    ball = scaled(*kinks(seed, boxed))
    relaxation = ball.relaxation
    generator = torch.Generator().manual_seed(seed)
    mu = 0.5 + torch.rand(1, relaxation.multipliers, generator=generator, dtype=torch.float64)
    mu[:, 1] = 100.0
    mu[:, 2 : 2 + relaxation.kinks] = 0.3 * torch.randn(1, relaxation.kinks, generator=generator, dtype=torch.float64)
    return ball, Reduced.of(relaxation), mu


def dense(relaxation: Relaxation, mu: Tensor, t: float, c: Tensor) -> Tensor:
    mu = mu.clone()
    mu[:, 0] = t
    return (relaxation.matrix(mu) + objective(c[None]))[0]


CASES = pytest.mark.parametrize(("seed", "boxed"), [(0, False), (1, False), (2, True)])


@CASES
def test_windows_and_the_last_layer_are_gone_and_nothing_else_is_lost(seed, boxed):
    _, reduced, _ = of(seed, boxed)
    gone = [g for cells in reduced.cells for g in cells.gone.flatten().tolist()]
    assert set(range(12)) <= set(gone) and {26, 27, 28} & set(gone)
    assert sorted(gone + reduced.kept.tolist()) == list(range(29))
    assert not set(range(12, 16)) & set(gone)  # ten rows read them


@CASES
def test_t_and_its_point_are_those_of_the_whole_matrix(seed, boxed):
    ball, reduced, mu = of(seed, boxed)
    c = ball.functions[0]
    at = reduced.point(mu[0], c)
    assert at is not None
    Z = dense(ball.relaxation, mu, 0.0, c)
    x = torch.linalg.solve(Z[1:, 1:], Z[1:, 0])
    torch.testing.assert_close(at.mu[0], Z[0, 0] - Z[0, 1:] @ x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(reduced.xi(at), torch.cat([torch.ones(1).double(), -x]), rtol=1e-9, atol=1e-10)
    assert at.log_det == pytest.approx(float(torch.linalg.slogdet(Z[1:, 1:])[1]), rel=1e-10)
    V = torch.randn(3, ball.relaxation.size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    halves = reduced.halves(at, V)
    torch.testing.assert_close(halves.mT @ halves, V[:, 1:] @ torch.linalg.solve(Z[1:, 1:], V[:, 1:].mT))


@CASES
def test_scales_and_minima_are_those_of_the_whole_matrix(seed, boxed):
    ball, reduced, mu = of(seed, boxed)
    scale, t = shares(ball.relaxation, mu, ball.functions)
    found = reduced.shared(mu[0], ball.functions)
    assert found is not None
    torch.testing.assert_close(found.scale, scale, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(found.t, t, rtol=1e-9, atol=1e-9)
    for k in range(len(t)):
        Z = dense(ball.relaxation, scale[k] * mu, 0.0, ball.functions[k])
        x = torch.linalg.solve(Z[1:, 1:], Z[1:, 0])
        torch.testing.assert_close(found.xi[k], torch.cat([torch.ones(1).double(), -x]), rtol=1e-8, atol=1e-9)
    mu[:, 1] = -100.0
    assert reduced.shared(mu[0], ball.functions) is None


@CASES
def test_multipliers_without_a_bound_are_told(seed, boxed):
    ball, reduced, mu = of(seed, boxed)
    mu[:, 1] = -100.0
    assert reduced.point(mu[0], ball.functions[0]) is None
    mu[:, 1] = 100.0
    mu[:, 2] = 1e6  # a cell alone
    assert reduced.point(mu[0], ball.functions[0]) is None


@CASES
def test_newtons_matrix_is_that_of_its_definition(seed, boxed):
    ball, reduced, mu = of(seed, boxed)
    relaxation, tau = ball.relaxation, 0.3
    at = reduced.point(mu[0], ball.functions[0])
    assert at is not None
    V = torch.linalg.inv(dense(relaxation, mu, at.t - tau, ball.functions[0]))
    newton = Newton.of(reduced, at, tau)
    A = torch.stack([relaxation.matrix(unit[None])[0] for unit in torch.eye(relaxation.multipliers).double()])
    torch.testing.assert_close(newton.values, (A * V).sum((1, 2)), rtol=1e-8, atol=1e-9)
    true = torch.einsum("iab,jba->ij", A @ V, A @ V)
    scale = true.diagonal().rsqrt()
    all_of_them = torch.arange(relaxation.multipliers)
    found = newton.matrix(all_of_them)
    torch.testing.assert_close(scale[:, None] * found * scale, scale[:, None] * true * scale, rtol=0.0, atol=1e-9)
    some = newton.promising(newton.values, torch.zeros_like(newton.values), 20)
    assert len(some) == 22 and some[:2].tolist() == [0, 1] and bool((some.diff() > 0).all())
    torch.testing.assert_close(newton.matrix(some), found[some][:, some])


def test_a_field_is_all_that_its_rows_depend_on():
    found, _ = kinks(0, False)
    last = Rows(found.y0[12:16], found.Q[12:16], found.T[12:16], found.error[12:16])
    last.Q[:, 3] = 0.0
    found.Q[:12, 3] = 0.0
    parts = fields(found, last, torch.tensor([0, 2, 3]))
    assert [part.which.tolist() for part in parts] == [[0], [2], [3]]
    generator = torch.Generator().manual_seed(1)
    for part, i in zip(parts, (0, 2, 3), strict=True):
        assert len(part.kinks) == 3 and part.kinks.Q.shape[1] == INPUTS - 1 and part.kinks.starts == [0, 2]
        for _ in range(5):
            delta = 0.3 * torch.randn(INPUTS, generator=generator, dtype=torch.float64)
            seen = torch.cat([delta[:3], delta[4:]])
            torch.testing.assert_close(value(part.kinks, part.rows, seen), value(found, last, delta)[i : i + 1])


def value(found: KinkRows, rows: Rows, delta: Tensor) -> Tensor:
    """The rows at δ, kink by kink."""
    p = found.y0.clamp(min=0.0)
    for g in range(len(found)):
        p[g] = (found.y0[g] + found.Q[g] @ delta + found.T[g] @ (p - found.p0)).clamp(min=0.0)
    return rows.y0 + rows.Q @ delta + rows.T @ (p - found.p0)
