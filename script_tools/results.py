"""Result files: plain arrays with the settings that made them; written whole or not at all, never unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


def save(path: Path, arrays: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write `arrays` (anything np.asarray makes plain) and `settings` (JSON) to an .npz: the old file or the new one.

    The file is written beside its place, flushed to the disk and renamed, so a kill or a full disk loses nothing.
    """
    plain = {name: np.asarray(value) for name, value in arrays.items()}
    if objects := [name for name, value in plain.items() if value.dtype.hasobject]:
        raise ValueError(f"{path}: {', '.join(objects)} would have to be pickled; plain arrays are wanted")
    plain |= {"settings": np.array(_text(settings)), "made_with": np.array(_text(made_with()))}
    with replacing(path) as beside, open(beside, "wb") as file:
        np.savez(file, **plain)  # type: ignore[arg-type]  # numpy takes one array for an option


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is there at the end becomes `path`, whole and flushed to the disk.

    OSError, naming the file, where it cannot be written; `path` is then as it was, and nothing is left beside it.
    """
    beside = path.with_name(path.name + ".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}); what was there before is untouched") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def save_figure(figure: Any, path: Path) -> None:
    """A matplotlib figure as .png or .pdf, whole or not at all; the same figure gives the same bits."""
    kind = path.suffix[1:]
    with replacing(path) as beside:
        figure.savefig(beside, format=kind, dpi=160, metadata={"CreationDate": None} if kind == "pdf" else None)


class Arrays(dict[str, np.ndarray]):
    """The arrays of a file; asked for one that is not there, it says which file it is that lacks it."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.path = path

    def __missing__(self, name: str) -> np.ndarray:
        raise ValueError(f"{self.path} holds other results, without {name!r}; move it away to start anew")


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, settings) of a file that `save` wrote; ValueError for a truncated or foreign file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = Arrays(path, {name: file[name] for name in file.files})
        settings = json.loads(str(arrays.pop("settings")))
        if not isinstance(settings, dict):
            raise ValueError("its settings are none")
        arrays.pop("made_with")
    except FileNotFoundError:
        raise
    except Exception as error:  # BadZipFile, EOFError; RuntimeError: encrypted; MemoryError: a size that is made up; …
        reason = _line(error)
        raise ValueError(f"{path} is truncated or not a result file ({reason}); move it away to start anew") from None
    return arrays, settings


def resume(path: Path, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of an earlier run with the same settings; {} if there is none; ValueError if its settings differ."""
    if not path.exists():
        return {}
    arrays, earlier = load(path)
    wanted = json.loads(_text(settings))
    if earlier != wanted:
        keys = sorted(k for k in earlier.keys() | wanted.keys() if earlier.get(k) != wanted.get(k))
        differ = ", ".join(f"{k} {_short(earlier.get(k))} there, {_short(wanted.get(k))} now" for k in keys)
        raise ValueError(f"{path} was made with other settings ({differ}); use the same, --overwrite, or move it away")
    return arrays


def fingerprint(net: nn.Module, x0: torch.Tensor) -> str:
    """A short hash of the weights and the nominal input: results of different networks are not mixed."""
    digest = hashlib.sha256()
    for name, tensor in [*net.state_dict().items(), ("x0", x0)]:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def made_with() -> dict[str, str]:
    """Versions and device, for the record; not part of what a resumed run compares."""
    # a GPU that is there but was not asked for (--device cpu) is not initialised
    device = torch.cuda.get_device_name() if torch.cuda.is_initialized() else f"cpu, {platform.machine()}"
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "device": device}


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
