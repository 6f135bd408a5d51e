"""Finds the model files that a graph loads, by their published names, in ComfyUI's folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PureWindowsPath

from ...ltx.errors import InputError
from ...ltx.models import MODELS, Published

Listing = Callable[[str], Iterable[str]]
"""A models folder's name → the names that ComfyUI lists there."""


class ModelMissing(InputError):
    """A published file is not in ComfyUI's folders. The administrator must add it, not the caller."""


@dataclass(frozen=True)
class ModelNames:
    """The model files, by the names that the loaders take."""

    checkpoint: str
    upscaler: str
    lora: str
    gemma: str


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

    def file(key: str) -> str:
        return find(MODELS[key], files(MODELS[key].folder))

    gemma = MODELS["gemma"]
    return ModelNames(file("dev"), file("upscaler"), file("distilled-lora"), find(gemma, folders(gemma.folder)))
