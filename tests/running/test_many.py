"""calculate_bounds_many.py: one process against two, stopped and resumed, and its summary against hand-made rows."""

import contextlib
import io
import runpy
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from PIL import Image
from scripts import ROOT, copy_of_project, refused, run

import networks.mnist
from script_tools import certified_rows
from script_tools.certified_rows import ImageRow

SCRIPT = "calculate_bounds_many.py"
WEIGHTS = networks.mnist.data_dir / "weights.pt"
COUNT = 7


def call(folder, *args, script=SCRIPT):
    """Run the script in this process, with its results in `folder`; what it prints."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        shutil.copy(WEIGHTS, folder)
        patch.setattr(networks.mnist, "data_dir", folder)
        patch.setattr(sys, "argv", [script, *map(str, args)])
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return out.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Seven digits, two of them in a folder named like a class."""
    folder = tmp_path_factory.mktemp("images")
    digit = Image.open(ROOT / "data" / "mnist" / "8.png")
    for i in range(COUNT):
        place = folder / ("8" if i < 2 else ".")
        place.mkdir(exist_ok=True)
        digit.rotate(3 * i).save(place / f"{i}.png")
    return folder


def options(images):
    return ("--images", images, "--batch", "2", "--rtol", "1e-2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def alone(folder, images):
    """(standard output, rows, settings) of one process."""
    out = call(folder, *options(images))
    settings, rows = certified_rows.read_any(folder / "certified_local.csv")
    return out, rows, settings


def without_time(rows):
    return [row._replace(seconds=0.0) for row in rows]


def test_rows_and_summary(folder, alone):
    out, rows, _ = alone
    assert [row.index for row in rows] == list(range(COUNT))
    labels = {row.image: row.label for row in rows}
    assert labels["8/0.png"] == labels["8/1.png"] == 8 and labels["4.png"] == -1
    assert all(row.radius > 0.01 and row.limiting_class not in (row.predicted, -1) for row in rows)
    assert "7 images" in out and "5 without a label" in out and "certified accuracy" in out
    assert (folder / "certified.png").stat().st_size > 5000 and not list(folder.glob("*part*"))


def test_the_figure_again_from_the_file(folder, alone):
    before = (folder / "certified.png").read_bytes()
    out = call(folder, script="calculate_bounds_many_plot.py")
    assert out.splitlines() == [f"wrote {folder / f'certified.{suffix}'}" for suffix in ("png", "pdf")]
    assert (folder / "certified.png").read_bytes() == before


def test_two_processes_write_what_one_does(images, alone, tmp_path):
    copy_of_project(tmp_path)
    torchrun = Path(sysconfig.get_path("scripts")) / "torchrun"
    done = run(tmp_path, torchrun, "--standalone", "--nproc-per-node", 2, SCRIPT, *options(images))
    _, rows = certified_rows.read_any(tmp_path / "data" / "mnist" / "certified_local.csv")
    assert without_time(rows) == without_time(alone[1])
    assert done.stdout.count("7 images") == 1
    assert not list((tmp_path / "data" / "mnist").glob("*part*"))


def test_a_killed_process_goes_on(images, alone, tmp_path, capsys):
    """What two processes had written when they were killed, the last line of one half: only the rest is computed."""
    _, rows, settings = alone
    merged = tmp_path / "certified_local.csv"
    marked = [row._replace(seconds=123.0) for row in rows]
    for rank, written in enumerate((marked[:3], marked[4:5])):
        part = merged.with_name(f"certified_local.part{rank}.csv")
        certified_rows.write(part, written, settings)
    with open(part, "a") as file:
        file.write("5,-1,8,0.2")
    call(tmp_path, *options(images))
    again = certified_rows.read_any(merged)[1]
    assert [row.seconds == 123.0 for row in again] == [True, True, True, False, True, False, False]
    for one, two in zip(again, rows, strict=True):
        assert one.radius == pytest.approx(two.radius, rel=0.02) and one[:3] == two[:3]
    with pytest.raises(SystemExit) as end:
        call(tmp_path, *options(images), "--seed", 1)
    assert end.value.code == 2 and "other settings (seed 0 there, 1 now)" in capsys.readouterr().err


def test_summary_of_known_rows():
    numbers = [(1, 1, 0.1, 2), (1, 2, 0.9, 1), (0, 0, 0.3, 1), (0, 0, 0.0, 1)]
    rows = [ImageRow(i, *columns, 0.5) for i, columns in enumerate(numbers)]
    assert [certified_rows.certified_accuracy(rows, radius) for radius in (0.0, 0.1, 0.2, 0.4)] == [0.75, 0.5, 0.25, 0]
    text = certified_rows.summary(rows, [0.1, 0.2])
    assert "4 images, 0.50 s each" in text and "accuracy 75.00% of 4" in text and "0.2   25.00%" in text
    assert "median certified radius 0.1 " in text
    assert certified_rows.round_radii([0.0, 0.11, 0.16, 0.2]) == [0.1, 0.15, 0.2]
    assert certified_rows.round_radii([0.0]) == [0.0]


def test_rows_survive_files_and_tables(tmp_path):
    rows = [ImageRow(0, -1, 3, 1 / 3, 2, 0.1, 'a, "b".png'), ImageRow(7, 3, 3, 1e-12, 0, 0.1, "ü.png")]
    certified_rows.write(tmp_path / "x.csv", rows, {"seed": 0})
    assert certified_rows.read(tmp_path / "x.csv", {"seed": 0}) == rows
    table = certified_rows.to_table(rows)
    assert table.dtype == torch.float64
    assert certified_rows.from_table(table) == [row._replace(image="") for row in rows]
    assert certified_rows.from_table(certified_rows.to_table([])) == []


HEAD = ",".join(ImageRow._fields)


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "# {}\nindex,label\n", f"# {{}}\n{HEAD}\n1,x\n"])
def test_foreign_files(tmp_path, content):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(ValueError, match="not a file of certified radii"):
        certified_rows.read_any(tmp_path / "x.csv")


@pytest.mark.parametrize("there", ["", "# {", '# {"seed": 0}\nindex,lab', '# {"seed": 0}\n'])
def test_a_writer_starts_over_after_a_broken_head(tmp_path, there):
    path = tmp_path / "x.csv"
    path.write_text(there)
    assert certified_rows.read(path, {"seed": 0}) == []
    with certified_rows.Writer(path, {"seed": 0}) as writer:
        writer.write([ImageRow(0, 1, 1, 0.1, 2, 0.5)])
    assert len(certified_rows.read(path, {"seed": 0})) == 1


def test_refusals(tmp_path, monkeypatch, capsys):
    refusals = {
        ("--images", tmp_path / "nothing"): "no folder",
        ("--images", tmp_path): "no image files",
        ("--data", tmp_path): "no MNIST",
        ("--network", "tiny", "--images", tmp_path): "the input of tiny is not an image",
        ("--network", "tiny", "--data", tmp_path): "tiny has no test set",
        ("--images", tmp_path, "--batch", "0"): "positive numbers",
        ("--images", tmp_path, "--count", "-1"): "positive numbers",
    }
    for args, message in refusals.items():
        assert message in refused(monkeypatch, capsys, SCRIPT, *args)
