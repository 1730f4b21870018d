"""A certified norm that need only be shown to be small: `enough` and `hopeless`."""

import math

import pytest
import torch
from explicit import operator_of

from local_lipschitz.norms.spectral_norm import lanczos_norms

TIGHT = 1e-3
FLAT = torch.cos(torch.linspace(0, math.pi / 2, 400)).double()  # singular values from 1 down, close at the top


def certified(*matrices, **stopping):
    operator = operator_of(torch.stack(matrices or (torch.diag(FLAT),)))
    return lanczos_norms(operator, TIGHT, generator=torch.Generator().manual_seed(0), **stopping)


@pytest.mark.parametrize("room", [0.05, 0.2])
def test_it_ends_where_enough_is_proven(room):
    tight, soon = certified(), certified(enough=1.0 + room)
    assert 1.0 <= float(soon.upper) <= 1.0 + room
    assert soon.passes < 0.7 * tight.passes


def test_what_is_not_enough_is_as_tight_as_ever():
    found, tight = certified(enough=0.9), certified()
    assert float(found.upper) == float(tight.upper) and found.passes == tight.passes


def test_hopeless_ends_soon_and_is_still_a_bound():
    soon = certified(enough=0.5, hopeless=0.6)
    assert float(soon.upper) >= 1.0 and float(soon.estimate) > 0.6
    assert soon.passes < 0.5 * certified().passes


def test_each_of_a_batch_by_itself():
    found = certified(0.5 * torch.diag(FLAT), torch.diag(FLAT), enough=0.8)
    assert 0.5 <= float(found.upper[0]) <= 0.8 and 1.0 <= float(found.upper[1]) <= 1.0 + 2 * TIGHT
