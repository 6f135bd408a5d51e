"""Finds the model files that a graph loads, by their published names, in ComfyUI's folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from ...ltx.errors import InputError
from ...ltx.models import GEMMA_FILES, MODELS, V23, V25, Generation

Listing = Callable[[str], Iterable[str]]
"""A models folder's name → the names that ComfyUI lists there."""

SMALLER = {
    "dev": ("dev-fp8", "dev-nvfp4"),
    "distilled": ("distilled-fp8",),
    "distilled-lora": ("distilled-lora-111",),
    "dev-2.5": ("dev-int8-2.5",),
    "distilled-2.5": ("distilled-int8-2.5", "distilled-nvfp4-2.5"),
    "text-encoder-2.5": ("text-encoder-int8-2.5",),
}
"""Published models that do the work of another one, and that a graph takes if that is not there."""
GEMMA_3, EXPANDER, EXPANDER_FILE = "gemma", "expander", "expander-int8"


class ModelMissing(InputError):
    """A published file is not in ComfyUI's folders. The administrator must add it, not the caller."""


@dataclass(frozen=True)
class ModelNames:
    """The model files, by the names that the loaders take.

    lora: the distilled one; None with a distilled checkpoint. loras: all that ComfyUI lists, for applications whose
    clients choose among them. video_vae, audio_vae: None if the checkpoint holds them. expander: the model that writes
    prompts; None if the text encoder does that, or nothing can.
    """

    checkpoint: str
    upscaler: str
    lora: str | None
    gemma: str
    loras: tuple[str, ...] = ()
    video_vae: str | None = None
    audio_vae: str | None = None
    expander: str | None = None


@dataclass(frozen=True, eq=False)
class ModelFinder:
    """Finds the models of a version of LTX. It is called with ComfyUI's listings of files and of folders.

    distilled: with the distilled checkpoint. If that is not there, the undistilled one and the distilled LoRA do the
    same. decoders: keys of MODELS, the video VAEs in the order of choice. Errors: ModelMissing, for the first missing
    one.
    """

    generation: Generation
    distilled: bool = False
    decoders: tuple[str, ...] = ()

    def __call__(self, files: Listing, folders: Listing) -> ModelNames:
        checkpoint, lora = self._checkpoint(files)
        upscaler = _find(files, self.generation.upscaler)
        loras = tuple(files(MODELS[self.generation.distilled_lora].folder))
        gemma_3 = _gemma_3(files, folders)
        if self.generation is V23:
            return ModelNames(checkpoint, upscaler, lora, gemma_3 or _find(folders, GEMMA_3), loras)
        return ModelNames(
            checkpoint,
            upscaler,
            lora,
            _find(files, *_sizes(self.generation.encoder)),
            loras,
            video_vae=_find(files, *self.decoders),
            audio_vae=_find(files, "audio-vae-2.5"),
            expander=_published(folders, EXPANDER) or _published(files, EXPANDER_FILE) or gemma_3,
        )

    def _checkpoint(self, files: Listing) -> tuple[str, str | None]:
        """The checkpoint, and the distilled LoRA unless the checkpoint is distilled."""
        own = self.generation
        checkpoint = _published(files, *_sizes(own.checkpoint))
        lora = _published(files, *_sizes(own.distilled_lora))
        distilled = _sizes(own.distilled)
        if self.distilled and (_published(files, *distilled) or not (checkpoint and lora)):
            return _find(files, *distilled), None
        return checkpoint or _find(files, own.checkpoint), lora or _find(files, own.distilled_lora)


find_models, find_distilled = ModelFinder(V23), ModelFinder(V23, distilled=True)

CONVOLUTIONAL_FIRST = ("video-vae-2.5", "diffusion-vae-2.5")  # the first one fits smaller cards
DIFFUSION_FIRST = CONVOLUTIONAL_FIRST[::-1]  # finer, and slower
find_models_25 = ModelFinder(V25, decoders=CONVOLUTIONAL_FIRST)
find_distilled_25 = ModelFinder(V25, distilled=True, decoders=CONVOLUTIONAL_FIRST)
find_finest_25 = ModelFinder(V25, decoders=DIFFUSION_FIRST)


def _sizes(key: str) -> tuple[str, ...]:
    """A published model and what does its work, in the order of choice."""
    return (key, *SMALLER.get(key, ()))


def _find(listing: Listing, *keys: str) -> str:
    """As `_published`. Errors: ModelMissing, about the first model, if none of them is there."""
    if found := _published(listing, *keys):
        return found
    model = MODELS[keys[0]]
    raise ModelMissing(
        f"{model.name} is not in ComfyUI's models/{model.folder}: get it from {model.page}, or run "
        f"`python -m ltx download {keys[0]} --yes` in this pack's folder."
    )


def _published(listing: Listing, *keys: str) -> str | None:
    """The name, as ComfyUI lists it, of the first of these published models that is there, in its newest version."""
    for model in map(MODELS.__getitem__, keys):
        if found := _listed((model.name, *model.older), listing(model.folder)):
            return found
    return None


def _gemma_3(files: Listing, folders: Listing) -> str | None:
    """LTX-2.3's text encoder: its folder, else one of ComfyUI's files of it."""
    return _published(folders, GEMMA_3) or _listed(GEMMA_FILES, files(MODELS[GEMMA_3].folder))


def _listed(wanted: Iterable[str], names: Iterable[str]) -> str | None:
    """The first wanted name that is among the listed ones, in any subfolder."""
    by_name = {PureWindowsPath(name).name.lower(): name for name in names}  # it knows both kinds of slashes
    return next((by_name[name.lower()] for name in wanted if name.lower() in by_name), None)


def find_published_lora(key: str, names: Iterable[str]) -> str:
    """The name in ComfyUI's list of a published LoRA, a key of MODELS. Errors: ModelMissing."""
    return _find(lambda _: names, key)


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
