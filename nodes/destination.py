"""Where the next file under a prefix goes: a folder of ComfyUI's or one below it, whatever the prefix and links say."""

from __future__ import annotations

import time
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..ltx.errors import InputError


def destination(
    prefix: str, width: int, height: int, ending: str = ".mp4", kind: io.FolderType = io.FolderType.output
) -> tuple[Path, str, str]:
    """Folder, file name and subfolder of the next video under that prefix. Errors: outside that folder of ComfyUI's.

    The prefix is looked at with its %…% filled in and its links followed, before a folder is made for it.
    """
    output = folder_paths.get_directory_by_type(kind.value)
    filled = _filled_in(prefix, width, height)
    target = Path(output, filled).resolve()
    if target == Path(output).resolve():
        raise InputError(f"filename_prefix: {prefix!r} names no file; give a name like video/ltx-a2v.")
    outside = InputError(f"filename_prefix: {prefix!r} leads out of the {kind.value} folder; give a name inside it.")
    if not target.is_relative_to(Path(output).resolve()):
        raise outside
    folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(filled, output, width, height)
    if not Path(folder).resolve().is_relative_to(Path(output).resolve()):  # a newer ComfyUI may know more of %…%
        raise outside
    return Path(folder), f"{stem}_{counter:05}_{ending}", subfolder


def _filled_in(prefix: str, width: int, height: int) -> str:
    """The prefix as ComfyUI will read it."""
    now = time.localtime()
    values = {"width": str(width), "height": str(height), "year": f"{now.tm_year}"}
    values |= {name: f"{getattr(now, field):02}" for name, field in TIMES.items()}
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", value)
    return prefix


TIMES = {"month": "tm_mon", "day": "tm_mday", "hour": "tm_hour", "minute": "tm_min", "second": "tm_sec"}
