"""What a device has and can do: whether the rows of all groups are kept, and how many inputs go at once."""

from __future__ import annotations

import os
from pathlib import Path

import torch

SHARE = 0.5  # of the free memory,
HELD, HELD_ROWS = 10, 3  # for so many matrices of the size of all groups, and copies of their Q, at once,
SOLVING = 24  # and for so many such matrices while multipliers are found
SIDE_BY_SIDE = {"cpu": 150, "cuda": 1500}  # groups up to which problems are solved side by side,
AT_ONCE = 64  # so many at most
MAY_BEND = 10  # times these groups: neurons and pairs of a network whose inputs are worked on in step
UNKNOWN = 4e9  # bytes, where the system does not say
A_THREAD, A_MULTIPROCESSOR = 2.5e11, 7.5e10  # (groups)³ that each factorises in some seconds, in float64


def largest_cube(device: torch.device) -> float:
    """(groups)³ that take some seconds to factorise, by the number of cores: a measured time would vary."""
    if device.type == "cuda":
        return A_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    return A_THREAD * torch.get_num_threads()


def memory(groups: int, inputs: int) -> float:
    """Bytes for the rows of so many groups, and what is made of them."""
    return 8.0 * groups * (HELD * groups + HELD_ROWS * inputs)


def problems_at_once(groups: int, device: torch.device) -> int:
    """How many problems with so many groups are solved side by side: 1 where one by one is as fast."""
    if groups > SIDE_BY_SIDE[device.type]:
        return 1
    return max(1, min(AT_ONCE, int(SHARE * free_memory(device) / (8.0 * SOLVING * max(1, groups) ** 2))))


def inputs_at_once(groups: int, inputs: int, device: torch.device) -> int:
    """How many inputs of a network are worked on in step, where each may have so many groups."""
    if groups > MAY_BEND * SIDE_BY_SIDE[device.type]:
        return 1
    return max(1, min(AT_ONCE, int(SHARE * free_memory(device) / memory(max(1, groups), inputs))))


def free_memory(device: torch.device) -> float:
    """Bytes that are left."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    table = Path("/proc/meminfo")
    if table.exists():
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            return 1024.0 * float(lines["MemAvailable"].split()[0])
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return UNKNOWN
