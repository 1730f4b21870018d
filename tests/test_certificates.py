"""What every certificate must keep, by the rows of script_tools/certificates.py: a new row is checked at once."""

import pytest
import torch
from explicit import jacobian, sampled_quotient
from random_networks import random_network

from local_lipschitz import certified_radius, local_bound
from local_lipschitz.lower_bounds import gradient_lower_bound
from script_tools.certificates import CERTIFICATES, METHODS

SEEDS = (1, 4, 6, 11)  # dense and convolutional, with pooling, dead rows and strides
NOT_TIGHT = {"global", "local"}  # products of norms do not tend to the norm of the product
ROUND = 1e-9


def cases():
    return [pytest.param(random_network(seed), id=f"seed {seed}") for seed in SEEDS]


@pytest.mark.parametrize("name", CERTIFICATES)
@pytest.mark.parametrize("case", cases())
class TestEveryCertificate:
    def bound(self, name, net, x0, *eps, **options):
        certificate = CERTIFICATES[name]
        return certificate.function(net, x0, *(eps if certificate.of_eps else ()), **options)

    @pytest.mark.parametrize("eps", [1e-3, 0.3, 3.0])
    def test_never_below_what_is_attained(self, case, name, eps):
        net, x0 = case
        attained = max(
            sampled_quotient(net, x0, eps),
            float(gradient_lower_bound(net, x0, torch.tensor([eps]).double())),
        )
        assert float(self.bound(name, net, x0, eps)) >= attained * (1 - ROUND)

    def test_single_precision_is_rounded_outward(self, case, name):
        net, x0 = case
        try:
            single = float(self.bound(name, net.float(), x0.float(), 0.3))
        finally:
            net.double()
        assert float(self.bound(name, net, x0, 0.3)) * (1 - 1e-5) <= single * (1 + 2e-2)
        assert single >= sampled_quotient(net, x0, 0.3) * (1 - 1e-6)

    def test_tends_to_the_jacobian(self, case, name):
        net, x0 = case
        J = float(torch.linalg.matrix_norm(jacobian(net, x0), 2))
        value = float(self.bound(name, net, x0, 1e-9))
        assert value >= J * (1 - ROUND)
        if name not in NOT_TIGHT:
            assert value <= J * (1 + 1e-6)

    def test_at_least_as_tight_as_the_product(self, case, name):
        net, x0 = case
        if name != "global":
            assert float(self.bound(name, net, x0, 0.3)) <= float(local_bound(net, x0, 0.3))

    def test_a_batch_is_its_inputs(self, case, name):
        net, x0 = case
        batch, eps = torch.cat([x0, 0.5 * x0, x0 + 0.1]), torch.tensor([0.1, 0.3, 1.0]).double()
        together = self.bound(name, net, batch, eps).value
        for i in range(3):
            alone = float(self.bound(name, net, batch[i : i + 1], eps[i : i + 1]))
            assert float(together.expand(3)[i]) == pytest.approx(alone, rel=1e-9)

    def test_each_output_by_itself(self, case, name):
        net, x0 = case
        m = net(x0).shape[1]
        bound = self.bound(name, net, x0, 0.3, outputs=torch.eye(m).double())
        assert bound.value.shape == (1, m) and (bound.fall <= bound.value * (1 + ROUND)).all()
        whole = float(self.bound(name, net, x0, 0.3))
        for k in range(m):
            attained = sampled_quotient(lambda x, k=k: net(x)[:, k : k + 1], x0, 0.3)
            assert attained * (1 - ROUND) <= float(bound.value[0, k])
        assert float(bound.value.max()) <= whole * (1 + 1e-2)  # tuned for itself, and not always better


@pytest.mark.parametrize("method", METHODS)
def test_no_sample_within_a_certified_radius_is_of_another_class(method):
    certificate, rule = METHODS[method]
    for seed in SEEDS:
        net, x0 = random_network(seed)
        if net(x0).shape[1] < 2:
            continue
        result = certified_radius(net, x0, certificate.function, rule, rtol=certificate.rtol)
        directions = torch.randn(500, *x0.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        steps = directions / directions.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x0.dim() - 1))
        radius = min(float(result.radius), 1e6)
        assert (net(x0 + radius * steps).argmax(1) == result.label).all()
