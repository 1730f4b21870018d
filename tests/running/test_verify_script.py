"""calculate_bounds_many.py --eps, and the rows margin and branching of calculate_bounds_adv.py."""

import pytest
import torch
from PIL import Image
from scripts import ROOT, run_here
from torch import nn

from local_lipschitz import verify
from networks import compnet
from networks._checkpoint import seeded
from script_tools import results, verdict_rows

SCRIPT = "calculate_bounds_many.py"


@pytest.fixture
def digits(tmp_path):
    """Two digits that are labelled eights, one of them wrongly a nine."""
    digit = Image.open(ROOT / "data" / "mnist" / "8.png")
    for label in ("8", "9"):
        (tmp_path / "digits" / label).mkdir(parents=True)
        digit.save(tmp_path / "digits" / label / "a.png")
    return tmp_path / "digits"


def rows_of(folder):
    return verdict_rows.read_any(folder / "verified.csv")[1]


def test_verdicts_of_every_image_and_eps(digits, mnist, capsys):
    options = ("--images", digits, "--time-limit", "5")
    run_here(SCRIPT, *options, "--eps", "0.1", "30")
    rows = rows_of(mnist)
    found = {(row.eps, row.image): row for row in rows}
    assert len(found) == 4
    assert found[0.1, "8/a.png"].verdict == "verified" and found[0.1, "8/a.png"].margin > 0
    assert found[30.0, "8/a.png"].verdict == "falsified" and found[30.0, "8/a.png"].margin <= 0
    assert found[0.1, "9/a.png"].verdict == found[30.0, "9/a.png"].verdict == "misclassified"
    assert "50.00%" in capsys.readouterr().out
    assert all((mnist / f"verified.{suffix}").stat().st_size > 5000 for suffix in ("png", "pdf"))
    marked = [row._replace(seconds=123.0) for row in rows]
    settings = verdict_rows.read_any(mnist / "verified.csv")[0]
    verdict_rows.write(mnist / "verified.csv", marked, settings)
    run_here(SCRIPT, *options, "--eps", "0.05")  # one more: the others are kept
    again = rows_of(mnist)
    assert len(again) == 6 and [row for row in again if row.eps != 0.05] == marked
    assert not list(mnist.glob("*part*"))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """compnet with fewer units, on which a radius by margins takes seconds."""
    with seeded(0):
        net = nn.Sequential(nn.Linear(7, 10), nn.ReLU(), nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    monkeypatch.setattr(compnet, "net", lambda **options: net)
    monkeypatch.setattr(compnet, "data_dir", tmp_path)
    return net


def test_radii_by_margin_and_by_branching(small, tmp_path, capsys):
    methods = ("pairwise", "margin", "branching", "gradient")
    run_here("calculate_bounds_adv.py", "--network", "compnet", "--methods", *methods)
    arrays = results.load(tmp_path / "adversarial.npz")[0]
    pairwise, margin, branching, found = (
        float(arrays[f"{method}_distance"][0]) for method in methods
    )
    assert pairwise < margin <= branching * 1.05 and branching <= found
    assert "certified: margin bound" in (out := capsys.readouterr().out) and "certified: branching" in out
    assert verify(small, compnet.x0, margin).verdict == ["verified"]
    assert torch.isfinite(torch.tensor(branching))
