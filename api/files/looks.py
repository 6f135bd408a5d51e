"""Checks by its header what a file is. The graph's loaders check its pixels and samples."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Literal

import av
from PIL import Image

from ...ltx.errors import InputError
from ...ltx.media.container import open_bytes, picture_stream
from ...ltx.media.images import check_size, moves, open_image
from ...ltx.media.suffixes import FILM, PICTURE, SOUND

Kind = Literal["audio", "image", "video", "reference"]
"""What an input takes. A reference is a video or a still picture."""

PROBED = "65536"
"""Bytes that FFmpeg reads behind a file's headers: the usual 5 MB take 30 ms of the interpreter from a running job."""


def look(path: Path, kind: Kind, field: str) -> str:
    """A suffix that fits the content. Errors: `InputError` if the file is of another kind."""
    if kind == "reference":
        kind = "video" if moves(path) else "image"
    return _look_at_image(path, field) if kind == "image" else _look_at_streams(path, kind, field)


def _look_at_streams(path: Path, kind: Kind, field: str) -> str:
    """A suffix that fits the container. Errors: InputError if FFmpeg cannot read it or it has no stream of the
    kind."""
    try:
        with path.open("rb") as file, open_bytes(file, probesize=PROBED) as container:
            if kind == "video":
                _check_picture(container, field)
            elif not container.streams.audio:
                raise InputError(f"{field}: the file has no sound; give an audio file, or a video with a sound track.")
            names = [*container.format.name.split(","), *sorted(container.format.extensions)]
            return next((f".{name}" for name in names if _is_kind(f".{name}", kind)), ".bin")
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"{field}: the file is no {kind} ({reason}); check that the URL leads to the file itself."
        ) from error


def _check_picture(container: av.container.InputContainer, field: str) -> None:
    """Errors: InputError if a file has no moving picture, one that cannot be decoded, or a larger one than the engine
    takes. A picture on the cover of a song is no video, and FFmpeg opens a still picture as a video of one frame."""
    film = picture_stream(container)
    if film is None:
        raise InputError(f"{field}: the file has no picture that moves, only sound; give a video.")
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
        raise InputError(f"{field}: the file is a still picture; give a video.")
    if film.codec_context is None:
        raise InputError(f"{field}: its video codec is not supported; convert it, for example to MP4 with H.264.")
    check_size(field, film.width, film.height)


def _look_at_image(path: Path, field: str) -> str:
    """A suffix that fits the format. Errors: InputError if `ltx.media.images` cannot read it or it is too large."""
    with open_image(path, field, "the file is no image; check that the URL leads to the file itself.") as image:
        endings = [suffix for suffix, known in Image.registered_extensions().items() if known == image.format]
        return min(endings, key=len, default=".bin")


def best_suffix(name: str, content_type: str, kind: Kind, found: str) -> str:
    """The suffix of the name, else of the content type, if it is of that kind; else what the content said."""
    candidates = (Path(name).suffix.lower(), mimetypes.guess_extension(content_type) or "")
    return next((suffix for suffix in candidates if _is_kind(suffix, kind)), found)


SUFFIXES: dict[Kind, frozenset[str]] = {
    "audio": SOUND | FILM,
    "image": PICTURE,
    "video": FILM | {".gif"},
    "reference": FILM | PICTURE,
}
"""Of each kind, as the engine has them: what a system knows depends on what is installed. A film may be a GIF."""


def _is_kind(suffix: str, kind: Kind) -> bool:
    return suffix in SUFFIXES[kind]
