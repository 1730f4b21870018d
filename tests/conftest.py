"""One thread a process, so that tests may run side by side; hypothesis draws the same cases every time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the scripts that tests start as well

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")
