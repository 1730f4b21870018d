"""calculate_bounds_adv.py as a user runs it: the table, the files, the pictures, what it refuses."""

import contextlib
import dataclasses
import io
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import ROOT, refused

import networks.mnist
import networks.tiny
from script_tools import certificates, results

SCRIPT = "calculate_bounds_adv.py"
WEIGHTS = networks.mnist.data_dir / "weights.pt"
QUICK = ("global", "paper", "pairwise", "fgsm", "gradient")


def call(folder, *args, script=SCRIPT):
    """Run the script in this process, with its results in `folder`; what it prints."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        folder.mkdir(exist_ok=True)
        shutil.copy(WEIGHTS, folder)
        for network in (networks.mnist, networks.tiny):
            patch.setattr(network, "data_dir", folder)
        patch.setattr(sys, "argv", [script, *map(str, args)])
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def table(folder):
    return call(folder, "--methods", *QUICK, "--plot")


def test_table_of_the_nominal_digit(folder, table):
    rows = [line for line in table.splitlines() if line.startswith(("certified: ", "found: "))]
    assert [row.split(": ")[0] for row in rows[:5]] == ["certified"] * 3 + ["found"] * 2
    distances = [float(re.search(r" {2,}([\d.]+) ", row).group(1)) for row in rows[:5]]
    glob, paper, pairwise, fgsm, gradient = distances
    assert glob < paper < pairwise < gradient < fgsm
    assert "class '8'" in table


def test_file(folder, table):
    arrays, settings = results.load(folder / "adversarial.npz")
    assert settings["network"] == "mnist" and settings["seed"] == 0 and settings["inputs"] == ["nominal"]
    found = arrays["gradient_x"]
    assert np.linalg.norm(found - arrays["x0"]) == pytest.approx(float(arrays["gradient_distance"][0]))
    pixels = float(arrays["gradient_pixels"][0]) / float(arrays["gradient_distance"][0])
    assert pixels == pytest.approx(0.3081, rel=1e-5)
    net = networks.mnist.net().double()
    assert net(torch.from_numpy(found)).argmax().item() == arrays["gradient_other_class"][0] != 8


def test_picture(folder, table):
    with Image.open(folder / "adversarial.png") as picture:
        assert picture.width > 600 and len(picture.convert("RGB").getcolors(2**24)) > 50


def test_the_pictures_again_from_the_file(folder, table):
    before = (folder / "adversarial.png").read_bytes()
    assert call(folder, script="calculate_bounds_adv_plot.py") == f"wrote {folder / 'adversarial.png'}\n"
    assert (folder / "adversarial.png").read_bytes() == before


def test_a_second_run_computes_only_what_is_new(folder, table, capsys):
    path = folder / "adversarial.npz"
    earlier = results.load(path)[0]
    again = call(folder, "--methods", "pairwise", "ddn")
    now = results.load(path)[0]
    assert now["pairwise_seconds"] == earlier["pairwise_seconds"] and "ddn_distance" in now
    assert "found: DDN (valid images)" in again and "found: FGSM" in again
    assert now["pairwise_distance"] < now["ddn_distance"] < now["fgsm_distance"]
    with pytest.raises(SystemExit) as end:
        call(folder, "--seed", 1)
    assert end.value.code == 2 and "other settings (seed 0 there, 1 now)" in capsys.readouterr().err
    assert results.load(path)[0].keys() == now.keys()


def test_images_of_the_user(tmp_path):
    digit = Image.open(ROOT / "data" / "mnist" / "8.png")
    digit.save(tmp_path / "one.png")
    digit.rotate(8).save(tmp_path / "two.png")
    files = (tmp_path / "one.png", tmp_path / "two.png")
    out = call(tmp_path / "results", "--methods", "global", "gradient", "--plot", "--input", *files)
    assert "mnist, one.png: class '8'" in out and "mnist, two.png: class" in out
    pictures = sorted(path.name for path in (tmp_path / "results").glob("*.png"))
    assert pictures == ["adversarial_1.png", "adversarial_2.png"]


def test_a_network_without_images(tmp_path):
    out = call(tmp_path, "--network", "tiny", "--methods", "pairwise", "gradient", "ddn")
    arrays = results.load(tmp_path / "adversarial.npz")[0]
    assert arrays["pairwise_distance"] <= arrays["gradient_distance"] and np.isnan(arrays["ddn_pixels"]).all()
    assert arrays["ddn_distance"] == pytest.approx(arrays["gradient_distance"], rel=0.05)
    assert "valid images" not in out


def test_a_contradiction_is_loud(tmp_path, monkeypatch):
    """A bound that is too small, so that an attack finds something within what it certifies."""
    import local_lipschitz.radius

    right = local_lipschitz.global_bound

    def too_small(*args, **kwargs):
        bound = right(*args, **kwargs)
        bound.value.mul_(1e-3)
        return bound

    monkeypatch.setattr(local_lipschitz.radius, "global_bound", too_small)
    row, rule = certificates.METHODS["global"]
    monkeypatch.setitem(certificates.METHODS, "global", (dataclasses.replace(row, function=too_small), rule))
    with pytest.raises(SystemExit) as end:
        call(tmp_path, "--methods", "global", "gradient")
    assert "CONTRADICTION" in end.value.code and "gradient found one at" in end.value.code


def test_refusals(tmp_path, monkeypatch, capsys):
    Image.new("L", (30, 28)).save(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    refusals = {
        ("--input", tmp_path / "wide.png"): "30×28 pixels, 28×28 are wanted",
        ("--input", tmp_path / "broken.png"): "cannot read image",
        ("--input", tmp_path / "missing.png"): "missing.png",
        ("--network", "tiny", "--input", tmp_path / "wide.png"): "the input of tiny is not an image",
        ("--network", "tiny", "--plot"): "the input of tiny is not an image",
        ("--network", "nothing"): "no network 'nothing'",
    }
    for args, message in refusals.items():
        assert message in refused(monkeypatch, capsys, SCRIPT, *args)
