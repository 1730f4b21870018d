"""Products in the precision that they state: whatever the caller's process has been told to save."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

EXACT, INHERIT = "ieee", "none"
# torch's switches since 2.9, from the general one down to single operations; "none" is the value of the one above
GENERAL = ("", "cudnn", "mkldnn")
SINGLE = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
HALF = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")


@contextmanager
def no_tf32() -> Iterator[None]:
    """Inside (or within a function so decorated) products have the precision of their dtype; afterwards as before.

    The rounding that bounds count is that of float32 and float64. Inside, none of these rounds further:
    torch.autocast, on any device; TF32 and bfloat16 in place of float32, on CUDA (cuBLAS, cuDNN) and in oneDNN on the
    CPU, by torch.backends.*.allow_tf32, torch.set_float32_matmul_precision or torch.backends.*.fp32_precision; sums of
    half precision in half precision. torch.inference_mode is off, too: refining multipliers needs gradients.
    Every setting is put back exactly, also one that was inherited. Autocast and inference mode are those of the thread,
    the others of the process.
    """
    if torch.get_default_device().type == "meta":
        raise ValueError("torch's default device is 'meta', whose tensors hold no numbers; call this outside of it")
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda", "xpu", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on its older switches
            with torch.backends.__allow_nonbracketed_mutation():
                undo = _set_exact()
        try:
            yield
        finally:
            with warnings.catch_warnings(), torch.backends.__allow_nonbracketed_mutation():
                warnings.simplefilter("ignore")
                for put_back in reversed(undo):
                    put_back()


def _set_exact() -> list[Callable[[], None]]:
    """Sets all switches of float32 and half precision; what puts them back, in the order in which they were set.

    From the general switches down, so that each says its own value once those above it say nothing. Only then can the
    older switches be read: they raise errors where they and the newer ones disagree.
    """
    undo: list[Callable[[], None]] = []

    def set_to(holder: Any, name: str, value: Any, before: Any) -> None:
        undo.append(lambda: setattr(holder, name, before))
        setattr(holder, name, value)

    for path in (*GENERAL, *SINGLE):
        holder = _backend(path)
        if hasattr(holder, "fp32_precision"):
            set_to(holder, "fp32_precision", INHERIT if path in GENERAL else EXACT, holder.fp32_precision)
    before = torch.get_float32_matmul_precision()
    undo.append(lambda: torch.set_float32_matmul_precision(before))
    torch.set_float32_matmul_precision("highest")  # cuBLAS's allow_tf32 is this one, too
    set_to(torch.backends.cudnn, "allow_tf32", False, _old_cudnn_switch())
    for path in SINGLE:  # which the older switches have set
        holder = _backend(path)
        if hasattr(holder, "fp32_precision"):
            holder.fp32_precision = EXACT
    matmul = torch.backends.cuda.matmul
    for name in HALF:
        split = getattr(matmul, f"{name}_split_k", None)  # torch 2.10
        value = getattr(matmul, name)
        set_to(matmul, name, False, value if split is None else (value, split))
    if hasattr(matmul, "allow_fp16_accumulation"):
        set_to(matmul, "allow_fp16_accumulation", False, matmul.allow_fp16_accumulation)
    return undo


def _backend(path: str) -> Any:
    """torch.backends.<path>, None where this version of torch has no such switch."""
    holder: Any = torch.backends
    for name in path.split(".") if path else ():
        holder = getattr(holder, name, None)
    return holder


def _old_cudnn_switch() -> bool:
    """torch.backends.cudnn.allow_tf32 by itself: it can only be read where the newer switches agree with it."""
    conv, rnn = _backend("cudnn.conv"), _backend("cudnn.rnn")
    if not hasattr(conv, "fp32_precision"):
        return torch.backends.cudnn.allow_tf32
    conv.fp32_precision = rnn.fp32_precision = "tf32"
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return False
    finally:
        conv.fp32_precision = rnn.fp32_precision = EXACT
