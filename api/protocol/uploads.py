"""Uploads, as both official clients make them: announcements, and files in one piece.

JavaScript: `storage/upload/initiate` gives an address to PUT to, whose token is valid for that one file for an hour;
`initiate-multipart` does the same for parts of 10 MiB. Python: `storage/auth/token` gives a Bearer token for an hour,
for `files/upload` and `files/upload/multipart`. Refusals are JSON with one sentence in `detail`.
"""

from __future__ import annotations

import re
import secrets
import time
from datetime import datetime, timezone
from typing import Any

from aiohttp import web

from ..database.store import Store
from ..files import uploads
from ..files.incoming import Incoming, TooLargeError
from ..files.uploads import FILES, TOKEN_SECONDS, Announcement, Complete, Upload, UploadToken, token_hash
from ..settings import Settings
from .answers import Refusal, problem
from .bodies import Gate, pieces_of, read_small_json
from .files import FILE_ANSWERS, RANGE_HEADERS, file_answer
from .lifetimes import OF_REQUEST, OF_UPLOAD, keep_seconds
from .messages import Announced, UploadAddresses, UploadBegun, Uploaded, UploadPermit
from .operations import BINARY, BYTES, Answer, Body, Operation, RouteParameter
from .upload_access import ANSWERS, FILE_ID, FILE_NAME, ONE, TOKEN, UploadAccess
from .upload_parts import UploadParts
from .urls import base_url

REST = "/rest/storage"

FILE_BYTES = Body(schema=BINARY, content=BYTES)
NOTHING = Body(schema={"type": "object"})
NAME_HEADER = RouteParameter("X-Fal-File-Name", "header", {"type": "string"}, "The last part of the file's address.")


