"""Certified radii of many images, or verdicts at given ε: a CSV row each, a summary, a figure of certified accuracy.

    python calculate_bounds_many.py --data datasets --count 1000
    python calculate_bounds_many.py --data datasets --count 1000 --eps 0.1 0.3 1
    python calculate_bounds_many.py --images photos/ --network alexnet --batch 4
    torchrun --nproc-per-node 2 calculate_bounds_many.py --data datasets

--data is where the network's test set lies (for torchvision), --images a folder of image files; those in a folder named
like a class are taken to be of it. Under torchrun the batches are dealt out to the processes, on one machine or on
several (`torchrun --help`, --rdzv-endpoint), each with its own GPU where there are some.

Each process appends to data/<network>/certified_<bound>.part<rank>.csv after every batch; at the end the first merges
them into certified_<bound>.csv; verified.part<rank>.csv and verified.csv with --eps, to which further ε are added. The
same command goes on where a stopped one left off, with any number of processes; other settings are refused unless
--overwrite is given. Radii and ε are ℓ2 in normalised units.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from calculate_bounds_many_plot import draw
from local_lipschitz import certified_radius, verify
from networks import mnist as network
from script_tools import certified_rows, command_line, results, verdict_rows
from script_tools.batches import in_batches
from script_tools.certificates import CERTIFICATES, RULES
from script_tools.certified_rows import ImageRow
from script_tools.images import Images
from script_tools.processes import gather, part_of, parts_of, share, start_anew, start_process
from script_tools.verdict_rows import VerdictRow


def arguments() -> argparse.Namespace:
    options = command_line.parser(__doc__, network, nominal=False)
    source = options.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="DIR", help="certify the test set, which torchvision finds there")
    source.add_argument("--images", type=Path, metavar="DIR", help="certify the image files in a folder")
    options.add_argument("--count", type=int, help="only the first COUNT images")
    options.add_argument(
        "--eps", type=float, nargs="+", help="decide at each of these ε whether the class holds, in place of a radius"
    )
    options.add_argument("--time-limit", type=float, default=60.0, help="with --eps: seconds an image (default: 60)")
    options.add_argument("--bound", choices=CERTIFICATES, default="local", help="default: local; joint takes minutes")
    options.add_argument("--margins", choices=RULES, default="pairwise", help="default: pairwise")
    options.add_argument("--rtol", type=float, help="relative tolerance of a radius (default: 1e-4; joint 0.05)")
    options.add_argument("--tolerance", type=float, default=2e-3, help="of one spectral norm (default: 2e-3)")
    options.add_argument("--batch", type=int, default=32, help="images at a time (default: 32)")
    options.add_argument("--radii", type=float, nargs="+", help="radii of the summary (default: round ones)")
    options.add_argument("--overwrite", action="store_true", help="start anew instead of resuming")
    return options.parse_args()


class Radii:
    """A certified radius for every image."""

    rows, unit = certified_rows, "image"

    def __init__(self, net: nn.Module, images: Images, args: argparse.Namespace) -> None:
        self.net, self.images, self.args = net, images, args
        self.certificate = CERTIFICATES[args.bound]
        args.rtol = self.certificate.rtol if args.rtol is None else args.rtol
        self.stem = certified_rows.stem(args.bound, args.margins)
        self.settings = {name: getattr(args, name) for name in ("bound", "margins", "rtol", "tolerance")}
        self.items = list(range(images.count))

    def key(self, row: ImageRow) -> int:
        return row.index

    def __call__(self, items: list[int]) -> list[ImageRow]:
        """The rows of some images, as one batch."""
        start = time.perf_counter()
        inputs, labels = self.images.batch(items)
        effort: dict[str, Any] = {"effort": self.certificate.effort["many"]} if self.certificate.effort else {}
        result = certified_radius(
            self.net, inputs.to(self.args.device), self.certificate.function, self.args.margins,
            rtol=self.args.rtol, tolerance=self.args.tolerance, seed=self.args.seed, **effort,
        )  # fmt: skip
        each = (time.perf_counter() - start) / len(items)
        columns = [t.tolist() for t in (result.label, result.radius, result.limiting_class)]
        return [
            ImageRow._make([*numbers, each, self.images.name(numbers[0])])
            for numbers in zip(items, labels, *columns, strict=True)
        ]

    def summary(self, rows: list[ImageRow]) -> str:
        return certified_rows.summary([row for row in rows if row.index < self.images.count], self.args.radii)


class Verdicts:
    """Whether the class holds on the ball, for every image and ε."""

    rows, unit = verdict_rows, "verdict"
    stem = verdict_rows.STEM

    def __init__(self, net: nn.Module, images: Images, args: argparse.Namespace) -> None:
        self.net, self.images, self.args = net, images, args
        self.exact = copy.deepcopy(net).double()
        self.settings = {"time_limit": args.time_limit}
        self.items = [(eps, i) for eps in dict.fromkeys(args.eps) for i in range(images.count)]

    def key(self, row: VerdictRow) -> tuple[float, int]:
        return row.eps, row.index

    @torch.no_grad()
    def __call__(self, items: list[tuple[float, int]]) -> list[VerdictRow]:
        """The rows of some images, as one batch; what is misclassified is not looked at further."""
        which = [i for _, i in items]
        inputs, labels = self.images.batch(which)
        inputs = inputs.to(self.args.device)
        predicted = self.exact(inputs.double()).argmax(1).tolist()
        right = [k for k, label in enumerate(labels) if label in (-1, predicted[k])]
        found: dict[int, tuple[str, str, float, float]] = {}
        if right:
            eps = torch.tensor([items[k][0] for k in right], dtype=torch.float64, device=inputs.device)
            label = torch.tensor([predicted[k] for k in right], device=inputs.device)
            result = verify(self.net, inputs[right], eps, label, time_limit=self.args.time_limit, seed=self.args.seed)
            columns = (result.verdict, result.stage, result.lower.amin(1).tolist(), result.seconds.tolist())
            found = dict(zip(right, zip(*columns, strict=True), strict=True))
        nothing = (verdict_rows.MISCLASSIFIED, "", -math.inf, 0.0)
        return [
            VerdictRow(i, eps, labels[k], predicted[k], *found.get(k, nothing), self.images.name(i))
            for k, (eps, i) in enumerate(items)
        ]

    def summary(self, rows: list[VerdictRow]) -> str:
        wanted = set(self.items)
        return verdict_rows.summary([row for row in rows if self.key(row) in wanted])


def check(args: argparse.Namespace) -> None:
    """ValueError for what argparse lets through."""
    if args.batch < 1 or (args.count is not None and args.count < 1):
        raise ValueError(f"--batch {args.batch} --count {args.count}: positive numbers are wanted")
    if args.rtol is not None and not 0 < args.rtol < 1:
        raise ValueError(f"--rtol {args.rtol}: a number between 0 and 1 is wanted")
    if not all(0 <= radius < math.inf for radius in args.radii or []):
        raise ValueError(f"--radii {' '.join(map(str, args.radii))}: numbers from 0 are wanted")
    if not all(0 < eps < math.inf for eps in args.eps or []):
        raise ValueError(f"--eps {' '.join(map(str, args.eps))}: positive, finite numbers are wanted")
    if not args.time_limit >= 0:
        raise ValueError(f"--time-limit {args.time_limit}: seconds are wanted")


def main() -> None:
    args = arguments()
    check(args)
    rank, world = start_process(args)
    network, net, nominal = command_line.load_network(args)
    images = Images(network, args)
    task: Any = Verdicts(net, images, args) if args.eps else Radii(net, images, args)
    settings = {"network": network.name, "weights": results.fingerprint(net, nominal), "seed": args.seed}
    settings |= {"random_weights": args.random_weights, "images": images.what, **task.settings}

    merged = network.data_dir / f"{task.stem}.csv"
    own = part_of(merged, rank)
    if args.overwrite:
        start_anew(merged, own, rank)
    known = {task.key(row): row for path in [merged, *parts_of(merged)] for row in task.rows.read(path, settings)}
    todo = share(task.items, known, args.batch, rank, world)
    with task.rows.Writer(own, settings) as writer, tqdm(total=len(todo), unit=task.unit, disable=rank > 0) as progress:
        for _, batch in in_batches(lambda part: task(todo[part]), 0, len(todo), args.batch):
            writer.write(batch)
            known |= {task.key(row): row for row in batch}
            progress.update(len(batch))

    for table in gather(task.rows.to_table(known.values()), args.device):
        known |= {task.key(row): row for row in task.rows.from_table(table)}
    if rank == 0:
        everything = [row._replace(image=images.name(row.index)) for _, row in sorted(known.items())]
        task.rows.write(merged, everything, settings)
        for path in parts_of(merged):
            path.unlink()
        print(task.summary(everything))
        for path in [merged, *draw(network.data_dir, network.name, settings["weights"], task.stem)]:
            print(f"wrote {path}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    command_line.run(main)
