"""What records print of themselves, in three lines: the value, what it bounds, how certain it is. And progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

SHOWN = 4  # values of a batch


class Text(str):
    """Text that a notebook shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def values(of: Tensor | Sequence) -> str:
    """The first few, and how many there are."""
    several = of.flatten().tolist() if isinstance(of, Tensor) else list(of)
    shown = ", ".join(f"{v:.5g}" if isinstance(v, float) else str(v) for v in several[:SHOWN])
    return shown if len(several) <= SHOWN else f"{shown}, … ({len(several)} in all)"


def certainty(failure_probability: float) -> str:
    if failure_probability == 0.0:
        return "certain"
    return f"certain but for a probability of {failure_probability:.1g}"


def bar(items: Sequence, progress: bool, unit: str) -> Iterable:
    """The items, with a progress bar where that is wanted."""
    return _tqdm(items, unit=unit) if progress else items


def counter(total: int, progress: bool, unit: str) -> Callable[[int], None]:
    """A function to tell how many are done, which moves a progress bar where that is wanted."""
    if not progress:
        return lambda done: None
    shown = _tqdm(total=total, unit=unit)

    def show(done: int) -> None:
        shown.update(done - shown.n)
        if done == total:
            shown.close()

    return show


def _tqdm(*args: Any, **options: Any) -> Any:
    from tqdm.auto import tqdm  # not a requirement of the package

    return tqdm(*args, **options)
