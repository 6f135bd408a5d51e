"""Where the next file under a prefix goes: a folder of ComfyUI's or one below it, whatever the prefix and links say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..ltx.errors import InputError
from ..ltx.media.unfinished import check_path
from .names import ENDING, check_name, fill_in


def destination(
    prefix: str,
    width: int,
    height: int,
    ending: str = ".mp4",
    kind: io.FolderType = io.FolderType.output,
    hidden: Any = None,
) -> tuple[Path, str, str]:
    """Folder, file name and subfolder of the next video under that prefix. hidden: the node's hidden inputs.

    Raises InputError as `check_prefix`, before a folder is made.
    """
    filled = check_prefix(prefix, width, height, kind, hidden)
    output = folder_paths.get_directory_by_type(kind.value)
    folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(filled, output, width, height)
    if not Path(folder).resolve().is_relative_to(Path(output).resolve()):  # a newer ComfyUI may know more of %…%
        raise _outside(prefix, kind)
    return Path(folder), f"{stem}_{counter:05}_{ending}", subfolder


def check_prefix(
    prefix: str,
    width: int = 0,
    height: int = 0,
    kind: io.FolderType = io.FolderType.output,
    hidden: Any = None,
) -> str:
    """Returns the prefix with its %…% filled in. Nothing is made.

    Raises InputError if it can be no name, names no file, or leads out of that folder of ComfyUI's, also through a
    link, or through a file as if it were a folder, or into a folder without permission to write.
    """
    prompt, extra = getattr(hidden, "prompt", None), getattr(hidden, "extra_pnginfo", None)
    filled = fill_in(prefix, width, height, prompt, extra)
    check_name(filled)
    output = Path(folder_paths.get_directory_by_type(kind.value)).resolve()
    check_path("filename_prefix", Path(f"{output / filled}{ENDING}"))
    target = (output / filled).resolve()
    if target == output:
        raise InputError(f"filename_prefix: {prefix!r} names no file; give a name like video/ltx-a2v.")
    if not target.is_relative_to(output):
        raise _outside(prefix, kind)
    there = next(folder for folder in target.parents if folder.exists() or folder == folder.parent)
    if not there.is_dir():
        raise InputError(f"filename_prefix: {there.name!r} in {prefix!r} is a file and no folder; choose another name.")
    if not os.access(there, os.W_OK):
        raise InputError(f"filename_prefix: no permission to write in {there}; choose another folder.")
    return filled


def _outside(prefix: str, kind: io.FolderType) -> InputError:
    return InputError(f"filename_prefix: {prefix!r} leads out of the {kind.value} folder; give a name inside it.")
