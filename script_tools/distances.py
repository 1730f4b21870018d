"""Certified radii beside the distances that attacks find: records, the table, and what must never be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import ModuleType

import numpy as np

from script_tools import certificates
from script_tools.certificates import PROOFS

ATTACKS = {
    "fgsm": "FGSM",
    "ifgsm": "I-FGSM",
    "gradient": "gradient ascent",
    "cw": "Carlini & Wagner",
    "ddn": "DDN",
}
KEEP_TO_IMAGES = ("cw", "ddn")  # where the network says what a valid image is


@dataclass(frozen=True)
class Distances:
    """What one method says about N inputs: distances, the class found or limiting, seconds for all of them, and x."""

    distance: np.ndarray  # (N,), normalised units
    pixels: np.ndarray  # (N,), NaN where the input is not an image
    other_class: np.ndarray  # (N,), −1 where there is none
    seconds: float
    x: np.ndarray  # (N, *input shape) for attacks, empty for certificates


def to_arrays(method: str, row: Distances) -> dict[str, np.ndarray]:
    """A method's part of a result file."""
    return {f"{method}_{field.name}": np.asarray(getattr(row, field.name)) for field in fields(Distances)}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Distances]:
    """The methods in a result file, certificates first."""
    return {
        method: Distances(*(arrays[f"{method}_{field.name}"] for field in fields(Distances)))  # type: ignore[arg-type]
        for method in [*PROOFS, *ATTACKS]
        if f"{method}_distance" in arrays
    }


def title(network: ModuleType, method: str) -> str:
    """What a method is called in tables; the attacks say whether they keep to valid images."""
    if method in certificates.PROOFS:
        return f"certified: {certificates.title(method)}"
    images = method in KEEP_TO_IMAGES and network.box is not None
    return f"found: {ATTACKS[method]}{' (valid images)' if images else ''}"


def table(network: ModuleType, i: int, name: str, label: int, rows: Mapping[str, Distances]) -> str:
    """Input i's radii and distances, one method a line."""
    lines = [f"\n{network.name}, {name}: class {network.classes[label]!r}"]
    lines.append(f"{'':41}{'distance':>11}{'in pixels':>11}   {'class':<16}{'seconds':>8}")
    for method, row in rows.items():
        pixels = "" if np.isnan(row.pixels[i]) else f"{row.pixels[i]:.4g}"
        other = network.classes[row.other_class[i]] if row.other_class[i] >= 0 else "none found"
        numbers = f"{row.distance[i]:11.4g}{pixels:>11}   {other[:15]:<16}{row.seconds:8.1f}"
        lines.append(f"{title(network, method):41}{numbers}")
    return "\n".join(lines)


def contradictions(rows: Mapping[str, Distances], names: list[str]) -> list[str]:
    """Each attack that found an adversarial example within a certified radius: there may be none."""
    return [
        f"{name}: {attack} found one at {rows[attack].distance[i]:.6g}, {proof} certifies {rows[proof].distance[i]:.6g}"
        for i, name in enumerate(names)
        for proof in rows.keys() & set(PROOFS)
        for attack in rows.keys() & ATTACKS.keys()
        if rows[attack].distance[i] < rows[proof].distance[i]
    ]
