"""Faults: a full disk, a folder that cannot be written, damaged and malicious files.

What a user then sees is one sentence on stderr and exit status 2; what was there before is there still.
"""

import contextlib
import os
import resource
import shutil

import numpy as np
import pytest
import torch
from damage import spoil
from scripts import contents_of, run_here, sentence

from networks import _checkpoint
from script_tools import certified_rows, results


@contextlib.contextmanager
def files_of_at_most(size: int):
    """No file may grow beyond `size` bytes: what a full disk or a quota looks like to the one who writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


ONLY_LOCAL = ("--network", "tiny", "--points", "3", "--no-random", "--no-gradient", "--no-global", "--no-joint")


def test_a_full_disk_loses_nothing(tiny, capsys):
    with files_of_at_most(100):
        message = sentence(capsys, "calculate_bounds.py", *ONLY_LOCAL)
    assert "cannot be written" in message and "local.npz" in message
    assert contents_of(tiny) == {}
    run_here("calculate_bounds.py", *ONLY_LOCAL)
    whole = contents_of(tiny)
    assert list(whole) == ["local.npz"]
    arrays, settings = results.load(tiny / "local.npz")
    results.save(tiny / "local.npz", arrays | {"value": np.array([arrays["value"][0], np.nan, np.nan])}, settings)
    before = contents_of(tiny)
    with files_of_at_most(100):  # more points to come, and no room for them
        assert "cannot be written" in sentence(capsys, "calculate_bounds.py", *ONLY_LOCAL)
    assert contents_of(tiny) == before != whole
    run_here("calculate_bounds.py", *ONLY_LOCAL)
    assert contents_of(tiny) == whole


def test_a_full_disk_while_many_images_are_certified(mnist, images, capsys):
    """The second row no longer fits: the first one is kept, and the run goes on when there is room."""
    shutil.copy(images / "8.png", images / "9.png")
    args = ("--images", images, "--bound", "global", "--batch", "1")
    before = contents_of(mnist)
    part = mnist / "certified_global.part0.csv"
    with files_of_at_most(100):
        message = sentence(capsys, "calculate_bounds_many.py", *args)
    assert str(part) in message and "cannot be written" in message
    part.unlink(missing_ok=True)
    run_here("calculate_bounds_many.py", *args)
    whole = certified_rows.read_any(mnist / "certified_global.csv")[1]
    lines = (mnist / "certified_global.csv").read_text().splitlines(keepends=True)
    (mnist / "certified_global.csv").unlink()
    part.write_text("".join(lines[:3]))  # as if killed after the first image
    with files_of_at_most(part.stat().st_size + 20):
        assert "rows written before are kept" in sentence(capsys, "calculate_bounds_many.py", *args)
    assert certified_rows.read_any(part)[1] == whole[:1]
    assert contents_of(mnist)["weights.pt"] == before["weights.pt"]
    run_here("calculate_bounds_many.py", *args)
    again = certified_rows.read_any(mnist / "certified_global.csv")[1]
    assert [row._replace(seconds=0) for row in again] == [row._replace(seconds=0) for row in whole]


def test_a_row_that_was_cut_off_is_written_over(tmp_path):
    """Where the process was killed, or the disk full, within a line."""
    path, settings = tmp_path / "rows.csv", {"seed": 0}
    rows = [certified_rows.ImageRow(i, -1, 8, 0.25, 3, 1.5, f"{i}.png") for i in range(3)]
    certified_rows.write(path, rows[:2], settings)
    whole = path.read_bytes()
    for cut in range(1, 20):
        path.write_bytes(whole[:-cut])
        with certified_rows.Writer(path, settings) as writer:
            writer.write(rows[1:])
        assert certified_rows.read(path, settings) == rows


def test_a_full_disk_while_a_checkpoint_is_written(tmp_path):
    path = tmp_path / "w.pt"
    _checkpoint.save(path, {"a": torch.ones(3)})
    with files_of_at_most(100), pytest.raises(OSError, match=r"w\.pt cannot be written .* untouched"):
        _checkpoint.save(path, {"a": torch.ones(1000)})
    assert torch.equal(_checkpoint.read(path)["a"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["w.pt"]


def test_a_data_folder_that_cannot_be_written(tiny, capsys):
    """A file in its place, which stops root as well; and, for everybody else, a folder without the permission."""
    tiny.write_text("I am in the way")
    message = sentence(capsys, "calculate_bounds.py", *ONLY_LOCAL)
    assert "cannot be written" in message and str(tiny) in message
    assert tiny.read_text() == "I am in the way"
    tiny.unlink()
    tiny.mkdir()
    tiny.chmod(0o555)
    if os.geteuid() != 0:
        assert "cannot be written" in sentence(capsys, "calculate_bounds.py", *ONLY_LOCAL)
        assert contents_of(tiny) == {}
    tiny.chmod(0o755)


FOREIGN = [
    "truncated", "empty", "text", "pickle", "object array", "pickle in a zip", "another npz", "a made-up size",
    "a folder",
]  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_result_files(kind, tiny, capsys, tmp_path):
    run_here("calculate_bounds.py", *ONLY_LOCAL)
    capsys.readouterr()
    path, fired = tiny / "local.npz", tmp_path / "fired"
    spoil(path, kind, fired)
    before = contents_of(tiny)
    for script, args in (("calculate_bounds.py", ONLY_LOCAL), ("calculate_bounds_plot.py", ("--network", "tiny"))):
        message = sentence(capsys, script, *args)
        assert str(path) in message and "truncated or not a result file" in message
    assert contents_of(tiny) == before and not fired.exists()


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "pickle"])
def test_foreign_result_files_of_attacks(kind, mnist, capsys, tmp_path):
    path, fired = mnist / "adversarial.npz", tmp_path / "fired"
    results.save(path, {"x": np.zeros(100)}, {})
    spoil(path, kind, fired)
    before = contents_of(mnist)
    assert str(path) in sentence(capsys, "calculate_bounds_adv.py", "--methods", "global")
    assert contents_of(mnist) == before and not fired.exists()


def test_results_of_something_else_in_the_place_of_a_curve(tiny, capsys):
    results.save(tiny / "local.npz", {"x": np.zeros(2)}, {"random_weights": False})
    before = contents_of(tiny)
    message = sentence(capsys, "calculate_bounds_plot.py", "--network", "tiny")
    assert str(tiny / "local.npz") in message and "without 'value'" in message
    assert contents_of(tiny) == before


CSVS = {
    "another table": b"name,price\nbread,2\n",
    "a line of text": b"do not lose me",
    "no text": b'# {"seed": 0}\n\xff\xfe\x00\n',
    "settings that are none": b"# {}[]\nindex\n",
    "other columns": b'# {"seed": 0}\nindex,label\n0,1\n',
}


@pytest.mark.parametrize("name", ["certified_global.csv", "certified_global.part0.csv"])
@pytest.mark.parametrize("kind", CSVS)
def test_a_foreign_file_of_certified_radii(kind, name, mnist, images, capsys):
    (mnist / name).write_bytes(CSVS[kind])
    before = contents_of(mnist)
    message = sentence(capsys, "calculate_bounds_many.py", "--images", images, "--bound", "global")
    assert f"{mnist / name} is not a file of certified radii" in message
    assert contents_of(mnist) == before
