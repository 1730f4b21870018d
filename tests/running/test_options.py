"""Wrong options, as a nasty user gives them: one sentence that names the option, exit status 2, nothing written."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import ROOT, contents_of, run_here, sentence

from script_tools import command_line

SWEEP = [
    (("--network", "nonsense"), "no network 'nonsense'; there are:"),
    (("--network", "../tiny"), "no network '../tiny'"),
    (("--network", "mnist_train"), "no network 'mnist_train'"),
    (("--network", "tiny", "--eps-min", "2", "--eps-max", "1"), "positive, finite numbers in this order are wanted"),
    (("--network", "tiny", "--eps-min", "-1"), "positive, finite numbers in this order are wanted"),
    (("--network", "tiny", "--eps-min", "nan"), "positive, finite numbers in this order are wanted"),
    (("--network", "tiny", "--eps-max", "nan"), "positive, finite numbers in this order are wanted"),
    (("--network", "tiny", "--eps-max", "inf"), "positive, finite numbers in this order are wanted"),
    (("--network", "tiny", "--joint-every", "0"), "--joint-every 0: a positive number is wanted"),
    (("--network", "tiny", "--points", "0"), "--points 0: a positive number is wanted"),
    (("--network", "tiny", "--points", "100000000000000"), "not enough memory"),
    (("--network", "tiny", "--points", "many"), "argument --points: invalid int value: 'many'; --help lists"),
    (("--network", "tiny", "--samples", "-5"), "--samples -5: a positive number is wanted"),
    (("--network", "tiny", "--tolerance", "0"), "--tolerance 0.0: a positive number is wanted"),
    (("--network", "tiny", "--tolerance", "nan"), "--tolerance nan: a positive number is wanted"),
    (("--network", "tiny", "--seed", "-1"), "argument --seed: '-1': a whole number from 0 to 2^63 - 1 is wanted"),
    (("--network", "tiny", "--seed", "9" * 30), "argument --seed"),
    (("--network", "tiny", "--seed", "²"), "argument --seed"),
    (("--network", "tiny", "--device", "tpu"), "--device tpu: cpu, cuda or cuda:N is wanted"),
    (("--network", "tiny", "--device", "mps"), "--device mps: cpu, cuda or cuda:N is wanted"),
    (("--network", "tiny", "--device", ""), "cpu, cuda or cuda:N is wanted"),
    (("--network", "tiny", "--device", "cuda:99"), "--device cuda:99: "),
    (("--network", "tiny", "--bogus"), "unrecognized arguments: --bogus; --help lists the options"),
    (("--network", "tiny", "stray\nargument"), "unrecognized arguments: stray argument"),
]


@pytest.mark.parametrize(("options", "words"), SWEEP, ids=[" ".join(options[-2:])[:40] for options, _ in SWEEP])
def test_sweep(options, words, tiny, capsys):
    assert words in sentence(capsys, "calculate_bounds.py", *options)
    assert not tiny.exists()


def test_cuda_without_cuda(monkeypatch, tiny, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = "--device cuda: torch finds no CUDA device here"
    assert words in sentence(capsys, "calculate_bounds.py", "--network", "tiny", "--device", "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="there are only 2 CUDA devices, counted from 0"):
        command_line.device("cuda:2")
    assert command_line.device("cuda:1").index == 1


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        ("calculate_bounds_plot.py", ("--network", "tiny", "--log", "--linear"), "not allowed with argument --log"),
        ("calculate_bounds_adv.py", ("--network", "tiny", "--plot"), "the input of tiny is not an image"),
        ("calculate_bounds_adv.py", ("--network", "tiny", "--input", "x.png"), "the input of tiny is not an image"),
        ("calculate_bounds_adv.py", ("--methods", "magic"), "argument --methods: invalid choice: 'magic'"),
        ("calculate_bounds_many.py", (), "one of the arguments --data --images is required"),
        ("calculate_bounds_many.py", ("--images", "nowhere"), "no folder nowhere"),
        ("calculate_bounds_many.py", ("--data", "nowhere"), "no MNIST at nowhere"),
        ("calculate_bounds_many.py", ("--network", "tiny", "--data", "."), "tiny has no test set"),
        ("calculate_bounds_many.py", ("--images", ".", "--batch", "0"), "positive numbers are wanted"),
        ("calculate_bounds_many.py", ("--images", ".", "--count", "-1"), "positive numbers are wanted"),
        ("calculate_bounds_many.py", ("--images", ".", "--tolerance", "inf"), "--tolerance inf"),
        ("calculate_bounds_many.py", ("--images", ".", "--rtol", "5", "--overwrite"), "--rtol 5.0: a number between"),
        ("calculate_bounds_many.py", ("--images", ".", "--radii", "0.1", "nan"), "--radii 0.1 nan: numbers from 0"),
        ("calculate_bounds_many.py", ("--images", ".", "--eps", "0.1", "-1"), "--eps 0.1 -1.0: positive"),
        ("calculate_bounds_many.py", ("--images", ".", "--eps", "nan"), "--eps nan: positive, finite numbers"),
        ("calculate_bounds_many.py", ("--images", ".", "--eps", "1", "--time-limit", "-1"), "--time-limit -1.0"),
        ("calculate_bounds_adv.py", ("--joint-rtol", "2"), "--joint-rtol 2.0: a number between 0 and 1"),
        ("calculate_bounds_adv.py", ("--joint-effort", "0"), "--joint-effort 0: a positive number is wanted"),
    ],
)
def test_other_scripts(script, options, words, mnist, capsys):
    before = contents_of(mnist)
    assert words in sentence(capsys, script, *options)
    assert contents_of(mnist) == before


def test_an_empty_folder_of_images(mnist, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    message = sentence(capsys, "calculate_bounds_many.py", "--images", tmp_path / "nothing")
    assert f"no image files in {tmp_path / 'nothing'}; looked for .bmp" in message


def test_file_names_that_are_no_text(mnist, images, capsys):
    """Bytes that are no UTF-8: legal for the file system, and an image like any other to an attack."""
    name = os.path.join(images, os.fsdecode(b"\xff\xfe.png"))
    os.rename(images / "8.png", name)
    run_here("calculate_bounds_adv.py", "--input", name, "--methods", "global")
    run_here("calculate_bounds_many.py", "--images", images, "--bound", "global", "--count", "1")
    assert (mnist / "adversarial.npz").exists()


def test_seeds_are_whole_numbers_that_torch_takes():
    assert command_line.seed("0") == 0 and command_line.seed(str(2**63 - 1)) == 2**63 - 1
    for text in ("-1", str(2**63), "1.5", "", " 1", "1e3"):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number"):
            command_line.seed(text)


def test_errors_of_the_system_are_told_without_its_numbers(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        command_line.run(Path("/nowhere/at/all").read_text)
    assert end.value.code == 2 and "Errno" not in (error := capsys.readouterr().err)
    assert error.endswith(": /nowhere/at/all: No such file or directory\n")


def test_a_reader_that_has_seen_enough():
    """`script | head -1`: not a word, and no traceback."""
    program = """from script_tools import command_line
command_line.run(lambda: [print(i, flush=True) for i in range(100_000)])"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.wait() == 141 and process.stderr.read() == ""


def test_errors_that_are_ours_are_not_hidden(monkeypatch):
    """Only what a user can mend becomes a sentence: a fault of the program keeps its traceback."""

    def fault():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        command_line.run(fault)
