"""Verdicts, a row an image and ε: the columns, and the summary in the manner of verification tables."""

from __future__ import annotations

import statistics
from functools import partial
from typing import NamedTuple

from script_tools import row_files

MISCLASSIFIED = "misclassified"  # nothing to verify
VERDICTS = ["verified", "falsified", "unknown", MISCLASSIFIED]
STAGES = ["product", "attack", "joint", "margin", "branching", ""]


class VerdictRow(NamedTuple):
    """One image at one ε: label −1 where it is not known; margin is the smallest lower bound of f_label − f_c there.

    −inf where it is misclassified at x0.

    stage: by what it was decided, or where an unknown one ended. seconds: for this image alone.
    """

    index: int  # type: ignore[assignment]  # of a tuple: a method that no row needs
    eps: float
    label: int
    predicted: int
    verdict: str
    stage: str
    margin: float
    seconds: float
    image: str = ""


STEM = "verified"  # of its file
WHAT = "verdicts"
read_any = partial(row_files.read_any, kind=VerdictRow, what=WHAT)
read = partial(row_files.read, kind=VerdictRow, what=WHAT)
write = partial(row_files.write, kind=VerdictRow)
Writer = partial(row_files.Writer, kind=VerdictRow)
to_table = partial(row_files.to_table, kind=VerdictRow, words=[*VERDICTS, *STAGES])
from_table = partial(row_files.from_table, kind=VerdictRow, words=[*VERDICTS, *STAGES])


def shares(rows: list[VerdictRow]) -> dict[str, float]:
    """The fractions of all images that are classified correctly ("clean"), verified, falsified, unknown."""
    count = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    clean = len(rows) - count.pop(MISCLASSIFIED)
    return {name: number / len(rows) for name, number in {"clean": clean, **count}.items()}


def at_each_eps(rows: list[VerdictRow]) -> dict[float, list[VerdictRow]]:
    return {eps: [row for row in rows if row.eps == eps] for eps in sorted({row.eps for row in rows})}


def summary(rows: list[VerdictRow]) -> str:
    """A line an ε; the seconds are those of the images that are classified correctly."""
    lines = ["       ε  images    clean  verified  falsified  unknown   seconds mean, median"]
    for eps, some in at_each_eps(rows).items():
        part = shares(some)
        seconds = [row.seconds for row in some if row.verdict != MISCLASSIFIED] or [0.0]
        lines.append(
            f"{eps:8.4g} {len(some):7} {part['clean']:8.2%} {part['verified']:9.2%} {part['falsified']:10.2%} "
            f"{part['unknown']:8.2%}   {statistics.mean(seconds):.3g}, {statistics.median(seconds):.3g}"
        )
    return "\n".join(lines)
