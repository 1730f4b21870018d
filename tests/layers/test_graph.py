"""Stages where branches meet, against explicit matrices: what a source contributes, row norms that never fall short."""

from dataclasses import replace

import pytest
import torch
from explicit import jacobian, matrix_of, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from local_lipschitz.layers.graph import Graph
from local_lipschitz.layers.layer import INPUT, Concat, Layer, Sum
from local_lipschitz.layers.linear_maps import Dense
from local_lipschitz.reading.read import read


def dense(name: str, reads: str, weight: Tensor) -> Layer:
    return Layer(name, (reads,), Dense((weight.shape[1],), (weight.shape[0],), weight), (weight.shape[0],))


def weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def row_norms(layers: list[Layer], n: int) -> Tensor:
    (stage,) = Graph((n,), tuple(layers)).stages
    return stage.row_norms(INPUT, torch.ones(1, n, dtype=torch.float64))[0]


def test_branches_of_one_source_that_are_joined_are_not_disjoint():
    """[x; 2x] read by (a, b) is a + 2b, whose square may exceed a² + 4b²."""
    A = weight(3, 2)
    layers = [
        dense("double", INPUT, 2 * torch.eye(2, dtype=torch.float64)),
        Layer("join", (INPUT, "double"), Concat(1, (2, 2)), (4,)),
        dense("last", "join", torch.cat([A, A], 1)),
    ]
    wanted = (3 * A).norm(dim=1)
    rows = row_norms(layers, 2)
    assert bool((rows >= wanted * (1 - 1e-12)).all())
    assert bool((rows <= 2 * wanted).all())


def test_branches_of_one_source_that_are_added():
    A, B = weight(3, 4), weight(3, 4, 1)
    layers = [dense("a", INPUT, A), dense("b", INPUT, B), Layer("add", ("a", "b"), Sum(), (3,))]
    rows = row_norms(layers, 4)
    torch.testing.assert_close(rows, A.norm(dim=1) + B.norm(dim=1))
    rows = row_norms([*layers, dense("last", "add", weight(2, 3, 2))], 4)
    assert bool((rows >= (weight(2, 3, 2) @ (A + B)).norm(dim=1)).all())


def test_a_stage_with_two_sources():
    """A sum or concatenation of which one branch depends on the source changes nothing."""
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(5, 3), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            u, v = x[:, :4].relu(), x[:, 4:].relu()
            return self.c(torch.cat([self.a(u), self.b(v)], 1))

    net = randomise(Joined())
    stage = read(net, torch.ones(1, 9, dtype=torch.float64)).stages[-1]
    assert len(stage.sources) == 2
    A, B, C = net.a.weight.detach(), net.b.weight.detach(), net.c.weight.detach()
    for source, matrix in zip(stage.sources, (C[:, :3] @ A, C[:, 3:] @ B), strict=True):
        torch.testing.assert_close(stage.matrix(source, C), matrix)
        only = stage.of(source)
        assert only.sources == (source,)
        assert len(only.layers) == 3
        torch.testing.assert_close(matrix_of(lambda x: only.apply({source: x}), only.in_shapes[source]), matrix)
        rows = stage.row_norms(source, torch.ones(1, matrix.shape[1], dtype=torch.float64))[0]
        assert bool((rows >= matrix.norm(dim=1) * (1 - 1e-12)).all())
    relu = stage.of(stage.sources[0])
    joined = read(net, torch.ones(1, 9, dtype=torch.float64)).layers[-2].name
    before = replace(relu, target=joined, layers=relu.layers[:-1])
    rows = before.row_norms(stage.sources[0], torch.ones(1, 4, dtype=torch.float64))[0]
    torch.testing.assert_close(rows[:3], A.norm(dim=1))
    assert not rows[3:].any()


