"""Media of a request on their way into ComfyUI's input folder, and results on their way out.

In: data URIs, uploads and earlier results of this server, http(s) URLs. What arrives is checked to be what its field
asks for by reading its header; the pixels and samples are the graph's business. Out: one file by its random name, or a
data URI in `sync_mode`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import mimetypes
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes

import av
from aiohttp import web
from PIL import Image
from yarl import URL

from ...ltx.errors import InputError
from ...ltx.media.audio import TAGS
from ...ltx.media.images import FORMATS
from ..database.store import Store
from ..network import addresses
from ..settings import MIB, SUBFOLDER, Settings
from . import uploads
from .incoming import CHUNK, Incoming, TooLargeError

Kind = Literal["audio", "image"]

SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")
RESULT = re.compile(r"[0-9a-f]{32}[0-9_]{0,16}\.(mp4|webm|mov|gif)")
"""A result's name: 128 random bits, then what ComfyUI's file counter adds."""
CONTENT_TYPES = {"mp4": "video/mp4", "webm": "video/webm", "mov": "video/quicktime", "gif": "image/gif"}
LOOK = {"protocol_whitelist": "none", "probesize": "65536"}
"""FFmpeg's. As in ltx/media/audio.py, a playlist must not make it read other files or the network. Bytes that are
looked at beyond a file's headers: the usual 5 MB take 30 ms of the interpreter from a running job."""
RESULTS = "/cdn/results/"
GONE = "This sync_mode result is gone: it is kept for 10 minutes after it was first read, and for an hour otherwise."


async def localize(value: str, field: str, kind: Kind, settings: Settings, store: Store) -> str:
    """A file that a request names, brought to ComfyUI's input folder → its name for the load nodes.

    value: a data URI, the URL of an upload or result of this server, or an http(s) URL. The name holds the content's
    hash, so the same file is kept once. Errors: `InputError` that names the field, and nothing is left behind.
    """
    if value[:5].lower() == "data:":
        content_type, data = await asyncio.to_thread(_parse_data_uri, value, field, settings.max_media)
        return await _keep(_pieces(data), "", content_type, field, kind, settings)
    url = addresses.parse(value, field)
    own = await _own(url, settings, store)
    if own:
        path, name, content_type = own
        return await _keep(_read(path), name, content_type, field, kind, settings)
    async with addresses.fetch(value, field, settings) as response:
        if (response.content_length or 0) > settings.max_media:
            raise _too_large(field, settings)
        name = response.url.name
        return await _keep(response.content.iter_chunked(CHUNK), name, response.content_type, field, kind, settings)


async def _own(url: URL, settings: Settings, store: Store) -> tuple[Path, str, str] | None:
    """(file, name, content type) of an upload or result of this server; its random name says that it is ours."""
    _, prefix, rest = url.path.partition(settings.prefix + RESULTS)
    path = result_path(rest, settings) if prefix else None
    if path:
        return path, path.name, CONTENT_TYPES[path.suffix[1:]]
    return await uploads.find(url.path, settings, store)


async def _keep(
    pieces: AsyncIterator[bytes], name: str, content_type: str, field: str, kind: Kind, settings: Settings
) -> str:
    async with Incoming(settings.input_folder, settings.max_media) as file:
        try:
            async for piece in pieces:
                await file.write(piece)
        except TooLargeError as error:
            raise _too_large(field, settings) from error
        look = _look_at_audio if kind == "audio" else _look_at_image
        found = await file.inspect(lambda path: look(path, field))
        kept = file.digest[:32] + _suffix(name, content_type, kind, found)
        await file.keep(settings.input_folder / kept, 0o644)
    return f"{SUBFOLDER}/{kept}"


def _too_large(field: str, settings: Settings) -> InputError:
    return InputError(
        f"{field}: the file is larger than {settings.max_media // MIB} MiB; send a smaller one, "
        "or let the administrator raise LTX_A2V_MAX_MEDIA_MB."
    )


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, CHUNK):
            yield piece


def _parse_data_uri(value: str, field: str, cap: int) -> tuple[str, bytes]:
    """RFC 2397: (content type, data). Errors: no comma, broken base64, larger than `cap` bytes."""
    head, comma, body = value[5:].partition(",")
    if not comma:
        raise InputError(f"{field}: the data URI has no comma; give data:<type>;base64,<data>.")
    content_type, *parameters = (part.strip().lower() for part in head.split(";"))
    if "base64" not in parameters:
        data = unquote_to_bytes(body)
    else:
        text = re.sub(rb"\s", b"", unquote_to_bytes(body)).rstrip(b"=")
        try:
            data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
        except binascii.Error as error:
            raise InputError(f"{field}: the data URI's base64 is broken ({error}); encode the file again.") from error
    if len(data) > cap:
        raise InputError(f"{field}: the data URI is larger than {cap // MIB} MiB; upload the file instead.")
    if not data:
        raise InputError(f"{field}: the data URI is empty; encode the file again.")
    return content_type, data


def _look_at_audio(path: Path, field: str) -> str:
    """A suffix that fits the container. Errors: nothing that FFmpeg reads, or no sound in it."""
    try:
        with path.open("rb") as file, av.open(file, options=LOOK, **TAGS) as container:
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
    """A suffix that fits the format. Errors: nothing that `ltx.media.images` reads."""
    Image.init()
    try:
        with Image.open(path, formats=[known for known in FORMATS if known in Image.OPEN]) as image:
            endings = [suffix for suffix, known in Image.registered_extensions().items() if known == image.format]
            return min(endings, key=len, default=".bin")
    except Exception as error:  # Pillow's readers raise nearly anything on a damaged file
        raise InputError(f"{field}: the file is no image; check that the URL leads to the file itself.") from error


def _suffix(name: str, content_type: str, kind: Kind, found: str) -> str:
    """Of the name, else of the content type, where it is one of that kind; else what the content said."""
    candidates = (Path(name).suffix.lower(), mimetypes.guess_extension(content_type) or "")
    return next((suffix for suffix in candidates if _is_kind(suffix, kind)), found)


def _is_kind(suffix: str, kind: Kind) -> bool:
    kinds = ("audio/", "video/") if kind == "audio" else ("image/",)
    known = mimetypes.types_map.get(suffix, "")
    return bool(SUFFIX.fullmatch(suffix)) and known.startswith(kinds)


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


def routes(settings: Settings) -> list[web.RouteDef]:
    """Results by their random names, to anyone who knows one; with ranges, as players ask for them."""

    async def result(request: web.Request) -> web.StreamResponse:
        path = await asyncio.to_thread(result_path, request.match_info["name"], settings)
        if path is None:
            return web.json_response({"detail": "No such result; it may have expired."}, status=404)
        return web.FileResponse(path, headers=uploads.file_headers(CONTENT_TYPES[path.suffix[1:]], path.name))

    return [web.get(settings.prefix + RESULTS + "{name}", result)]


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
