"""All methods on one network, in one norm, on one set: a table, a figure, and the check against sampled lower bounds.

    python other_methods/compare.py
    python other_methods/compare.py --network compnet --eps 0.0005 --json compare.json
    python other_methods/compare.py --widths 5 20 20 3 --seed 1 --unsound
    python other_methods/compare.py --scaling --time-limit 30

Three quantities are bounded, each at least the one before: "anchored", sup ‖f(x) − f(x0)‖/‖x − x0‖ on the l2 ball of
radius --eps about x0; "local", over all pairs of points of the ball: the largest norm of the Jacobian there; "global",
over all pairs. Norms are l2 to l2; a row that comes from another norm or set says so. The script ends with an error if
a rigorous row is below the largest value that was found of its quantity. Writes data/<network>/compare.png.
--scaling: random networks of growing width and depth instead, a table for each depth; a method that had no value for a
network, for lack of time mostly, is not tried on larger ones. Where a solver was stopped by the time limit the value is
what it had by then, made into a bound: valid, and loose. --json: the rows, as a list of records.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from networks import ROOT
from other_methods.chain import random_chain
from other_methods.common import script
from other_methods.common.sampled import lower_bounds, lower_bounds_by_passes
from other_methods.common.script import Problem, Row
from other_methods.compare_methods import methods

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

WIDTHS, DEPTHS = (20, 50, 100, 200, 400), (2, 4, 6, 8)
SCALING_ENDS = 10  # inputs and outputs of the networks of the scaling table
NAME, CELL = 35, 22  # widths of its columns
COLOURS = {"anchored": "tab:blue", "local": "tab:orange", "global": "tab:green"}
SMALL = 1_000_000  # weights of a network whose Jacobians are written down
ROUNDING = 1e-9  # relative, of a sampled quotient
DECADES = 1e3  # from which on an axis has numbers at powers of ten alone


def check(rows: Sequence[Row], lower: Mapping[str, float]) -> None:
    """AssertionError if a rigorous row is below a value that was reached."""
    for row in rows:
        if row.method.rigorous and row.value is not None and row.value < lower[row.method.quantity] * (1.0 - ROUNDING):
            raise AssertionError(
                f"{row.method.name}: {row.value:.9g} is below {lower[row.method.quantity]:.9g}, which was found of the "
                f"{row.method.quantity} constant: not a bound"
            )


def records(rows: Sequence[Row]) -> list[dict]:
    """The rows as plain records; value None where there is none. own: the values in the method's own norms."""
    return [
        {
            "method": row.method.name, "quantity": row.method.quantity, "norm": row.method.norm, "value": row.value,
            "own": row.own, "rigorous": row.method.rigorous, "seconds": round(row.seconds, 4), "failure": row.failure,
        }
        for row in rows
    ]  # fmt: skip


