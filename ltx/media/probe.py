"""Reads the facts of a video file: size, frames, rate, codecs, colours, tags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av

from ..errors import InputError, no_such_file
from .rates import frame_rate

# ITU-T H.273 code points that mean the same for matrix, primaries and transfer, with ffprobe's names. 2 is unspecified.
BT709 = 1
COLOR_NAMES = MappingProxyType({BT709: "bt709", 6: "smpte170m"})
RANGE_NAMES = MappingProxyType({1: "tv", 2: "pc"})


@dataclass(frozen=True)
class VideoFile:
    """A finished file. frames and fps are exact; seconds: length of the longer stream; size: bytes. Without audio, its
    fields are None and 0."""

    path: Path
    width: int
    height: int
    frames: int
    fps: Fraction
    seconds: float
    size: int
    container: str
    video_codec: str
    pixel_format: str
    color_space: str
    color_primaries: str
    color_transfer: str
    color_range: str
    audio_codec: str | None
    audio_rate: int
    audio_channels: int
    audio_layout: str | None
    metadata: Mapping[str, str]

    @property
    def duration(self) -> Fraction:
        """Length of the picture in seconds: frames / fps, exact."""
        return self.frames / self.fps


def probe(path: str | Path) -> VideoFile:
    """Reads the facts of a video file from its headers. Frames are counted if no header gives their number.

    Raises InputError if it is not a readable video file.
    """
    path = Path(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: has no video stream.")
            video = container.streams.video[0]
            audio = container.streams.audio[0] if container.streams.audio else None
            seconds = (container.duration or 0) / av.time_base
            frames = video.frames or sum(packet.size > 0 for packet in container.demux(video))
            codec = video.codec_context
            fps = Fraction(video.average_rate or video.base_rate or 0)
            if fps and "matroska" in container.format.name:
                fps = frame_rate(float(fps))  # Matroska stores only a frame's duration in nanoseconds
            return VideoFile(
                path=path,
                width=video.width,
                height=video.height,
                frames=frames,
                fps=fps,
                seconds=seconds,
                size=path.stat().st_size,
                container=container.format.name,
                video_codec=codec.name,
                pixel_format=codec.pix_fmt or "",
                color_space=COLOR_NAMES.get(codec.colorspace, ""),
                color_primaries=COLOR_NAMES.get(codec.color_primaries, ""),
                color_transfer=COLOR_NAMES.get(codec.color_trc, ""),
                color_range=RANGE_NAMES.get(codec.color_range, ""),
                audio_codec=audio.codec_context.name if audio else None,
                audio_rate=audio.rate if audio else 0,
                audio_channels=audio.channels if audio else 0,
                audio_layout=audio.layout.name if audio else None,
                metadata=_metadata(container),
            )
    except FileNotFoundError as error:
        raise no_such_file(path) from error
    except av.error.InvalidDataError as error:
        raise InputError(f"{path}: is not a video file that can be read.") from error


def _metadata(container: Any) -> dict[str, str]:
    """The tags as `write_video` got them: Matroska writes keys in capitals, and a GIF keeps all tags in its comment."""
    found = dict(container.metadata)
    if "matroska" in container.format.name:
        return {key.lower(): value for key, value in found.items()}
    if container.format.name == "gif":
        with suppress(ValueError):
            inside = json.loads(found.get("comment", ""))
            return inside if isinstance(inside, dict) else found
    return found
