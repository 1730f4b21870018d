"""Certified radii, a row an image: the columns, and what they come to."""

from __future__ import annotations

import math
import statistics
from functools import partial
from typing import NamedTuple

from script_tools import row_files


class ImageRow(NamedTuple):
    """One image: label −1 where it is not known, radius in normalised units, seconds its share of its batch's."""

    index: int  # type: ignore[assignment]  # of a tuple: a method that no row needs
    label: int
    predicted: int
    radius: float
    limiting_class: int
    seconds: float
    image: str = ""

    @property
    def correct(self) -> bool:
        """Classified as its label; without a label there is nothing to be wrong about."""
        return self.label in (-1, self.predicted)


WHAT = "certified radii"
read_any = partial(row_files.read_any, kind=ImageRow, what=WHAT)
read = partial(row_files.read, kind=ImageRow, what=WHAT)
write = partial(row_files.write, kind=ImageRow)
Writer = partial(row_files.Writer, kind=ImageRow)
to_table = partial(row_files.to_table, kind=ImageRow, words=[])
from_table = partial(row_files.from_table, kind=ImageRow, words=[])


def stem(bound: str, rule: str) -> str:
    """The name, without its suffix, of the file of radii by this bound and rule."""
    return f"certified_{bound}{'_paper' if rule == 'paper' else ''}"


def certified_accuracy(rows: list[ImageRow], radius: float) -> float:
    """The fraction classified correctly with a certified radius of at least this one."""
    return sum(row.correct and row.radius >= radius for row in rows) / len(rows)


def summary(rows: list[ImageRow], radii: list[float] | None) -> str:
    """Accuracy, median radius, and certified accuracy at some radii, for printing."""
    labelled = [row for row in rows if row.label >= 0]
    right = [row.radius for row in rows if row.correct]
    lines = [f"{len(rows)} images, {sum(row.seconds for row in rows) / len(rows):.2f} s each"]
    if labelled:
        accuracy = sum(row.correct for row in labelled) / len(labelled)
        lines.append(f"accuracy {accuracy:.2%} of {len(labelled)} with a label")
    if len(labelled) < len(rows):
        lines.append(f"{len(rows) - len(labelled)} without a label count as classified correctly")
    if right:
        lines.append(f"median certified radius {statistics.median(right):.4g} of those classified correctly")
    lines.append("  radius   certified accuracy")
    lines += [f"{radius:8.4g}   {certified_accuracy(rows, radius):.2%}" for radius in radii or round_radii(right)]
    return "\n".join(lines)


def round_radii(values: list[float]) -> list[float]:
    """Round numbers from about the smallest tenth of the values to the largest."""
    positive = sorted(value for value in values if value > 0)
    if not positive:
        return [0.0]
    low, high = positive[len(positive) // 10], positive[-1]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    rounded = [float(f"{digit}e{power}") for power in powers for digit in ("1", "1.5", "2", "3", "5", "7")]
    return [radius for radius in rounded if low / 1.4 < radius < high * 1.4]