def draw(rows: Sequence[Row], lower: Mapping[str, float], title: str) -> plt.Figure:
    """A bar a row, logarithmic, in the colour of its quantity; dashed, the largest value found of that quantity.

    Within a quantity the tightest is lowest; a method without a value, or with 0, is named and has no bar.
    """
    order = list(COLOURS)
    ranked = sorted(rows, key=lambda row: (order.index(row.method.quantity), -(row.value or np.inf)))
    shown = [(row.method, row.value) for row in reversed(ranked)]
    values = [value for _, value in shown if value] + [value for value in lower.values() if value]
    span = max(values) / min(values) if values else 1.0
    left, right = (0.8 * min(values), 1.6 * span**0.12 * max(values)) if values else (0.1, 1.0)  # numbers want room
    figure, axes = plt.subplots(figsize=(7.2, 1.4 + 0.27 * len(shown)), layout="constrained")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for at, (method, value) in enumerate(shown):
        colour = COLOURS[method.quantity]
        if value:
            axes.barh(at, value, height=0.72, color=colour if method.rigorous else "white", edgecolor=colour)
        text = "no value" if value is None else f"{value:.4g}"
        axes.text(1.02 * (value or left), at, text, va="center", fontsize=8, bbox=box)
    for quantity, colour in COLOURS.items():
        places = [at for at, (method, _) in enumerate(shown) if method.quantity == quantity]
        if places:
            axes.vlines(lower[quantity], min(places) - 0.5, max(places) + 0.5, "black", "--", linewidth=1)
            axes.barh(0, 0, color=colour, label=f"{quantity}, upper bound")
    axes.barh(0, 0, color="white", edgecolor="0.3", label="no bound: an estimate, or unsound")
    axes.plot([], [], "k--", linewidth=1, label="largest value found of the quantity")
    axes.set_xlim(left, right)  # first: by itself a logarithmic axis asks for positive values
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < DECADES else (1.0,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    names = [method.name + ("" if method.norm == "l2" else " †") for method, _ in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel("Lipschitz constant, l2 to l2 († converted from another norm)")
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def compare(args: argparse.Namespace) -> None:
    """The table and the figure for one network."""
    problem = script.problem(args)
    title = f"{problem.name}{widths_of(problem, args)}, l2 ball of radius {args.eps:g} about x0"
    print(title, flush=True)
    lower = found_of(problem, args)
    rows = script.table(methods(problem, args.eps, args.time_limit, args.unsound), args.time_limit, lower)
    path = ROOT / "data" / problem.name.replace(" ", "_") / "compare.png"
    figure = draw(rows, lower, title)
    script.write(path, lambda file: figure.savefig(file, format="png", dpi=150))
    save(args.json, records(rows))
    check(rows, lower)
    print(f"every rigorous value is at least the largest one found; the figure: {path.relative_to(ROOT)}")


def widths_of(problem: Problem, args: argparse.Namespace) -> str:
    """The widths of a fully connected network that was not given by them, for the title."""
    if args.widths or not problem.network.is_chain_of_vectors:
        return ""
    return f" ({'-'.join(map(str, problem.chain.widths))})"


def found_of(problem: Problem, args: argparse.Namespace) -> dict[str, float]:
    """The largest values found of the three quantities: from Jacobians where matrices are small, else by passes."""
    if problem.network.is_chain_of_vectors and sum(link.stage.cost for link in problem.network.links) <= SMALL:
        return lower_bounds(problem.chain, problem.x0, args.eps, args.seed)
    return lower_bounds_by_passes(problem.module, problem.input, args.eps, args.seed)


def scaling(args: argparse.Namespace) -> None:
    """A table for each depth (hidden layers): value and seconds of each method for each width, and what was found."""
    table: list[dict] = []
    given_up: dict[str, list[tuple[int, int]]] = {}
    for depth in DEPTHS:
        chains = [random_chain([SCALING_ENDS, *[width] * depth, SCALING_ENDS], args.seed) for width in WIDTHS]
        problems = [script.problem_of(chain, "random") for chain in chains]
        lower = [lower_bounds(chain, np.zeros(SCALING_ENDS), args.eps, args.seed) for chain in chains]
        columns = [methods(problem, args.eps, args.time_limit, args.unsound) for problem in problems]
        print(f"\n{f'{depth} hidden layers of':<{NAME}}" + "".join(f"{width:>{CELL}}" for width in WIDTHS))
        reasons = []
        for across in zip(*columns, strict=True):
            name, quantity = across[0].name, across[0].quantity
            print(f"{name:<26}{quantity:<{NAME - 26}}", end="", flush=True)
            for width, found, method in zip(WIDTHS, lower, across, strict=True):
                if any(width >= w and depth >= d for w, d in given_up.get(name, [])):
                    print(f"{'-':>{CELL}}", end="")
                    continue
                row = script.measure(method, args.time_limit)
                cell = "-" if row.value is None else f"{row.value:.4g} ({row.seconds:.3g} s)"
                print(f"{cell:>{CELL}}", end="", flush=True)
                check([row], found)
                if row.value is None:
                    given_up.setdefault(name, []).append((width, depth))
                    reasons.append(f"{name}, {width}: {row.failure}")
                table += [{"width": width, "depth": depth} | record for record in records([row])]
            print()
        for quantity in COLOURS:
            values = "".join(f"{found[quantity]:>{CELL}.4g}" for found in lower)
            print(f"{'largest found':<26}{quantity:<{NAME - 26}}{values}")
        print("\n".join(reasons), flush=True)
        save(args.json, table)


def save(path: Path | None, table: list[dict]) -> None:
    """The records as a JSON list, where a file is given."""
    if path:
        script.write(path, lambda file: file.write((json.dumps(table, indent=1) + "\n").encode()))


def main() -> None:
    options = script.parser(__doc__)
    options.add_argument("--unsound", action="store_true", help="LipSDP's network form, too, which is not a bound")
    options.add_argument("--scaling", action="store_true", help="random networks of growing width and depth instead")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a JSON list")
    args = options.parse_args()
    script.check_options(args)
    if args.json:
        script.check_writable(args.json)  # now, and not when all is computed
    (scaling if args.scaling else compare)(args)


if __name__ == "__main__":
    script.run(main)
