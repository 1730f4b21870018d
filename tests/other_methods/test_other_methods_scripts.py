"""The other methods' scripts as a user runs them, the comparison's table, figure and JSON, and the weight file."""

from __future__ import annotations

import argparse
import importlib
import json
import runpy
import sys
import time
from functools import partial

import numpy as np
import pytest
import scipy.io
from scripts import ROOT, copy_of_project, error_of, refused, run

from other_methods import compare
from other_methods.chain import Chain, random_chain
from other_methods.common import script
from other_methods.common.script import Method, Row
from other_methods.lipsdp import load_weights, save_weights

FIELDS = ["method", "quantity", "norm", "value", "own", "rigorous", "seconds", "failure"]
SMALL = ("--widths", "3", "5", "4", "2", "--eps", "0.3")


def test_compare(tmp_path):
    copy_of_project(tmp_path)
    output = run(tmp_path, "other_methods/compare.py", *SMALL, "--unsound", "--json", "rows.json").stdout
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(list(row) == FIELDS for row in rows)
    assert {row["quantity"] for row in rows} == {"anchored", "local", "global"}
    assert {row["method"] for row in rows if not row["rigorous"]} == {"SeqLip, greedy", "LipSDP-Network (unsound)"}
    for name in ("joint_bound", "FastLip", "RecurJac", "LiPopt", "LipMIP", "LipSDP-Layer", "AutoLip", "ECLipsE"):
        assert any(row["method"].startswith(name) for row in rows) and name in output
    converted = {row["method"] for row in rows if row["norm"] != "l2"}
    assert converted == {"LipMIP", "LiPopt", "LiPopt, local"} and output.count("l2 (from ") == 3
    value = {row["method"]: row["value"] for row in rows}
    assert value["SeqLip, exact"] <= value["AutoLip"] * (1 + 1e-9)
    assert value["LipSDP-Neuron, local"] <= value["LipSDP-Neuron"] * (1 + 1e-6)
    assert (tmp_path / "data" / "random_3-5-4-2" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.rglob("*.unfinished"))
    (tmp_path / "folder").mkdir()
    assert "is a folder" in error_of(tmp_path, "other_methods/compare.py", *SMALL, "--json", "folder")


def test_our_bounds_on_compnet(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["networks/compnet.py"])
    runpy.run_path(str(ROOT / "networks" / "compnet.py"), run_name="__main__")
    output = capsys.readouterr().out
    assert "1.286913" in output and "0.389662" in output and "0.4256" in output and "joint" in output


@pytest.mark.parametrize(
    ("file", "options", "words"),
    [
        ("seqlip", ("--form", "greedy"), "SeqLip, greedy  global    2 to 2  estimate"),
        ("seqlip", ("--form", "autolip"), "AutoLip  global    2 to 2  rigorous"),
        ("lipsdp", ("--form", "network"), "LipSDP-Network (unsound)  global    2 to 2  estimate"),
        ("lipsdp", ("--local", "--eps", "0.3"), "LipSDP-Neuron  local     2 to 2  rigorous"),
        ("lipmip", ("--eps", "0.3", "--norm", "1"), "in the set: gap "),
        ("recurjac", ("--norm", "inf", "--form", "fastlip"), "FastLip  local     inf to inf  rigorous"),
        ("lipopt", ("--output", "1", "--local"), "LiPopt  local     inf to |.|  rigorous"),
        ("eclipse", ("--form", "fast"), "ECLipsE-Fast  global    2 to 2  rigorous"),
    ],
)
def test_each_method_is_a_script(monkeypatch, capsys, file, options, words):
    monkeypatch.setattr(sys, "argv", [file, "--widths", "3", "5", "4", "2", *options])
    importlib.import_module(f"other_methods.{file}").main()
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("seqlip", ("--network", "nonsense"), "no network 'nonsense'; there are:"),
        ("lipsdp", ("--network", "mnist"), "affine layers and ReLU only"),
        ("seqlip", ("--widths", "5"), "an input size, hidden widths and an output size"),
        ("seqlip", ("--time-limit", "0"), "--time-limit 0"),
        ("seqlip", ("--form", "all"), "invalid choice"),
        ("lipsdp", ("--solver", "MOSEK"), "'MOSEK' is not installed; for semidefinite programmes there are: CLARABEL"),
        ("lipsdp", ("--weight-path", "nowhere.mat"), "no file nowhere.mat"),
        ("lipsdp", ("--form", "network", "--local"), "global version only"),
        ("lipsdp", ("--weight-path", "w.mat", "--local"), "needs biases"),
        ("lipmip", ("--eps", "-1"), "--eps -1"),
        ("recurjac", ("--eps", "nan"), "--eps nan"),
        ("lipopt", ("--output", "10"), "output 10 of a network with 10 outputs"),
        ("eclipse", ("--seed", "-1"), "--seed"),
        ("compare", ("--eps", "0"), "--eps 0"),
        ("compare", ("--json", "/dev/null/x.json"), "/dev/null/x.json cannot be written"),
    ],
)
def test_wrong_options(monkeypatch, capsys, file, options, message):
    assert message in refused(monkeypatch, capsys, f"other_methods/{file}.py", *options)


