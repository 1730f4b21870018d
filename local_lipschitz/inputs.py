"""What a bound accepts: checks that turn a wrong number into a sentence before any work is done."""

from __future__ import annotations

import torch
from torch import Tensor


def check_input(x0: Tensor) -> None:
    """ValueError unless x0 is a finite floating-point batch (B, *input shape)."""
    if not isinstance(x0, Tensor):
        raise ValueError(f"x0 is a {type(x0).__name__}; a torch.Tensor of shape (B, *input shape) is wanted")
    if x0.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x0 has dtype {x0.dtype}; float32 or float64 is wanted")
    if x0.dim() < 2 or x0.shape[0] == 0:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; a non-empty batch (B, *input shape) is wanted")
    if not bool(torch.isfinite(x0).all()):
        raise ValueError("x0 contains NaN or infinite values; finite values are wanted")


def check_eps(eps: float | Tensor, x0: Tensor) -> Tensor:
    """eps as (B,) float64 on x0's device; ValueError unless it is positive, finite, and one number or one an input.

    A single input with several eps is a batch of that input: then B is the number of eps.
    """
    eps = torch.as_tensor(eps, dtype=torch.float64, device=x0.device)
    if eps.dim() > 1:
        raise ValueError(f"eps has shape {tuple(eps.shape)}; one number or one number an input, (B,), is wanted")
    if not bool((torch.isfinite(eps) & (eps > 0)).all()) or eps.numel() == 0:
        raise ValueError(f"eps is {eps.tolist()}; positive, finite radii are wanted")
    batch = x0.shape[0]
    if eps.dim() == 0:
        return eps.expand(batch)
    if batch not in (1, eps.shape[0]):
        raise ValueError(f"eps has {eps.shape[0]} values for a batch of {batch} inputs; as many of each are wanted")
    return eps


def check_outputs(outputs: Tensor | None, m: int, batch: int) -> Tensor:
    """outputs of a network with m of them, as (batch, K, m) float64; K = 0 for None.

    ValueError for another shape, NaN or infinite entries.
    """
    if outputs is None:
        return torch.empty(batch, 0, m, dtype=torch.float64)
    full = outputs.double().expand(batch, -1, -1) if outputs.dim() == 2 else outputs.double()
    if full.dim() != 3 or full.shape[0] not in (1, batch) or full.shape[2] != m or full.shape[1] == 0:
        raise ValueError(f"outputs has shape {tuple(outputs.shape)}; (K, {m}) or ({batch}, K, {m}) is wanted")
    if not bool(torch.isfinite(full).all()):
        raise ValueError("outputs contains NaN or infinite values")
    return full.expand(batch, -1, -1)


def check_label(label: Tensor | None, y: Tensor) -> Tensor:
    """The class of each input, (B,) int64: `label`, or that of the largest of the outputs y (B, m).

    ValueError for one output only, or where another output is larger than that of the given label.
    """
    if y.shape[1] < 2:
        raise ValueError("the network has one output; a class needs at least two to be compared")
    predicted = y.argmax(1)
    if label is None:
        return predicted
    label = torch.as_tensor(label, device=y.device)
    valid = label.shape == predicted.shape and not label.is_floating_point()
    if not valid or not bool(((label >= 0) & (label < y.shape[1])).all()):
        raise ValueError(f"label is {label.tolist()}; {y.shape[0]} classes from 0 to {y.shape[1] - 1} are wanted")
    label = label.long()
    wrong = (y.gather(1, label[:, None])[:, 0] < y.amax(1)).nonzero()[:, 0].tolist()
    if wrong:
        i, count = wrong[0], f"{len(wrong)} of {len(y)} inputs are not of their label"
        raise ValueError(f"input {i} is classified as {int(predicted[i])}, not as its label {int(label[i])} ({count})")
    return label


def other_classes(label: Tensor, m: int) -> Tensor:
    """The m − 1 classes that are not `label` (B,), in ascending order: (B, m − 1)."""
    others = torch.arange(m - 1, device=label.device).expand(label.shape[0], -1)
    return others + (others >= label[:, None])
