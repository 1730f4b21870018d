"""Rows about images as CSV files, below a comment line with the settings, versions and device; as tables of numbers.

A kind of row is a NamedTuple of integers, numbers and words, whose first column is `index` and whose last is `image`.
Words other than the image's name are of a list, `words` of the module that defines the kind.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor

from script_tools import results

Row = TypeVar("Row", bound=tuple)
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # any file name survives
BEGIN = "# {"  # of the line with the settings


def types(kind: type) -> list[Any]:
    """What each column holds."""
    return list(get_type_hints(kind).values())


def columns(kind: type) -> tuple[str, ...]:
    return tuple(kind.__annotations__)


def read_any(path: Path, kind: type[Row], what: str) -> tuple[dict[str, Any], list[Row]]:
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
        if tuple(head) != columns(kind):
            raise ValueError(f"its columns are {', '.join(head)}")
        rows = [[as_type(text) for as_type, text in zip(types(kind), row, strict=True)] for row in body]
        make: Any = kind
        return settings, [make(*row) for row in rows]
    except (ValueError, IndexError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(f"{path} is not a file of {what} ({error}); move it away to start anew") from None


def read(path: Path, settings: Mapping[str, Any], kind: type[Row], what: str) -> list[Row]:
    """The rows of a file that was made with the same settings; ValueError if it was made with others."""
    earlier, rows = read_any(path, kind, what)
    if earlier and earlier != settings:
        keys = [key for key in settings if earlier.get(key) != settings[key]]
        differ = [f"{key} {earlier.get(key)} there, {settings[key]} now" for key in keys]
        raise ValueError(f"{path} was made with other settings ({'; '.join(differ)}); use the same, or --overwrite")
    return rows


def write(path: Path, rows: Iterable[Row], settings: Mapping[str, Any], kind: type[Row]) -> None:
    """Write a whole file: the old one or the new one, never a part."""
    with results.replacing(path) as beside, open(beside, "w", **TEXT) as file:
        _head(file, settings, kind)
        csv.writer(file, lineterminator="\n").writerows(rows)


class Writer:
    """Appends rows to a file, each batch flushed to the disk; goes on after the last whole line that is there."""

    def __init__(self, path: Path, settings: Mapping[str, Any], kind: type) -> None:
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
                _head(self.file, settings, kind)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        with _named(self.path):
            self.file.close()  # writes what a full disk has left in the buffer

    def write(self, rows: Iterable[tuple]) -> None:
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


def _head(file: Any, settings: Mapping[str, Any], kind: type) -> None:
    record = {**settings, "made_with": results.made_with()}
    file.write(f"# {json.dumps(record, sort_keys=True)}\n{','.join(columns(kind))}\n")


def to_table(rows: Iterable[tuple], kind: type, words: list[str]) -> Tensor:
    """(n, columns − 1) float64: all but the image's name; words by their place in the list."""
    numbers = [[words.index(x) if isinstance(x, str) else x for x in row[:-1]] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64).reshape(-1, len(columns(kind)) - 1)


def from_table(table: Tensor, kind: type[Row], words: list[str]) -> list[Row]:
    """What `to_table` was given, without the names."""
    make: Any = kind
    return [
        make(*(words[int(x)] if is_a is str else is_a(x) for is_a, x in zip(types(kind)[:-1], row, strict=True)), "")
        for row in table.tolist()
    ]
