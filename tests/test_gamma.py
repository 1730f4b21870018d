"""γ_n against sums in exact rational arithmetic, of terms whose roundings all go the same way."""

import math
from fractions import Fraction

import pytest
import torch

from local_lipschitz.numerics import UNDERFLOW, gamma_n, of_computed, unit_roundoff


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 10, 1000, 20_000])
def test_gamma_holds_for_equal_terms_one_after_the_other(n, dtype):
    a, x = (torch.full((n,), value, dtype=dtype) for value in (1 / 3, 0.7))
    computed = (a * x).cumsum(0)[-1]
    exact = Fraction(a[0].item()) * Fraction(x[0].item()) * n
    error = abs(Fraction(computed.item()) - exact)
    assert error <= Fraction(gamma_n(n, dtype)) * exact
    assert error <= Fraction(of_computed(n, dtype)) * Fraction(computed.item())


def test_gamma_is_rounded_up_and_ends():
    for n in (1, 3, 1e5):
        u = Fraction(unit_roundoff(torch.float64))
        assert Fraction(gamma_n(n)) >= Fraction(n) * u / (1 - Fraction(n) * u)
    assert gamma_n(2**24, torch.float32) == of_computed(2**23, torch.float32) == math.inf
    assert gamma_n(1) * UNDERFLOW > torch.finfo(torch.float64).tiny  # it does not vanish itself
