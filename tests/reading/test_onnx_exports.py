"""Networks exported by torch, by both of its exporters, read back and bounded as the originals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from local_lipschitz import joint_bound, local_bound, read_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Forms(nn.Module):
    """Smooth activations, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(x))
        x = F.gelu(x) + F.gelu(x, approximate="tanh")
        x = F.selu(F.mish(F.hardswish(x)))
        return self.last(F.celu(F.elu(x, 0.5), 2.0))


class Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.short = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class ResNet(nn.Module):
    """Of the form of a ResNet-18, with few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(Block(4, 4, 1), Block(4, 6, 2), Block(6, 8, 2))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.blocks(self.stem(x)))
        return self.fc(x.view(x.size(0), -1))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))


NETWORKS = {"mlp": (mlp, (6,)), "cnn": (cnn, (1, 8, 8)), "resnet": (ResNet, (3, 32, 32)), "forms": (Forms, (6,))}


OF_BOTH = [(name, open_batch, False) for name in NETWORKS for open_batch in (False, True)]
OF_BOTH += [("resnet", True, True), ("cnn", False, True), ("forms", True, True)]  # the new one takes its time


@pytest.mark.parametrize(("name", "open_batch", "new"), OF_BOTH)
def test_exported_by_torch(tmp_path, name, open_batch, new):
    if new:
        pytest.importorskip("onnxscript")
    make, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = make().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after training
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    path = tmp_path / "net.onnx"
    x = torch.randn(2 if open_batch and new else 1, *shape, generator=generator)
    options = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if new else {"dynamic_axes": {"x": {0: "batch"}}}
    torch.onnx.export(net, (x,), path, input_names=["x"], dynamo=new, verbose=False, **(options if open_batch else {}))
    ours, x0 = read_onnx(path), torch.randn(2, *shape, generator=generator)
    assert ours.input_shape == shape
    torch.testing.assert_close(ours(x0), net(x0), rtol=1e-4, atol=1e-5)
    theirs = local_bound(net, x0, 0.01).value
    torch.testing.assert_close(local_bound(ours, x0, 0.01).value, theirs, rtol=1e-4, atol=0.0)
    if name in ("mlp", "forms"):
        value = float(joint_bound(ours, x0[:1], 0.01))
        assert value == pytest.approx(float(joint_bound(net, x0[:1], 0.01)), rel=1e-4)
