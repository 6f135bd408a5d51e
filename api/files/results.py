"""Results: a file under its random name, or a data URI in `sync_mode`."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..database.rows import StoredRequest
from ..settings import Settings
from .incoming import in_thread

RESULT = re.compile(r"[0-9a-f]{32}[0-9_]{0,16}\.(mp4|webm|mov|gif)")
"""A result's name: 128 random bits and ComfyUI's file counter."""
PART = re.compile(r"[0-9a-f]{32}[0-9_]{0,16}\.safetensors")
"""The name of a part of a film, which a worker leaves and nobody else gets."""
CONTENT_TYPES = {"mp4": "video/mp4", "webm": "video/webm", "mov": "video/quicktime", "gif": "image/gif"}
RESULTS = "/cdn/results/"
PIECE = 3 * 2**16  # bytes that are encoded at a time; those of three are four characters
GONE = "This sync_mode result is gone: it is kept for 10 minutes after it was first read, and for an hour otherwise."


def result_path(name: str, settings: Settings) -> Path | None:
    """The path of the result of that name, if it exists and lies in the results' folder."""
    if not RESULT.fullmatch(name):
        return None
    path = settings.output_folder / name
    outside = path.resolve().parent != settings.output_folder.resolve()
    return None if outside or not path.is_file() else path


def result_url(name: str, base_url: str, settings: Settings) -> str:
    """The URL of that file of the output folder. base_url: scheme and host, as the client knows them."""
    return f"{base_url}{settings.prefix}{RESULTS}{name}"


@dataclass(frozen=True)
class InlineResult:
    """The file of a `sync_mode` result, which is read and encoded as it is sent: many readers take no memory. size: its
    bytes."""

    head: bytes
    file: BinaryIO
    size: int

    @classmethod
    def opened(cls, path: Path) -> InlineResult:
        """Errors: FileNotFoundError. From then on the file can be read even if it is deleted."""
        file = path.open("rb")
        return cls(f"data:{CONTENT_TYPES[path.suffix[1:]]};base64,".encode(), file, os.fstat(file.fileno()).st_size)

    def __len__(self) -> int:
        """Bytes of the data URI."""
        return len(self.head) + 4 * -(-self.size // 3)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The data URI, and closes the file."""
        yield self.head
        with self.file:
            while piece := await in_thread(self.file.read, PIECE):
                yield base64.b64encode(piece)


def inline_gone(ended: float, first_read: float | None, now: float, settings: Settings) -> bool:
    """Whether a `sync_mode` result is over; the answer is 410 with `GONE` then. All times are in seconds."""
    if first_read is not None:
        return now >= first_read + settings.inline_read_seconds
    return now >= ended + settings.inline_unread_seconds


def with_url(result: Mapping[str, Any], url: str) -> dict[str, Any]:
    """A result with its URL, as clients get it."""
    return {**result, "video": {"url": url, **result["video"]}}


def result_file(request: StoredRequest, settings: Settings) -> Path:
    """The path of a request's result."""
    folder = settings.passing_folder if request.sync_mode else settings.output_folder
    return folder / (request.result or {})["video"]["file_name"]
