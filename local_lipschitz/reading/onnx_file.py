"""An ONNX file as an nn.Module that the bounds read like any other."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedLayerError
from .onnx_operators import OPERATORS

CLOSE = 1e-3  # of onnxruntime's results, relative to the largest: its kernels and torch's differ by rounding
MISSING = "reading an ONNX file needs the packages onnx and onnxruntime: pip install 'local-lipschitz[onnx]'"


class OnnxNetwork(nn.Module):
    """The nodes of an ONNX graph in order, as one function of one input (B, *input_shape).

    Its weights are buffers. `input_shape` is None where the file leaves more than the batch open.
    """

    def __init__(self, nodes: list[Node], source: str, output: str, input_shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.nodes = nn.ModuleDict({node.name: node for node in nodes})
        self.source, self.output, self.input_shape = source, output, input_shape

    def forward(self, x: Tensor) -> Tensor:
        values = {self.source: x}
        for node in self.nodes.values():
            assert isinstance(node, Node)
            results = node(*[values.get(name) for name in node.reads])
            results = results if isinstance(results, tuple | list) else (results,)
            values.update(zip(node.writes, results, strict=False))
        return values[self.output]


class Node(nn.Module):
    """One operator with its attributes; what it reads that is constant is kept as buffers."""

    def __init__(self, name: str, kind: str, options: dict[str, Any], reads: list[str], writes: list[str]) -> None:
        super().__init__()
        self.name, self.kind, self.options, self.reads, self.writes = name, kind, options, reads, writes

    def keep(self, constants: dict[str, Tensor]) -> None:
        for i, name in enumerate(self.reads):
            if name in constants:
                self.register_buffer(f"input{i}", constants[name])

    def forward(self, *inputs: Tensor | None) -> Any:
        given = [getattr(self, f"input{i}", x) for i, x in enumerate(inputs)]
        return OPERATORS[self.kind](*given, **self.options)


def read_onnx(path: str | os.PathLike) -> OnnxNetwork:
    """The network in the ONNX file at `path`, in eval mode, in float32; `input_shape` is an attribute of it.

    Guaranteed: on two random inputs it gives what onnxruntime gives, to rounding.
    Raises FileNotFoundError; ModuleNotFoundError where onnx or onnxruntime are not installed; ValueError for a
    file that is no ONNX graph of one input and one output; UnsupportedLayerError naming the node and its operator.
    """
    try:
        import onnx
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no ONNX file at {path}")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # each library has its own
        raise ValueError(f"cannot read {path}: {str(error).strip().splitlines()[0]}") from error
    net = _network(model.graph, os.fspath(path))
    _compare(net, session, os.fspath(path))
    return net


@torch.no_grad()
def _network(graph: Any, path: str) -> OnnxNetwork:
    """Nodes whose inputs are all constant are computed here."""
    from onnx import numpy_helper

    constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    sources = [value for value in graph.input if value.name not in constants]
    if len(sources) != 1 or len(graph.output) != 1:
        raise ValueError(f"{path} has {len(sources)} inputs and {len(graph.output)} outputs; one of each is wanted")
    nodes: list[Node] = []
    for position, found in enumerate(graph.node, start=1):
        options = _options(found)
        if found.op_type == "Constant":
            constants[found.output[0]] = torch.as_tensor(next(iter(options.values())))
            continue
        name = (found.name or f"{found.op_type}_{position}").strip("/").replace("/", "_").replace(".", "_")
        if found.op_type not in OPERATORS or found.domain not in ("", "ai.onnx"):
            where = f"{path}: node {name!r} (position {position})"
            raise UnsupportedLayerError(f"{where}: the operator {found.op_type} is not supported")
        node = Node(name, found.op_type, options, list(found.input), list(found.output))
        node.keep(constants)
        if all(not read or read in constants for read in found.input):
            node.kind = "ConstantReshape" if node.kind == "Reshape" else node.kind  # has no batch
            results = node(*[None] * len(found.input))
            constants.update(zip(found.output, results if isinstance(results, tuple) else (results,), strict=False))
        else:
            nodes.append(node)
    return OnnxNetwork(nodes, sources[0].name, graph.output[0].name, _shape(sources[0])).eval()


def _options(node: Any) -> dict[str, Any]:
    """A node's attributes as Python values and tensors."""
    from onnx import helper, numpy_helper

    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    for key, value in values.items():
        if isinstance(value, bytes):
            values[key] = value.decode()
        elif hasattr(value, "raw_data"):
            values[key] = torch.from_numpy(numpy_helper.to_array(value).copy())
        elif not isinstance(value, int | float | str):
            values[key] = list(value)
    return values


def _shape(value: Any) -> tuple[int, ...] | None:
    """Without the batch."""
    sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    return tuple(sizes) if sizes and all(size > 0 for size in sizes) else None


@torch.no_grad()
def _compare(net: OnnxNetwork, session: Any, path: str) -> None:
    """ValueError unless `net` computes what onnxruntime computes at two random inputs."""
    if net.input_shape is None:
        return
    (source,) = session.get_inputs()
    batch = source.shape[0] if isinstance(source.shape[0], int) else 1
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        x = torch.randn(batch, *net.input_shape, generator=generator)
        theirs = torch.from_numpy(session.run(None, {source.name: x.numpy()})[0])
        ours = net(x)
        if ours.shape != theirs.shape or float((ours - theirs).abs().max()) > CLOSE * float(theirs.abs().max() + 1e-6):
            raise ValueError(f"{path}: what was read does not compute what onnxruntime computes; please report this")
