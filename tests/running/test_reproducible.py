"""The same seed gives the same bits, and each result file says what made it."""

import json
import platform

import numpy as np
import torch
from scripts import contents_of, run_here

from script_tools import certified_rows, results

SWEEP = ("--network", "tiny", "--points", "3", "--samples", "500")


def test_same_seed_same_bits(tiny):
    """Every method of the sweep, the joint bound among them."""
    seen = []
    for seed in (7, 7, 8):
        run_here("calculate_bounds.py", *SWEEP, "--joint-every", "1", "--seed", seed, "--overwrite")
        seen.append(contents_of(tiny))
    assert seen[0] == seen[1]
    assert set(seen[0]) == {f"{name}.npz" for name in ("random", "gradient", "global", "local", "joint")}
    assert all(seen[0][name] != seen[2][name] for name in seen[0])


def test_same_seed_same_numbers_of_attacks_and_radii(mnist, images):
    """All but the seconds that each took."""
    seen = []
    for _ in range(2):
        run_here("calculate_bounds_adv.py", "--overwrite", "--seed", 3, "--methods", "pairwise", "gradient", "fgsm")
        arrays = results.load(mnist / "adversarial.npz")[0]
        run_here("calculate_bounds_many.py", "--overwrite", "--seed", 3, "--images", images)
        _, rows = certified_rows.read_any(mnist / "certified_local.csv")
        kept = {name: x.tobytes() for name, x in arrays.items() if not name.endswith("_seconds")}
        seen.append((kept, [row._replace(seconds=0.0) for row in rows]))
    assert seen[0] == seen[1] and len(seen[0][0]) > 8


def check_versions(made_with: dict[str, str]) -> None:
    assert made_with["torch"] == torch.__version__ and made_with["numpy"] == np.__version__
    assert made_with["python"] == platform.python_version() and platform.machine() in made_with["device"]


def test_results_say_what_made_them(tiny):
    run_here("calculate_bounds.py", *SWEEP, "--no-joint", "--device", "cpu")
    wanted = {"network", "weights", "random_weights", "seed", "eps_min", "eps_max", "points"}
    of_method = {"random": {"samples"}, "gradient": set(), "global": {"tolerance"}, "local": {"tolerance"}}
    for name, own in of_method.items():
        _, settings = results.load(tiny / f"{name}.npz")
        assert settings.keys() == wanted | own
        with np.load(tiny / f"{name}.npz", allow_pickle=False) as file:
            check_versions(json.loads(str(file["made_with"])))


def test_certified_radii_say_what_made_them(mnist, images):
    run_here("calculate_bounds_many.py", "--images", images, "--device", "cpu", "--bound", "global")
    settings = json.loads((mnist / "certified_global.csv").read_text().splitlines()[0].removeprefix("# "))
    check_versions(settings.pop("made_with"))
    wanted = {"network", "weights", "seed", "random_weights", "bound", "margins", "rtol", "tolerance", "images"}
    assert settings.keys() == wanted


def test_the_device_on_record_is_the_one_that_was_used(monkeypatch):
    """A GPU that is there is not named unless something was computed on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU 9000")
    assert results.made_with()["device"].startswith("cpu")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert results.made_with()["device"] == "GPU 9000"
