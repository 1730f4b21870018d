"""Work in batches that fit: out of memory halves the batch, and says so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_batches(compute: Callable[[slice], Result], start: int, stop: int, batch: int) -> Iterator[tuple[slice, Result]]:
    """Yield (part, compute(part)) for consecutive parts of start…stop of at most `batch` items.

    When the device runs out of memory the batch is halved and tried again; with one item the error is the caller's.
    """
    while start < stop:
        part = slice(start, min(start + batch, stop))
        try:
            result = compute(part)
        except torch.OutOfMemoryError:
            if part.stop - part.start == 1:
                raise
            batch = (part.stop - part.start) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(f"out of memory: trying {batch} at a time", file=sys.stderr, flush=True)
            continue
        yield part, result
        start = part.stop
