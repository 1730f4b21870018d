"""Training a small image classifier: Adam, one rise and fall of the learning rate, saved every epoch."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from my_config import device
from networks import _checkpoint

Prepare = Callable[[Tensor], Tensor]  # a batch of uint8 pixels (B, C, H, W) -> network inputs (B, C, H, W)


def learning_rate(progress: float, peak: float, rise: float = 0.25) -> float:
    """Linear from 0 to `peak` over the first part of training, then a half cosine back to 0."""
    if progress < rise:
        return peak * progress / rise
    return peak * (1 + math.cos(math.pi * (progress - rise) / (1 - rise))) / 2


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, prepare: Prepare) -> float:
    """Fraction of `images` (uint8) that `model` gives their label, in eval mode."""
    model.eval()
    correct = 0
    for batch, truth in zip(images.split(500), labels.split(500), strict=True):
        correct += (model(prepare(batch.to(device))).argmax(1) == truth.to(device)).sum().item()
    return correct / len(images)


class Schedule(NamedTuple):
    """How long and how fast to train; `peak` is the largest learning rate."""

    epochs: int
    batch_size: int
    peak: float
    seed: int


def fit(
    model: nn.Module, images: Tensor, labels: Tensor, prepare: Prepare, state_file: Path, schedule: Schedule
) -> None:
    """Train `model` in place on `images` (uint8, (N, C, H, W)) and `labels` (N,).

    `prepare` augments and normalises a batch. After each epoch the whole state goes to `state_file`, and a
    second call with the same settings continues from there to the same weights as an undisturbed run: every
    random number of an epoch follows from the seed and the epoch. ValueError if the file is of other settings.
    """
    epochs, batch_size, peak, seed = schedule
    if epochs < 1:
        raise ValueError(f"{epochs} epochs; at least 1 is wanted")
    model.to(device).to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    optimizer = torch.optim.Adam(model.parameters(), lr=peak)
    settings = {**schedule._asdict(), "images": len(images)}
    first = 0
    if state_file.exists():
        saved = _checkpoint.read(state_file)
        if saved.get("settings") != settings:
            raise ValueError(
                f"{state_file} is an unfinished training with {saved.get('settings')}, not {settings}; "
                "finish that one with its settings or delete the file"
            )
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"]
        print(f"continuing after epoch {first} of {epochs}")

    batches = math.ceil(len(images) / batch_size)
    for epoch in range(first, epochs):
        torch.manual_seed(1_000_003 * seed + epoch)
        model.train()
        total = 0.0
        bar = tqdm(torch.randperm(len(images)).split(batch_size), desc=f"epoch {epoch + 1}/{epochs}")
        for step, chosen in enumerate(bar):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate((epoch + (step + 1) / batches) / epochs, peak)
            loss = cross_entropy(model(prepare(images[chosen].to(device))), labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            bar.set_postfix(loss=f"{total / (step + 1):.4f}")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        _checkpoint.save(state_file, state | {"settings": settings})
    model.eval()


def finish(model: nn.Module, path: Path, state_file: Path) -> None:
    """Write the weights to `path` and remove the file of the unfinished training."""
    _checkpoint.save(path, {key: value.cpu().contiguous() for key, value in model.state_dict().items()})
    state_file.unlink(missing_ok=True)
    print(f"wrote {path}")
