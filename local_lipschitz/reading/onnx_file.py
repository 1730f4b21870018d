"""An ONNX file as an nn.Module that the bounds read like any other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedLayerError
from .onnx_forms import Step, with_forms
from .onnx_operators import CONSTANT_INPUTS, OPERATORS, WITHOUT_EFFECT

CLOSE = 1e-3  # of onnxruntime's results, relative to the largest: its kernels and torch's differ by rounding
BATCH = 2  # where the file leaves it open
MISSING = "reading an ONNX file needs the packages onnx and onnxruntime: pip install 'local-lipschitz[onnx]'"


class OnnxNetwork(nn.Module):
    """The nodes of an ONNX graph in order, as one function of one input (B, *input_shape). Its weights are buffers."""

    def __init__(self, nodes: list[Node], source: str, output: str, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.nodes = nn.ModuleDict({f"node{i}": node for i, node in enumerate(nodes, start=1)})
        self.source, self.output, self.input_shape = source, output, input_shape

    def forward(self, x: Tensor) -> Tensor:
        values = {self.source: x}
        for node in self.nodes.values():
            assert isinstance(node, Node)
            values.update(zip(node.writes, node(*[values.get(name) for name in node.reads]), strict=False))
        return values[self.output]


class Node(nn.Module):
    """One operator with its attributes; what it reads that is constant is kept as buffers."""

    def __init__(self, step: Step, constants: dict[str, Tensor]) -> None:
        super().__init__()
        self.name, self.kind, self.options, self.writes = step.name, step.kind, step.options, step.writes
        self.reads = step.reads
        for i, name in enumerate(step.reads):
            if name in constants:
                self.register_buffer(f"input{i}", constants[name])

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        given = [getattr(self, f"input{i}", x) for i, x in enumerate(inputs)]
        try:
            results = OPERATORS[self.kind](*given, **self.options)
        except UnsupportedLayerError:
            raise
        except (TypeError, ValueError, RuntimeError, NotImplementedError, IndexError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UnsupportedLayerError(f"node {self.name}, {self.kind}: not supported: {reason}") from error
        return tuple(results) if isinstance(results, tuple | list) else (results,)


def read_onnx(path: str | os.PathLike, input_shape: Sequence[int] | None = None) -> OnnxNetwork:
    """The network in the ONNX file at `path`, in eval mode, in the file's precision; `input_shape` is its attribute.

    input_shape: without the batch; it is wanted where the file leaves sizes open.
    Guaranteed: on two random inputs of that shape it gives what onnxruntime gives, to rounding. Activations that the
    file writes out, as x·σ(x), are taken as the functions that they stand for (onnx_forms.py).
    Raises FileNotFoundError; ModuleNotFoundError where onnx or onnxruntime are not installed; ValueError for a file
    that is no ONNX graph of one input and one output, or an input of open or other sizes; UnsupportedLayerError naming
    the node and its operator.
    """
    try:
        import onnx
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no ONNX file at {path}")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])
    except Exception as error:  # each library has its own
        raise ValueError(f"cannot read {path}: {str(error).strip().splitlines()[0]}") from error
    try:
        net = _network(model.graph, input_shape)
        _compare(net, session)
    except (ValueError, UnsupportedLayerError) as error:
        raise type(error)(f"{path}: {error}") from error
    return net


@torch.no_grad()
def _network(graph: Any, input_shape: Sequence[int] | None) -> OnnxNetwork:
    """Steps whose inputs are all constant are computed here."""
    from onnx import numpy_helper

    constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    sources = [value for value in graph.input if value.name not in constants]
    if len(sources) != 1 or len(graph.output) != 1:
        raise ValueError(f"it has {len(sources)} inputs and {len(graph.output)} outputs; one of each is wanted")
    source, output = sources[0].name, graph.output[0].name
    shape = _shape(sources[0], input_shape)
    of_one = sources[0].type.tensor_type.shape.dim[0].dim_value == 1
    steps: list[Step] = []
    known = {"", source, *constants}
    for position, found in enumerate(graph.node, start=1):
        step = _step(found, position)
        if step.kind == "Flatten" and step.options.get("axis") == 0 and of_one:
            step.options["axis"] = 1  # the same for one input, and right for a batch of them
        if step.kind == "Constant":
            constants[step.writes[0]] = torch.as_tensor(next(iter(step.options.values())))
        elif all(not name or name in constants for name in step.reads) and step.kind in OPERATORS:
            kind = "ConstantReshape" if step.kind == "Reshape" else step.kind  # has no batch
            results = Node(Step(step.name, kind, step.options, step.reads), constants)(*[None] * len(step.reads))
            constants.update(zip(step.writes, results, strict=False))
        else:
            steps.append(step)
        known.update(step.writes if step.kind == "Split" else step.writes[:1])
        if unknown := [name for name in step.reads if name not in known]:
            raise UnsupportedLayerError(f"node {step.name}, {step.kind}: {unknown[0]!r} is not supported: it is "
                                        "the second result of a node, as indices or masks are")  # fmt: skip
    steps = with_forms(steps, constants, output)
    _check_steps(steps, constants)
    if not steps:
        raise ValueError("its output does not depend on its input")
    return OnnxNetwork([Node(step, constants) for step in steps], source, output, shape).eval()


def _step(node: Any, position: int) -> Step:
    """A node with its attributes as Python values and tensors."""
    from onnx import helper, numpy_helper

    options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    options = {key: value for key, value in options.items() if key not in WITHOUT_EFFECT.get(node.op_type, ())}
    for key, value in options.items():
        if isinstance(value, bytes):
            options[key] = value.decode()
        elif hasattr(value, "raw_data"):
            options[key] = torch.from_numpy(numpy_helper.to_array(value).copy())
        elif not isinstance(value, int | float | str):
            options[key] = list(value)
    kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    if kind == "Split" and len(node.input) < 2 and "split" not in options:
        options["num_outputs"] = len(node.output)
    return Step(f"{node.name or kind} (position {position})", kind, options, list(node.input), list(node.output))


def _check_steps(steps: list[Step], constants: dict[str, Tensor]) -> None:
    """UnsupportedLayerError for an operator that is not known, and for inputs that would have to be constant."""
    fixed = {"", *constants}  # known without the network's input; shapes are
    for step in steps:
        if step.kind not in OPERATORS:
            raise UnsupportedLayerError(f"node {step.name}: the operator {step.kind} is not supported")
        if step.kind == "Shape" or all(name in fixed for name in step.reads):
            fixed.update(step.writes)
        wanted = CONSTANT_INPUTS.get(step.kind, ())
        if moving := [step.reads[i] for i in wanted if i < len(step.reads) and step.reads[i] not in fixed]:
            raise UnsupportedLayerError(
                f"node {step.name}, {step.kind}: its input {moving[0]!r} depends on the network's input; "
                "only constants are supported there"
            )


def _shape(value: Any, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """Of the input, without the batch."""
    dims = value.type.tensor_type.shape.dim
    sizes = [dim.dim_value for dim in dims][1:]
    if value.type.tensor_type.elem_type not in (1, 11):
        raise ValueError("its input is not of float32 or float64")
    if not sizes:
        raise ValueError("its input has no dimension beside the batch; (B, *input shape) is wanted")
    fits = wanted is None or [a for a, b in zip(sizes, wanted, strict=False) if a not in (0, b)] == []
    if wanted is not None and (len(wanted) != len(sizes) or not fits or min(wanted) < 1):
        raise ValueError(f"input_shape is {tuple(wanted)}; its input is {_written(dims)}, the batch first")
    shape = tuple(sizes if wanted is None else wanted)
    if not all(size > 0 for size in shape):
        raise ValueError(
            f"its input is {_written(dims)}, which leaves more than the batch open: give input_shape=, without the "
            "batch, or export it with fixed sizes"
        )
    return shape


def _written(dims: Any) -> str:
    return "(" + ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in dims) + ")"


@torch.no_grad()
def _compare(net: OnnxNetwork, session: Any) -> None:
    """ValueError unless `net` computes what onnxruntime computes at two random inputs."""
    (source,) = session.get_inputs()
    batch = source.shape[0] if isinstance(source.shape[0], int) else BATCH
    dtype = torch.float64 if source.type == "tensor(double)" else torch.float32
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        x = torch.randn(batch, *net.input_shape, generator=generator, dtype=dtype)
        try:
            theirs = torch.from_numpy(session.run(None, {source.name: x.numpy()})[0])
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"onnxruntime cannot run it at {tuple(x.shape)}: {reason}") from error
        ours = net(x)
        near = ours.shape == theirs.shape and bool(
            ((ours - theirs).abs() <= CLOSE * float(theirs.abs().max() + 1e-6)).all()
        )
        if not near:
            raise ValueError("what was read does not compute what onnxruntime computes; please report this")
