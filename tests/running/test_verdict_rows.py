"""Verdicts as rows: files, tables, the summary, and the figure, against hand-made ones."""

import math

import matplotlib.pyplot as plt
import pytest

import calculate_bounds_many_plot as many_plot
from script_tools import verdict_rows
from script_tools.verdict_rows import VerdictRow

ROWS = [
    VerdictRow(0, 0.1, 7, 7, "verified", "product", 1.5, 0.01, "a.png"),
    VerdictRow(1, 0.1, 3, 3, "verified", "margin", 0.25, 2.0, "ü, b.png"),
    VerdictRow(2, 0.1, 3, 5, "misclassified", "", math.inf, 0.0, "c.png"),
    VerdictRow(3, 0.1, -1, 5, "falsified", "attack", -0.5, 0.1, ""),
    VerdictRow(0, 0.3, 7, 7, "unknown", "branching", -0.1, 60.0, "a.png"),
]


def test_rows_survive_files_and_tables(tmp_path):
    verdict_rows.write(tmp_path / "x.csv", ROWS, {"seed": 0})
    assert verdict_rows.read(tmp_path / "x.csv", {"seed": 0}) == ROWS
    assert verdict_rows.from_table(verdict_rows.to_table(ROWS)) == [row._replace(image="") for row in ROWS]
    with pytest.raises(ValueError, match="seed 0 there, 1 now"):
        verdict_rows.read(tmp_path / "x.csv", {"seed": 1})
    (tmp_path / "y.csv").write_text("# {}\nindex,label\n")
    with pytest.raises(ValueError, match="not a file of verdicts"):
        verdict_rows.read_any(tmp_path / "y.csv")


def test_shares_and_summary():
    each = verdict_rows.at_each_eps(ROWS)
    assert [len(rows) for rows in each.values()] == [4, 1] and list(each) == [0.1, 0.3]
    assert verdict_rows.shares(each[0.1]) == {"clean": 0.75, "verified": 0.5, "falsified": 0.25, "unknown": 0.0}
    head, first, second = verdict_rows.summary(ROWS).splitlines()
    assert head.split()[:3] == ["ε", "images", "clean"]
    assert first.split() == ["0.1", "4", "75.00%", "50.00%", "25.00%", "0.00%", "0.703,", "0.1"]
    assert second.split() == ["0.3", "1", "100.00%", "0.00%", "0.00%", "100.00%", "60,", "60"]


def test_what_is_verified_lies_below_what_attacks_leave(tmp_path):
    verdict_rows.write(tmp_path / "verified.csv", ROWS, {"weights": "w"})
    figure, axes = plt.subplots()
    many_plot.verified_curves(axes, tmp_path, "w")
    left, proved = (list(line.get_ydata()) for line in axes.lines)
    plt.close(figure)
    assert left == [50.0, 100.0] and proved == [50.0, 0.0]
    assert [path.name for path in many_plot.draw(tmp_path, "x", "w", "verified")] == ["verified.png", "verified.pdf"]
    assert many_plot.newest(tmp_path, ["verified"], verdict_rows) == ("verified", "w")
