"""ONNX graphs as different tools write them, against onnxruntime and against the torch network that they stand for."""

import numpy as np
import pytest
import torch
from torch import nn

from local_lipschitz import UnsupportedLayerError, global_bound, local_bound, read_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


def write(path, nodes, constants, in_shape, out_shape) -> str:
    """A graph of `nodes` (operator, reads, writes, attributes) from x to y."""
    graph = helper.make_graph(
        [helper.make_node(kind, reads, writes, **options) for kind, reads, writes, options in nodes], "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, in_shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, out_shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return str(path)


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_flatten_and_a_normalisation_by_constants(tmp_path, batch, transposed):
    weight, bias, mean, std = draw(5, 12), draw(5), draw(1, 3, 1, 1), np.abs(draw(1, 3, 1, 1)) + 0.5
    nodes = [
        ("Sub", ["x", "mean"], ["a"], {}), ("Div", ["a", "std"], ["b"], {}), ("Flatten", ["b"], ["c"], {"axis": 1}),
        ("Gemm", ["c", "w", "bias"], ["d"], {"transB": transposed, "alpha": 0.5, "beta": 2.0}),
        ("Relu", ["d"], ["e"], {}), ("MatMul", ["e", "m"], ["f"], {}), ("Add", ["f", "n"], ["y"], {}),
    ]  # fmt: skip
    m, n = draw(5, 4), draw(4)
    constants = {"w": weight if transposed else weight.T.copy(), "bias": bias, "mean": mean, "std": std, "m": m, "n": n}
    net = read_onnx(write(tmp_path / "net.onnx", nodes, constants, [batch, 3, 2, 2], [batch, 4]))
    first, last = nn.Linear(12, 5), nn.Linear(5, 4)
    with torch.no_grad():
        scale = torch.from_numpy(std).expand(1, 3, 2, 2).reshape(1, 12)
        shift = torch.from_numpy(mean).expand(1, 3, 2, 2).reshape(12)
        first.weight.copy_(0.5 * torch.from_numpy(weight) / scale)
        first.bias.copy_(2.0 * torch.from_numpy(bias) - first.weight @ shift)
        last.weight.copy_(torch.from_numpy(m.T.copy()))
        last.bias.copy_(torch.from_numpy(n))
    theirs = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last).eval()
    x0 = torch.from_numpy(draw(3, 3, 2, 2))
    torch.testing.assert_close(net(x0), theirs(x0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(local_bound(net, x0, 0.1).value, local_bound(theirs, x0, 0.1).value, rtol=1e-5, atol=0.0)
    assert net.input_shape == (3, 2, 2) and not net.training


def test_a_convolution_with_constant_nodes_and_a_fixed_reshape(tmp_path):
    shape = numpy_helper.from_array(np.array([1, 18]), "shape")
    nodes = [
        ("Constant", [], ["shape"], {"value": shape}),
        ("Conv", ["x", "w"], ["a"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("BatchNormalization", ["a", "one", "zero", "zero", "one"], ["b"], {}),
        ("LeakyRelu", ["b"], ["c"], {"alpha": 0.2}),
        ("MaxPool", ["c"], ["d"], {"kernel_shape": [2, 2], "strides": [2, 2]}), ("Reshape", ["d", "shape"], ["e"], {}),
        ("Gemm", ["e", "v"], ["f"], {"transB": 1}), ("Tanh", ["f"], ["g"], {}), ("Gemm", ["g", "u"], ["y"], {}),
    ]  # fmt: skip
    constants = {"w": draw(2, 1, 3, 3), "one": np.ones(2, np.float32), "zero": np.zeros(2, np.float32),
                 "v": draw(6, 18), "u": draw(6, 3)}  # fmt: skip
    net = read_onnx(write(tmp_path / "net.onnx", nodes, constants, [1, 1, 6, 6], [1, 3]))
    x0 = torch.from_numpy(draw(2, 1, 6, 6))
    assert net(x0).shape == (2, 3)
    assert (global_bound(net, x0).value >= local_bound(net, x0, 0.01).value).all()


def test_what_is_refused(tmp_path):
    path = write(tmp_path / "net.onnx", [("Sin", ["x"], ["y"], {})], {}, [1, 3], [1, 3])
    with pytest.raises(UnsupportedLayerError, match=r"node 'Sin_1' \(position 1\): the operator Sin is not supported"):
        read_onnx(path)
    with pytest.raises(FileNotFoundError):
        read_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ValueError, match="cannot read"):
        read_onnx(tmp_path / "text.onnx")
