"""The public functions on a GPU: beside the same on the CPU, and against the float64 Jacobian. Skipped without CUDA."""

import pytest
import torch
from explicit import jacobian
from torch import nn

from local_lipschitz import certified_radius, describe, global_bound, joint_bound, local_bound, margin_bound, verify
from local_lipschitz.lower_bounds import gradient_lower_bound, random_lower_bound
from local_lipschitz.reading.read import read

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Residual(nn.Module):
    """Branches that meet: a sum, a concatenation, an average pool."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.fc = nn.AvgPool2d(2), nn.Linear(8 * 16, 5)

    def forward(self, x):
        h = torch.relu(self.a(x))
        h = torch.cat([h + self.b(h), self.b(h).clamp(-1, 1)], 1)
        return self.fc(self.pool(h).flatten(1))


def networks():
    torch.manual_seed(0)
    convolutional = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(6, 6, 3), nn.LeakyReLU(0.1), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    dense = nn.Sequential(
        nn.Flatten(), nn.Linear(128, 300), nn.ReLU(), nn.Linear(300, 280), nn.Hardtanh(), nn.Linear(280, 5)
    )
    return {"dense": dense.eval(), "convolutional": convolutional.eval(), "residual": Residual().eval()}


@pytest.fixture(params=["dense", "convolutional", "residual"])
def net(request):
    return networks()[request.param]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def x0(request):
    return torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(request.param)


@pytest.mark.parametrize("eps", [1e-3, 0.1])
def test_cuda_bounds_are_those_of_the_cpu(net, x0, eps):
    net = net.to(x0.dtype)
    calls = {
        "global": lambda x: global_bound(net, x), "local": lambda x: local_bound(net, x, eps),
        "outputs": lambda x: local_bound(net, x, eps, outputs=torch.eye(5)[:2] - torch.eye(5)[2:4]),
        "joint": lambda x: joint_bound(net, x, eps, effort=20),
        "joint outputs": lambda x: joint_bound(net, x, eps, effort=20, outputs=torch.eye(5)[:2] - torch.eye(5)[2:4]),
    }  # fmt: skip
    on_cpu = {name: call(x0).value for name, call in calls.items()}
    net = net.cuda()
    for name, call in calls.items():
        value = call(x0.cuda()).value
        assert value.is_cuda and value.dtype == torch.float64
        torch.testing.assert_close(value.cpu(), on_cpu[name], rtol=2e-2, atol=0.0, msg=name)


def test_cuda_joint_bounds_of_a_batch(net, x0):
    """Multipliers of several inputs are found side by side: as small as one by one, and as on the CPU."""
    net, eps = net.to(x0.dtype), torch.tensor([1e-6, 0.01, 0.1, 0.3, 1.0, 3.0])
    x = x0[torch.arange(len(eps)) % len(x0)]
    on_cpu = joint_bound(net, x, eps, effort=20).value
    net = net.cuda()
    batch = joint_bound(net, x.cuda(), eps.cuda(), effort=20).value.cpu()
    alone = [float(joint_bound(net, x[i : i + 1].cuda(), float(eps[i]), effort=20)) for i in range(len(eps))]
    torch.testing.assert_close(batch, torch.tensor(alone, dtype=torch.float64), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(batch, on_cpu, rtol=2e-2, atol=0.0)


def test_cuda_joint_bound_by_passes(net, x0, monkeypatch):
    monkeypatch.setattr("local_lipschitz.joint.dense.SHARE", -1.0)
    net = net.to(x0.dtype).cuda()
    bound = joint_bound(net, x0.cuda(), 0.1, effort=10)
    assert (bound.value <= local_bound(net, x0.cuda(), 0.1).value).all()
    assert (bound.value >= gradient_lower_bound(net, x0.cuda(), 0.1, starts=4, steps=10)).all()


def test_cuda_bounds_hold_at_the_jacobian(net, x0):
    net = net.to(x0.dtype).cuda()
    bounds = [bound(net, x0.cuda(), 1e-6).value.cpu() for bound in (local_bound, joint_bound)]
    for i, x in enumerate(x0.double().split(1)):
        truth = float(torch.linalg.matrix_norm(jacobian(net.double().cpu(), x), 2))
        assert all(float(bound[i]) >= truth * (1 - 1e-9) for bound in bounds)
        assert float(bounds[1][i]) <= truth * 1.01


def test_cuda_radius_and_words(net, x0):
    net = net.to(x0.dtype)
    on_cpu, words = certified_radius(net, x0).radius, describe(net, x0).splitlines()
    net, x = net.cuda(), x0.cuda()
    result = certified_radius(net, x)
    torch.testing.assert_close(result.radius.cpu(), on_cpu, rtol=2e-2, atol=0.0)
    assert [line.split()[:3] for line in describe(net, x).splitlines()[:-1]] == [w.split()[:3] for w in words[:-1]]
    joint = certified_radius(net, x, joint_bound, rtol=0.05, effort=10)
    assert joint.radius.is_cuda and (joint.radius >= 0.9 * result.radius).all()


def test_cuda_lower_bounds_stay_below(net, x0):
    net, x, eps = net.to(x0.dtype).cuda(), x0.cuda(), torch.tensor([0.01, 0.5], device="cuda")
    upper = local_bound(net, x, eps).value
    for lower in (random_lower_bound(net, x, eps, samples=500), gradient_lower_bound(net, x, eps, starts=4, steps=5)):
        assert lower.is_cuda and (lower > 0).all() and (lower <= upper).all()


def test_cuda_norm_of_a_large_layer():
    """A layer beyond the dense limit whose norm is known: orthogonal rows, one of them twice as long."""
    W = torch.linalg.qr(torch.randn(700, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    W[:, 0] *= 2.0
    for dtype in (torch.float32, torch.float64):
        net = nn.Sequential(nn.Linear(600, 700)).to(dtype).eval().cuda()
        net[0].weight.data.copy_(W)
        assert 2.0 <= float(global_bound(net, torch.zeros(1, 600, dtype=dtype, device="cuda"))) * (1 + 1e-6) <= 2.01


def test_cuda_tf32_and_autocast_do_not_enter(net, x0):
    net, x = net.to(x0.dtype).cuda(), x0.cuda()
    plain = [local_bound(net, x, 0.1).value, joint_bound(net, x, 0.1, effort=10).value]
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        for dtype in (torch.float16, torch.bfloat16):
            with torch.autocast("cuda", dtype=dtype):
                again = [local_bound(net, x, 0.1).value, joint_bound(net, x, 0.1, effort=10).value]
            for a, b in zip(plain, again, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=0.0)
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("eps", [1e-2, 0.1])
def test_cuda_margin_bound_and_verdicts(net, x0, eps):
    net = net.to(x0.dtype)
    on_cpu, verdict = margin_bound(net, x0, eps), verify(net, x0, eps, time_limit=20.0)
    net, x = net.cuda(), x0.cuda()
    bound, again = margin_bound(net, x, eps), verify(net, x, eps, time_limit=20.0)
    assert bound.lower.is_cuda and bound.status == on_cpu.status
    torch.testing.assert_close(bound.lower.cpu(), on_cpu.lower, rtol=1e-2, atol=1e-3)
    assert again.verdict == verdict.verdict and again.lower.is_cuda
    points = x.double() + eps * torch.nn.functional.normalize(torch.randn_like(x.double()).flatten(1)).reshape(x.shape)
    assert (net.double()(points) >= bound.lower).all()


@pytest.mark.parametrize("place", [None, "cpu", "cuda"])
def test_division_by_a_number_and_by_a_tensor_of_no_dimensions(place):
    """torch multiplies by the rounded reciprocal of the one, and divides by the other where it is on the GPU, too."""
    divisor = 6.0 if place is None else torch.tensor(6.0, device=place)

    class Sixth(nn.Module):
        def forward(self, x):
            return x / divisor

    x = torch.rand(1, 10_000, generator=torch.Generator().manual_seed(2)).cuda()
    (layer,) = read(Sixth().eval(), x).layers
    same = (x.double() * layer.op.scale).float() == x / divisor
    assert same.double().mean() > 0.999  # but for quotients halfway between two numbers
