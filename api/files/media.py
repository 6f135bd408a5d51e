"""Files that a request names, on their way into ComfyUI's input folder.

They come as data URIs, as uploads and earlier results of this server, and from http(s) URLs. What arrives is checked to
be what its field asks for, and gets its content's hash as its name, so that the same file is kept once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from yarl import URL

from ...ltx.errors import InputError
from ..database.store import Store
from ..network import addresses
from ..network.fetching import fetch
from ..settings import MIB, SUBFOLDER, Settings
from . import data_uris, uploads
from .incoming import CHUNK, Incoming, TooLargeError
from .looks import Kind, best_suffix, look
from .results import CONTENT_TYPES, RESULTS, result_path


async def localize(value: str, field: str, kind: Kind, settings: Settings, store: Store) -> str:
    """A file that a request names, brought to ComfyUI's input folder → its name for the load nodes.

    value: a data URI, the URL of an upload or result of this server, or an http(s) URL. The name holds the content's
    hash, so the same file is kept once. Errors: `InputError` that names the field, and nothing is left behind.
    """
    if value[:5].lower() == "data:":
        content_type, data = await asyncio.to_thread(data_uris.parse, value, field, settings.max_media)
        return await _keep(_pieces(data), "", content_type, field, kind, settings)
    url = addresses.parse(value, field)
    own = await _own(url, settings, store)
    if own:
        path, name, content_type = own
        return await _keep(_read(path), name, content_type, field, kind, settings)
    async with fetch(value, field, settings) as response:
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
        found = await file.inspect(lambda path: look(path, kind, field))
        kept = file.digest[:32] + best_suffix(name, content_type, kind, found)
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
