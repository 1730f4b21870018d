"""What the scripts share: common options, and errors as one line on stderr with exit status 2."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

import my_config
import networks
from local_lipschitz import UnsupportedLayerError
from networks._checkpoint import load_weights, read
from networks._onnx import network_of as onnx_network

LARGEST_SEED = 2**63 - 1  # what torch takes


class Parser(argparse.ArgumentParser):
    """Wrong options are one line on stderr, like every other error, in place of the usage in ten."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{sys.argv[0]}: {' '.join(message.split())}; --help lists the options\n")


def parser(description: str | None, network: ModuleType, nominal: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that every script has; `network` is the module imported at the script's top.

    nominal: the script works at one nominal input, which --input may replace.
    """
    options = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    default = network.__name__.rpartition(".")[2]
    network_options(options, default)
    if nominal:
        options.add_argument("--input", metavar="FILE", help="nominal input: an image, or an array in a .npy file")
    options.add_argument("--seed", type=seed, default=0, help="of everything random (default: 0)")
    options.add_argument("--device", default=str(my_config.device), help="cpu or cuda (default: as my_config.py says)")
    return options


def network_options(options: argparse.ArgumentParser, default: str) -> None:
    """Which network, and which weights."""
    options.add_argument(
        "--network", default=default, metavar="NAME", help=f"module in networks/, or a .onnx file (default: {default})"
    )
    weights = options.add_mutually_exclusive_group()
    weights.add_argument("--random-weights", action="store_true", help="seeded random weights instead of trained ones")
    weights.add_argument("--weights", metavar="FILE", help="a checkpoint of this network instead of its own")
    for name, what in (("mean", "subtracted from"), ("std", "then dividing")):
        options.add_argument(
            f"--{name}", type=float, nargs="+", metavar="NUMBER",
            help=f"of a .onnx file's images: {what} pixels in [0, 1]; one number or one a channel",
        )  # fmt: skip


def seed(text: str) -> int:
    """A seed; argparse turns the error into its message."""
    if not (text.isascii() and text.isdigit() and int(text) <= LARGEST_SEED):
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 0 to 2^63 - 1 is wanted")
    return int(text)


def device(name: str) -> torch.device:
    """The device that --device names; ValueError unless it is the CPU or a CUDA device that is there."""
    try:
        chosen = torch.device(name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: cpu, cuda or cuda:N is wanted")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no CUDA device here")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices, counted from 0")
    return chosen


def load_network(args: argparse.Namespace) -> tuple[ModuleType, nn.Module, Tensor]:
    """The network module that --network names, its net and its nominal input, both on --device."""
    tolerance = getattr(args, "tolerance", 1.0)  # where a script has this option
    if not 0.0 < tolerance < math.inf:
        raise ValueError(f"--tolerance {tolerance}: a positive number is wanted")
    chosen = device(args.device)
    network = chosen_network(args)
    return network, load_net(network, args).to(chosen), nominal_input(network, args).to(chosen)


def chosen_network(args: argparse.Namespace) -> ModuleType:
    """The module in networks/ that --network names, or the ONNX file with the same fields."""
    if args.network.endswith(".onnx"):
        return onnx_network(args.network, args.mean, args.std)
    if args.mean is not None or args.std is not None:
        raise ValueError("--mean, --std: for a .onnx file only; a module in networks/ has its own")
    return networks.load(args.network)


def load_net(network: ModuleType, args: argparse.Namespace) -> nn.Module:
    """With its own weights, random ones or those of --weights."""
    if args.weights is not None:
        if args.network.endswith(".onnx"):
            raise ValueError(f"--weights: {args.network} holds its weights")
        return load_weights(network.net(random_weights=True), read(Path(args.weights)), args.weights)
    if args.random_weights:
        print(f"{network.name}: RANDOM weights (seed {args.seed}), not trained ones", flush=True)
    return network.net(random_weights=args.random_weights, seed=args.seed)


def nominal_input(network: ModuleType, args: argparse.Namespace) -> Tensor:
    """The network's own (1, *shape), or what --input holds."""
    file = getattr(args, "input", None)
    if file is None and "input" in args and args.network.endswith(".onnx"):
        raise ValueError(f"--input is wanted: {args.network} has no nominal input")
    return network.x0 if not isinstance(file, str) else read_input(network, Path(file))


def read_input(network: ModuleType, file: Path) -> Tensor:
    """An image, or an array of the network's inputs, with or without a first dimension of 1."""
    if file.suffix.lower() != ".npy":
        if network.load_image is None:
            raise ValueError(f"--input {file}: the input of {network.name} is not an image; give a .npy file")
        return network.load_image(file)
    try:
        x = torch.from_numpy(np.load(file, allow_pickle=False)).to(network.x0.dtype)
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    if tuple(x.shape) not in (tuple(network.x0.shape), tuple(network.x0.shape[1:])):
        raise ValueError(f"{file} holds an array of shape {tuple(x.shape)}; {tuple(network.x0.shape)} is wanted")
    if not bool(x.isfinite().all()):
        raise ValueError(f"{file} holds NaN or infinite values")
    return x.reshape(network.x0.shape)


def run(main: Callable[[], None]) -> None:
    """Call main; what a user can mend becomes one clear line on stderr and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an ε on a terminal without one is no reason to stop
    try:
        main()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, UnsupportedLayerError) as error:
        fail(str(error))
    except OSError as error:
        of_system = error.strerror is not None and error.filename is not None
        fail(f"{error.filename}: {error.strerror}" if of_system else str(error))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        fail("there is not enough memory for this; fewer points, samples or images at a time need less")
    except KeyboardInterrupt:
        print(f"{sys.argv[0]}: interrupted; the same command goes on from what was saved", file=sys.stderr)
        sys.exit(130)


def fail(message: str) -> NoReturn:
    line = f"{sys.argv[0]}: {' '.join(message.split())}"
    print(line.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)  # names of files may be no text
    sys.exit(2)


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: on the CPU torch tells so only in words."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
