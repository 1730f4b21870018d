"""Certified ≥ exact ≥ estimate, and within the tolerance, against dense SVDs in float64."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from explicit import operator_of

from local_lipschitz.norms import lanczos
from local_lipschitz.norms import spectral_norm as spectral
from local_lipschitz.norms.cholesky import proven_positive_definite
from local_lipschitz.norms.lanczos import ONCE, SELDOM, TWICE, Lanczos, Operator
from local_lipschitz.norms.ritz import Ritz
from local_lipschitz.norms.spectral_norm import dense_norms, lanczos_norms
from local_lipschitz.numerics import gamma_n


def exact(M):
    return torch.linalg.matrix_norm(M.double(), 2)


def with_spectrum(singular_values, m, n, seed):
    """A matrix with these singular values (at most min(m, n)), the others zero."""
    generator = torch.Generator().manual_seed(seed)
    S = torch.zeros(min(m, n), dtype=torch.float64)
    S[: len(singular_values)] = torch.as_tensor(singular_values, dtype=torch.float64)
    U, _ = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (U[:, : len(S)] * S) @ V[:, : len(S)].T


SPECTRA = {
    "gap": [2.0, *torch.linspace(1, 0, 150).tolist()],
    "double": [1.0, 1.0, *torch.linspace(0.9, 0, 150).tolist()],
    "nearly double": [1.0, 1 - 1e-5, *torch.linspace(0.99, 0, 150).tolist()],
    "flat edge": torch.cos(torch.linspace(0, math.pi / 2, 200)).tolist(),
    "rank one": [3.0],
    "zero": [0.0],
    "geometric": [0.5**i for i in range(100)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(200, 260), (260, 200)])
def test_certified_is_above_and_within_tolerance(name, dtype, shape):
    M = torch.stack([with_spectrum(SPECTRA[name], *shape, seed) for seed in range(4)]).to(dtype)
    norms = lanczos_norms(operator_of(M), tolerance=2e-3)
    truth = exact(M)
    assert (norms.upper >= truth).all()
    assert (norms.upper <= truth * (1 + 2.1e-3)).all()
    assert (norms.estimate <= truth * (1 + 1e-6)).all()


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e6, 1e18])
def test_scale_changes_nothing_in_float32(scale):
    M = torch.randn(1, 220, 210, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norms = lanczos_norms(operator_of((scale * M).float()), tolerance=2e-3)
    assert float(norms.upper / (scale * exact(M))) == pytest.approx(1.0, abs=2.1e-3)  # and some rounding slack
    assert norms.upper >= exact((scale * M).float())


def test_alone_as_in_a_batch():
    generator = torch.Generator().manual_seed(2)
    M = torch.randn(5, 150, 120, generator=generator, dtype=torch.float64)
    M[3] = torch.outer(M[3, :, 0], M[3, 0])  # one that converges at once
    together = lanczos_norms(operator_of(M)).upper
    for i in range(5):
        generator = torch.Generator().manual_seed(0)
        alone = lanczos_norms(operator_of(M[i : i + 1]), generator=generator).upper
        together = lanczos_norms(operator_of(M), generator=torch.Generator().manual_seed(0)).upper
        assert float(alone) == pytest.approx(float(together[i]), rel=1e-12)


def test_masked_columns_are_not_searched():
    M = torch.randn(1, 80, 60, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mask = torch.zeros(1, 60)
    mask[0, [4]] = 1
    norms = lanczos_norms(operator_of(M * mask, column_mask=mask))
    assert norms.passes == 1  # a space of one dimension is exhausted at once
    assert float(norms.upper) == pytest.approx(float(M[0, :, 4].norm()), rel=1e-12)


def test_failures_are_no_more_frequent_than_promised():
    """With η = 0.3 and a spectrum that hides its top, upper < truth may happen, in at most 30 % of the starts."""
    M = with_spectrum([1.0, *[0.97] * 60, *torch.linspace(0.95, 0, 60).tolist()], 130, 125, 0)[None]
    trials, failures, slack = 400, 0, 0.0
    for seed in range(trials):
        generator = torch.Generator().manual_seed(seed)
        norms = lanczos_norms(operator_of(M), tolerance=0.02, failure_probability=0.3, generator=generator)
        failures += bool(norms.upper < 1.0)
        slack = max(slack, float(norms.upper) - 1.0)
    assert failures <= 0.3 * trials + 3 * math.sqrt(0.21 * trials)
    assert slack < 0.03


def test_dense_is_exact():
    M = torch.randn(6, 30, 50, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    M[2] *= 1e150
    M[3] *= 1e-150
    M[4] = 0
    norms = dense_norms(M)
    assert norms.failure_probability == 0.0
    assert torch.allclose(norms.estimate, exact(M), rtol=1e-12, atol=0)
    assert (norms.upper >= exact(M)).all() and (norms.upper <= exact(M) * (1 + 1e-12)).all()


def diagonal(M):
    """The operator of a batch of diagonal matrices (B, n)."""
    n, rounding = M.shape[1], gamma_n(1, M.dtype) * M.double().amax(1)
    return Operator(len(M), n, n, lambda v: M * v, lambda u: M * u, M.dtype, M.device, rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [1.0, 1.001, 1.1, 3.0])
def test_long_vectors(dtype, gap):
    """Vectors of 6,400 elements are made orthogonal in some of the steps only, and measured piece by piece."""
    n = 6400
    d = torch.linspace(0.0, 1.0, n, dtype=torch.float64).square()
    d[77] = gap
    M = torch.stack([d, d.flip(0).sqrt() * gap]).to(dtype)
    norms, truth = lanczos_norms(diagonal(M), tolerance=2e-3), M.double().amax(1)
    assert (norms.upper >= truth).all() and (norms.upper <= truth * (1 + 2.1e-3)).all()
    assert (norms.estimate <= truth * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_long_vectors_of_low_rank(rank, dtype):
    """A Krylov space that is exhausted leaves noise, beside a matrix that needs many steps."""
    d = torch.linspace(0.1, 1.0, 6400).square().repeat(2, 1).to(dtype)
    d[0, rank:] = 0.0
    norms, truth = lanczos_norms(diagonal(d), tolerance=2e-3), d.double().amax(1)
    assert (norms.upper >= truth).all() and (norms.upper <= truth * (1 + 2.1e-3)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distinct", [1, 2, 5, 20])
def test_few_distinct_singular_values(distinct, dtype):
    """The Krylov space is exhausted long before all dimensions are seen; what follows must not look like more."""
    values = torch.linspace(1.0, 0.5, distinct, dtype=torch.float64).repeat_interleave(120 // distinct)
    M = with_spectrum(values, 150, 120, 0)[None].to(dtype)
    for max_steps in (30, 60, 120):
        norms = lanczos_norms(operator_of(M), 1e-12, 1e-9, torch.Generator().manual_seed(0), max_steps)
        assert norms.upper >= exact(M) and norms.estimate <= exact(M) * (1 + 1e-6)


class Watched(Lanczos):
    """Notes how each process was begun and, step by step, (estimated drift, true drift) of its vectors."""

    made, drifts, orthogonal = [], [], []

    def __init__(self, operator, start, rounds):
        self.made.append(rounds)
        super().__init__(operator, start, rounds)

    def step(self):
        super().step()
        if self.rounds == SELDOM:
            V = torch.cat(self.basis, 1)[0, : self.steps + 1]
            estimate = max(abs(delta) for delta, _ in (self.drift[0].at_top, self.drift[0].at_zero))
            self.drifts.append((estimate, float((V[:-1] @ V[-1]).abs().max())))

    def _take_components(self, w):
        self.orthogonal.append(self.steps)
        return super()._take_components(w)


@pytest.mark.parametrize(
    "gaps", [(1.0,), (1.1,), (3.0,), (30.0,), (300.0, 200.0, 3.0), torch.linspace(1, 30, 12).tolist()]
)
@pytest.mark.parametrize("power", [0.5, 2.0])
def test_the_drift_is_foreseen(monkeypatch, gaps, power):
    """Nothing comes near √eps, the estimate is not far below the drift, and few steps are spent on orthogonality."""
    monkeypatch.setattr(spectral, "Lanczos", Watched)
    Watched.made.clear(), Watched.drifts.clear(), Watched.orthogonal.clear()
    d = torch.linspace(0.0, 1.0, 6400)[None] ** power
    d[0, 77 : 77 + len(gaps)] = torch.tensor(gaps)
    generator = torch.Generator().manual_seed(0)
    assert float(lanczos_norms(diagonal(d), 1e-6, 1e-9, generator, 150).upper) >= max(gaps)
    assert Watched.made == [SELDOM]
    assert max(true for _, true in Watched.drifts) < 0.5 * math.sqrt(torch.finfo(torch.float32).eps)
    assert all(estimate > 0.1 * true for estimate, true in Watched.drifts[lanczos.ALWAYS :] if true > 1e-6)
    if len(Watched.drifts) == 150:
        assert len(Watched.orthogonal) <= 30


def test_a_lost_orthogonality_is_noticed(monkeypatch):
    """Where vectors that were left to the recurrence drift too far, the process starts again and leaves none to it."""
    monkeypatch.setattr(spectral, "Lanczos", Watched)
    monkeypatch.setattr(lanczos, "SAFE", 1e30)
    monkeypatch.setattr(lanczos, "ALWAYS", 0)
    Watched.made.clear()
    d = torch.linspace(0.0, 1.0, 6400)[None]
    d[0, 5] = 30.0  # found in a few steps, and then again and again by whatever has lost orthogonality
    norms = lanczos_norms(diagonal(d), 1e-9)
    assert Watched.made == [SELDOM, TWICE]
    assert norms.passes > 2 * 8  # those of the first attempt count as well
    assert 30.0 <= float(norms.upper) <= 30.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_short_vectors_that_cancel_are_made_orthogonal_twice(monkeypatch, dtype):
    """A space exhausted after three steps leaves noise: the process starts again, and nothing is found in it."""
    monkeypatch.setattr(spectral, "Lanczos", Watched)
    Watched.made.clear()
    M = with_spectrum([3.0, 2.0, 1.0], 260, 200, 0)[None].to(dtype)
    norms = lanczos_norms(operator_of(M), generator=torch.Generator().manual_seed(0))
    assert Watched.made == [ONCE, TWICE]
    assert norms.passes > 8  # those of the first attempt count as well
    assert exact(M) <= norms.upper <= 3.0 * (1.0 + 2.1e-3) and norms.estimate <= 3.0 * (1.0 + 1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5, 12, 20])
def test_upper_is_the_smallest_certified_value(steps):
    """At `upper` the polynomial is large enough to be missed with probability η at most, and just below it is not."""
    generator = torch.Generator().manual_seed(steps)
    a, b = torch.rand(2, 50, steps, generator=generator, dtype=torch.float64) + 0.1
    ritz = Ritz.from_steps(a.numpy(), b.numpy(), np.full(50, 1000), 1e-9, 1e-16)
    lower, upper = torch.from_numpy(ritz.lower()), torch.from_numpy(ritz.upper())
    T = torch.diag_embed(a**2)
    T[:, range(1, steps), range(steps - 1)] = T[:, range(steps - 1), range(1, steps)] = (a * b)[:, :-1]
    t = 1e-9 * math.sqrt(math.pi / 2000)

    def certain(value):
        p = torch.linalg.eigvalsh(value.square()[:, None, None] * torch.eye(steps) - T).log().sum(1)
        return p - (a * b).log().sum(1) + math.log(t)

    assert (certain(upper * (1 + 1e-9)) > 0).all()
    assert (certain(lower + (upper - lower) * (1 - 1e-6)) < 0).all()


def test_a_proof_of_positive_definiteness():
    """The smallest eigenvalue is ±1e-9, to rounding: proven where it is positive, and never where it is not."""
    Q, _ = torch.linalg.qr(torch.randn(20, 30, 30, generator=torch.Generator().manual_seed(7), dtype=torch.float64))
    values = torch.linspace(0, 1, 30, dtype=torch.float64).repeat(20, 1)
    for least, proven in ((1e-9, True), (-1e-9, False), (0.0, False)):
        values[:, 0] = least
        matrices = (Q * values[:, None]) @ Q.mT
        assert (proven_positive_definite(0.5 * (matrices + matrices.mT)) == proven).all()
    assert not proven_positive_definite(torch.zeros(1, 3, 3, dtype=torch.float64)).any()


def test_dense_norms_of_equal_entries():
    """Every sum is rounded in one direction; ‖M‖ = value·√(mn) exactly."""
    for value, n in ((0.1, 50_000), (1 / 3, 30_001)):
        upper = Fraction(float(dense_norms(torch.full((1, 4, n), value, dtype=torch.float64)).upper))
        assert upper**2 >= Fraction(value) ** 2 * 4 * n
        assert upper**2 <= Fraction(value) ** 2 * 4 * n * Fraction(1 + 1e-9)


def test_a_start_is_never_zero_on_an_axis():
    """A float32 normal is exactly 0 now and then: here where the largest entry of a diagonal matrix stands."""
    n = 1_000_000
    for seed in range(100):
        zeros = (torch.randn(1, n, generator=torch.Generator().manual_seed(seed))[0] == 0).nonzero()[:, 0]
        if len(zeros):
            break
    d = torch.ones(1, n)
    d[0, zeros[0]] = 2.0
    assert float(lanczos_norms(diagonal(d), generator=torch.Generator().manual_seed(seed)).upper) >= 2.0
