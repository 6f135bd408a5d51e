"""Finds the model files that a graph loads, by their published names, in ComfyUI's folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from ...ltx.errors import InputError
from ...ltx.models import MODELS, Published

Listing = Callable[[str], Iterable[str]]
"""A models folder's name → the names that ComfyUI lists there."""


class ModelMissing(InputError):
    """A published file is not in ComfyUI's folders. The administrator must add it, not the caller."""


@dataclass(frozen=True)
class ModelNames:
    """The model files, by the names that the loaders take.

    lora: the distilled one; None with a distilled checkpoint. loras: all that ComfyUI lists, for applications whose
    clients choose among them.
    """

    checkpoint: str
    upscaler: str
    lora: str | None
    gemma: str
    loras: tuple[str, ...] = ()


def find(model: Published, names: Iterable[str]) -> str:
    """A model's name as ComfyUI lists it, in any subfolder, in its newest version. Errors: ModelMissing."""
    by_name = {PureWindowsPath(name).name.lower(): name for name in names}  # it knows both kinds of slashes
    for name in (model.name, *model.older):
        if name in by_name:
            return by_name[name]
    raise ModelMissing(f"{model.name} is not in ComfyUI's models/{model.folder}: get it from {model.page}.")


def find_models(files: Listing, folders: Listing) -> ModelNames:
    """The files that the graph with the undistilled checkpoint loads. Errors: ModelMissing, for the first missing
    one."""
    return ModelNames(
        _file("dev", files),
        _file("upscaler", files),
        _file("distilled-lora", files),
        find(MODELS["gemma"], folders(MODELS["gemma"].folder)),
        tuple(files(MODELS["distilled-lora"].folder)),
    )


def find_distilled(files: Listing, folders: Listing) -> ModelNames:
    """The same with the distilled checkpoint. If that is not there, the undistilled one and the distilled LoRA do the
    same."""
    try:
        checkpoint, lora = _file("distilled", files), None
    except ModelMissing as missing:
        try:
            checkpoint, lora = _file("dev", files), _file("distilled-lora", files)
        except ModelMissing:
            raise missing from None
    gemma = find(MODELS["gemma"], folders(MODELS["gemma"].folder))
    return ModelNames(checkpoint, _file("upscaler", files), lora, gemma, tuple(files(MODELS["distilled-lora"].folder)))


def _file(key: str, files: Listing) -> str:
    return find(MODELS[key], files(MODELS[key].folder))


def find_lora(path: str, names: Iterable[str]) -> str:
    """The name in ComfyUI's list of the LoRA that a client means. Errors: ModelMissing.

    path: a name of that list, a file's name, or a URL or repository, whose last part is the name, with or without the
    suffix. Nothing is downloaded: a client must not fill this machine with models.
    """
    names = list(names)
    if path in names:
        return path
    wanted = PurePosixPath(unquote(path.partition("?")[0].partition("#")[0]).replace("\\", "/")).name.lower()
    for name in names:
        listed = PureWindowsPath(name)
        if wanted in (listed.name.lower(), listed.stem.lower()):
            return name
    raise ModelMissing(f"{wanted[:100]!r} is not in ComfyUI's models/loras: let the administrator put it there.")
