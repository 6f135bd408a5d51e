"""Finished parts of films, in the results' folder. They stay for a while, so that a film of which one section was
changed takes the others up."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ...ltx.diffusion.kept import DAYS, limit, setting
from ..settings import Settings
from .owners import remove
from .results import PART

DAY = 24 * 3600.0


def found(names: Iterable[str], settings: Settings) -> dict[str, str]:
    """The files of those parts that are there, by the names that they begin with. They count as new then.

    It lists the folder once, which may have very many results: call it off the event loop.
    """
    there: dict[str, str] = {}
    paths = _parts(settings.output_folder)
    for name in names:
        for path in paths:
            if name not in there and path.name.startswith(name):
                with suppress(OSError):
                    os.utime(path)
                    there[name] = path.name
    return there


def sweep(settings: Settings) -> None:
    """Deletes the parts that are older than the settings allow, and the oldest of those that take too much room. Raises
    InputError if a setting is no number."""
    sizes = {}
    for path in _parts(settings.output_folder):
        with suppress(OSError):
            sizes[path] = path.stat()
    before = time.time() - min(setting(DAYS) * DAY or math.inf, settings.expire_seconds or math.inf)
    total, most = sum(each.st_size for each in sizes.values()), limit()
    for path in sorted(sizes, key=lambda each: sizes[each].st_mtime):
        if sizes[path].st_mtime >= before and total <= most:
            break
        with suppress(OSError):
            path.unlink()
            total -= sizes[path].st_size


def drop(names: list[str], settings: Settings) -> None:
    """Deletes parts. One that cannot be deleted now is swept later."""
    for name in names:
        remove(settings.output_folder / name)


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if PART.fullmatch(path.name))
