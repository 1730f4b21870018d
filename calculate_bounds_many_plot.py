"""The figure of calculate_bounds_many.py: certified accuracy against the radius, a curve for each bound there is.

    python calculate_bounds_many_plot.py
    python calculate_bounds_many_plot.py --network cifar10

Reads data/<network>/certified_*.csv, writes data/<network>/certified.png and .pdf.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

import networks
from networks import mnist as network
from script_tools import certified_rows, command_line, results
from script_tools.certificates import CERTIFICATES, RULES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FILES = {
    certified_rows.stem(name, rule): certificate.title(rule)
    for name, certificate in CERTIFICATES.items()
    for rule in RULES
}


def draw(folder: Path, name: str, weights: str) -> list[Path]:
    """Write certified.png and .pdf of all files in `folder` that were made with these weights."""
    figure, axes = plt.subplots(figsize=(6.0, 4.0), layout="constrained")
    for stem, label in FILES.items():
        settings, rows = certified_rows.read_any(folder / f"{stem}.csv")
        if not rows or settings["weights"] != weights:
            continue
        radii = np.sort([row.radius for row in rows if row.correct])
        share = 100 * np.arange(len(radii), -1, -1) / len(rows)  # that is certified at least so far
        axes.step([0, *radii], share, where="post", label=f"{label} ({len(rows)} images)")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 101)
    axes.set_xlabel("ℓ2 radius (normalised units)")
    axes.set_ylabel("certified accuracy, %")
    axes.set_title(name)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
    paths = [folder / f"certified.{suffix}" for suffix in ("png", "pdf")]
    for path in paths:
        results.save_figure(figure, path)
    plt.close(figure)
    return paths


def newest(folder: Path) -> str:
    """The weights that the newest file of radii was made with: only what goes with it is drawn."""
    files = [path for stem in FILES if (path := folder / f"{stem}.csv").exists()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        settings, rows = certified_rows.read_any(path)
        if rows:
            return str(settings["weights"])
    raise ValueError(f"no results in {folder}; run calculate_bounds_many.py first")


def main() -> None:
    args = command_line.parser(__doc__, network).parse_args()
    chosen = networks.load(args.network)
    for path in draw(chosen.data_dir, chosen.name, newest(chosen.data_dir)):
        print(f"wrote {path}")


if __name__ == "__main__":
    command_line.run(main)
