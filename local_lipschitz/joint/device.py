"""What a device has and can do: that decides whether the rows of all groups are kept."""

from __future__ import annotations

import os
from pathlib import Path

import torch

UNKNOWN = 4e9  # bytes, where the system does not say
A_THREAD, A_MULTIPROCESSOR = 2.5e11, 7.5e10  # (groups)³ that each factorises in some seconds, in float64


def largest_cube(device: torch.device) -> float:
    """(groups)³ that take some seconds to factorise, by the number of cores: a measured time would vary."""
    if device.type == "cuda":
        return A_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    return A_THREAD * torch.get_num_threads()


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
