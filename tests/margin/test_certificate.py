"""The certificate judged in exact arithmetic: Z of the given numbers is positive semidefinite at the proven bound."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from local_lipschitz.margin.ball import Ball, scaled
from local_lipschitz.margin.certificate import certified
from local_lipschitz.margin.kinks import KinkRows, Rows
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


def exact_matrix(ball: Ball, mu: Tensor, t: float) -> list[list[Fraction]]:
    """Z from its definition, term by term."""
    relaxation, k = ball.relaxation, ball.relaxation.span
    N, G = relaxation.size, relaxation.kinks
    Z = [[Fraction(0)] * N for _ in range(N)]
    rows = [[Fraction(v) for v in row] for row in relaxation.rows[0].tolist()]
    unit = [[Fraction(int(i == j)) for j in range(N)] for i in range(N)]

    def add(weight: float | Fraction, a: list[Fraction], b: list[Fraction]) -> None:
        for i in range(N):
            for j in range(N):
                Z[i][j] += Fraction(weight) * (a[i] * b[j] + b[i] * a[j]) / 2

    values = mu[0].tolist()
    add(1, [Fraction(v) for v in ball.functions[0].tolist()], unit[0])
    add(-Fraction(t) - Fraction(values[1]), unit[0], unit[0])
    for j in range(1, 1 + k):
        add(values[1], unit[j], unit[j])
    for g in range(G):
        p, n = unit[1 + k + g], rows[g]
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
def test_what_is_proven_holds_in_exact_arithmetic(seed):
    ball, mu = small_ball(seed)
    proven = float(certified(ball, 0, mu))
    t = float(mu[0, 0])
    assert proven <= t and t - proven <= 1e-9 * (1.0 + abs(t))
    assert is_positive(exact_matrix(ball, mu, proven))


@pytest.mark.parametrize("seed", range(3))
def test_multipliers_that_prove_nothing_are_refused(seed):
    ball, mu = small_ball(seed)
    high, wrong = mu.clone(), mu.clone()
    high[0, 0] += 1e-2 * (1.0 + abs(float(mu[0, 0])))
    wrong[0, 1] = -1e-3
    assert float(certified(ball, 0, high)) == float(certified(ball, 0, wrong)) == -float("inf")
    assert not is_positive(exact_matrix(ball, high, float(high[0, 0])))


def test_errors_of_rows_are_taken_off():
    ball, mu = small_ball(0)
    rows, functions = {"row_error": ball.row_error + 1e-3}, {"function_error": ball.function_error + 1e-3}
    for change in (rows, functions, {"excess": 1e-3}):
        assert float(certified(replace(ball, **change), 0, mu)) < float(certified(ball, 0, mu)) - 1e-5
