"""Certified radii as CSV files: a row an image, below a comment line with the settings, versions and device."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from script_tools import results

TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # any file name survives


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


TYPES = (int, int, int, float, int, float)  # of all columns but the last, which are also those of a table
BEGIN = "# {"  # of the line with the settings


def stem(bound: str, rule: str) -> str:
    """The name, without its suffix, of the file of radii by this bound and rule."""
    return f"certified_{bound}{'_paper' if rule == 'paper' else ''}"


def read_any(path: Path) -> tuple[dict[str, Any], list[ImageRow]]:
    """(settings, rows) of a file; ({}, []) where it is missing or was killed before its first row.

    A last line without its end, from a process that was killed, is left out. ValueError for a foreign file.
    """
    try:
        with open(path, **TEXT) as file:
            text = file.read()
    except FileNotFoundError:
        return {}, []
    *lines, _ = text.split("\n")
    try:
        if not (text.startswith(BEGIN) or BEGIN.startswith(text)):
            raise ValueError("it begins otherwise")
        if len(lines) < 2:
            return {}, []
        settings = json.loads(lines[0].removeprefix("# "))
        settings.pop("made_with", None)
        head, *body = csv.reader(lines[1:])
        if tuple(head) != ImageRow._fields:
            raise ValueError(f"its columns are {', '.join(head)}")
        columns = [[*(kind(text) for kind, text in zip(TYPES, row, strict=False)), row[6]] for row in body]
        return settings, [ImageRow._make(row) for row in columns]
    except (ValueError, IndexError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(f"{path} is not a file of certified radii ({error}); move it away to start anew") from None


def read(path: Path, settings: Mapping[str, Any]) -> list[ImageRow]:
    """The rows of a file that was made with the same settings; ValueError if it was made with others."""
    earlier, rows = read_any(path)
    if earlier and earlier != settings:
        keys = [key for key in settings if earlier.get(key) != settings[key]]
        differ = [f"{key} {earlier.get(key)} there, {settings[key]} now" for key in keys]
        raise ValueError(f"{path} was made with other settings ({'; '.join(differ)}); use the same, or --overwrite")
    return rows


def write(path: Path, rows: Iterable[ImageRow], settings: Mapping[str, Any]) -> None:
    """Write a whole file: the old one or the new one, never a part."""
    with results.replacing(path) as beside, open(beside, "w", **TEXT) as file:
        _head(file, settings)
        csv.writer(file, lineterminator="\n").writerows(rows)


class Writer:
    """Appends rows to a file, each batch flushed to the disk; goes on after the last whole line that is there."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        with _named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            there = path.read_bytes() if path.exists() else b""
            whole = there[: there.rfind(b"\n") + 1]
            whole = whole if whole.count(b"\n") >= 2 else b""
            self.file = open(path, "r+" if path.exists() else "w", **TEXT)  # noqa: SIM115
            self.file.truncate(len(whole))
            self.file.seek(0, os.SEEK_END)
            if not whole:
                _head(self.file, settings)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        with _named(self.path):
            self.file.close()  # writes what a full disk has left in the buffer

    def write(self, rows: Iterable[ImageRow]) -> None:
        with _named(self.path):
            csv.writer(self.file, lineterminator="\n").writerows(rows)
            self.file.flush()
            os.fsync(self.file.fileno())


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the file system that say which file, and what is left of it."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error}); rows written before are kept") from None


def _head(file: Any, settings: Mapping[str, Any]) -> None:
    record = {**settings, "made_with": results.made_with()}
    file.write(f"# {json.dumps(record, sort_keys=True)}\n{','.join(ImageRow._fields)}\n")


def to_table(rows: Iterable[ImageRow]) -> Tensor:
    """(n, 6) float64: all columns that are numbers."""
    return torch.tensor([row[:6] for row in rows], dtype=torch.float64).reshape(-1, 6)


def from_table(table: Tensor) -> list[ImageRow]:
    return [ImageRow(*(kind(x) for kind, x in zip(TYPES, row, strict=True))) for row in table.tolist()]


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
