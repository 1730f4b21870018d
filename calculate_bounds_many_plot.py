"""The figures of calculate_bounds_many.py: certified accuracy against the radius, and what is verified at each ε.

    python calculate_bounds_many_plot.py
    python calculate_bounds_many_plot.py --network cifar10

Reads data/<network>/certified_*.csv and verified.csv, writes data/<network>/{certified,verified}.png and .pdf.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from networks import mnist as network
from script_tools import certified_rows, command_line, results, verdict_rows
from script_tools.certificates import CERTIFICATES, RULES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FILES = {
    certified_rows.stem(name, rule): certificate.title(rule)
    for name, certificate in CERTIFICATES.items()
    for rule in RULES
}


def draw(folder: Path, name: str, weights: str, stem: str) -> list[Path]:
    """Write the figure that the rows in <stem>.csv belong to, .png and .pdf, from files made with these weights."""
    curves, kind = (verified_curves, "verified") if stem == verdict_rows.STEM else (certified_curves, "certified")
    figure, axes = plt.subplots(figsize=(6.0, 4.0), layout="constrained")
    curves(axes, folder, weights)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 101)
    axes.set_title(name)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
    paths = [folder / f"{kind}.{suffix}" for suffix in ("png", "pdf")]
    for path in paths:
        results.save_figure(figure, path)
    plt.close(figure)
    return paths


def certified_curves(axes: plt.Axes, folder: Path, weights: str) -> None:
    """The share with at least a certified radius, a curve for each bound there is."""
    for stem, label in FILES.items():
        settings, rows = certified_rows.read_any(folder / f"{stem}.csv")
        if not rows or settings["weights"] != weights:
            continue
        radii = np.sort([row.radius for row in rows if row.correct])
        share = 100 * np.arange(len(radii), -1, -1) / len(rows)  # that is certified at least so far
        axes.step([0, *radii], share, where="post", label=f"{label} ({len(rows)} images)")
    axes.set_xlabel("ℓ2 radius (normalised units)")
    axes.set_ylabel("certified accuracy, %")


def verified_curves(axes: plt.Axes, folder: Path, weights: str) -> None:
    """The share that is verified, below the share that attacks leave: the truth lies between."""
    settings, rows = verdict_rows.read_any(folder / f"{verdict_rows.STEM}.csv")
    if not rows or settings["weights"] != weights:
        raise ValueError(f"{folder / verdict_rows.STEM}.csv holds no verdicts of this network")
    each = verdict_rows.at_each_eps(rows)
    shares = [verdict_rows.shares(some) for some in each.values()]
    left = [100 * (part["clean"] - part["falsified"]) for part in shares]
    proved = [100 * part["verified"] for part in shares]
    axes.plot([*each], left, "v--", color="tab:green", label="no counterexample found")
    axes.plot([*each], proved, "s-", color="tab:blue", label=f"verified ({len(next(iter(each.values())))} images)")
    axes.fill_between([*each], proved, left, color="0.9")
    axes.set_xlabel("ε of the ball, ℓ2 (normalised units)")
    axes.set_ylabel("images, %")


def newest(folder: Path, stems: Iterable[str], rows: Any) -> tuple[str, str] | None:
    """(stem, weights) of the newest of these files with rows: only what goes with those weights is drawn."""
    files = [path for stem in stems if (path := folder / f"{stem}.csv").exists()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        settings, some = rows.read_any(path)
        if some:
            return path.stem, str(settings["weights"])
    return None


def main() -> None:
    args = command_line.parser(__doc__, network, nominal=False).parse_args()
    chosen = command_line.chosen_network(args)
    kinds = [newest(chosen.data_dir, FILES, certified_rows), newest(chosen.data_dir, [verdict_rows.STEM], verdict_rows)]
    found = [kind for kind in kinds if kind is not None]
    if not found:
        raise ValueError(f"no results in {chosen.data_dir}; run calculate_bounds_many.py first")
    for stem, weights in found:
        for path in draw(chosen.data_dir, chosen.name, weights, stem):
            print(f"wrote {path}")


if __name__ == "__main__":
    command_line.run(main)
