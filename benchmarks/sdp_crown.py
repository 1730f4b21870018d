"""A published table of ℓ2 verification with our row beside it: which share of the images `verify` proves.

    python benchmarks/sdp_crown.py --repo DIR --json rows.json
    python benchmarks/sdp_crown.py --repo DIR --models mnist_mlp --count 20 --time-limit 30 --json rows.json

DIR holds models/*.pth and datasets/sdp/{mnist,cifar}/{X,y}_sdp.npy, as the release of Chiu, Chen, Zhang and Zhang,
SDP-CROWN (ICML 2025, arXiv 2506.06665) lays them out. Every image is saved in the JSON file as soon as it is done, and
the same command goes on where it was stopped. As there, an image counts as verified if it is classified correctly and
keeps its class on the whole ball, inputs that are no images included; with --box only valid images count, to which the
published attacks keep.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from local_lipschitz import verify
from script_tools import command_line, results

CIFAR = (24 / 255) / 0.225
MEAN = torch.tensor([125.3, 123.0, 113.9]).reshape(1, 3, 1, 1) / 255
# file -> images, radius, layers; each layer of weights has its name in the file
MODELS: dict[str, tuple[str, float, list]] = {
    "mnist_mlp": ("mnist", 1.0, [(784, 100), (100, 100), (100, 10)]),
    "mnist_convsmall": ("mnist", 0.3, [(1, 16, 4, 2, 1), (16, 32, 4, 2, 1), (1568, 100), (100, 10)]),
    "cifar10_cnn_a": ("cifar", CIFAR, [(3, 16, 4, 2, 1), (16, 32, 4, 2, 1), (2048, 100), (100, 10)]),
    "cifar10_cnn_c": ("cifar", CIFAR, [(3, 8, 4, 2, 0), (8, 16, 4, 2, 0), (576, 128), (128, 64), (64, 10)]),
    "cifar10_convsmall": ("cifar", CIFAR, [(3, 16, 4, 2, 0), (16, 32, 4, 2, 0), (1152, 100), (100, 10)]),
    "cifar10_convdeep": (
        "cifar", CIFAR, [(3, 8, 4, 2, 1), (8, 8, 3, 1, 1), (8, 8, 3, 1, 1), (8, 8, 4, 2, 1), (512, 100), (100, 10)],
    ),
}  # fmt: skip
# their Table 1: per cent of 200 images, on a V100; "attack" is PGD clamped to [0, 1], an upper bound
PUBLISHED = {
    "mnist_mlp": {"attack": 54, "SDP-CROWN": 32.5, "β-CROWN": 36, "LipSDP": 30.5, "full SDP": 53},
    "mnist_convsmall": {"attack": 84.5, "SDP-CROWN": 81.5, "β-CROWN": 16, "LipSDP": 78.5},
    "cifar10_cnn_a": {"attack": 55.5, "SDP-CROWN": 49, "β-CROWN": 20, "LipSDP": 39},
    "cifar10_cnn_c": {"attack": 47, "SDP-CROWN": 42.5, "β-CROWN": 35.5, "LipSDP": 38.5},
    "cifar10_convsmall": {"attack": 52.5, "SDP-CROWN": 43.5, "β-CROWN": 17.5, "LipSDP": 33.5},
    "cifar10_convdeep": {"attack": 50.5, "SDP-CROWN": 46, "β-CROWN": 30.5, "LipSDP": 39.5},
}


def network(layers: list[tuple[int, ...]], weights: OrderedDict) -> nn.Sequential:
    """ReLU between the layers: Conv(in, out, kernel, stride, padding) or Linear(in, out)."""
    modules: list[nn.Module] = []
    for layer in layers:
        if len(layer) == 2 and not any(isinstance(module, nn.Flatten) for module in modules):
            modules.append(nn.Flatten())
        modules += [nn.Linear(*layer) if len(layer) == 2 else nn.Conv2d(*layer), nn.ReLU()]
    net = nn.Sequential(*modules[:-1])
    if len(weights) != len(net.state_dict()):
        raise ValueError(f"the file has {len(weights)} arrays of weights, {len(net.state_dict())} are wanted")
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    return net.eval()


def images(repo: Path, name: str) -> tuple[Tensor, Tensor]:
    """Inputs (N, C, H, W), normalised as the models want them, and labels."""
    folder = repo / "datasets" / "sdp" / name
    X, y = (np.load(folder / f"{array}_sdp.npy", allow_pickle=False) for array in ("X", "y"))
    x = torch.from_numpy(X).permute(0, 3, 1, 2).contiguous()
    if name == "cifar":
        x = (x - MEAN) / 0.225
    return x, torch.from_numpy(y).long()


def box(name: str) -> tuple[Tensor, Tensor]:
    """Black and white, normalised as the models want them."""
    black, white = torch.zeros(1), torch.ones(1)
    return ((black - MEAN) / 0.225, (white - MEAN) / 0.225) if name == "cifar" else (black, white)


def load(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run with the same settings has saved."""
    if not path.exists():
        return {"settings": settings, "rows": {}}
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved.get("settings") != settings:
        command_line.fail(f"{path} was made with {saved.get('settings')}, not with {settings}; name another file")
    return saved


