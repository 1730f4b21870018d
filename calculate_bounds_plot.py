"""The figure of calculate_bounds.py: upper and lower bounds of the local Lipschitz constant against ε.

    python calculate_bounds_plot.py
    python calculate_bounds_plot.py --network alexnet --log --inset

Reads data/<network>/*.npz, writes data/<network>/bounds.png and .pdf and prints the numbers. --log gives a logarithmic
vertical axis, which is also taken when the bounds span more than two decades; --linear refuses it.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
from torch import Tensor

from networks import mnist as network
from script_tools import command_line, results
from script_tools.certificates import CERTIFICATES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# upper bounds are drawn through, lower bounds dashed; the truth lies between
LOWER: dict[str, dict[str, Any]] = {
    "gradient": {"label": "lower bound, gradient ascent", "color": "tab:green", "marker": "^", "linestyle": "--"},
    "random": {"label": "lower bound, random samples", "color": "tab:olive", "marker": "v", "linestyle": "--"},
}
STYLES = {name: {**certificate.style, "linestyle": "-"} for name, certificate in CERTIFICATES.items()} | LOWER


def read_curves(folder: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], bool]:
    """(ε, value) of every result file there is, finished or not; and whether the weights were random ones.

    What is found within a ball lies within every larger one, and what bounds a larger one bounds it: lower bounds are
    drawn as their running maximum from the left, upper bounds as their running minimum from the right.
    """
    curves, random_weights = {}, False
    for name in STYLES:
        path = folder / f"{name}.npz"
        if not path.exists():
            continue
        arrays, settings = results.load(path)
        known = np.isfinite(arrays["value"])
        value = arrays["value"][known]
        running = np.maximum.accumulate(value) if name in LOWER else np.minimum.accumulate(value[::-1])[::-1]
        curves[name] = arrays["eps"][known], running
        random_weights |= settings["random_weights"]
    if not curves:
        raise ValueError(f"no results in {folder}; run calculate_bounds.py first")
    return curves, random_weights


def draw(curves: dict, title: str, log: bool, image: np.ndarray | None) -> plt.Figure:
    """Bounds against ε, logarithmic in ε."""
    figure, axes = plt.subplots(figsize=(6.4, 4.8), layout="constrained")
    for name, (eps, value) in curves.items():
        axes.plot(eps, value, markersize=4, linewidth=1.5, **STYLES[name])
    axes.set_xscale("log")
    axes.set_yscale("log" if log else "linear")
    if not log:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("radius ε of the ball around the nominal input (normalised units)")
    axes.set_ylabel("Lipschitz constant, anchored at the nominal input")
    axes.set_title(title)
    axes.grid(True, which="major", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    if image is not None:
        inset = axes.inset_axes((0.02, 0.68, 0.2, 0.3))
        inset.imshow(image, cmap="gray" if image.ndim == 2 else None)
        inset.set_xticks([])
        inset.set_yticks([])
    return figure


def nominal_image(network: ModuleType, x0: Tensor) -> np.ndarray:
    """The nominal input as pixels, (H, W) or (H, W, 3)."""
    if network.box is None:
        raise ValueError(f"--inset: the input of {network.name} is not an image")
    black, white = network.box
    pixels = ((x0 - black) / (white - black)).clamp(0, 1)[0].permute(1, 2, 0)
    return pixels.squeeze(-1).numpy()


def table(curves: dict) -> str:
    """Every third ε as a row; a method that was not computed there leaves a blank."""
    eps = max((eps for eps, _ in curves.values()), key=len)
    lines = ["         ε" + "".join(f"{name:>12}" for name in curves)]
    for i in range(0, len(eps), 3):
        at = [dict(zip(*curve, strict=True)).get(eps[i]) for curve in curves.values()]
        lines.append(f"{eps[i]:10.4g}" + "".join(" " * 12 if v is None else f"{v:12.5g}" for v in at))
    return "\n".join(lines)


def main() -> None:
    options = command_line.parser(__doc__, network)
    scale = options.add_mutually_exclusive_group()
    scale.add_argument("--log", action="store_true", help="logarithmic vertical axis")
    scale.add_argument("--linear", action="store_true", help="linear vertical axis")
    options.add_argument("--inset", action="store_true", help="the nominal image in the corner; global and local only")
    args = options.parse_args()
    chosen = command_line.chosen_network(args)
    curves, random_weights = read_curves(chosen.data_dir)
    image = nominal_image(chosen, command_line.nominal_input(chosen, args)) if args.inset else None
    if args.inset:
        curves = {name: curve for name, curve in curves.items() if name in ("global", "local")} or curves
    values = np.concatenate([value[value > 0] for _, value in curves.values()])
    log = args.log or (not args.linear and values.max() > 100 * values.min())
    title = f"{chosen.name}{', random weights' if random_weights else ''}"
    figure = draw(curves, title, log, image)
    for suffix in ("png", "pdf"):
        path = chosen.data_dir / f"bounds.{suffix}"
        results.save_figure(figure, path)
        print(f"wrote {path}")
    print(table(curves))


if __name__ == "__main__":
    command_line.run(main)
