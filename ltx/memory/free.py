"""Measures how much memory is free now."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ..computing import GPUS
from ..devices import free_on_gpu

UNKNOWN = 2**63
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def free_memory(device: torch.device | str) -> int:
    """Bytes that new tensors may take on a device now. Memory that torch keeps in reserve there counts as free.

    On a CPU it is the memory that the system can give without swapping, within the limit of a container; a GPU that
    does not tell shares it. For a device of another kind it is UNKNOWN, which means no limit.
    """
    device = torch.device(device)
    if device.type in GPUS:
        free = free_on_gpu(device)
        return host_memory() if free is None else free
    return host_memory() if device.type == "cpu" else UNKNOWN


def host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes of host memory that a process may still take."""
    return min(_available(proc), *_within_limits(proc, cgroups), UNKNOWN)


def free_swap(proc: Path = PROC) -> int:
    """Bytes of swap that Linux may still give; 0 on other systems."""
    try:
        return _told(proc, "SwapFree")
    except (OSError, KeyError, ValueError):
        return 0


def _told(proc: Path, name: str) -> int:
    """Bytes of an entry of Linux's meminfo."""
    lines = (line.split(":") for line in (proc / "meminfo").read_text("ascii").splitlines())
    return {name: int(value.split()[0]) * 1024 for name, value in lines}[name]


def _available(proc: Path) -> int:
    try:
        return _told(proc, "MemAvailable")
    except (OSError, KeyError, ValueError):  # not Linux
        try:  # half of the host's memory is a careful guess
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        except (AttributeError, ValueError, OSError):
            return _of_windows()


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 5),
    )


def _of_windows() -> int:
    """Bytes that Windows can give without swapping; UNKNOWN on other systems."""
    windows = getattr(ctypes, "windll", None)
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    told = windows is not None and windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status.available if told else UNKNOWN


def _within_limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """Bytes that each limit of the process's control groups leaves, for groups of version 1 and 2. File pages count as
    free."""
    try:
        groups = [line.split(":", 2) for line in (proc / "self/cgroup").read_text("utf-8").splitlines()]
    except OSError:
        return
    for number, controllers, path in groups:
        if number == "0":  # version 2
            root, limit, used, cache = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            root, (limit, used, cache) = cgroups / "memory", names
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be that of the host, and the container's own group is at the root.
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            try:
                most, taken = int((group / limit).read_text()), int((group / used).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield max(0, most - taken + int(stat.get(cache, 0)))
            except (OSError, ValueError):  # the text "max" means that this group has no limit
                continue
