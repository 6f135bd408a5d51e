"""Checks by its header what a file is. The graph's loaders check its pixels and samples."""

from __future__ import annotations

import mimetypes
import re
from pathlib import Path
from typing import Literal

import av
from PIL import Image

from ...ltx.errors import InputError
from ...ltx.media.container import TAGS
from ...ltx.media.images import open_image

Kind = Literal["audio", "image"]

SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")
OPTIONS = {"protocol_whitelist": "none", "probesize": "65536"}
"""FFmpeg's options. As in ltx/media/audio.py, a playlist must not make it read other files or the network. It reads
`probesize` bytes behind a file's headers: the usual 5 MB take 30 ms of the interpreter from a running job."""


def look(path: Path, kind: Kind, field: str) -> str:
    """A suffix that fits the content. Errors: `InputError` if the file is of another kind."""
    return _look_at_audio(path, field) if kind == "audio" else _look_at_image(path, field)


def _look_at_audio(path: Path, field: str) -> str:
    """A suffix that fits the container. Errors: InputError if FFmpeg cannot read it or it has no sound."""
    try:
        with path.open("rb") as file, av.open(file, options=OPTIONS, **TAGS) as container:
            if not container.streams.audio:
                raise InputError(f"{field}: the file has no sound; give an audio file, or a video with a sound track.")
            names = [*container.format.name.split(","), *sorted(container.format.extensions)]
            return next((f".{name}" for name in names if _is_kind(f".{name}", "audio")), ".bin")
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"{field}: the file is no audio ({reason}); check that the URL leads to the file itself."
        ) from error


def _look_at_image(path: Path, field: str) -> str:
    """A suffix that fits the format. Errors: InputError if `ltx.media.images` cannot read it or it is too large."""
    with open_image(path, field, "the file is no image; check that the URL leads to the file itself.") as image:
        endings = [suffix for suffix, known in Image.registered_extensions().items() if known == image.format]
        return min(endings, key=len, default=".bin")


def best_suffix(name: str, content_type: str, kind: Kind, found: str) -> str:
    """The suffix of the name, else of the content type, if it is of that kind; else what the content said."""
    candidates = (Path(name).suffix.lower(), mimetypes.guess_extension(content_type) or "")
    return next((suffix for suffix in candidates if _is_kind(suffix, kind)), found)


def _is_kind(suffix: str, kind: Kind) -> bool:
    kinds = ("audio/", "video/") if kind == "audio" else ("image/",)
    known = mimetypes.types_map.get(suffix, "")
    return bool(SUFFIX.fullmatch(suffix)) and known.startswith(kinds)