@st.composite
def affine_graphs(draw) -> Graph:
    """Dense layers, sums, concatenations and cuts of one input, in random order, reading anything before them."""
    n = draw(st.integers(1, 4))
    layers: list[Layer] = []
    shapes = {INPUT: n}
    for i in range(draw(st.integers(1, 7))):
        reads = draw(st.sampled_from(sorted(shapes)))
        kind = draw(st.sampled_from(["dense", "sum", "concat", "sparse"]))
        name = f"{kind}{i}"
        if kind in ("dense", "sparse"):
            A = weight(draw(st.integers(1, 4)), shapes[reads], draw(st.integers(0, 999)))
            layers.append(dense(name, reads, A if kind == "dense" else A * (A > 0.5)))
        else:
            others = sorted(k for k in shapes if kind == "concat" or shapes[k] == shapes[reads])
            inputs = (reads, *(draw(st.sampled_from(others)) for _ in range(draw(st.integers(1, 2)))))
            sizes = tuple(shapes[k] for k in inputs)
            op = Sum() if kind == "sum" else Concat(1, sizes)
            layers.append(Layer(name, inputs, op, (sizes[0] if kind == "sum" else sum(sizes),)))
        shapes[name] = layers[-1].shape[0]
    return Graph((n,), tuple(layers))


@given(affine_graphs(), st.integers(0, 99))
@settings(max_examples=300)
def test_random_affine_graphs(graph, seed):
    generator = torch.Generator().manual_seed(seed)
    n = graph.in_shape[0]
    (stage,) = graph.stages
    if INPUT not in stage.sources:
        return
    A = matrix_of(graph.forward, (n,))
    torch.testing.assert_close(stage.matrix(INPUT, A), A)
    v = torch.randn(3, A.shape[0], generator=generator, dtype=torch.float64)
    torch.testing.assert_close(stage.adjoint(v)[INPUT], v @ A)
    d = (torch.rand(2, n, generator=generator) < 0.7).double()
    rows = stage.row_norms(INPUT, d)
    wanted = (A[None] * d[:, None]).norm(dim=2)
    assert bool((rows >= wanted * (1 - 1e-12)).all())
    if stage.is_selection(INPUT):
        assert int((A != 0).sum(0).max()) <= 1
        assert int((A != 0).sum(1).max()) <= 1
        r = torch.rand(A.shape[0], generator=generator, dtype=torch.float64)
        norm = torch.linalg.matrix_norm(r[:, None] * A * d[0], 2)
        torch.testing.assert_close((r * rows[0]).max(), norm)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.a, self.b, self.last = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last((x + self.b(self.a(x).relu())).relu())


def test_a_residual_block_has_a_stage_with_two_sources():
    net = randomise(Residual())
    x0 = torch.randn(1, 4, dtype=torch.float64)
    graph = read(net, x0)
    sources = [stage.sources for stage in graph.stages]
    assert sources == [("input",), ("relu",), ("relu", "relu#2"), ("relu#3",)]
    assert [stage.name for stage in graph.stages] == ["first", "a", "add", "last"]
    add = graph.stages[2]
    assert add.is_selection("relu") and not add.is_selection("relu#2")
    torch.testing.assert_close(add.matrix("relu", x0), torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(add.matrix("relu#2", x0), net.b.weight.detach())
    torch.testing.assert_close(graph.forward(x0.expand(3, -1)), net(x0).expand(3, -1))


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_differences_of_a_residual_block(scale):
    net = randomise(Residual())
    x0 = torch.randn(1, 4, dtype=torch.float64)
    delta = scale * torch.randn(20, 4, dtype=torch.float64)
    change = read(net, x0).difference(x0, delta)
    if scale == 1.0:
        torch.testing.assert_close(change, net(x0 + delta) - net(x0))
    else:
        torch.testing.assert_close(change, delta @ jacobian(net, x0).mT)


def test_a_graph_without_layers_is_the_identity():
    graph = read(nn.Sequential(nn.Identity(), nn.Dropout()).eval(), torch.ones(1, 3))
    assert graph.layers == ()
    assert graph.out_shape == (3,)
    assert torch.equal(graph.forward(torch.ones(2, 3)), torch.ones(2, 3))
