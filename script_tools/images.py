"""The images that a script is given: a test set, or the files in a folder."""

from __future__ import annotations

import argparse
import hashlib
import os
from types import ModuleType

import torch
from torch import Tensor

IMAGE_FILES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


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

    def batch(self, which: list[int]) -> tuple[Tensor, list[int]]:
        """(inputs (len(which), *shape), labels)."""
        inputs, labels = zip(*(self.load(i) for i in which), strict=True)
        return torch.cat(inputs), list(labels)

    def name(self, i: int) -> str:
        """What the row of image i says it is: its file; nothing in a test set."""
        return str(self.files[i].relative_to(self.root)) if self.files else ""
