"""The networks that the scripts run on, one module each; `load(name)` finds one by the name of its file.

A network module has
    net(random_weights=False, seed=0)   the network: an nn.Module in eval mode, on the CPU
    x0                                  the nominal input, (1, *input shape), in normalised units
    classes                             a name for each output
    eps_min, eps_max                    the range of ε of its figure, in normalised units
and may have
    name, data_dir                      name and folder of its results (else: its file name, data/<name>)
    box                                 (lowest, highest) input, normalised (images: black and white)
    pixel_scale                         std: pixel difference = normalised difference · pixel_scale
    load_image(path)                    an image file as an input, (1, C, H, W), normalised
    test_set(data_dir)                  labelled test data: pairs (normalised input, label)
Files whose name starts with an underscore or ends in _train or _draw are not networks.
"""

import importlib
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def names() -> list[str]:
    """The networks there are: the module files in this folder."""
    stems = sorted(file.stem for file in Path(__file__).parent.glob("*.py"))
    return [stem for stem in stems if not stem.startswith("_") and not stem.endswith(("_train", "_draw"))]


def load(name: str) -> ModuleType:
    """The network module `name`, with None or the default for what it leaves out.

    ValueError for a name that is not there (it lists those that are) or a module that lacks a part.
    """
    if name not in names():
        raise ValueError(f"no network {name!r}; there are: {', '.join(names())}")
    module = importlib.import_module(f"networks.{name}")
    if missing := [part for part in ("net", "x0", "classes", "eps_min", "eps_max") if not hasattr(module, part)]:
        raise ValueError(f"networks/{name}.py does not define {', '.join(missing)}")
    defaults = {"name": name, "data_dir": ROOT / "data" / name}
    for part in ("name", "data_dir", "box", "pixel_scale", "load_image", "test_set"):
        if not hasattr(module, part):
            setattr(module, part, defaults.get(part))
    return module
