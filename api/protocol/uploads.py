"""Uploads, as both official clients make them.

JavaScript: `storage/upload/initiate` gives an address to PUT to, whose token is good for that one file for an hour;
`initiate-multipart` the same for parts of 10 MiB. Python: `storage/auth/token` gives a Bearer token for an hour, for
`files/upload` and `files/upload/multipart`. Refusals are JSON with one sentence in `detail`.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from datetime import datetime, timezone
from typing import Any

from aiohttp import web

from ..database.store import Store
from ..files import uploads
from ..files.incoming import CHUNK, Incoming, TooLargeError
from ..files.uploads import FILES, TOKEN_SECONDS, Announcement, Upload, UploadToken, part_path, token_hash
from ..settings import MIB, Settings
from .access import credentials, has_key, same
from .answers import problem
from .bodies import read_json
from .files import FILE_ANSWERS, file_headers
from .messages import PlainProblem
from .operations import BYTES, Answer, Body, Operation, Parameter
from .urls import base_url

MAX_PARTS = 10_000
LIFECYCLE = ("X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference")

FILE_ID = Parameter("id", "path", {"type": "string", "pattern": "^[0-9a-f]{32}$"})
FILE_NAME = Parameter("name", "path", {"type": "string"})
PARTS_ID = Parameter("multipart", "path", {"type": "string", "pattern": "^[0-9a-f]{32}$"})
NUMBER = Parameter("number", "path", {"type": "integer", "minimum": 1})
TOKEN = Parameter("token", "query", {"type": "string"})
BINARY = Body(schema={"type": "string", "format": "binary"}, content=BYTES)
ANNOUNCED = Body(
    schema={"type": "object", "properties": {"file_name": {"type": "string"}, "content_type": {"type": "string"}}}
)
NOTHING = Body(schema={"type": "object"})
PARTS = Body(
    schema={
        "type": "object",
        "required": ["parts"],
        "properties": {
            "parts": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["partNumber", "etag"],
                    "properties": {"partNumber": {"type": "integer"}, "etag": {"type": "string"}},
                },
            }
        },
    }
)
ANSWERS = {
    200: Answer("Done."),
    400: Answer("The request is broken.", PlainProblem),
    401: Answer("The key or the upload's token is missing or wrong.", PlainProblem),
    404: Answer("The address is of no upload.", PlainProblem),
    409: Answer("This file is uploaded in parts.", PlainProblem),
    410: Answer("This upload is complete.", PlainProblem),
    413: Answer("The file is too large.", PlainProblem),
    415: Answer("The body is not announced as JSON.", PlainProblem),
    422: Answer("Something about the upload is wrong.", PlainProblem),
}


class Uploads:
    """The handlers of everything below `rest/storage` and `cdn/files`."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self.folder = uploads.folder(settings)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._finishing = asyncio.Lock()
        self._arrived: dict[str, int] = {}  # bytes of each upload's parts, those on their way included

    def operations(self) -> list[Operation]:
        rest, one = "/rest/storage", FILES + "{id:[0-9a-f]{32}}/{name}"
        parts, file = one + "/multipart/{multipart:[0-9a-f]{32}}", (FILE_ID, FILE_NAME)

        def post(name: str, path: str, summary: str, body: Body | None, *parameters: Parameter) -> Operation:
            handler = getattr(self, name)
            needs_key = path.startswith(rest)  # the others ask for the upload's own token
            return Operation(
                name, "POST", path, handler, summary, ANSWERS, parameters=parameters, body=body, needs_key=needs_key
            )

        def put(name: str, path: str, summary: str, *parameters: Parameter) -> Operation:
            handler = getattr(self, name)
            return Operation(
                name, "PUT", path, handler, summary, ANSWERS, parameters=parameters, body=BINARY, needs_key=False
            )

        return [
            post("initiate", rest + "/upload/initiate", "Announces an upload.", ANNOUNCED),
            post("initiate_multipart", rest + "/upload/initiate-multipart", "Announces one in parts.", ANNOUNCED),
            post("token", rest + "/auth/token", "A token for uploads, for an hour.", NOTHING),
            post("upload", FILES + "upload", "A whole file.", BINARY),
            post("upload_multipart", FILES + "upload/multipart", "Begins an upload in parts.", None),
            put("put", one, "The bytes of an announced upload.", *file, TOKEN),
            Operation("get", "GET", one, self.get, "An uploaded file.", FILE_ANSWERS, file, needs_key=False, head=True),
            put("put_part", parts + "/{number:[0-9]{1,5}}", "A part.", *file, PARTS_ID, NUMBER, TOKEN),
            post("complete", parts + "/complete", "Ends an upload in parts.", PARTS, *file, PARTS_ID, TOKEN),
        ]

    # what needs the key

    async def initiate(self, request: web.Request) -> web.Response:
        return await self._announce(request, multipart=False)

    async def initiate_multipart(self, request: web.Request) -> web.Response:
        return await self._announce(request, multipart=True)

    async def _announce(self, request: web.Request, multipart: bool) -> web.Response:
        body = await read_json(request, self.settings)
        try:
            announced = _announced(request, body.get("file_name"), body.get("content_type"))
        except (ValueError, AttributeError) as error:
            return problem(422, f"The announcement of an upload is broken: {error}")
        upload, token = await uploads.announce(announced, multipart, self.store)
        url = self._url(request, upload)
        target = f"{url}/multipart/{upload.multipart}" if multipart else url
        return web.json_response({"upload_url": f"{target}?token={token}", "file_url": url})

    async def token(self, request: web.Request) -> web.Response:
        await read_json(request, self.settings)
        token, until = secrets.token_urlsafe(32), time.time() + TOKEN_SECONDS
        await self.store.run(lambda session: session.add(UploadToken(token=token_hash(token), until=until)))
        return web.json_response(
            {
                "token": token,
                "token_type": "Bearer",
                "base_url": f"{base_url(request)}{self.settings.prefix}/cdn",
                "expires_at": datetime.fromtimestamp(until, timezone.utc).isoformat(),
            }
        )

    # what needs the Bearer token

    async def upload(self, request: web.Request) -> web.Response:
        if not await self._bears(request):
            return _refused()
        announced = _announced_in_headers(request)
        if isinstance(announced, web.Response):
            return announced
        upload, _ = await uploads.announce(announced, False, self.store)
        return await self._receive(request, upload)

    async def upload_multipart(self, request: web.Request) -> web.Response:
        if not await self._bears(request):
            return _refused()
        announced = _announced_in_headers(request)
        if isinstance(announced, web.Response):
            return announced
        upload, _ = await uploads.announce(announced, True, self.store)
        return web.json_response({"access_url": self._url(request, upload), "uploadId": upload.multipart})

    # what needs the Bearer token or the file's own

    async def put(self, request: web.Request) -> web.Response:
        upload = await self._authorised(request)
        if upload is None:
            return _refused()
        if upload.multipart:
            return problem(409, "This file is uploaded in parts; PUT them to …/multipart/{uploadId}/{number}.")
        return await self._receive(request, upload)

    async def put_part(self, request: web.Request) -> web.Response:
        upload = await self._authorised(request)
        if upload is None:
            return _refused()
        number = int(request.match_info["number"])
        if not 1 <= number <= MAX_PARTS:
            return problem(422, f"Parts are numbered from 1 to {MAX_PARTS}.")
        if upload.digest:
            return problem(410, "This upload is complete.")
        if upload.id not in self._arrived:
            stored = await self.store.run(uploads.stored_bytes, upload.id)
            self._arrived.setdefault(upload.id, stored)
        if self._arrived[upload.id] + (request.content_length or 0) > self.settings.max_upload:
            return self._too_large()
        surplus = 0  # what counts no longer once this part is whole, or refused
        try:
            async with Incoming(self.folder, self.settings.max_upload) as file:
                async for piece in request.content.iter_chunked(CHUNK):
                    self._arrived[upload.id] += len(piece)
                    surplus += len(piece)
                    if self._arrived[upload.id] > self.settings.max_upload:
                        return self._too_large()
                    await file.write(piece)
                etag = file.digest[:32]
                await file.keep(part_path(self.settings, upload.id, number, etag))
                surplus = await self.store.run(uploads.finish_part, upload.id, number, etag, file.size)
        finally:
            self._arrived[upload.id] -= surplus
        return web.json_response({"partNumber": number, "etag": etag}, headers={"ETag": f'"{etag}"'})

    async def complete(self, request: web.Request) -> web.Response:
        upload = await self._authorised(request)
        if upload is None:
            return _refused()
        body = await read_json(request, self.settings)
        try:
            asked = {int(part["partNumber"]): str(part["etag"]).strip('"') for part in body["parts"]}
        except (KeyError, TypeError, ValueError, OverflowError):
            return problem(422, "Send {parts: [{partNumber, etag}]}.")
        async with self._finishing:  # a client repeats this one when an answer is late
            if await self.store.run(uploads.digest_of, upload.id) is None:
                parts = await self.store.run(uploads.parts_of, upload.id)
                if not asked or asked != {part.number: part.etag for part in parts if part.number in asked}:
                    return problem(422, "Some of these parts did not arrive, or not like this; send them again.")
                if sum(part.size for part in parts if part.number in asked) > self.settings.max_upload:
                    return self._too_large()
                paths = [part_path(self.settings, upload.id, number, asked[number]) for number in sorted(asked)]
                async with Incoming(self.folder, self.settings.max_upload) as file:
                    await asyncio.to_thread(uploads.join, paths, file)
                    await file.keep(self.folder / upload.id)
                    await self.store.run_durably(uploads.finish, upload.id, file.digest, file.size)
                self._arrived.pop(upload.id, None)
                await asyncio.to_thread(uploads.delete_files, self.folder, f"{upload.id}.*")
        return web.json_response({"access_url": self._url(request, upload), "file_url": self._url(request, upload)})

    # what needs nothing but the address

    async def get(self, request: web.Request) -> web.StreamResponse:
        found = await uploads.find(request.path, self.settings, self.store)
        if found is None or not found[0].is_file():
            return problem(404, "No such upload; it may have expired.")
        path, name, content_type = found
        return web.FileResponse(path, headers=file_headers(content_type, name))

    async def _receive(self, request: web.Request, upload: Upload) -> web.Response:
        """The body as the whole file. The same bytes may come twice, as retries do; others may not."""
        if (request.content_length or 0) > self.settings.max_upload:
            return self._too_large()
        async with Incoming(self.folder, self.settings.max_upload) as file:
            try:
                async for piece in request.content.iter_chunked(CHUNK):
                    await file.write(piece)
            except TooLargeError:
                return self._too_large()
            async with self._finishing:
                digest = await self.store.run(uploads.digest_of, upload.id)
                if digest is None:
                    await file.keep(self.folder / upload.id)
                    await self.store.run_durably(uploads.finish, upload.id, file.digest, file.size)
                elif digest != file.digest:
                    return problem(410, "This upload is complete; ask for a new one.")
        url = self._url(request, upload)
        return web.json_response({"access_url": url, "file_url": url}, headers={"ETag": f'"{file.digest[:32]}"'})

    def _url(self, request: web.Request, upload: Upload) -> str:
        return f"{base_url(request)}{self.settings.prefix}{FILES}{upload.id}/{upload.name}"

    def _too_large(self) -> web.Response:
        cap = self.settings.max_upload // MIB
        return problem(413, f"The file is larger than {cap} MiB; the server's LTX_A2V_MAX_UPLOAD_MB sets that.")

    async def _bears(self, request: web.Request) -> bool:
        token = credentials(request, "Bearer")
        if token is None:
            return has_key(request, self.settings)
        bearer = await self.store.run(lambda session: session.get(UploadToken, token_hash(token)))
        return bearer is not None and time.time() < bearer.until

    async def _authorised(self, request: web.Request) -> Upload | None:
        """The upload at the request's address, if the request may add to it."""
        upload_id = request.match_info["id"]
        upload = await self.store.run(lambda session: session.get(Upload, upload_id))
        if upload is None or upload.multipart != request.match_info.get("multipart", upload.multipart):
            return None
        token = request.query.get("token")
        if token is not None:
            return upload if same(token_hash(token), upload.token) and time.time() < upload.until else None
        return upload if credentials(request, "Bearer") and await self._bears(request) else None


