"""The examples run and say what is true; the network template goes from a checkpoint and an image to the figure."""

import re
import runpy

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import ROOT, copy_of_project, run

from local_lipschitz import local_bound
from networks import template

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def test_examples_are_short_and_all_run_here():
    assert [file.stem for file in EXAMPLES] == ["functional", "resnet_block", "sequential"]
    for file in EXAMPLES:
        assert len(file.read_text().splitlines()) < 40
        assert f"python examples/{file.name}" in file.read_text().splitlines()[0]


def test_sequential(capsys):
    runpy.run_path(str(ROOT / "examples" / "sequential.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["#", "layer", "type", "output", "bounded", "by", "factor"]
    assert any("folded into 0" in line for line in lines)
    bounds = [numbers(line)[-1] for line in lines if line.endswith("‖x − x0‖")]
    assert len(bounds) == 5
    assert bounds == sorted(bounds)


def test_functional_from_another_folder(tmp_path):
    first, second = run(tmp_path, ROOT / "examples" / "functional.py").stdout.splitlines()
    assert 0 < numbers(first)[0] < 1  # a grey level is 1/79 of a standard deviation
    assert second.startswith("refused: layer 'softmax' (position 9, softmax)")


def test_resnet_block(capsys):
    runpy.run_path(str(ROOT / "examples" / "resnet_block.py"), run_name="__main__")
    slope, first, second, above_all = (numbers(line) for line in capsys.readouterr().out.splitlines())
    for _, local, joint in (first, second):
        assert slope[0] <= joint + 1e-3
        assert joint <= local <= above_all[0]
    assert first[2] == pytest.approx(slope[0], rel=0.01)  # the joint bound tends to the slope, the product does not


def test_template_as_it_stands():
    net = template.net()
    assert net(template.x0).shape == (1, len(template.classes))
    assert not net.training
    weights = [template.net(random_weights=True, seed=seed)[0].weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert float(local_bound(net, template.x0, template.eps_min)) > 0


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with networks/mine.py, made from the template as its comments and the README say."""
    folder = copy_of_project(tmp_path_factory.mktemp("project"))
    text = (folder / "networks" / "template.py").read_text()
    text = text.replace('"data" / "template"', '"data" / "mine"')
    text = text.replace("    # if not random_weights:", "    if not random_weights:")
    text = text.replace("    #     return load_weights", "        return load_weights")
    text = text.replace("# x0 = load_image(", "x0 = load_image(").replace("\nx0 = (torch.rand", "\n_ = (torch.rand")
    (folder / "networks" / "mine.py").write_text(text)
    (folder / "data" / "mine").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "data" / "mine" / "nominal.png")
    return folder


def test_from_a_checkpoint_and_an_image_to_the_figure(project):
    checkpoint = project / "data" / "mine" / "weights.pt"
    quick = ("--points", 2, "--no-random", "--no-gradient", "--no-joint", "--device", "cpu")
    state = template.net(random_weights=True, seed=4).state_dict()
    torch.save(state, checkpoint)
    run(project, "calculate_bounds.py", "--network", "mine", *quick)
    run(project, "calculate_bounds_plot.py", "--network", "mine")
    assert Image.open(project / "data" / "mine" / "bounds.png").size[0] > 300
    with np.load(project / "data" / "mine" / "local.npz", allow_pickle=False) as found:
        assert np.isfinite(found["value"]).all() and (found["value"] > 0).all()