def test_the_weight_file(monkeypatch, capsys, tmp_path):
    """A 1×n cell array `weights` of double matrices, without biases; back again to the last bit."""
    chain = random_chain((3, 5, 4, 1), 2)
    save_weights(chain, tmp_path / "weights.mat")
    cells = scipy.io.loadmat(tmp_path / "weights.mat")["weights"]
    assert cells.shape == (1, 3) and cells.dtype == object
    assert [cell.shape for cell in cells[0]] == [(5, 3), (4, 5), (1, 4)]
    again = load_weights(tmp_path / "weights.mat")
    assert all((a == b).all() for a, b in zip(again.weights, chain.weights, strict=True))
    assert not any(b.any() for b in again.biases)

    monkeypatch.chdir(tmp_path)
    values = []
    for options in (("--widths", "3", "5", "2"), ("--weight-path", "weights.mat")):
        for more in (("--save-weights",), ()):
            monkeypatch.setattr(sys, "argv", ["lipsdp", *options, *more])
            runpy.run_path(str(ROOT / "other_methods" / "lipsdp.py"), run_name="__main__")
        values.append(capsys.readouterr().out.split()[-2])
    assert values[0] == values[1]


def test_weight_files_that_are_none(tmp_path):
    path = tmp_path / "w.mat"
    cells = np.empty((1, 2), dtype=object)
    cells[0, :] = [np.ones((2, 3)), np.ones((1, 3))]
    for content in ({"weights": np.ones((2, 3))}, {"other": np.ones((2, 3))}, {"weights": {"a": 1.0}}):
        scipy.io.savemat(path, content)
        with pytest.raises(ValueError, match="no cell array 'weights'"):
            load_weights(path)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(ValueError, match="no cell array 'weights'"):
        load_weights(path)
    scipy.io.savemat(path, {"weights": cells})
    with pytest.raises(ValueError, match="do not follow one another"):
        load_weights(path)
    with pytest.raises(ValueError, match="no file"):
        load_weights(tmp_path / "none.mat")


def row(value, quantity="local", rigorous=True):
    return Row(Method("method", quantity, "l2", rigorous, float), value, 0.1, "" if value else "too large")


def test_a_rigorous_value_below_what_was_found_ends_the_script():
    lower = {"anchored": 1.0, "local": 2.0, "global": 3.0}
    compare.check([row(2.0), row(3.0, "global"), row(1.0, "anchored"), row(None), row(0.5, rigorous=False)], lower)
    for wrong in (row(1.99), row(2.99, "global"), row(0.99, "anchored")):
        with pytest.raises(AssertionError, match=r"method: .* which was found .* not a bound"):
            compare.check([wrong], lower)


def test_the_figure_without_values(tmp_path):
    for rows in ([row(None), row(0.0), row(2.0)], [row(None)], []):
        figure = compare.draw(rows, dict.fromkeys(compare.COLOURS, 0.0), "title")
        figure.savefig(tmp_path / "figure.png")
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["method"] * len(rows)


def test_scaling(monkeypatch, capsys, tmp_path):
    """A method that runs out of time is not tried on networks that are at least as wide and as deep."""
    tried = []

    def methods(problem, eps, time_limit, unsound):
        width, depth = problem.chain.hidden[0], len(problem.chain.hidden)
        slow = partial(time.sleep, 300) if width >= 3 else partial(float, 10 * width + depth)
        return [
            Method("fast", "global", "l2", True, partial(float, 100 * width + depth)),
            Method("slow", "local", "l2", True, slow),
        ]

    def measure(method, time_limit):
        tried.append(method.name)
        return honest(method, time_limit)

    honest = script.measure
    monkeypatch.setattr(script, "measure", measure)
    monkeypatch.setattr(compare, "methods", methods)
    monkeypatch.setattr(compare, "lower_bounds", lambda *args: {"anchored": 1.0, "local": 2.0, "global": 3.0})
    monkeypatch.setattr(compare, "WIDTHS", (2, 3, 4))
    monkeypatch.setattr(compare, "DEPTHS", (1, 2))
    args = argparse.Namespace(eps=0.1, seed=0, time_limit=0.3, unsound=False, json=tmp_path / "rows.json")
    compare.scaling(args)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(list(row) == ["width", "depth", *FIELDS] for row in rows)
    found = {(row["method"], row["depth"], row["width"]): row["value"] for row in rows}
    assert [found["fast", 2, width] for width in (2, 3, 4)] == [202.0, 302.0, 402.0]
    assert found["slow", 2, 2] == 22.0 and found["slow", 1, 3] is None
    assert tried.count("slow") == 3 and tried.count("fast") == 6
    output = capsys.readouterr().out
    assert "slow, 3: no result within 0.3 s" in output and output.count("hidden layers of") == 2


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "deep" / "file"
    script.write(path, lambda file: file.write(b"old"))

    def fails(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"file cannot be written \(No space left on device"):
        script.write(path, fails)
    assert path.read_bytes() == b"old" and len(list(path.parent.iterdir())) == 1


def test_a_chain_of_one_matrix_is_compared_too():
    problem = script.problem_of(Chain((np.array([[3.0, 4.0]]),), (np.zeros(1),)), "linear")
    for method in compare.methods(problem, 0.1, 60, True):
        assert 5.0 <= float(method.compute()) <= 7.0 * (1 + 1e-6), method.name


def test_the_nominal_input_as_an_array_shares_no_memory_with_the_tensor():
    """torch moves what it hands over to shared memory: a numpy view of it would then show memory that is free."""
    problem = script.problem_of(random_chain((3, 5, 2), 0), "random")
    x0 = problem.x0
    problem.input.fill_(7.0)
    assert (x0 == 0.0).all()
