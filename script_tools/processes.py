"""One process or, under torchrun, several: which does what, and how what each has found comes together."""

from __future__ import annotations

import argparse
import os
from collections.abc import Container, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")


def share(items: Sequence[Item], done: Container[Item], batch: int, rank: int, world: int) -> list[Item]:
    """The items of every world-th batch that are not done yet: the same batches for any number of processes."""
    batches = [items[first : first + batch] for first in range(0, len(items), batch)]
    return [item for part in batches[rank::world] for item in part if item not in done]


def start_process(args: argparse.Namespace) -> tuple[int, int]:
    """(rank, number of processes); under torchrun the process group is opened and the GPU chosen."""
    if "RANK" not in os.environ:
        return 0, 1
    on_gpu = torch.device(args.device).type == "cuda"
    if on_gpu:
        args.device = f"cuda:{int(os.environ['LOCAL_RANK']) % max(1, torch.cuda.device_count())}"
        torch.cuda.set_device(args.device)
    # a process that is done waits for the slowest one, however long
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(days=30))
    return dist.get_rank(), dist.get_world_size()


def gather(table: Tensor, device: str) -> Iterator[Tensor]:
    """The table (n, columns) of every process, on each of them; n may differ."""
    if not dist.is_initialized():
        yield table
        return
    table = table.to(device)
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, torch.tensor([len(table)], device=device))
    longest = max(int(n) for n in lengths)
    padded = torch.cat([table, table.new_zeros(longest - len(table), table.shape[1])])
    everything = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(everything, padded)
    yield from (part[: int(n)].cpu() for part, n in zip(everything, lengths, strict=True))


def part_of(merged: Path, rank: int) -> Path:
    return merged.with_name(f"{merged.stem}.part{rank}.csv")


def parts_of(merged: Path) -> list[Path]:
    """What processes, of this run or a stopped one, have written so far."""
    return sorted(merged.parent.glob(f"{merged.stem}.part*.csv"))


def start_anew(merged: Path, own: Path, rank: int) -> None:
    """Delete earlier results; not again when torchrun restarts processes of this very run."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        for path in [own] if rank else [merged, own, *parts_of(merged)]:
            path.unlink(missing_ok=True)
    if dist.is_initialized():
        dist.barrier()
