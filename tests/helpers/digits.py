"""MNIST's files, written small."""

import numpy as np


def write_mnist(root, images: np.ndarray, labels: np.ndarray) -> None:
    """The four files of MNIST, in their IDX format, with the same digits for training and test."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        head = np.array([0x803, *images.shape], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.astype(np.uint8).tobytes())
        head = np.array([0x801, len(labels)], dtype=">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())
