"""ONNX graphs as different tools write them, against onnxruntime and against the torch network that they stand for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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
    with pytest.raises(UnsupportedLayerError, match=r"node Sin \(position 1\): the operator Sin is not supported"):
        read_onnx(path)
    with pytest.raises(FileNotFoundError):
        read_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ValueError, match="cannot read"):
        read_onnx(tmp_path / "text.onnx")


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        ([("Flatten", ["x"], ["y"], {"axis": 2})], {}, "Flatten with axis 2"),
        ([("ReduceMax", ["x"], ["a"], {"keepdims": 0}), ("Clip", ["x", "a"], ["y"], {})], {},
         "'a' depends on the network's input"),
        ([("Cast", ["x"], ["a"], {"to": 10}), ("Cast", ["a"], ["y"], {"to": 1})], {},
         "Cast to the data type 10"),
        ([("MaxPool", ["x"], ["a", "i"], {"kernel_shape": [2, 2]}), ("Cast", ["i"], ["y"], {"to": 1})], {},
         "'i' is not supported: it is the second result"),
        ([("BatchNormalization", ["x", "c", "c", "c", "c"], ["y", "m", "v"], {"training_mode": 1})],
         {"c": np.ones(3, np.float32)}, "in training mode"),
    ],
)  # fmt: skip
def test_what_would_be_read_as_something_else(tmp_path, nodes, constants, message):
    shape = [3, 16] if nodes[-1][0] == "Flatten" else ["p", "q", "r", "s"]
    with pytest.raises((UnsupportedLayerError, ValueError), match=message):
        read_onnx(write(tmp_path / "net.onnx", nodes, constants, [1, 3, 4, 4], shape))


@pytest.mark.parametrize(("shape", "axis"), [([1, 3, 2, 2], 0), ([1, 3, 2, 2], -3), (["n", 1, 3, 4], 2)])
def test_flatten_with_other_axes_that_keep_the_batch(tmp_path, shape, axis):
    nodes = [("Flatten", ["x"], ["a"], {"axis": axis}), ("MatMul", ["a", "w"], ["y"], {})]
    net = read_onnx(write(tmp_path / "net.onnx", nodes, {"w": draw(12, 2)}, shape, [shape[0], 2]))
    x = torch.from_numpy(draw(3, *shape[1:]))
    torch.testing.assert_close(net(x), x.flatten(1) @ torch.from_numpy(draw(12, 2)))
    bound, truth = float(global_bound(net, x[:1])), float(np.linalg.norm(draw(12, 2).astype(float), 2))
    assert bound == pytest.approx(truth, rel=1e-4)


def test_a_batch_that_is_flattened_too_is_refused(tmp_path):
    path = write(tmp_path / "net.onnx", [("Flatten", ["x"], ["y"], {"axis": 0})], {}, ["n", 4], [1, "m"])
    with pytest.raises(UnsupportedLayerError, match="Flatten with axis 0"):
        read_onnx(path)


def test_attributes_count(tmp_path):
    """Against onnxruntime, which read_onnx compares with, and the formulas."""
    nodes = [
        ("Selu", ["x"], ["a"], {"alpha": 0.5, "gamma": 3.0}),
        ("HardSigmoid", ["a"], ["b"], {"alpha": 0.3, "beta": 0.1}),
        ("LeakyRelu", ["b"], ["c"], {"alpha": 0.7}), ("MaxPool", ["c"], ["d"], {"kernel_shape": [3, 3],
         "strides": [2, 2], "auto_pad": "SAME_UPPER"}), ("ReduceMean", ["d"], ["y"], {"axes": [2, 3], "keepdims": 0}),
    ]  # fmt: skip
    net = read_onnx(write(tmp_path / "net.onnx", nodes, {}, ["n", 3, 4, 4], ["n", 3]))
    x = torch.from_numpy(draw(2, 3, 4, 4))
    a = (0.3 * 3.0 * F.elu(x, 0.5) + 0.1).clamp(0.0, 1.0)
    d = F.max_pool2d(F.pad(a, (0, 1, 0, 1), value=-torch.inf), 3, 2)
    torch.testing.assert_close(net(x), d.mean((2, 3)))
    assert (local_bound(net, x, 0.1).value > 0).all()


def test_open_sizes_are_asked_for(tmp_path):
    nodes = [("GlobalAveragePool", ["x"], ["a"], {}), ("Flatten", ["a"], ["y"], {})]
    path = write(tmp_path / "net.onnx", nodes, {}, ["n", 3, "height", "width"], ["n", 3])
    with pytest.raises(ValueError, match=r"\(n, 3, height, width\), which leaves more.*input_shape"):
        read_onnx(path)
    with pytest.raises(ValueError, match=r"input_shape is \(4, 5, 5\)"):
        read_onnx(path, input_shape=(4, 5, 5))
    net = read_onnx(path, input_shape=(3, 5, 6))
    assert net.input_shape == (3, 5, 6)
    bound = float(global_bound(net, torch.zeros(1, 3, 5, 6), tolerance=1e-6))
    assert bound == pytest.approx(30**-0.5, rel=1e-5)


def test_smooth_forms_written_out(tmp_path):
    """SiLU with its factors exchanged, two tanh forms of GELU, Hardswish by a clip: each as the function itself."""
    scalars = {"half": 0.5, "one": 1.0, "three": 3.0, "zero": 0.0, "six": 6.0, "cubic": 0.044715, "root": 0.7978845608}
    constants = {name: np.array(value, np.float32) for name, value in scalars.items()}
    nodes = [
        ("Sigmoid", ["x"], ["s"], {}), ("Mul", ["s", "x"], ["a"], {}),
        ("Pow", ["a", "three"], ["b1"], {}), ("Mul", ["b1", "cubic"], ["b2"], {}), ("Add", ["a", "b2"], ["b3"], {}),
        ("Mul", ["root", "b3"], ["b4"], {}), ("Tanh", ["b4"], ["b5"], {}), ("Add", ["one", "b5"], ["b6"], {}),
        ("Mul", ["half", "a"], ["b7"], {}), ("Mul", ["b7", "b6"], ["g"], {}),
        ("Mul", ["g", "cubic"], ["g1"], {}), ("Mul", ["g1", "g"], ["g2"], {}), ("Add", ["one", "g2"], ["g3"], {}),
        ("Mul", ["g", "root"], ["g4"], {}), ("Mul", ["g4", "g3"], ["g5"], {}), ("Tanh", ["g5"], ["g6"], {}),
        ("Add", ["g6", "one"], ["g7"], {}), ("Mul", ["g", "g7"], ["g8"], {}), ("Mul", ["g8", "half"], ["b"], {}),
        ("Add", ["b", "three"], ["c1"], {}), ("Clip", ["c1", "zero", "six"], ["c2"], {}),
        ("Mul", ["b", "c2"], ["c3"], {}), ("Div", ["c3", "six"], ["c"], {}), ("MatMul", ["c", "m"], ["y"], {}),
    ]  # fmt: skip
    constants["m"] = draw(4, 2)
    net = read_onnx(write(tmp_path / "net.onnx", nodes, constants, ["n", 4], ["n", 2]))
    last = nn.Linear(4, 2, bias=False)
    last.weight.data = torch.from_numpy(draw(4, 2).T.copy())
    theirs = nn.Sequential(nn.SiLU(), nn.GELU("tanh"), nn.GELU("tanh"), nn.Hardswish(), last).eval()
    x0 = torch.from_numpy(draw(3, 4))
    torch.testing.assert_close(net(x0), theirs(x0))
    torch.testing.assert_close(local_bound(net, x0, 0.1).value, local_bound(theirs, x0, 0.1).value, rtol=1e-6, atol=0.0)
    wrong = [("Sigmoid", ["a"], ["s"], {}), ("Mul", ["s", "x"], ["y"], {})]  # not of the same x
    path = write(tmp_path / "wrong.onnx", [("Neg", ["x"], ["a"], {}), *wrong], {}, ["n", 4], ["n", 4])
    with pytest.raises(UnsupportedLayerError):
        local_bound(read_onnx(path), x0, 0.1)
