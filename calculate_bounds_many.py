"""Certified radii of many images: a CSV row an image, a summary, and a figure of certified accuracy against radius.

    python calculate_bounds_many.py --data datasets --count 1000
    python calculate_bounds_many.py --images photos/ --network alexnet --batch 4
    torchrun --nproc-per-node 2 calculate_bounds_many.py --data datasets

--data is where the network's test set lies (for torchvision), --images a folder of image files; those in a folder named
like a class are taken to be of it. Under torchrun the batches are dealt out to the processes, on one machine or on
several (`torchrun --help`, --rdzv-endpoint), each with its own GPU where there are some.

Each process appends to data/<network>/certified_<bound>.part<rank>.csv after every batch; at the end the first merges
them into certified_<bound>.csv. The same command goes on where a stopped one left off, with any number of processes;
other settings are refused unless --overwrite is given. Radii are ℓ2 in normalised units.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from calculate_bounds_many_plot import draw
from local_lipschitz import certified_radius
from networks import mnist as network
from script_tools import certified_rows as rows
from script_tools import command_line, results
from script_tools.batches import in_batches
from script_tools.certificates import CERTIFICATES, RULES
from script_tools.certified_rows import ImageRow

IMAGE_FILES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def arguments() -> argparse.Namespace:
    options = command_line.parser(__doc__, network)
    source = options.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="DIR", help="certify the test set, which torchvision finds there")
    source.add_argument("--images", type=Path, metavar="DIR", help="certify the image files in a folder")
    options.add_argument("--count", type=int, help="only the first COUNT images")
    options.add_argument("--bound", choices=CERTIFICATES, default="local", help="default: local; joint takes minutes")
    options.add_argument("--margins", choices=RULES, default="pairwise", help="default: pairwise")
    options.add_argument("--rtol", type=float, help="relative tolerance of a radius (default: 1e-4; joint 0.05)")
    options.add_argument("--tolerance", type=float, default=2e-3, help="of one spectral norm (default: 2e-3)")
    options.add_argument("--batch", type=int, default=32, help="images at a time (default: 32)")
    options.add_argument("--radii", type=float, nargs="+", help="radii of the summary (default: round ones)")
    options.add_argument("--overwrite", action="store_true", help="start anew instead of resuming")
    return options.parse_args()


class Images:
    """Images by number, from 0 to count − 1."""

    def __init__(self, network: ModuleType, args: argparse.Namespace) -> None:
        self.network, self.root, self.files = network, args.images, []
        if args.data is not None:
            if network.test_set is None:
                raise ValueError(f"--data: {network.name} has no test set; --images certifies the files in a folder")
            self.test_set = network.test_set(args.data)
            self.what, total = "test set", len(self.test_set)
        else:
            if network.load_image is None:
                raise ValueError(f"--images: the input of {network.name} is not an image")
            if not self.root.is_dir():
                raise ValueError(f"no folder {self.root}")
            self.files = sorted(file for file in self.root.rglob("*") if file.suffix.lower() in IMAGE_FILES)
            names = "\n".join(self.name(i) for i in range(len(self.files)))
            self.what, total = f"files {hashlib.sha256(os.fsencode(names)).hexdigest()[:16]}", len(self.files)
        self.count = total if args.count is None else min(args.count, total)
        if self.count == 0:
            raise ValueError(f"no image files in {self.root}; looked for {', '.join(sorted(IMAGE_FILES))}")

    def load(self, i: int) -> tuple[Tensor, int]:
        """(input (1, *shape), label or −1)."""
        if not self.files:
            x, label = self.test_set[i]
            return x[None], int(label)
        folder, classes = self.files[i].parent.name, self.network.classes
        return self.network.load_image(self.files[i]), classes.index(folder) if folder in classes else -1

    def name(self, i: int) -> str:
        """What the row of image i says it is: its file; nothing in a test set."""
        return str(self.files[i].relative_to(self.root)) if self.files else ""


def certified_batch(net: nn.Module, images: Images, args: argparse.Namespace, which: list[int]) -> list[ImageRow]:
    """The rows of some images, as one batch."""
    start = time.perf_counter()
    inputs, labels = zip(*(images.load(i) for i in which), strict=True)
    certificate = CERTIFICATES[args.bound]
    effort: dict[str, Any] = {"effort": certificate.effort["many"]} if certificate.effort else {}
    result = certified_radius(
        net, torch.cat(inputs).to(args.device), certificate.function, args.margins,
        rtol=args.rtol, tolerance=args.tolerance, seed=args.seed, **effort,
    )  # fmt: skip
    each = (time.perf_counter() - start) / len(which)
    columns = [t.tolist() for t in (result.label, result.radius, result.limiting_class)]
    return [
        ImageRow._make([*numbers, each, images.name(numbers[0])])
        for numbers in zip(which, labels, *columns, strict=True)
    ]


def share(images: Images, done: set[int], batch: int, rank: int, world: int) -> list[int]:
    """The images of every world-th batch that are not done yet: the same batches for any number of processes."""
    batches = [range(first, min(first + batch, images.count)) for first in range(0, images.count, batch)]
    return [i for part in batches[rank::world] for i in part if i not in done]


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


def main() -> None:
    args = arguments()
    if args.batch < 1 or (args.count is not None and args.count < 1):
        raise ValueError(f"--batch {args.batch} --count {args.count}: positive numbers are wanted")
    args.rtol = CERTIFICATES[args.bound].rtol if args.rtol is None else args.rtol
    if not 0 < args.rtol < 1:
        raise ValueError(f"--rtol {args.rtol}: a number between 0 and 1 is wanted")
    if not all(0 <= radius < math.inf for radius in args.radii or []):
        raise ValueError(f"--radii {' '.join(map(str, args.radii))}: numbers from 0 are wanted")
    rank, world = start_process(args)
    network, net, nominal = command_line.load_network(args)
    images = Images(network, args)
    settings = {"network": network.name, "weights": results.fingerprint(net, nominal), "seed": args.seed}
    settings |= {"random_weights": args.random_weights, "bound": args.bound, "margins": args.margins}
    settings |= {"rtol": args.rtol, "tolerance": args.tolerance, "images": images.what}

    merged = network.data_dir / f"{rows.stem(args.bound, args.margins)}.csv"
    own = part_of(merged, rank)
    if args.overwrite:
        start_anew(merged, own, rank)
    known = {row.index: row for path in [merged, *parts_of(merged)] for row in rows.read(path, settings)}
    todo = share(images, set(known), args.batch, rank, world)
    with rows.Writer(own, settings) as writer, tqdm(total=len(todo), unit="image", disable=rank > 0) as progress:
        certify = partial(certified_batch, net, images, args)
        for _, batch in in_batches(lambda part: certify(todo[part]), 0, len(todo), args.batch):
            writer.write(batch)
            known |= {row.index: row for row in batch}
            progress.update(len(batch))

    for table in gather(rows.to_table(known.values()), args.device):
        known |= {row.index: row for row in rows.from_table(table)}
    if rank == 0:
        everything = [row._replace(image=images.name(i)) for i, row in sorted(known.items())]
        rows.write(merged, everything, settings)
        for path in parts_of(merged):
            path.unlink()
        print(rows.summary([row for row in everything if row.index < images.count], args.radii))
        for path in [merged, *draw(network.data_dir, network.name, settings["weights"])]:
            print(f"wrote {path}")
    if dist.is_initialized():
        dist.destroy_process_group()


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


if __name__ == "__main__":
    command_line.run(main)
