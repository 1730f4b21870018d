"""The figure of calculate_bounds_many.py: certified accuracy against the radius, a curve for each bound there is."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from script_tools import certified_rows, results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LABELS = {
    "certified_global": "global bound",
    "certified_global_paper": "global bound, the paper's rule",
    "certified_local": "local bound, pairwise",
    "certified_local_paper": "local bound, the paper's rule",
    "certified_joint": "joint bound, pairwise",
    "certified_joint_paper": "joint bound, the paper's rule",
}


def draw(folder: Path, name: str, weights: str) -> list[Path]:
    """Write certified.png and .pdf of all files in `folder` that were made with these weights."""
    figure, axes = plt.subplots(figsize=(6.0, 4.0), layout="constrained")
    for stem, label in LABELS.items():
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
