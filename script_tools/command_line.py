"""What the scripts share: common options, and errors as one line on stderr with exit status 2."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

import torch
from torch import Tensor, nn

import my_config
import networks
from local_lipschitz import UnsupportedLayerError

LARGEST_SEED = 2**63 - 1  # what torch takes


class Parser(argparse.ArgumentParser):
    """Wrong options are one line on stderr, like every other error, in place of the usage in ten."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{sys.argv[0]}: {' '.join(message.split())}; --help lists the options\n")


def parser(description: str | None, network: ModuleType) -> argparse.ArgumentParser:
    """A parser with the options that every script has; `network` is the module imported at the script's top."""
    options = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    default = network.__name__.rpartition(".")[2]
    options.add_argument("--network", default=default, metavar="NAME", help=f"module in networks/ (default: {default})")
    options.add_argument("--random-weights", action="store_true", help="seeded random weights instead of trained ones")
    options.add_argument("--seed", type=seed, default=0, help="of everything random (default: 0)")
    options.add_argument("--device", default=str(my_config.device), help="cpu or cuda (default: as my_config.py says)")
    return options


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
    network = networks.load(args.network)
    if args.random_weights:
        print(f"{network.name}: RANDOM weights (seed {args.seed}), not trained ones", flush=True)
    net = network.net(random_weights=args.random_weights, seed=args.seed)
    return network, net.to(chosen), network.x0.to(chosen)


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
