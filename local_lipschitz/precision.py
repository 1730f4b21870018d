"""Products of float32 numbers in float32: on CUDA, TF32 would round the factors to ten bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_tf32() -> Iterator[None]:
    """Inside (or within a function so decorated) no product on CUDA uses TF32; afterwards all is as it was.

    torch convolves in TF32 unless told otherwise, and the rounding that the bounds count is that of float32.
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
