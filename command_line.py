"""What the scripts share: common options, and errors as one line on stderr with exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

import my_config
import networks
from local_lipschitz import UnsupportedLayerError


def parser(description: str | None, network: ModuleType) -> argparse.ArgumentParser:
    """A parser with the options that every script has; `network` is the module imported at the script's top."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    default = network.__name__.rpartition(".")[2]
    options.add_argument("--network", default=default, metavar="NAME", help=f"module in networks/ (default: {default})")
    options.add_argument("--random-weights", action="store_true", help="seeded random weights instead of trained ones")
    options.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    options.add_argument("--device", default=str(my_config.device), help="cpu or cuda (default: as my_config.py says)")
    return options


def load_network(args: argparse.Namespace) -> tuple[ModuleType, nn.Module, Tensor]:
    """The network module that --network names, its net and its nominal input, both on --device."""
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here")
    network = networks.load(args.network)
    if args.random_weights:
        print(f"{network.name}: RANDOM weights (seed {args.seed}), not trained ones", flush=True)
    net = network.net(random_weights=args.random_weights, seed=args.seed)
    return network, net.to(device), network.x0.to(device)


def run(main: Callable[[], None]) -> None:
    """Call main; what a user can mend becomes one clear line on stderr and exit status 2."""
    try:
        main()
    except (ValueError, UnsupportedLayerError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"{sys.argv[0]}: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{sys.argv[0]}: interrupted; the same command goes on from what was saved", file=sys.stderr)
        sys.exit(130)
