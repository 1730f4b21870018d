"""The pictures of calculate_bounds_adv.py --plot: an input, the adversarial images, and what they change.

    python calculate_bounds_adv_plot.py
    python calculate_bounds_adv_plot.py --network cifar10

Reads data/<network>/adversarial.npz, writes data/<network>/adversarial.png, or adversarial_1.png, … for several inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import matplotlib
import numpy as np
import torch
from torch import Tensor

from networks import mnist as network
from script_tools import command_line, distances, results
from script_tools.distances import Distances, from_arrays

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw_all(
    network: ModuleType, x0: Tensor, names: list[str], label: list[int], rows: Mapping[str, Distances]
) -> list[Path]:
    """One picture an input: data/<network>/adversarial.png, or adversarial_1.png, … for several."""
    paths = []
    for i, name in enumerate(names):
        path = network.data_dir / ("adversarial.png" if len(names) == 1 else f"adversarial_{i + 1}.png")
        titled = {distances.title(network, method): row for method, row in rows.items()}
        figure = draw(network, x0[i].double().numpy(), name, label[i], titled, i)
        results.save_figure(figure, path)
        plt.close(figure)
        paths.append(path)
    return paths


def draw(
    network: ModuleType, x0: np.ndarray, name: str, label: int, rows: Mapping[str, Distances], i: int
) -> plt.Figure:
    """Above the original and what was found; below the certified radii and the differences, all on one scale.

    rows: what each method, by its title, says about all inputs.
    """
    found = {title: row for title, row in rows.items() if row.x.size and row.other_class[i] >= 0}
    proved = {title: row.distance[i] for title, row in rows.items() if not row.x.size}
    black, white = (end.cpu().numpy()[0] for end in network.box)
    original = (x0 - black) / (white - black)
    changes = [(row.x[i] - x0) / (white - black) for row in found.values()]

    columns = 1 + len(found)
    figure, axes = plt.subplots(
        2, columns, figsize=(2.0 * columns + 0.8, 4.6), layout="constrained", squeeze=False
    )
    show(axes[0, 0], original)
    axes[0, 0].set_title(f"{name}\nclass {network.classes[label]}", fontsize=8)
    lines = [f"{title.removeprefix('certified: ')}\n     {radius:.4g}" for title, radius in proved.items()]
    axes[1, 0].text(0, 1, "\n".join(["certified radius", *lines]), fontsize=8, va="top", transform=axes[1, 0].transAxes)
    axes[1, 0].axis("off")
    for axis, (title, row), change in zip(axes[0, 1:], found.items(), changes, strict=True):
        show(axis, original + change)
        attack = title.removeprefix("found: ").replace(" (", "\n(") + ("" if "(" in title else "\n(any input)")
        found_class = network.classes[row.other_class[i]][:20]
        axis.set_title(f"{attack}\nclass {found_class} at {row.distance[i]:.4g}", fontsize=8)
    show_changes(figure, axes[1, 1:], changes)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def show(axis: plt.Axes, pixels: np.ndarray) -> None:
    """Pixels (C, H, W), cut to [0, 1]."""
    axis.imshow(pixels.clip(0, 1).transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)


def show_changes(figure: plt.Figure, axes: np.ndarray, changes: list[np.ndarray]) -> None:
    """Changes of pixels, (C, H, W) each: blue to red around no change, or in colours around grey."""
    largest = max([float(np.abs(change).max()) for change in changes], default=1.0)
    for axis, change in zip(axes, changes, strict=True):
        if len(change) == 1:
            drawn = axis.imshow(change[0], cmap="RdBu_r", vmin=-largest, vmax=largest)
        else:
            show(axis, 0.5 + change / (2 * largest))
            axis.set_xlabel(f"grey: no change; full: {largest:.2g}", fontsize=7)
    if changes and len(changes[0]) == 1:
        bar = figure.colorbar(drawn, ax=axes[-1], location="right", fraction=0.08)
        bar.set_label("change (black 0, white 1)", fontsize=8)
        bar.ax.tick_params(labelsize=7)


def main() -> None:
    args = command_line.parser(__doc__, network, nominal=False).parse_args()
    chosen = command_line.chosen_network(args)
    if chosen.box is None:
        raise ValueError(f"the input of {chosen.name} is not an image")
    path = chosen.data_dir / "adversarial.npz"
    if not path.exists():
        raise ValueError(f"no results in {chosen.data_dir}; run calculate_bounds_adv.py first")
    arrays, settings = results.load(path)
    x0, label = torch.from_numpy(arrays["x0"]), arrays["label"].tolist()
    for picture in draw_all(chosen, x0, settings["inputs"], label, from_arrays(arrays)):
        print(f"wrote {picture}")


if __name__ == "__main__":
    command_line.run(main)
