"""Free memory, in a container and outside of one."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from a2v.ltx.memory.free import free_memory, free_swap, host_memory

MIB = 2**20
MEMINFO = "MemTotal: 16777216 kB\nMemFree: 1024 kB\nMemAvailable: 8388608 kB\n"


def system(folder: Path, cgroup: str, **files: str) -> tuple[Path, Path]:
    """/proc and /sys/fs/cgroup as a process would find them; `files` by path, with two lines for a slash."""
    proc, groups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "self/cgroup").write_text(cgroup)
    groups.mkdir()
    for name, text in files.items():
        path = groups / name.replace("__", "/").replace("_at_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc, groups


def test_free_memory_is_told() -> None:
    assert 0 < free_memory("cpu") < 2**62
    assert free_memory("meta") == 2**63


def test_without_a_limit_it_is_what_the_system_has(tmp_path: Path) -> None:
    assert host_memory(*system(tmp_path / "none", "")) == 8192 * MIB
    unlimited = system(tmp_path / "max", "0::/job\n", job__memory_at_max="max\n", job__memory_at_current="5\n")
    assert host_memory(*unlimited) == 8192 * MIB
    (tmp_path / "none/proc/meminfo").unlink()
    assert 0 < host_memory(tmp_path / "none/proc", tmp_path / "none/cgroup") < 2**62


def test_swap_is_told_on_linux_alone(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(f"{MEMINFO}SwapFree: 4096 kB\n")
    assert free_swap(tmp_path) == 4 * MIB
    assert free_swap(tmp_path / "none") == 0


def test_a_container_s_limit_counts_and_its_file_pages_are_free(tmp_path: Path) -> None:
    """Version 2: the nearest limit and each above it; pages that the kernel can drop are free."""
    limits = {
        "job__memory_at_max": f"{1024 * MIB}\n",
        "job__memory_at_current": f"{900 * MIB}\n",
        "job__memory_at_stat": f"anon 1\ninactive_file {500 * MIB}\n",
    }
    assert host_memory(*system(tmp_path / "one", "0::/job\n", **limits)) == 624 * MIB
    assert host_memory(*system(tmp_path / "below", "0::/job/inner\n", **limits)) == 624 * MIB
    at_root = {name.replace("job__", ""): text for name, text in limits.items()}  # the path is the host's
    assert host_memory(*system(tmp_path / "root", "0::/docker/abc\n", **at_root)) == 624 * MIB
    over = {**limits, "job__memory_at_current": f"{2000 * MIB}\n"}
    assert host_memory(*system(tmp_path / "over", "0::/job\n", **over)) == 0


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    files = {
        "memory__job__memory_at_limit_in_bytes": f"{2048 * MIB}\n",
        "memory__job__memory_at_usage_in_bytes": f"{48 * MIB}\n",
        "memory__job__memory_at_stat": "total_inactive_file 0\n",
    }
    assert host_memory(*system(tmp_path, "5:cpu:/job\n4:memory:/job\n", **files)) == 2000 * MIB


def test_windows_tells_its_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no /proc and no sysconf. Without a number, every model would seem to fit, and be page-locked."""

    def tell(reference: Any) -> int:
        status = reference._obj
        assert status.length == ctypes.sizeof(status) == 64  # or Windows refuses to tell
        status.available = 5 * 2**30
        return 1

    monkeypatch.delattr(os, "sysconf", raising=False)
    kernel = SimpleNamespace(GlobalMemoryStatusEx=tell)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert host_memory(tmp_path, tmp_path) == 5 * 2**30
    kernel.GlobalMemoryStatusEx = lambda reference: 0  # it failed
    assert host_memory(tmp_path, tmp_path) == 2**63
