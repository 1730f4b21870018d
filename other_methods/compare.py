"""All methods on one network, in one norm, on one set: a table, a figure, and the check against sampled lower bounds.

    python other_methods/compare.py
    python other_methods/compare.py --network compnet --eps 0.0005 --json compare.json
    python other_methods/compare.py --widths 5 20 20 3 --seed 1 --unsound
    python other_methods/compare.py --scaling --time-limit 30

Three quantities are bounded, each at least the one before: "anchored", sup ‖f(x) − f(x0)‖/‖x − x0‖ on the l2 ball of
radius --eps about x0; "local", over all pairs of points of the ball: the largest norm of the Jacobian there; "global",
over all pairs. Norms are l2 to l2; a row that comes from another norm or set says so. The script ends with an error if
a rigorous row is below the largest value that was found of its quantity. Writes data/<network>/compare.png.
--scaling: a table of random networks of growing width and depth instead; a method that ran out of time on a smaller
network is not tried on a larger one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import BinaryIO

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from networks import ROOT
from other_methods import script
from other_methods.chain import random_chain
from other_methods.methods import methods
from other_methods.sampled import lower_bounds
from other_methods.script import Problem, Row

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

WIDTHS, DEPTHS = (20, 50, 100, 200, 400), (2, 4, 6, 8)
SCALING_ENDS = 10  # inputs and outputs of the networks of the scaling table
COLOURS = {"anchored": "tab:blue", "local": "tab:orange", "global": "tab:green"}
ROUNDING = 1e-9  # relative, of a sampled quotient


def check(rows: Sequence[Row], lower: Mapping[str, float]) -> None:
    """AssertionError if a rigorous row is below a value that was reached."""
    for row in rows:
        if row.method.rigorous and row.value is not None and row.value < lower[row.method.quantity] * (1.0 - ROUNDING):
            raise AssertionError(
                f"{row.method.name}: {row.value:.9g} is below {lower[row.method.quantity]:.9g}, which was found of the "
                f"{row.method.quantity} constant: not a bound"
            )


def records(rows: Sequence[Row]) -> list[dict]:
    """The rows as plain records; value None where there is none."""
    return [
        {
            "method": row.method.name, "quantity": row.method.quantity, "norm": row.method.norm, "value": row.value,
            "rigorous": row.method.rigorous, "seconds": round(row.seconds, 4),
        }
        for row in rows
    ]  # fmt: skip


def draw(rows: Sequence[Row], lower: Mapping[str, float], title: str) -> plt.Figure:
    """A bar a row, logarithmic, in the colour of its quantity; dashed, the largest value found of that quantity."""
    shown = [(row.method, row.value) for row in reversed(rows) if row.value]
    figure, axes = plt.subplots(figsize=(7.2, 1.4 + 0.27 * len(shown)), layout="constrained")
    for at, (method, value) in enumerate(shown):
        colour = COLOURS[method.quantity]
        axes.barh(at, value, height=0.72, color=colour if method.rigorous else "white", edgecolor=colour)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.text(1.02 * value, at, f"{value:.4g}", va="center", fontsize=8, bbox=box)
    for quantity, colour in COLOURS.items():
        places = [at for at, (method, _) in enumerate(shown) if method.quantity == quantity]
        if places:
            axes.vlines(lower[quantity], min(places) - 0.5, max(places) + 0.5, "black", "--", linewidth=1)
            axes.barh(0, 0, color=colour, label=f"{quantity}, upper bound")
    axes.barh(0, 0, color="white", edgecolor="0.3", label="no bound: an estimate, or unsound")
    axes.plot([], [], "k--", linewidth=1, label="largest value found of the quantity")
    values = [value for _, value in shown] + list(lower.values())
    axes.set_xscale("log")
    axes.set_xlim(0.8 * min(values), 1.6 * max(values))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    names = [method.name + ("" if method.norm == "l2" else " †") for method, _ in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel("Lipschitz constant, l2 to l2 († converted from another norm)")
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def compare(args: argparse.Namespace) -> list[dict]:
    """The table and the figure for one network."""
    problem = script.problem(args)
    title = f"{problem.name} ({'-'.join(map(str, problem.chain.widths))}), l2 ball of radius {args.eps:g} about x0"
    lower = lower_bounds(problem.chain, problem.x0, args.eps, args.seed)
    print(title)
    rows = script.table(methods(problem, args.eps, args.time_limit, args.unsound), args.time_limit, lower)
    path = ROOT / "data" / problem.name.replace(" ", "_") / "compare.png"
    figure = draw(rows, lower, title)
    write(path, lambda file: figure.savefig(file, format="png", dpi=150))
    check(rows, lower)
    print(f"every rigorous value is at least the largest one found; the figure: {path.relative_to(ROOT)}")
    return records(rows)


def scaling(args: argparse.Namespace) -> list[dict]:
    """A table for each width and depth (hidden layers); what ran out of time on a smaller network is left out."""
    table: list[dict] = []
    given_up: dict[str, list[tuple[int, int]]] = {}
    for depth, width in product(DEPTHS, WIDTHS):
        widths = [SCALING_ENDS, *[width] * depth, SCALING_ENDS]
        chain = random_chain(widths, args.seed)
        problem = Problem(chain, np.zeros(SCALING_ENDS), f"{depth} hidden layers of {width}")
        lower = lower_bounds(chain, problem.x0, args.eps, args.seed)
        print(f"\n{problem.name}, radius {args.eps:g}")
        todo = [
            method
            for method in methods(problem, args.eps, args.time_limit, args.unsound)
            if not any(width >= w and depth >= d for w, d in given_up.get(method.name, []))
        ]
        rows = script.table(todo, args.time_limit, lower)
        check(rows, lower)
        for row in rows:
            if row.value is None:
                given_up.setdefault(row.method.name, []).append((width, depth))
        table += [{"width": width, "depth": depth} | record for record in records(rows)]
    return table


def write(path: Path, into: Callable[[BinaryIO], object]) -> None:
    """A file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        into(file)
    beside.replace(path)


def main() -> None:
    options = script.parser(__doc__)
    options.add_argument("--unsound", action="store_true", help="LipSDP's network form, too, which is not a bound")
    options.add_argument("--scaling", action="store_true", help="random networks of growing width and depth instead")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a JSON list")
    args = options.parse_args()
    if args.eps <= 0:
        raise ValueError(f"--eps {args.eps:g}; a positive radius is wanted")
    table = scaling(args) if args.scaling else compare(args)
    if args.json:
        write(args.json, lambda file: file.write((json.dumps(table, indent=1) + "\n").encode()))


if __name__ == "__main__":
    script.run(main)
