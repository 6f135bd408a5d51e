"""How much memory is free now."""

from __future__ import annotations

import os

import torch


def free_memory(device: torch.device | str) -> int:
    """Bytes that new tensors may take on a device now; what torch holds there in reserve counts as free.

    Of a CPU: memory that the system can give without swapping. Of a device that does not tell: no limit.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        return _host_memory()
    return 2**63


def _host_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            known = {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}
        return known["MemAvailable"]
    except (OSError, KeyError, ValueError):  # not Linux
        try:
            return (
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
            )  # half of all: a guess on the safe side
        except (AttributeError, ValueError, OSError):
            return 2**63