def save(path: Path, saved: dict[str, Any]) -> None:
    with results.replacing(path) as file:
        file.write_text(json.dumps(saved, indent=1), encoding="utf-8")


def show(name: str, rows: dict[str, Any]) -> None:
    """One line: ours, and the published ones."""
    count = {verdict: sum(row["verdict"] == verdict for row in rows.values()) for verdict in ("verified", "unknown")}
    seconds = [row["seconds"] for row in rows.values() if row["verdict"] != "misclassified"]
    left = 100.0 * sum(count.values()) / len(rows)
    ours = f"verified {100.0 * count['verified'] / len(rows):.1f} % of {len(rows)} (not falsified {left:.1f} %)"
    published = ", ".join(f"{method} {value}" for method, value in PUBLISHED[name].items())
    print(f"{name}: {ours}, {np.mean(seconds):.1f} s an image, {np.median(seconds):.1f} median; published: {published}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, required=True, help="folder with models/ and datasets/")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: those whose file is there")
    parser.add_argument("--count", type=int, default=200, help="images of each set")
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds an image")
    parser.add_argument("--box", action="store_true", help="only valid images count")
    parser.add_argument("--json", type=Path, required=True, help="where rows are kept")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = command_line.device(args.device)
    settings = {"time_limit": args.time_limit, "device": device.type}
    saved = load(args.json, settings | ({"box": True} if args.box else {}))
    there = [name for name in MODELS if (args.repo / "models" / f"{name}.pth").exists()]
    if not there:
        command_line.fail(f"{args.repo / 'models'} has none of {', '.join(MODELS)}")
    for name in args.models or there:
        data, eps, layers = MODELS[name]
        file = args.repo / "models" / f"{name}.pth"
        net = network(layers, torch.load(file, weights_only=True, map_location="cpu")).to(device)
        x, y = images(args.repo, data)
        rows = saved["rows"].setdefault(name, {})
        for i in tqdm(range(min(args.count, len(x))), desc=name):
            if str(i) not in rows:
                within = box(data) if args.box else None
                rows[str(i)] = row(net, x[i : i + 1].to(device), int(y[i]), eps, args.time_limit, within)
                save(args.json, saved)
        show(name, {i: row for i, row in rows.items() if int(i) < args.count})


def row(
    net: nn.Module, x0: Tensor, label: int, eps: float, time_limit: float, box: tuple[Tensor, Tensor] | None
) -> dict[str, Any]:  # fmt: skip
    """One image."""
    with torch.no_grad():
        if int(net(x0).argmax()) != label:
            return {"verdict": "misclassified", "seconds": 0.0}
    start = time.perf_counter()
    result = verify(net, x0, eps, time_limit=time_limit, box=box)
    return {
        "verdict": result.verdict[0], "stage": result.stage[0], "lower": float(result.lower.min()),
        "nodes": int(result.nodes), "seconds": time.perf_counter() - start,
    }  # fmt: skip


if __name__ == "__main__":
    command_line.run(main)
