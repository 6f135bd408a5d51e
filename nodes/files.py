"""Turns a widget's value into a path that may be read.

ComfyUI 0.3.75 does not check that a value is one of a widget's options, nor that an uploaded file is inside its folder.
Both are checked here. Every error is one sentence that says what is missing and where it belongs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import folder_paths

from ..ltx.characters import check_name
from ..ltx.errors import InputError
from ..ltx.models import Published, named_file
from ..ltx.prompt.contexts import fingerprint

LISTED_DEPTH = 3  # levels of subfolders in which a model that is itself a folder is found


class Checked(list[str]):
    """Options of a widget whose value the node itself checks, so that its own sentence is the only one. Newer ComfyUIs
    would refuse an unknown value themselves, without saying where the file is to be had."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str)


def model_files(kind: str) -> list[str]:
    """Names of the safetensors files in a models folder, as ComfyUI lists them."""
    return [name for name in folder_paths.get_filename_list(kind) if name.endswith((".safetensors", ".sft"))]


def published(model: Published) -> str:
    """The remedy if that published file is missing."""
    return f"get {model.name} from {model.page}"


def wanted(name: Any, otherwise: str) -> str:
    """The remedy if the file of that name is missing: where it is published, or else `otherwise`."""
    model = named_file(name)
    return published(model) if model else otherwise


def model_file(kind: str, name: str, wanted: str) -> Path:
    """The file of that name. Raises InputError if it is not among `model_files`."""
    listed = find(name, model_files(kind))
    path = listed and folder_paths.get_full_path(kind, listed)
    if path is None:
        raise InputError(f"{name!r} is not in models/{kind}: {wanted}.")
    return Path(path)


def gguf_files(kind: str) -> list[str]:
    """Names of the GGUF files in a models folder. ComfyUI itself does not list them."""
    bases = folder_paths.get_folder_paths(kind) if kind in folder_paths.folder_names_and_paths else []
    found = (name for base in bases for name in folder_paths.recursive_search(base)[0])
    return sorted({name for name in found if name.lower().endswith(".gguf")})


def gguf_file(kind: str, name: str, wanted: str) -> Path:
    """The file of that name. Raises InputError if it is not among `gguf_files`."""
    listed = find(name, gguf_files(kind))
    path = listed and folder_paths.get_full_path(kind, listed)
    if path is None:
        raise InputError(f"{name!r} is not in models/{kind}: {wanted}.")
    return Path(path)


def model_folders(kind: str, mark: str) -> list[str]:
    """Names of the folders in a models folder that contain the file `mark`, so each of them is one model."""
    return sorted(_folders(kind, mark))


def model_folder(kind: str, name: str, mark: str, wanted: str) -> Path:
    """The folder of that name. Raises InputError if it is not among `model_folders`."""
    folders = _folders(kind, mark)
    path = folders.get(find(name, folders))
    if path is None:
        raise InputError(f"{name!r} is not a folder with a {mark} in models/{kind}: {wanted}.")
    return path


def _folders(kind: str, mark: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for base in folder_paths.get_folder_paths(kind) if kind in folder_paths.folder_names_and_paths else []:
        for folder, below, _ in os.walk(base, followlinks=True):
            relative = Path(folder).relative_to(base)
            if folder != base and (Path(folder) / mark).is_file():
                found.setdefault(relative.as_posix(), Path(folder))
                below.clear()
            elif len(relative.parts) >= LISTED_DEPTH:
                below.clear()
    return found


def uploads(kind: str, suffixes: Collection[str]) -> list[str]:
    """Names of the files in ComfyUI's input folder that have one of these suffixes, or that the operating system knows
    as that kind of media ("audio", "image")."""
    folder = folder_paths.get_input_directory()
    names = [entry.name for entry in os.scandir(folder) if entry.is_file()] if os.path.isdir(folder) else []
    kinds = [kind, "video"] if kind == "audio" else [kind]
    known = {*folder_paths.filter_files_content_types(names, kinds)}
    return sorted(name for name in names if name in known or Path(name).suffix.lower() in suffixes)


def upload(name: str) -> Path:
    """The file of an upload widget's value (`name`, `folder/name`, `name [output]`). Raises InputError if it is missing
    or outside ComfyUI's folder."""
    if not isinstance(name, str):  # a queued prompt may contain anything
        raise InputError(f"{name!r} is not a file name: choose a file, or upload one.")
    check_name("file", name)
    bare, base = folder_paths.annotated_filepath(name)
    base = os.path.realpath(base or folder_paths.get_input_directory())
    path = os.path.realpath(os.path.join(base, bare))
    if not os.path.exists(path):
        path = os.path.realpath(os.path.join(base, _slashed(bare)))
    if path != base and not path.startswith(os.path.join(base, "")):
        raise InputError(f"{name!r} is outside ComfyUI's {os.path.basename(base)} folder: upload the file instead.")
    if not os.path.isfile(path):
        raise InputError(f"{name!r} is not in ComfyUI's {os.path.basename(base)} folder: upload it first.")
    return Path(path)


def _slashed(name: str) -> str:
    """A name that a graph got on Windows, for any other system: `sub\\file` is `sub/file`."""
    return name.replace("\\", "/")


def find(name: Any, names: Collection[str]) -> str | None:
    """The name as it is listed here, whatever slashes a graph of another system gave it. None if it is not listed."""
    if not isinstance(name, str):
        return None
    if name in names:
        return name
    return next((known for known in names if _slashed(known) == _slashed(name)), None)


def choice(field: str, value: str, options: Sequence[str]) -> str:
    """Returns the value if it is one of the options. Raises InputError otherwise."""
    if value not in options:
        raise InputError(f"{field} is {value!r}: choose one of {', '.join(options)}.")
    return value


def verdict(check: Callable[[str], object], value: str | None) -> bool | str:
    """The result for `validate_inputs`: the sentence of the check's InputError, or True. A linked value is not known
    yet, so None is accepted."""
    if value is not None:
        try:
            check(value)
        except InputError as error:
            return str(error)
    return True


def stamp(path: Path) -> str:
    """A text that changes when the file changes, or any file of a folder that is a model, for `fingerprint_inputs`. It
    has no path, because ComfyUI writes it into saved videos."""
    if path.is_dir():
        return fingerprint(path)
    status = path.stat()
    return f"{status.st_mtime_ns}:{status.st_size}"


def stamped(find: Callable[[str], Path | None], name: str | None) -> str:
    """The stamp of the model that a widget names; "" if it names none. A linked value is not known when ComfyUI asks
    for a fingerprint: it is None, and has "", too, because an error there would load the model anew in each run."""
    path = None if name is None else find(name)
    return "" if path is None else stamp(path)
