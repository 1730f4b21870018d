"""Arguments as people give them: they work where it is obvious what is meant, else one sentence says what is wanted."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from local_lipschitz import certified_radius, global_bound, joint_bound, local_bound
from local_lipschitz.attacks.gradient import fgsm
from local_lipschitz.lower_bounds import gradient_lower_bound, random_lower_bound


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes)).eval()


NET, X0 = network(), torch.tensor([[0.3, 0.9, 0.1, 0.6]])
LABEL = int(NET(X0).argmax())


def any_eps(net, x0, eps, outputs):
    return global_bound(net, x0, outputs=outputs)


@pytest.mark.parametrize("convert", [lambda a: a.tolist(), np.asarray, torch.tensor, lambda a: torch.tensor(a).float()])
@pytest.mark.parametrize("bound", [local_bound, joint_bound, any_eps])
def test_outputs_as_lists_and_arrays(convert, bound):
    outputs = np.array([[1.0, -1.0, 0.0], [0.5, 0.0, 0.25]])
    expected = bound(NET, X0, 0.1, outputs=torch.tensor(outputs)).value
    assert torch.equal(bound(NET, X0, 0.1, outputs=convert(outputs)).value, expected)
    assert torch.equal(bound(NET, X0, 0.1, outputs=convert(outputs[None])).value, expected)


def test_outputs_in_a_list_keep_float64():
    third = 1.0 / 3.0
    exact = local_bound(NET, X0.double(), 0.1, outputs=torch.tensor([[third, 0.0, 0.0]], dtype=torch.float64)).value
    assert torch.equal(local_bound(NET, X0.double(), 0.1, outputs=[[third, 0.0, 0.0]]).value, exact)


@pytest.mark.parametrize("eps", [np.float32(0.1), np.array([0.1], np.float32), [float(np.float32(0.1))],
                                 torch.tensor(0.1, requires_grad=True)])  # fmt: skip
def test_eps_as_numbers_of_any_kind(eps):
    assert torch.equal(local_bound(NET, X0, eps).value, local_bound(NET, X0, float(np.float32(0.1))).value)


@pytest.mark.parametrize("label", [LABEL, [LABEL], np.int64(LABEL), np.array([LABEL]), torch.tensor(LABEL)])
def test_label_as_integers_of_any_kind(label):
    expected = certified_radius(NET, X0).radius
    assert torch.equal(certified_radius(NET, X0, label=label).radius, expected)
    assert fgsm(NET, X0, label).x.shape == X0.shape


def test_one_label_for_all():
    x0 = X0.repeat(3, 1)
    assert certified_radius(NET, x0, label=LABEL).label.tolist() == [LABEL] * 3


@pytest.mark.parametrize("seed", [3, np.int64(3)])
def test_seed_as_integers_of_any_kind(seed):
    assert float(joint_bound(NET, X0, 0.1, seed=seed, effort=np.int32(5))) > 0
    assert float(random_lower_bound(NET, X0, 0.1, samples=10, seed=seed)) > 0


# (argument, value, words of the message)
WRONG = [
    *[("eps", value, "eps is ") for value in ("0.1", None, [None], {}, 1j, True, [0.1, "a"], np.array(["0.1"]), [],
                                              torch.tensor(1j), 10**400, float("nan"), 0.0, -1.0)],
    ("eps", [[0.1]], "eps has shape (1, 1)"),
    ("eps", [[0.1], [0.2, 0.3]], "eps is "),
    *[("outputs", value, "outputs is ") for value in ("a", [["a", 0, 0]], True, {}, object())],
    ("outputs", torch.eye(3).to_sparse(), "outputs is "),
    ("outputs", torch.eye(3, dtype=torch.complex64), "outputs is "),
    *[("outputs", value, "outputs has shape ") for value in ([], 1.0, [1.0, 0.0, 0.0], [[1.0, 2.0]], np.zeros((0, 3)))],
    ("outputs", [[float("inf"), 0, 0]], "outputs contains NaN or infinite values"),
    *[("tolerance", value, "tolerance is ") for value in (0, -1.0, "a", None, float("nan"), True)],
    *[("failure_probability", value, "failure_probability is ") for value in (0, 1, 1.5, -1e-9, None, "x")],
    *[("seed", value, "seed is ") for value in (1.5, None, "a", True)],
]  # fmt: skip


@pytest.mark.parametrize("name, value, words", WRONG)
def test_wrong_arguments_of_a_bound(name, value, words):
    arguments = {"eps": 0.1} | {name: value}
    for bound in (local_bound, joint_bound):
        with pytest.raises(ValueError) as caught:
            bound(NET, X0, **arguments)
        assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("x0", [[[0.0] * 4], None, np.zeros((1, 4)), torch.zeros(4), torch.zeros(0, 4),
                                torch.zeros(1, 0), torch.zeros(1, 4).half(), torch.zeros(1, 4, dtype=torch.int64),
                                torch.zeros(1, 4).to_sparse(), torch.zeros(1, 4, device="meta"),
                                torch.full((1, 4), float("nan"))])  # fmt: skip
def test_wrong_inputs(x0):
    with pytest.raises(ValueError, match="x0 "):
        local_bound(NET, x0, 0.1)


@pytest.mark.parametrize("label", ["0", [0, 1], [[1]], -1, 3, 1.0, True, [True], object(), {}])
def test_wrong_labels(label):
    for function in (lambda: certified_radius(NET, X0, label=label), lambda: fgsm(NET, X0, label)):
        with pytest.raises(ValueError, match=r"label is .*; 1 classes from 0 to 2 are wanted"):
            function()


@pytest.mark.parametrize("options, words", [
    ({"bound": "joint"}, "bound is 'joint'; local_bound, joint_bound, global_bound or such a function is wanted"),
    ({"rtol": None}, "rtol is None"), ({"rtol": "a"}, "rtol is 'a'"), ({"margins": None}, "margins is None"),
    ({"bound": joint_bound, "effort": 2.5}, "effort is 2.5; an integer, at least 1, is wanted"),
])  # fmt: skip
def test_wrong_options_of_a_radius(options, words):
    with pytest.raises(ValueError) as caught:
        certified_radius(NET, X0, **options)
    assert words in str(caught.value)


def test_wrong_counts_of_lower_bounds():
    for function, name in ((random_lower_bound, "samples"), (gradient_lower_bound, "starts")):
        with pytest.raises(ValueError, match=f"{name} is 0; an integer, at least 1, is wanted"):
            function(NET, X0, 0.1, **{name: 0})


# Outputs that are not one number a class


class Map(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape, self.body = shape, network(torch.Size(shape).numel())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).reshape(len(x), *self.shape)


@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 4), (3, 1, 1), (1, 3)])
@pytest.mark.parametrize("attempt", [certified_radius, fgsm])
def test_a_map_of_classes_has_no_radius(shape, attempt):
    net = Map(shape).eval()
    with pytest.raises(ValueError) as caught:
        attempt(net, X0)
    shown = ", ".join(str(n) for n in shape)
    assert f"has shape (B, {shown}); one number a class, (B, classes), is wanted" in str(caught.value)
    together = float(local_bound(net, X0, 0.1))  # a bound of all outputs needs no classes
    assert together == pytest.approx(float(local_bound(net.body, X0, 0.1)), rel=1e-9)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("attempt", [certified_radius, fgsm])
def test_one_output_has_no_class(shape, attempt):
    with pytest.raises(ValueError, match="the network has one output; a class needs at least two to be compared"):
        attempt(Map(shape).eval(), X0)
