"""Brings the files that a request names into ComfyUI's input folder.

They come with the request, from uploads and earlier results of this server, and from http(s) URLs. Each file is checked
to be of its field's kind. Its name is its content's hash, so a file is kept once however often it comes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

from yarl import URL

from ...ltx.errors import InputError
from ..database.store import Store
from ..network import addresses
from ..network.fetching import body_of, fetch
from ..settings import MIB, SUBFOLDER, Settings
from . import owners, uploads
from .incoming import CHUNK, Incoming, TooLargeError, in_larger, in_thread
from .looks import Kind, best_suffix, look
from .results import CONTENT_TYPES, RESULTS, result_path


class Inbox:
    """The API's part of ComfyUI's input folder.

    Its methods raise `InputError`, which names the field, and `StoreFailed` or OSError if the database or the disk
    takes nothing. After an error nothing is left behind.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store

    async def localize(self, value: str, field: str, kind: Kind, request_id: str) -> str:
        """Brings a file that a request names, and returns its name for the load nodes.

        value: the URL of an upload or result of this server, or an http(s) URL.
        """
        url = addresses.parse(value, field)
        if own := await self._find_own(url):
            path, name, content_type = own
            return await self._receive(_read(path), name, content_type, field, kind, request_id)
        try:
            async with fetch(value, field, self._settings) as response:
                if (response.content_length or 0) > self._settings.max_media:
                    raise self._too_large(field)
                pieces, name = body_of(response, field), response.url.name
                return await self._receive(pieces, name, response.content_type, field, kind, request_id)
        except addresses.NotAllowedError:
            if any(self._settings.prefix + ours in url.path for ours in (RESULTS, uploads.FILES)):
                raise InputError(
                    f"{field}: this server has no such file, it expired, was deleted or never came whole; upload it "
                    "again."
                ) from None
            raise

    async def origin_of(self, value: str, field: str) -> str | None:
        """Host and port that a request's URL must be fetched from; None for a file of this server."""
        url = addresses.parse(value, field)
        return None if await self._find_own(url) else f"{url.raw_host}:{url.port}".lower()

    async def keep(self, file: Incoming, name: str, content_type: str, field: str, kind: Kind, request_id: str) -> str:
        """Keeps a file that arrived for a request, and returns its name for the load nodes."""
        found = await file.inspect(lambda path: look(path, kind, field))
        kept = f"{SUBFOLDER}/{file.digest[:32]}{best_suffix(name, content_type, kind, found)}"
        await file.seal(0o644)
        await self._store.run(owners.reserve, kept, request_id, time.time())
        await in_thread(_place, file, self._settings.input / kept)
        return kept

    async def _find_own(self, url: URL) -> tuple[Path, str, str] | None:
        """(file, name, content type) of an upload or result of this server. Its random name shows that it is ours."""
        _, prefix, rest = url.path.partition(self._settings.prefix + RESULTS)
        path = await in_thread(result_path, rest, self._settings) if prefix else None
        if path:
            return path, path.name, CONTENT_TYPES[path.suffix[1:]]
        return await uploads.find(url.path, self._settings, self._store)

    async def _receive(
        self, pieces: AsyncIterator[bytes], name: str, content_type: str, field: str, kind: Kind, request_id: str
    ) -> str:
        async with Incoming(self._settings.input_folder, self._settings.max_media) as file:
            try:
                async for piece in in_larger(pieces):
                    await file.write(piece)
            except TooLargeError as error:
                raise self._too_large(field) from error
            return await self.keep(file, name, content_type, field, kind, request_id)

    def _too_large(self, field: str) -> InputError:
        return InputError(
            f"{field}: the file is larger than {self._settings.max_media // MIB} MiB; send a smaller one, "
            "or let the administrator raise LTX_A2V_MAX_MEDIA_MB."
        )


def _place(file: Incoming, target: Path) -> None:
    """Gives a file its name, which is its content's. Windows replaces no file that a running request reads: that one
    has the same content."""
    try:
        file.place(target)
    except PermissionError:
        if not target.is_file():
            raise


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await in_thread(file.read, CHUNK):
            yield piece
