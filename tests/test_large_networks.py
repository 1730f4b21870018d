"""The paper's large networks: narrow copies against explicit matrices, the real AlexNet once, CUDA if there is one."""

import math

import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from paper_product import paper_product
from torch import nn
from torchvision.models.vgg import make_layers

from local_lipschitz import global_bound, local_bound
from local_lipschitz.layers.max_pooling import MaxPool
from local_lipschitz.lower_bounds import gradient_lower_bound, random_lower_bound
from networks import alexnet, mnist
from script_tools.batches import in_batches


def narrow_alexnet():
    """AlexNet's layers with few channels, for 63×63 images: strides, paddings and overlapping pooling as they are."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(4, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Dropout(), nn.Linear(54, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


def narrow_vgg():
    """VGG-16's thirteen convolutions with few channels, for 32×32 images."""
    torch.manual_seed(0)
    widths = [4, 4, "M", 6, 6, "M", 8, 8, 8, "M", 8, 8, 8, "M", 8, 8, 8, "M"]
    head = [nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 10)]
    return nn.Sequential(*make_layers(widths), *head).eval()


def arpack(M):
    """The largest singular value by ARPACK, to machine precision; a dense SVD of 4096×3072 takes a minute."""
    sparse = scipy.sparse.csr_array(M.numpy())  # of a convolution hardly one in a hundred entries is not zero
    return float(scipy.sparse.linalg.svds(sparse, k=1, return_singular_vectors=False, tol=1e-10)[0])


@pytest.mark.parametrize(("build", "side"), [(narrow_alexnet, 63), (narrow_vgg, 32)])
@pytest.mark.parametrize("eps", [1e-3, 0.3])
def test_narrow_copies_against_explicit_matrices(build, side, eps):
    """Layers of more than 256 on either side go through Lanczos, the others are dense.

    A norm that is a little too large widens the ball of the next layer, so the excess of a deep network is more than
    the product of the tolerances; hence the small one here.
    """
    net, x0 = build(), torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    bound = local_bound(net, x0, eps, tolerance=1e-4)
    layers = nn.Sequential(*(m for m in net if not isinstance(m, nn.Dropout))).double()
    exact = paper_product(layers, x0, eps, norm=arpack)
    assert exact * (1 - 1e-9) <= float(bound) <= exact * 1.02
    assert float(bound) <= float(global_bound(net.float(), x0))


def test_overlapping_pooling():
    """AlexNet's kernel 3, stride 2: an element falls in up to four windows, and a constructed input reaches √4."""
    pool = MaxPool((1, 9, 9), (3, 3), (2, 2), (0, 0), (1, 1), False)
    assert pool.overlap == 4
    x0 = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    x = x0.clone()
    x[0, 0, 4, 4] = 1.0
    assert float((pool.apply(x) - pool.apply(x0)).norm()) == 2.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        a, b = torch.randn(2, 1, 1, 9, 9, generator=generator, dtype=torch.float64)
        assert (pool.apply(a) - pool.apply(b)).norm() <= 2.0 * (a - b).norm()


def test_the_real_alexnet():
    """One ε, random weights, estimates only: to keep it short."""
    net, x0 = alexnet.net(random_weights=True), alexnet.x0
    bound = local_bound(net, x0, 0.1, certified=False, tolerance=0.3)
    product = math.prod(float(factor) for _, factor in bound.per_layer)
    assert float(bound) == pytest.approx(product, rel=1e-9)
    assert [float(f) for name, f in bound.per_layer if f == 2.0] == [2.0] * 3  # three overlapping poolings


def test_out_of_memory_halves_the_batch(capsys):
    sizes = []

    def compute(part):
        sizes.append(part.stop - part.start)
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("out of memory")
        return part

    parts = [part for part, _ in in_batches(compute, 2, 15, 8)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(2, 15))
    assert sizes[:3] == [8, 4, 2]
    assert "trying 4 at a time" in capsys.readouterr().err
    with pytest.raises(torch.OutOfMemoryError):
        list(in_batches(lambda part: compute(slice(0, 9)), 0, 1, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu():
    net, x0, eps = mnist.net(), mnist.x0, torch.tensor([1e-3, 0.1, 1.0])
    on_cpu, on_gpu = local_bound(net, x0, eps).value, local_bound(net.cuda(), x0.cuda(), eps.cuda())
    assert on_gpu.value.device.type == "cuda"
    assert on_gpu.value.cpu().tolist() == pytest.approx(on_cpu.tolist(), rel=5e-3)
    for lower in (
        random_lower_bound(net, x0.cuda(), eps.cuda(), samples=500),
        gradient_lower_bound(net, x0.cuda(), eps.cuda(), starts=4, steps=5),
    ):
        assert (lower <= on_gpu.value).all()
