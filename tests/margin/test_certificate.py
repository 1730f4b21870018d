"""The certificate judged in exact arithmetic: Z of the given numbers is positive semidefinite at the proven bound."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from shares import shares
from torch import Tensor

from local_lipschitz.margin.ball import Ball, scaled
from local_lipschitz.margin.barrier import climb
from local_lipschitz.margin.certificate import certified, certified_shares
from local_lipschitz.margin.interior_point import Goal
from local_lipschitz.margin.kinks import KinkRows, Rows
from local_lipschitz.margin.reduced import Reduced
from local_lipschitz.margin.solve import Wanted, solve_all
from local_lipschitz.margin.start import starts


def small_ball(seed: int) -> tuple[Ball, Tensor]:
    """Two layers of two kinks over two inputs, one function, and good multipliers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    kinks = KinkRows.none(torch.zeros(1, 2), 0.7)
    for _ in range(2):
        rows = Rows(0.1 * draw(2), draw(2, 2), draw(2, len(kinks)), torch.zeros(2).double())
        width = 0.7 * rows.Q.norm(dim=1) + rows.T.abs().sum(1) + 0.5
        kinks.add(rows, (rows.y0 - width, rows.y0 + width), 0.7)
    function = Rows(draw(1), draw(1, 2), draw(1, 4), torch.zeros(1).double())
    ball = scaled(kinks, function)
    solved = solve_all(ball, starts(kinks, function), Wanted(torch.full((1,), torch.inf).double(), 1e-9, 40))
    return ball, solved.mu


def exact_matrix(ball: Ball, mu: Tensor, t: float, k: int = 0) -> list[list[Fraction]]:
    """Z of function k from its definition, term by term."""
    relaxation, span = ball.relaxation, ball.relaxation.span
    N, G = relaxation.size, relaxation.kinks
    Z = [[Fraction(0)] * N for _ in range(N)]
    rows = [[Fraction(v) for v in row] for row in relaxation.rows[0].tolist()]
    unit = [[Fraction(int(i == j)) for j in range(N)] for i in range(N)]

    def add(weight: float | Fraction, a: list[Fraction], b: list[Fraction]) -> None:
        for i in range(N):
            for j in range(N):
                Z[i][j] += Fraction(weight) * (a[i] * b[j] + b[i] * a[j]) / 2

    values = mu[0].tolist()
    add(1, [Fraction(v) for v in ball.functions[k].tolist()], unit[0])
    add(-Fraction(t) - Fraction(values[1]), unit[0], unit[0])
    for j in range(1, 1 + span):
        add(values[1], unit[j], unit[j])
    for g in range(G):
        p, n = unit[1 + span + g], rows[g]
        add(values[2 + g], p, n)
        add(values[2 + G + g], p, [a - b for a, b in zip(p, unit[0], strict=True)])
        add(values[2 + 2 * G + g], n, [a - b for a, b in zip(n, unit[0], strict=True)])
    return Z


def is_positive(Z: list[list[Fraction]]) -> bool:
    """Whether Z ≻ 0, by exact elimination."""
    Z = [row[:] for row in Z]
    for i in range(len(Z)):
        if Z[i][i] <= 0:
            return False
        for j in range(i + 1, len(Z)):
            factor = Z[j][i] / Z[i][i]
            Z[j] = [a - factor * b for a, b in zip(Z[j], Z[i], strict=True)]
    return True


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("in_order", [True, False])
def test_what_is_proven_holds_in_exact_arithmetic(seed, in_order):
    ball, mu = small_ball(seed)
    proven = float(certified(ball, 0, mu, None if in_order else Reduced.of(ball.relaxation)))
    t = float(mu[0, 0])
    assert proven <= t and t - proven <= 1e-9 * (1.0 + abs(t))
    assert is_positive(exact_matrix(ball, mu, proven))


@pytest.mark.parametrize("seed", range(3))
def test_multipliers_that_prove_nothing_are_refused(seed):
    ball, mu = small_ball(seed)
    high, wrong = mu.clone(), mu.clone()
    high[0, 0] += 1e-2 * (1.0 + abs(float(mu[0, 0])))
    wrong[0, 1] = -1e-3
    for reduced in (None, Reduced.of(ball.relaxation)):
        assert float(certified(ball, 0, high, reduced)) == float(certified(ball, 0, wrong, reduced)) == -float("inf")
    assert not is_positive(exact_matrix(ball, high, float(high[0, 0])))


def test_errors_of_rows_are_taken_off():
    ball, mu = small_ball(0)
    rows, functions = {"row_error": ball.row_error + 1e-3}, {"function_error": ball.function_error + 1e-3}
    for change in (rows, functions, {"excess": 1e-3}):
        assert float(certified(replace(ball, **change), 0, mu)) < float(certified(ball, 0, mu)) - 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_one_factorisation_proves_all_functions_in_exact_arithmetic(seed):
    ball, _ = small_ball(seed)
    c, mu = ball.functions, plain_multipliers(ball)
    ball = replace(ball, functions=torch.cat([c, -c, 1e-6 * c, c.flip(1)]), function_error=torch.zeros(4).double())
    scale, t = shares(ball.relaxation, mu, ball.functions)
    proven = certified_shares(ball, mu)
    assert bool((proven <= t).all()) and bool((t - proven <= 1e-9 * (1.0 + t.abs())).all())
    for k in range(4):
        assert is_positive(exact_matrix(ball, scale[k] * mu, float(proven[k]), k))
        assert not is_positive(exact_matrix(ball, scale[k] * mu, float(t[k] + 1e-9 * (1.0 + t[k].abs())), k))


@pytest.mark.parametrize("number", [torch.inf, torch.nan, 1e300])
def test_multipliers_without_numbers_prove_nothing_by_one_factorisation_either(number):
    ball, mu = small_ball(0)
    for i in range(1, mu.shape[1]):
        wild = mu.clone()
        wild[0, i] = number
        proven = certified_shares(ball, wild)
        assert not bool(proven.isnan().any()) and bool((proven <= ball.functions[:, 0]).all())


@pytest.mark.parametrize("seed", range(3))
def test_the_barrier_method_finds_what_the_primal_dual_one_finds(seed):
    ball, mu = small_ball(seed)
    t, gap = float(mu[0, 0]), 1e-7
    goal = Goal(200, torch.full((1,), gap).double(), torch.full((1,), torch.inf).double())
    found = climb(Reduced.of(ball.relaxation), ball.functions, plain_multipliers(ball), goal)
    assert found is not None
    size = 1.0 + abs(t)
    assert float(found.mu[0, 0]) == pytest.approx(t, abs=1e-4 * size) and found.primal >= t - 1e-6 * size
    assert float(certified(ball, 0, found.mu)) <= t + 1e-6 * size


def plain_multipliers(ball: Ball) -> Tensor:
    """Plain multipliers of these kinks, which have no network."""
    mu = ball.functions.new_zeros(1, ball.relaxation.multipliers)
    mu[:, 1], mu[:, 2 + ball.relaxation.kinks :] = 1.0, 0.5
    return mu
