"""Results on their way out: a file by its random name, or a data URI in `sync_mode`."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...ltx.errors import InputError
from ..database.rows import StoredRequest
from ..settings import MIB, SUBFOLDER, Settings

RESULT = re.compile(r"[0-9a-f]{32}[0-9_]{0,16}\.(mp4|webm|mov|gif)")
"""A result's name: 128 random bits, then what ComfyUI's file counter adds."""
CONTENT_TYPES = {"mp4": "video/mp4", "webm": "video/webm", "mov": "video/quicktime", "gif": "image/gif"}
RESULTS = "/cdn/results/"
GONE = "This sync_mode result is gone: it is kept for 10 minutes after it was first read, and for an hour otherwise."


def result_path(name: str, settings: Settings) -> Path | None:
    """The result of that name, if there is one and it lies where results lie."""
    if not RESULT.fullmatch(name):
        return None
    path = settings.output_folder / name
    outside = path.resolve().parent != settings.output_folder.resolve()
    return None if outside or not path.is_file() else path


def result_url(name: str, base_url: str, settings: Settings) -> str:
    """Where `routes` serves that file of the output folder; base_url: scheme and host, as the client knows them."""
    return f"{base_url}{settings.prefix}{RESULTS}{name}"


async def data_uri(path: Path, settings: Settings) -> str:
    """The result as `sync_mode` sends it, built when it is read. Errors: above `Settings.max_inline`."""

    def build() -> str:
        if path.stat().st_size > settings.max_inline:
            raise InputError(
                f"sync_mode: the result is larger than {settings.max_inline // MIB} MiB, too large for a data URI; "
                "leave sync_mode off to get a URL."
            )
        return f"data:{CONTENT_TYPES[path.suffix[1:]]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"

    return await asyncio.to_thread(build)


def inline_gone(ended: float, first_read: float | None, now: float, settings: Settings) -> bool:
    """Whether a `sync_mode` result is over: all times in seconds. Then the answer is 410 with `GONE`."""
    if first_read is not None:
        return now >= first_read + settings.inline_read_seconds
    return now >= ended + settings.inline_unread_seconds


def with_url(result: Mapping[str, Any], url: str) -> dict[str, Any]:
    """A result as it leaves the server."""
    return {**result, "video": {"url": url, **result["video"]}}


def result_file(request: StoredRequest, settings: Settings) -> Path:
    """Where the result's file lies."""
    folder = settings.temp / SUBFOLDER if request.sync_mode else settings.output_folder
    return folder / (request.result or {})["video"]["file_name"]
