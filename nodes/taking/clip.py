"""VIDEO: the engine's clip and its sound, and IMAGE: the frames of a clip."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import InputImpl

from ...ltx.errors import InputError
from ...ltx.media.audio import Track
from ...ltx.media.clip import Clip, ImageClip, clip_track, open_clip
from ...ltx.media.rates import frame_rate
from ...ltx.media.unfinished import replacing
from ..progress import INTERRUPTS
from .picture import to_frames
from .sound import read, to_track

BLOCK = 1 << 20
PART = ("_VideoFromFile__start_time", "_VideoFromFile__duration", "_VideoFromFile__crop")
"""Where newer ComfyUIs keep which part of a file a VIDEO stands for, in time and, since 0.35, in the picture."""


def to_clip(video: Any) -> tuple[Clip, Track | None]:
    """A native VIDEO as a clip and its own sound, from the first picture on; None without sound.

    A whole file is read frame by frame by the engine's own reader. What has only frames (Create Video, a part of a
    file, a cropped or scaled file, another pack's kind) is a batch of images. Raises InputError if it is no VIDEO or
    cannot be read.
    """
    if not callable(getattr(video, "get_components", None)):
        raise InputError(f"video: it is {type(video).__name__}; connect Load Video or another node that gives VIDEO.")
    if isinstance(video, InputImpl.VideoFromFile) and _is_whole(video):
        path = _path(video.get_stream_source())
        return open_clip(path), clip_track(path)
    try:
        parts = video.get_components()
    except INTERRUPTS:  # ComfyUI's interrupt is a plain Exception
        raise
    except Exception as error:  # another pack's code may raise anything
        raise InputError(
            f"video: {type(video).__name__} cannot be read ({type(error).__name__}); connect Load Video instead."
        ) from error
    clip = ImageClip(to_frames(parts.images), _rate(parts.frame_rate), "video")
    sound = parts.audio
    return clip, to_track(sound) if isinstance(sound, Mapping) and read(sound, "waveform") is not None else None


def to_image_clip(images: Any, fps: float) -> Clip:
    """A native IMAGE as a clip. Raises InputError if it is none."""
    return ImageClip(to_frames(images), frame_rate(fps))


def _is_whole(video: Any) -> bool:
    """Whether the VIDEO of a file shows what its file holds. Newer ComfyUIs cut, crop and scale one without writing a
    file, and the newest say so themselves."""
    edited = getattr(video, "has_pending_frame_edits", bool)()
    return not edited and not any(getattr(video, name, None) for name in PART)


def _rate(value: Any) -> Fraction:
    try:
        return frame_rate(float(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"video: its frame rate is {value!r}; connect Load Video instead.") from error


def _path(source: Any) -> Path:
    """The file of a VIDEO. One that is only in memory is written to ComfyUI's temp folder, by its content's hash."""
    if not callable(getattr(source, "read", None)):
        return Path(source)
    digest = hashlib.sha256()
    while block := source.read(BLOCK):
        digest.update(block)
    folder = Path(folder_paths.get_temp_directory())
    path = folder / f"ltx-a2v-{digest.hexdigest()[:32]}.video"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        source.seek(0)
        with replacing(path) as partial, partial.open("wb") as file:
            while block := source.read(BLOCK):
                file.write(block)
    return path
