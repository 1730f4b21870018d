"""What a bound accepts: checks that turn a wrong number into a sentence before any work is done."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor


def check_input(x0: Tensor) -> None:
    """ValueError unless x0 is a finite floating-point batch (B, *input shape)."""
    if not isinstance(x0, Tensor):
        raise ValueError(f"x0 is a {type(x0).__name__}; a torch.Tensor of shape (B, *input shape) is wanted")
    if x0.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x0 has dtype {x0.dtype}; float32 or float64 is wanted")
    if x0.dim() < 2 or x0.numel() == 0:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; a non-empty batch (B, *input shape) is wanted")
    if x0.layout != torch.strided or x0.is_meta:
        raise ValueError(f"x0 is a {x0.layout} tensor on {x0.device}; a dense one that holds numbers is wanted")
    if not bool(torch.isfinite(x0).all()):
        raise ValueError("x0 contains NaN or infinite values; finite values are wanted")


def check_eps(eps: float | Tensor, x0: Tensor) -> Tensor:
    """eps as (B,) float64 on x0's device; ValueError unless it is positive, finite, and one number or one an input.

    A single input with several eps is a batch of that input: then B is the number of eps.
    """
    eps = _as_numbers("eps", eps, x0.device, "a positive number, or one an input, is wanted")
    if eps.dim() > 1:
        raise ValueError(f"eps has shape {tuple(eps.shape)}; one number or one number an input, (B,), is wanted")
    if not bool((torch.isfinite(eps) & (eps > 0)).all()) or eps.numel() == 0:
        raise ValueError(f"eps is {_shown(eps.tolist())}; positive, finite radii are wanted")
    batch = x0.shape[0]
    if eps.dim() == 0:
        return eps.expand(batch)
    if batch not in (1, eps.shape[0]):
        raise ValueError(f"eps has {eps.shape[0]} values for a batch of {batch} inputs; as many of each are wanted")
    return eps


def check_outputs(outputs: Any, m: int, batch: int) -> Tensor:
    """outputs of a network with m of them, as (batch, K, m) float64; K = 0 for None.

    A tensor stays on its device. ValueError for another shape, NaN or infinite entries.
    """
    if outputs is None:
        return torch.empty(batch, 0, m, dtype=torch.float64, device="cpu")
    wanted = f"(K, {m}) or ({batch}, K, {m})"
    device = outputs.device if isinstance(outputs, Tensor) else torch.device("cpu")
    full = _as_numbers("outputs", outputs, device, f"an array of numbers of shape {wanted} is wanted")
    shape, full = tuple(full.shape), full[None] if full.dim() == 2 else full
    if full.dim() != 3 or full.shape[0] not in (1, batch) or full.shape[2] != m or full.shape[1] == 0:
        raise ValueError(f"outputs has shape {shape}; {wanted} is wanted")
    if not bool(torch.isfinite(full).all()):
        raise ValueError("outputs contains NaN or infinite values")
    return full.expand(batch, -1, -1)


def check_target(target: Any, batch: int, rows: int) -> Tensor:
    """Values wanted of a bound, as (batch, rows) float64. ValueError for another shape, NaN or negative values."""
    device = target.device if isinstance(target, Tensor) else torch.device("cpu")
    full = _as_numbers("target", target, device, f"an array of numbers of shape ({batch}, {rows}) is wanted")
    if full.shape != (batch, rows):
        raise ValueError(f"target has shape {tuple(full.shape)}; ({batch}, {rows}) is wanted")
    if not bool((full >= 0.0).all()):
        raise ValueError("target contains NaN or negative values")
    return full


def check_label(label: Any, y: Tensor) -> Tensor:
    """The class of each input, (B,) int64: `label`, one for all or one an input, or that of the largest of y (B, m).

    ValueError for outputs y that are not one number a class, for one output only, or where another output is larger
    than that of the given label.
    """
    if y[0].numel() < 2:
        raise ValueError("the network has one output; a class needs at least two to be compared")
    if y.dim() != 2:
        shape = ", ".join(str(n) for n in ("B", *y.shape[1:]))
        raise ValueError(
            f"the network's output has shape ({shape}); one number a class, (B, classes), is wanted. Of a map of "
            "classes, certify one position at a time: wrap net in a module that returns only that position"
        )
    predicted = y.argmax(1)
    if label is None:
        return predicted
    wanted = f"{y.shape[0]} classes from 0 to {y.shape[1] - 1} are wanted"
    given = _as_numbers("label", label, y.device, wanted)
    whole = given.expand(y.shape[0]) if given.dim() == 0 else given
    valid = whole.shape == predicted.shape and not torch.as_tensor(label).is_floating_point()
    if not valid or not bool(((whole >= 0) & (whole < y.shape[1])).all()):
        raise ValueError(f"label is {_shown(label)}; {wanted}")
    label = whole.long()
    wrong = (y.gather(1, label[:, None])[:, 0] < y.amax(1)).nonzero()[:, 0].tolist()
    if wrong:
        i, count = wrong[0], f"{len(wrong)} of {len(y)} inputs are not of their label"
        raise ValueError(f"input {i} is classified as {int(predicted[i])}, not as its label {int(label[i])} ({count})")
    return label


def other_classes(label: Tensor, m: int) -> Tensor:
    """The m − 1 classes that are not `label` (B,), in ascending order: (B, m − 1)."""
    others = torch.arange(m - 1, device=label.device).expand(label.shape[0], -1)
    return others + (others >= label[:, None])


def check_options(tolerance: float, failure_probability: float, seed: int) -> int:
    """The seed as an int; ValueError unless tolerance > 0, 0 < failure_probability < 1, and seed is an integer."""
    check_between("tolerance", tolerance, 0.0, math.inf)
    check_between("failure_probability", failure_probability, 0.0, 1.0)
    return check_count("seed", seed, None)


def check_between(name: str, value: Any, low: float, high: float) -> None:
    """ValueError unless low < value < high."""
    if isinstance(value, bool | Tensor) or not hasattr(value, "__float__") or not low < float(value) < high:
        raise ValueError(f"{name} is {_shown(value)}; a number between {low:g} and {high:g} is wanted")


def check_count(name: str, value: Any, least: int | None) -> int:
    """The value as an int; ValueError unless it is an integer, at least `least`."""
    integer = hasattr(value, "__index__") and not isinstance(value, bool | Tensor)
    if not integer or (least is not None and value < least):
        wanted = "an integer" if least is None else f"an integer, at least {least},"
        raise ValueError(f"{name} is {_shown(value)}; {wanted} is wanted")
    return operator.index(value)


def _as_numbers(name: str, value: Any, device: torch.device, wanted: str) -> Tensor:
    """Numbers, lists, arrays and tensors as float64; ValueError, saying what is `wanted`, for anything else."""
    try:
        numbers = torch.as_tensor(value, device=device).detach()
        plain = numbers.layout == torch.strided and not numbers.is_complex() and numbers.dtype != torch.bool
    except (TypeError, ValueError, RuntimeError, OverflowError):
        plain = False
    if not plain:
        raise ValueError(f"{name} is {_shown(value)}; {wanted}")
    # through float64 from the start, since a list of numbers would be rounded to float32
    return torch.as_tensor(value, dtype=torch.float64, device=device).detach()


def _shown(value: Any) -> str:
    """The value as error messages show it: on one line, and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
