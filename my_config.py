"""The device that scripts and trainings compute on."""

import torch

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# device = torch.device("cpu")  # remove the first '#' to force the CPU
