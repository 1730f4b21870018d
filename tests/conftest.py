"""One thread a process, so that tests may run side by side; hypothesis draws the same cases every time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the scripts that tests start as well

import shutil

import hypothesis
import pytest
import torch
from scripts import SHIPPED

torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def passes_only(monkeypatch):
    """No group is few enough for the dense path."""
    monkeypatch.setattr("local_lipschitz.joint.dense.SHARE", -1.0)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The folder of tiny's results, elsewhere than in the project."""
    import networks.tiny

    monkeypatch.setattr(networks.tiny, "data_dir", tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def mnist(monkeypatch, tmp_path):
    """The folder of the MNIST network, with its weights, elsewhere than in the project."""
    import networks.mnist

    folder = tmp_path / "mnist"
    folder.mkdir()
    shutil.copy(SHIPPED / "weights.pt", folder)
    monkeypatch.setattr(networks.mnist, "data_dir", folder)
    return folder


@pytest.fixture
def images(tmp_path):
    """A folder with one digit in it."""
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(SHIPPED / "8.png", folder)
    return folder
