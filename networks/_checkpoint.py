"""Checkpoints: written atomically, read without unpickling, checked before use; and seeded random weights."""

import contextlib
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from script_tools.results import replacing

DEPTH = 2  # levels down at which weights may stand: {"ema": {"module": …}}
SHOWN = 8  # problems or names in one message
WRAPPERS = ("module", "_orig_mod")  # what nn.DataParallel and torch.compile put into names
COUNT = "num_batches_tracked"  # of batch norm; it does not enter in eval mode


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch draws from `seed`; afterwards the caller's random state is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def save(path: Path, state: Mapping) -> None:
    """Write `state` to `path` so that `path` is at every moment the old or the new file, whole.

    OSError, naming the file, where it cannot be written.
    """
    with replacing(path) as beside:
        try:
            torch.save(state, beside)
        except RuntimeError as error:  # torch's writer knows no OSError
            raise OSError(str(error).strip().split("\n")[0]) from None


def read(path: Path) -> Mapping:
    """The object in a checkpoint file, on the CPU. FileNotFoundError or ValueError, naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on a foreign file, beside the one sentence
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bad zip: RuntimeError; not plain tensors: UnpicklingError; truncated: EOFError, …
        reason = str(error).strip().split("\n")[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = (
                "it holds python objects, such as a whole model, and not only tensors; reading these could run any "
                "code, so save model.state_dict() instead"
            )
        raise ValueError(f"cannot read checkpoint {path}: {reason}") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"cannot read checkpoint {path}: it holds a {type(state).__name__}, not a state dict")
    return state


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str | os.PathLike) -> nn.Module:
    """Put the weights `state` (any floating dtype) into `model` as float32 and return it in eval mode.

    ValueError, naming `source` and the entries, for missing or unexpected keys, wrong shapes, values that are
    not floating point tensors where they should be (batch norm counts in integers), and NaN or infinite weights.
    Weights that stand one or two levels down ({"state_dict": …, "epoch": …}), or whose names have one prefix more
    (those of nn.DataParallel, torch.compile or a surrounding module), are taken where all names then fit, and counts of
    batches that old files lack are zero. `model` may be on the "meta" device.
    """
    wanted = model.state_dict()
    state, hint = _fitting(state, wanted)
    problems = [hint] if hint else []
    if missing := [key for key in wanted if key not in state]:
        problems.append(f"missing {_some(missing)}")
    if extra := [str(key) for key in state if key not in wanted]:
        problems.append(f"unexpected {_some(extra)}")
    for key, parameter in wanted.items():
        if key not in state:
            continue
        weight = state[key]
        kind = "a floating point tensor" if parameter.is_floating_point() else f"a tensor of {parameter.dtype}"
        if not isinstance(weight, Tensor) or weight.is_floating_point() != parameter.is_floating_point():
            found = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
            problems.append(f"{key} is {found}, {kind} is wanted")
        elif weight.shape != parameter.shape:
            problems.append(f"{key} has shape {tuple(weight.shape)}, {tuple(parameter.shape)} is wanted")
        elif weight.layout != torch.strided or weight.device.type != "cpu":
            problems.append(f"{key} holds no plain numbers ({weight.layout}, {weight.device})")
        elif not _as_float32(weight).isfinite().all():
            problems.append(f"{key} holds NaN or infinite values")
    if problems:
        raise ValueError(f"checkpoint {source} does not fit this network: {_some(problems, '; ')}")
    model.load_state_dict({key: _as_float32(weight) for key, weight in state.items()}, strict=True, assign=True)
    return model.eval()


def _fitting(state: Mapping, wanted: Mapping[str, Tensor]) -> tuple[Mapping, str]:
    """The weights in `state` whose names are the wanted ones, or `state` itself and a word on what is in the way."""
    levels = dict(_levels(state))
    found = [(name, fit) for name, level in levels.items() if (fit := _renamed(level, wanted)) is not None]
    if len(found) == 1:
        return found[0][1], ""
    if found:
        return state, f"several sets of weights fit, {_some([repr(name) for name, _ in found])}: save one of them alone"
    prefix = _common_prefix([str(key) for key in state])
    if prefix and not any(key.startswith(prefix) for key in wanted):
        return state, f"every name starts with {prefix!r}, and without it they do not fit either"
    nested = [repr(name) for name in levels if name]
    return state, f"the weights under {_some(nested)} do not fit either" if nested else ""


def _levels(state: Mapping, name: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Mapping]]:
    """What is in `state`, itself first, that may be weights: mappings, by the names that lead to them."""
    yield name, state
    for key, value in state.items() if depth > 0 else ():
        if isinstance(value, Mapping) and value:
            yield from _levels(value, f"{name}.{key}" if name else str(key), depth - 1)


def _renamed(level: Mapping, wanted: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The weights under the wanted names, which may lack a common prefix or the parts that wrappers add; or None."""
    names = [str(key) for key in level]
    prefix = _common_prefix(names)
    cuts = [prefix[: i + 1] for i, letter in enumerate(prefix) if letter == "."]
    counts = {key: torch.zeros_like(value, device="cpu") for key, value in wanted.items() if key.endswith(COUNT)}
    for shorter in [[name[len(cut) :] for name in names] for cut in ("", *cuts)] + [list(map(_unwrapped, names))]:
        renamed = dict(zip(shorter, level.values(), strict=True))
        if len(renamed) == len(names) and (counts | renamed).keys() == wanted.keys():
            return counts | renamed
    return None


def _common_prefix(names: Sequence[str]) -> str:
    """What all names start with, down to a dot."""
    letters = os.path.commonprefix(names)  # noqa: RUF071 - letter by letter
    return letters[: letters.rfind(".") + 1]


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _as_float32(weight: Tensor) -> Tensor:
    """Weights as float32, where a float64 may become infinite; counts as they are."""
    return weight.float() if weight.is_floating_point() else weight


def _some(names: Sequence[str], between: str = ", ") -> str:
    """The first few names, and how many more: the checkpoint of another network may differ in hundreds."""
    more = len(names) - SHOWN
    return between.join(names[:SHOWN]) + (f"{between}and {more} more" if more > 0 else "")