def _refused() -> web.Response:
    return problem(401, "This upload needs its token, of this file and less than an hour old; ask for a new one.")


def _announced_in_headers(request: web.Request) -> Announcement | web.Response:
    try:
        return _announced(request, request.headers.get("X-Fal-File-Name"), request.headers.get("Content-Type"))
    except ValueError as error:
        return problem(422, f"The announcement of an upload is broken: {error}")


def _announced(request: web.Request, name: Any, content_type: Any) -> Announcement:
    """Errors: ValueError for a name or type that is no text, or a lifecycle that is none."""
    if not all(text is None or isinstance(text, str) for text in (name, content_type)):
        raise ValueError("file_name and content_type are texts")
    return Announcement(_plain_name(name or ""), _plain_type(content_type or ""), _keep_seconds(request))


def _plain_name(name: str) -> str:
    """The last part of a path, of letters that are the same in every URL and header."""
    last = re.split(r"[/\\]", name)[-1]
    stem, dot, suffix = re.sub(r"[^A-Za-z0-9._-]+", "_", last).lstrip(".").rpartition(".")
    return f"{stem[:80]}{dot}{suffix[:20]}" or "file"


def _plain_type(content_type: str) -> str:
    bare = content_type.partition(";")[0].strip().lower()
    return bare if re.fullmatch(r"[a-z0-9.+-]{1,60}/[a-z0-9.+-]{1,60}", bare) else "application/octet-stream"


def _keep_seconds(request: web.Request) -> float | None:
    """The client's wish how long to keep the file. Who may read it is no question here: its address is its secret."""
    text = next((request.headers[name] for name in LIFECYCLE if name in request.headers), None)
    if text is None:
        return None
    try:
        wish = json.loads(text)
    except RecursionError as error:
        raise ValueError("its lifecycle header is no JSON") from error
    seconds = wish.get("expiration_duration_seconds") if isinstance(wish, dict) else text
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e12:
        raise ValueError("expiration_duration_seconds is a number of seconds above 0")
    return float(seconds)
