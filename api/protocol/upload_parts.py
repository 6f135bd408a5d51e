"""Uploads in parts. Parts come in any order, several at once, some again; then the client completes the file."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from aiohttp import web

from ..database.store import Store
from ..files import uploads
from ..files.incoming import Incoming, in_thread
from ..files.uploads import ETAG, Complete, Parts, Upload, part_path
from ..settings import Settings
from .answers import Refusal, problem
from .bodies import Gate, pieces_of, read_small_json
from .messages import PartsList, Uploaded, WholePart
from .operations import Answer, Body, Operation, RouteParameter
from .upload_access import ANSWERS, FILE_ID, FILE_NAME, ONE, TOKEN, UploadAccess

MAX_PARTS = 10_000
LONGEST_LIST = 2**21  # bytes of JSON that lists the parts
PARTS = ONE + "/multipart/{multipart:[0-9a-f]{32}}"
PARTS_ID = RouteParameter("multipart", "path", {"type": "string", "pattern": "^[0-9a-f]{32}$"})
NUMBER = RouteParameter("number", "path", {"type": "integer", "minimum": 1})
COMPLETE = "This upload is complete."


class UploadParts:
    """The handlers. Parts that are arriving are known in memory."""

    def __init__(self, settings: Settings, store: Store, access: UploadAccess, gate: Gate) -> None:
        self.settings, self.store = settings, store
        self.folder = uploads.folder(settings)
        self._access, self._gate = access, gate
        self._parts: dict[str, Parts] = {}
        self._completing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def operations(self, bytes_of_part: Body) -> list[Operation]:
        where = (FILE_ID, FILE_NAME, PARTS_ID)
        return [
            Operation(
                name="put_part",
                method="PUT",
                path=PARTS + "/{number:[0-9]{1,5}}",
                handler=self.put_part,
                summary="Receives a part.",
                answers={200: Answer("The part is whole.", WholePart), **ANSWERS},
                parameters=(*where, NUMBER, TOKEN),
                body=bytes_of_part,
                needs_key=False,
            ),
            Operation(
                name="complete",
                method="POST",
                path=PARTS + "/complete",
                handler=self.complete,
                summary="Ends an upload in parts.",
                answers={200: Answer("The file is whole.", Uploaded), **ANSWERS},
                parameters=(*where, TOKEN),
                body=Body(PartsList),
                needs_key=False,
            ),
        ]

    async def put_part(self, request: web.Request) -> web.Response:
        upload = await self._access.upload_of(request)
        number = int(request.match_info["number"])
        if not 1 <= number <= MAX_PARTS:
            return problem(422, f"Parts are numbered from 1 to {MAX_PARTS}.")
        if upload.digest:
            return problem(410, COMPLETE)
        with self._gate(request):
            parts = await self._known(upload.id)
            part, whole = parts.begin(number), False
            try:
                etag = await self._receive(request, upload.id, number, parts, part)
                whole = True
            finally:
                parts.end(number, part, whole=whole)
                if parts.is_idle and self._parts.get(upload.id) is parts:
                    del self._parts[upload.id]
        return web.json_response({"partNumber": number, "etag": etag}, headers={"ETag": f'"{etag}"'})

    async def _known(self, upload_id: str) -> Parts:
        if upload_id not in self._parts:
            whole = await self.store.read(uploads.parts_of, upload_id)
            self._parts.setdefault(upload_id, Parts({part.number: part.size for part in whole}))
        return self._parts[upload_id]

    async def _receive(
        self, request: web.Request, upload_id: str, number: int, parts: Parts, part: uploads.Arriving
    ) -> str:
        """Receives a part's bytes and returns its ETag. Errors: 413, 409, 408, 410."""
        if parts.size + (request.content_length or 0) > self.settings.max_upload:
            raise self._access.too_large()
        async with Incoming(self.folder, self.settings.max_upload) as file:
            async for piece in pieces_of(request):
                part.size += len(piece)
                if part.is_over:
                    raise Refusal(409, "A newer part of that number has come.")
                if parts.size > self.settings.max_upload:
                    raise self._access.too_large()
                await file.write(piece)
            await file.seal()
            try:
                replaced = await self.store.run(uploads.finish_part, upload_id, number, file, self.folder)
            except Complete:
                raise Refusal(410, COMPLETE) from None
            await in_thread(uploads.remove, replaced)
            return file.digest[:ETAG]

    async def complete(self, request: web.Request) -> web.Response:
        upload = await self._access.upload_of(request)
        with self._gate(request):
            body = await read_small_json(request, LONGEST_LIST)
        try:
            asked = {int(part["partNumber"]): str(part["etag"]).strip('"') for part in body["parts"]}
        except (KeyError, TypeError, ValueError, OverflowError):
            return problem(422, "Send {parts: [{partNumber, etag}]}.")
        lock = self._completing.setdefault(upload.id, asyncio.Lock())
        async with lock:  # clients repeat this call if its answer is late
            await self._join(upload, asked)
        url = self._access.url(request, upload)
        return web.json_response({"access_url": url, "file_url": url})

    async def _join(self, upload: Upload, asked: dict[int, str]) -> None:
        """Joins the named parts. It does nothing if the file is whole. Errors: 422, 413, 410."""
        current = await self.store.read(uploads.get, upload.id)
        if current is None:
            raise Refusal(410, "This upload was deleted.")
        if current.digest:
            return
        parts = {part.number: part for part in await self.store.read(uploads.parts_of, upload.id)}
        others = Refusal(422, "Some of these parts did not arrive, or differ from the listed ones; send them again.")
        if not asked or asked != {number: part.etag for number, part in parts.items() if number in asked}:
            raise others
        if sum(parts[number].size for number in asked) > self.settings.max_upload:
            raise self._access.too_large()
        paths = [part_path(self.folder, upload.id, number, asked[number]) for number in sorted(asked)]
        async with Incoming(self.folder, self.settings.max_upload) as file:
            try:
                await in_thread(uploads.join, paths, file)
            except FileNotFoundError:  # a newer part of that number has just come
                raise others from None
            await file.seal()
            try:
                joined = await self.store.run_durably(uploads.finish, upload.id, file, self.folder)
            except Complete:
                raise Refusal(410, COMPLETE) from None
        await in_thread(uploads.remove, joined)
