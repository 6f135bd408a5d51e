"""Compares loading a checkpoint of 4 GB with reading the same bytes raw: the time, and the resident memory afterwards.

The file is written in full and is not sparse. It is cold after the page cache was told to drop it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from a2v.benchmarks import files as made
from a2v.benchmarks.measure import Ratio, Table, middle, resident, say, sides
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.tiny import write_dummy_checkpoint

GIGABYTES = 4.1
BLOCK = 2**26
PARTS = ("transformer", "connectors", "video_vae", "audio_vae", "vocoder")


def drop(path: str) -> None:
    """Removes the file from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ours(path: str, cold: bool) -> dict[str, Any]:
    """Loads every part in the file's dtype, then copies the bytes of its weights out as for a device, BLOCK at a
    time."""
    buffer = torch.ones(BLOCK, dtype=torch.uint8)
    if cold:
        drop(path)
    before, start = resident("VmRSS"), time.perf_counter()
    file = load_checkpoint(path)
    models = [getattr(file, part)(torch.bfloat16) for part in PARTS]
    for model in models:
        for weight in model.parameters():
            for piece in weight.detach().reshape(-1).view(torch.uint8).split(BLOCK):
                buffer[: len(piece)] = piece
    seconds = time.perf_counter() - start
    return {"load": seconds, "resident": resident("VmRSS") - before}


def raw(path: str, cold: bool) -> dict[str, Any]:
    """Reads the file's bytes into a buffer, BLOCK at a time."""
    buffer = memoryview(bytearray(os.urandom(BLOCK)))
    if cold:
        drop(path)
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return {"load": time.perf_counter() - start}


def fill(path: Path) -> None:
    """Fills a sparse checkpoint's tensors with random bytes, so that reading it reads the disk."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        block = os.urandom(BLOCK)
        while (left := size - file.tell()) > 0:
            file.write(block[:left])
        os.fsync(file.fileno())


def load(folder: Path, small: bool = False, rounds: int = 5) -> Table:
    if small:
        path = made.models(folder, small).checkpoint
    else:
        say("  writing the file")
        path = write_dummy_checkpoint(folder / "dummy.safetensors", GIGABYTES)
        fill(path)
    size = path.stat().st_size
    times: dict[bool, tuple[list[float], list[float]]] = {cold: ([], []) for cold in (True, False)}
    grown: list[float] = []
    for number in range(1 if small else rounds):
        say(f"  round {number + 1}")
        for cold in times:
            for function, spent in zip(("ours", "raw"), times[cold], strict=True):
                with sides("load", log=folder / "sides.log") as (side,):  # a new process, because it keeps what it read
                    answer = side(function, path=str(path), cold=cold)
                spent.append(answer["load"])
                if function == "ours":
                    grown.append(answer["resident"] / size)
    if answer := next((g for g in grown if g < 0.5), None):
        raise AssertionError(f"only {answer:.2f} of the file is resident: it was not read")
    rows = [
        (name, *(f"{middle(spent)} s" for spent in times[cold]), str(Ratio(*times[cold])), "≤ 1.30")
        for name, cold in (("from the disk", True), ("from the page cache", False))
    ]
    rows.append(("resident memory after it / size of the file", middle(grown), "1.00", middle(grown), "≤ 1.15"))
    notes = (
        f"The file has {size / 1e9:.2f} GB in bfloat16, with blocks of the published width. Our side calls "
        "`load_checkpoint`, builds every part of the model, and copies all weights through a buffer of 64 MB, as to a "
        "device. The raw side reads the file through such a buffer.",
    )
    numbers = {
        "cold": Ratio(*times[True]).median,
        "warm": Ratio(*times[False]).median,
        "resident": median(grown),
    }
    columns = ("loading", "this pack", "raw read", "ratio", "wanted")
    table = Table("Loading against reading the same bytes", columns, tuple(rows), notes, numbers)
    return table.judged((number,) for number in numbers.values())
