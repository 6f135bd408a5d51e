"""IMAGE: one picture for the model, or the frames of a video for a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...ltx.errors import InputError
from ...ltx.media.images import from_float


def to_picture(image: Any) -> Tensor:
    """The first picture of a native IMAGE: uint8 [H, W, 3] on the CPU, transparent parts black.

    It can have one to four channels, floats in 0..1 or bytes, and it can be a batch, a list or one picture [H, W, C].
    Raises InputError for everything else.
    """
    return from_float(_first(image).cpu())


def size_of(image: Any) -> tuple[int, int]:
    """Width and height of the first picture. Raises InputError if there is none."""
    height, width = _first(image).shape[:2]
    return width, height


def others(image: Any) -> str:
    """The sentence for a batch or a list of several pictures, of which only the first one counts; else ""."""
    count = len(image) if isinstance(image, Sequence) or image.ndim == 4 else 1
    return f"{count} images came in, and the first one is used" if count > 1 else ""


def to_frames(images: Any) -> Tensor:
    """The frames of a native IMAGE [n, H, W, C] with one to four channels. Raises InputError if it is no clip."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[3] not in (1, 2, 3, 4) or not images.numel():
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images: it is {shape}; frames [n, height, width, 3] are needed, at least one.")
    return images


def _first(image: Any) -> Tensor:
    """The first picture [H, W, C] as it came in. Raises InputError if there is none."""
    if image is None:
        raise InputError("image: there is none; connect a node that gives one.")
    pictures = image
    while isinstance(pictures, (list, tuple)) and pictures:
        pictures = pictures[0]
    if not isinstance(pictures, Tensor):
        raise InputError(f"image: it is {type(pictures).__name__}; a picture [1, height, width, 3] is needed.")
    if pictures.ndim == 4 and len(pictures):
        pictures = pictures[0]
    if pictures.ndim != 3 or pictures.shape[2] not in (1, 2, 3, 4) or not pictures.numel():
        raise InputError(f"image: its shape is {tuple(pictures.shape)}; [1, height, width, 3] is needed, not empty.")
    return pictures