class Uploads:
    """The handlers of everything below `rest/storage` and `cdn/files`."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self.folder = uploads.folder(settings)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._access = UploadAccess(settings, store)
        self._gate = Gate()
        self._parts = UploadParts(settings, store, self._access, self._gate)

    def operations(self) -> list[Operation]:
        def post(
            name: str, path: str, summary: str, done: Answer, body: Body | None, *parameters: RouteParameter
        ) -> Operation:
            return Operation(
                name=name,
                method="POST",
                path=path,
                handler=getattr(self, name),
                summary=summary,
                answers={200: done, **ANSWERS},
                parameters=parameters,
                body=body,
                needs_key=path.startswith(REST),  # the other routes need a token
            )

        file = (FILE_ID, FILE_NAME)
        announced = (Answer("Where to send it.", UploadAddresses), Body(Announced), OF_UPLOAD)
        whole = Answer("The file is whole.", Uploaded)
        bytes_of_one = Operation(
            name="put",
            method="PUT",
            path=ONE,
            handler=self.put,
            summary="Receives the bytes of an announced upload.",
            answers={200: whole, **ANSWERS},
            parameters=(*file, TOKEN),
            body=FILE_BYTES,
            needs_key=False,
        )
        get = Operation(
            name="get",
            method="GET",
            path=ONE,
            handler=self.get,
            summary="Returns an uploaded file.",
            answers=FILE_ANSWERS,
            parameters=(*file, *RANGE_HEADERS),
            needs_key=False,
            head=True,
        )
        permit, begun = Answer("A token.", UploadPermit), Answer("Where to send the parts.", UploadBegun)
        named = (NAME_HEADER, OF_UPLOAD)
        return [
            post("initiate", f"{REST}/upload/initiate", "Announces an upload.", *announced),
            post("initiate_multipart", f"{REST}/upload/initiate-multipart", "Announces one in parts.", *announced),
            post("token", f"{REST}/auth/token", "Gives a token for uploads, valid for an hour.", permit, NOTHING),
            post("upload", FILES + "upload", "Receives a whole file.", whole, FILE_BYTES, *named),
            post("upload_multipart", FILES + "upload/multipart", "Begins an upload in parts.", begun, None, *named),
            bytes_of_one,
            get,
            *self._parts.operations(FILE_BYTES),
        ]

    # routes that need the key

    async def initiate(self, request: web.Request) -> web.Response:
        return await self._announce(request, multipart=False)

    async def initiate_multipart(self, request: web.Request) -> web.Response:
        return await self._announce(request, multipart=True)

    async def _announce(self, request: web.Request, multipart: bool) -> web.Response:
        body = await read_small_json(request)
        if not isinstance(body, dict):
            raise Refusal(422, "The announcement of an upload is broken: it is no object.")
        announced = _announced(request, body.get("file_name"), body.get("content_type"))
        upload, token = await uploads.announce(announced, multipart, self.store)
        url = self._access.url(request, upload)
        target = f"{url}/multipart/{upload.multipart}" if multipart else url
        return web.json_response({"upload_url": f"{target}?token={token}", "file_url": url})

    async def token(self, request: web.Request) -> web.Response:
        await read_small_json(request)
        token, until = secrets.token_urlsafe(32), time.time() + TOKEN_SECONDS
        await self.store.run(lambda session: session.add(UploadToken(token=token_hash(token), until=until)))
        return web.json_response(
            {
                "token": token,
                "token_type": "Bearer",
                "base_url": f"{base_url(request, self.settings)}{self.settings.prefix}/cdn",
                "expires_at": datetime.fromtimestamp(until, timezone.utc).isoformat(),
            }
        )

    # routes that need the Bearer token

    async def upload(self, request: web.Request) -> web.Response:
        await self._access.check_bearer(request)
        upload, _ = await uploads.announce(_announced_in_headers(request), False, self.store)
        return await self._receive(request, upload)

    async def upload_multipart(self, request: web.Request) -> web.Response:
        await self._access.check_bearer(request)
        upload, _ = await uploads.announce(_announced_in_headers(request), True, self.store)
        return web.json_response({"access_url": self._access.url(request, upload), "uploadId": upload.multipart})

    # routes that need the Bearer token or the file's own

    async def put(self, request: web.Request) -> web.Response:
        upload = await self._access.upload_of(request)
        if upload.multipart:
            return problem(409, "This file is uploaded in parts; PUT them to …/multipart/{uploadId}/{number}.")
        return await self._receive(request, upload)

    async def _receive(self, request: web.Request, upload: Upload) -> web.Response:
        """Receives the body as the whole file. The same bytes may come twice, as in a retry; others may not."""
        if (request.content_length or 0) > self.settings.max_upload:
            raise self._access.too_large()
        with self._gate(request):
            async with Incoming(self.folder, self.settings.max_upload) as file:
                try:
                    async for piece in pieces_of(request):
                        await file.write(piece)
                except TooLargeError:
                    raise self._access.too_large() from None
                await file.seal()
                try:
                    await self.store.run_durably(uploads.finish, upload.id, file, self.folder)
                except Complete:
                    return problem(410, "This upload is complete; ask for a new one.")
        url = self._access.url(request, upload)
        return web.json_response({"access_url": url, "file_url": url}, headers={"ETag": f'"{file.digest[:32]}"'})

    # routes that need nothing but the address

    async def get(self, request: web.Request) -> web.StreamResponse:
        found = await uploads.find(request.path, self.settings, self.store)
        if found is None:
            return problem(404, "No such upload; it may have expired.")
        path, name, content_type = found
        return await file_answer(request, path, content_type, name)


def _announced_in_headers(request: web.Request) -> Announcement:
    return _announced(request, request.headers.get("X-Fal-File-Name"), request.headers.get("Content-Type"))


def _announced(request: web.Request, name: Any, content_type: Any) -> Announcement:
    """What the client announces. Errors: 422 for a name or type that is no text, or a wrong lifecycle."""
    try:
        if not all(text is None or isinstance(text, str) for text in (name, content_type)):
            raise ValueError("file_name and content_type are texts")
        return Announcement(
            _plain_name(name or ""), _plain_type(content_type or ""), keep_seconds(request, OF_UPLOAD, OF_REQUEST)
        )
    except ValueError as error:
        raise Refusal(422, f"The announcement of an upload is broken: {error}.") from None


def _plain_name(name: str) -> str:
    """The last part of a path, with letters that are equal in every URL and header."""
    last = re.split(r"[/\\]", name)[-1]
    stem, dot, suffix = re.sub(r"[^A-Za-z0-9._-]+", "_", last).lstrip(".").rpartition(".")
    return f"{stem[:80]}{dot}{suffix[:20]}" or "file"


def _plain_type(content_type: str) -> str:
    bare = content_type.partition(";")[0].strip().lower()
    return bare if re.fullmatch(r"[a-z0-9.+-]{1,60}/[a-z0-9.+-]{1,60}", bare) else "application/octet-stream"
