"""Uploads, as both official clients make them; the files lie in the API's system folder under random names.

JS: `storage/upload/initiate` gives an address to PUT to, whose token is good for that one file for an hour;
`initiate-multipart` the same for parts of 10 MiB. Python: `storage/auth/token` gives a Bearer token for an hour, for
`files/upload` and `files/upload/multipart`. Whoever knows an upload's address may read it; nobody can change it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import secrets
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aiohttp import web
from sqlalchemy import ForeignKey, delete, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from ..database.store import Base, Store
from ..protocol import access as auth
from ..settings import MIB, Settings
from .incoming import CHUNK, Incoming, TooLargeError

TOKEN_SECONDS = 3600
MAX_PARTS = 10_000
FILES = "/cdn/files/"
ID = re.compile(r"[0-9a-f]{32}")
LIFECYCLE = ("X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference")


class Upload(Base):
    """One file, announced or whole (then it has a digest). Its path is `folder / id`."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    content_type: Mapped[str]
    multipart: Mapped[str | None]  # the id of its parts' upload
    token: Mapped[str]  # the SHA-256 of the one in its URL
    created: Mapped[float]
    until: Mapped[float]  # when the token ends
    keep_seconds: Mapped[float | None]  # the client's wish; None keeps it for ever
    digest: Mapped[str | None]
    size: Mapped[int | None]


class Part(Base):
    """A part that is whole; its path is `folder / id.number.etag`."""

    __tablename__ = "upload_parts"

    upload: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    etag: Mapped[str]
    size: Mapped[int]


class Bearer(Base):
    """A token of `storage/auth/token`, as its SHA-256."""

    __tablename__ = "upload_bearers"

    token: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[float]


@dataclass(frozen=True)
class Announced:
    """What a client says of a file before it sends it."""

    name: str
    content_type: str
    keep_seconds: float | None


def folder(settings: Settings) -> Path:
    return settings.system / "uploads"


async def find(path: str, settings: Settings, store: Store) -> tuple[Path, str, str] | None:
    """(file, name, content type) of the upload at that URL path; None where there is none, or it is not whole."""
    _, ours, rest = path.partition(settings.prefix + FILES)
    upload_id = rest.partition("/")[0]
    if not ours or not ID.fullmatch(upload_id):
        return None
    upload = await store.run(lambda session: session.get(Upload, upload_id))
    if upload is None or upload.digest is None or _over(upload, time.time()):
        return None
    return folder(settings) / upload.id, upload.name, upload.content_type


def _over(upload: Upload, now: float) -> bool:
    return upload.keep_seconds is not None and now >= upload.created + upload.keep_seconds


def routes(settings: Settings, store: Store) -> list[web.RouteDef]:
    """Everything below `rest/storage` and `cdn/files`."""
    return Uploads(settings, store).routes()


class Uploads:
    """The handlers. Refusals are JSON with one sentence in `detail`."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self.folder = folder(settings)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._finishing = asyncio.Lock()
        self._arrived: dict[str, int] = {}  # bytes of each upload's parts, those on their way included

    def routes(self) -> list[web.RouteDef]:
        rest, files = self.settings.prefix + "/rest/storage", self.settings.prefix + FILES
        one = files + "{id:[0-9a-f]{32}}/{name}"
        parts = one + "/multipart/{multipart:[0-9a-f]{32}}"
        return [
            web.post(rest + "/upload/initiate", auth.guard(self.initiate, self.settings)),
            web.post(rest + "/upload/initiate-multipart", auth.guard(self.initiate_multipart, self.settings)),
            web.post(rest + "/auth/token", auth.guard(self.token, self.settings)),
            web.post(files + "upload", self.upload),
            web.post(files + "upload/multipart", self.upload_multipart),
            web.put(one, self.put),
            web.get(one, self.get),
            web.put(parts + "/{number:[0-9]{1,5}}", self.put_part),
            web.post(parts + "/complete", self.complete),
        ]

    # what needs the key

    async def initiate(self, request: web.Request) -> web.Response:
        return await self._announce(request, multipart=False)

    async def initiate_multipart(self, request: web.Request) -> web.Response:
        return await self._announce(request, multipart=True)

    async def _announce(self, request: web.Request, multipart: bool) -> web.Response:
        body = await auth.read_json(request, self.settings)
        try:
            announced = _announced(request, body.get("file_name"), body.get("content_type"))
        except (ValueError, AttributeError) as error:
            return auth.problem(422, f"The announcement of an upload is broken: {error}")
        upload, token = await self._create(announced, multipart)
        url = self._url(request, upload)
        target = f"{url}/multipart/{upload.multipart}" if multipart else url
        return web.json_response({"upload_url": f"{target}?token={token}", "file_url": url})

    async def token(self, request: web.Request) -> web.Response:
        await auth.read_json(request, self.settings)
        token, until = secrets.token_urlsafe(32), time.time() + TOKEN_SECONDS
        await self.store.run(lambda session: session.add(Bearer(token=_hash(token), until=until)))
        return web.json_response(
            {
                "token": token,
                "token_type": "Bearer",
                "base_url": f"{auth.base_url(request)}{self.settings.prefix}/cdn",
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
        upload, _ = await self._create(announced, multipart=False)
        return await self._receive(request, upload)

    async def upload_multipart(self, request: web.Request) -> web.Response:
        if not await self._bears(request):
            return _refused()
        announced = _announced_in_headers(request)
        if isinstance(announced, web.Response):
            return announced
        upload, _ = await self._create(announced, multipart=True)
        return web.json_response({"access_url": self._url(request, upload), "uploadId": upload.multipart})

    # what needs the Bearer token or the file's own

    async def put(self, request: web.Request) -> web.Response:
        upload = await self._authorised(request)
        if upload is None:
            return _refused()
        if upload.multipart:
            return auth.problem(409, "This file is uploaded in parts; PUT them to …/multipart/{uploadId}/{number}.")
        return await self._receive(request, upload)

    async def put_part(self, request: web.Request) -> web.Response:
        upload = await self._authorised(request)
        if upload is None:
            return _refused()
        number = int(request.match_info["number"])
        if not 1 <= number <= MAX_PARTS:
            return auth.problem(422, f"Parts are numbered from 1 to {MAX_PARTS}.")
        if upload.digest:
            return auth.problem(410, "This upload is complete.")
        if upload.id not in self._arrived:
            stored = await self.store.run(_stored, upload.id)
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
                await file.keep(self._part_path(upload.id, number, etag))
                surplus = await self.store.run(_finish_part, upload.id, number, etag, file.size)
        finally:
            self._arrived[upload.id] -= surplus
        return web.json_response({"partNumber": number, "etag": etag}, headers={"ETag": f'"{etag}"'})

    async def complete(self, request: web.Request) -> web.Response:
        upload = await self._authorised(request)
        if upload is None:
            return _refused()
        body = await auth.read_json(request, self.settings)
        try:
            asked = {int(part["partNumber"]): str(part["etag"]).strip('"') for part in body["parts"]}
        except (KeyError, TypeError, ValueError, OverflowError):
            return auth.problem(422, "Send {parts: [{partNumber, etag}]}.")
        async with self._finishing:  # a client repeats this one when an answer is late
            if await self.store.run(_digest, upload.id) is None:
                parts = await self.store.run(_parts, upload.id)
                if not asked or asked != {part.number: part.etag for part in parts if part.number in asked}:
                    return auth.problem(422, "Some of these parts did not arrive, or not like this; send them again.")
                if sum(part.size for part in parts if part.number in asked) > self.settings.max_upload:
                    return self._too_large()
                paths = [self._part_path(upload.id, number, asked[number]) for number in sorted(asked)]
                async with Incoming(self.folder, self.settings.max_upload) as file:
                    await asyncio.to_thread(_join, paths, file)
                    await file.keep(self.folder / upload.id)
                    await self.store.run_durably(_finish, upload.id, file.digest, file.size)
                self._arrived.pop(upload.id, None)
                await asyncio.to_thread(_delete, self.folder, f"{upload.id}.*")
        return web.json_response({"access_url": self._url(request, upload), "file_url": self._url(request, upload)})

    # what needs nothing but the address

    async def get(self, request: web.Request) -> web.StreamResponse:
        found = await find(request.path, self.settings, self.store)
        if found is None or not found[0].is_file():
            return auth.problem(404, "No such upload; it may have expired.")
        path, name, content_type = found
        return web.FileResponse(path, headers=file_headers(content_type, name))

    async def _create(self, announced: Announced, multipart: bool) -> tuple[Upload, str]:
        token, now = secrets.token_urlsafe(32), time.time()
        upload = Upload(
            id=secrets.token_hex(16),
            name=announced.name,
            content_type=announced.content_type,
            multipart=secrets.token_hex(16) if multipart else None,
            token=_hash(token),
            created=now,
            until=now + TOKEN_SECONDS,
            keep_seconds=announced.keep_seconds,
        )
        await self.store.run(lambda session: session.add(upload))
        return upload, token

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
                digest = await self.store.run(_digest, upload.id)
                if digest is None:
                    await file.keep(self.folder / upload.id)
                    await self.store.run_durably(_finish, upload.id, file.digest, file.size)
                elif digest != file.digest:
                    return auth.problem(410, "This upload is complete; ask for a new one.")
        url = self._url(request, upload)
        return web.json_response({"access_url": url, "file_url": url}, headers={"ETag": f'"{file.digest[:32]}"'})

    def _url(self, request: web.Request, upload: Upload) -> str:
        return f"{auth.base_url(request)}{self.settings.prefix}{FILES}{upload.id}/{upload.name}"

    def _too_large(self) -> web.Response:
        cap = self.settings.max_upload // MIB
        return auth.problem(413, f"The file is larger than {cap} MiB; the server's LTX_A2V_MAX_UPLOAD_MB sets that.")

    async def _bears(self, request: web.Request) -> bool:
        token = auth.credentials(request, "Bearer")
        if token is None:
            return auth.has_key(request, self.settings)
        bearer = await self.store.run(lambda session: session.get(Bearer, _hash(token)))
        return bearer is not None and time.time() < bearer.until

    async def _authorised(self, request: web.Request) -> Upload | None:
        """The upload at the request's address, if the request may add to it."""
        upload_id = request.match_info["id"]
        upload = await self.store.run(lambda session: session.get(Upload, upload_id))
        if upload is None or upload.multipart != request.match_info.get("multipart", upload.multipart):
            return None
        token = request.query.get("token")
        if token is not None:
            return upload if auth.same(_hash(token), upload.token) and time.time() < upload.until else None
        return upload if auth.credentials(request, "Bearer") and await self._bears(request) else None

    def _part_path(self, upload_id: str, number: int, etag: str) -> Path:
        return self.folder / f"{upload_id}.{number}.{etag}"


def _refused() -> web.Response:
    return auth.problem(401, "This upload needs its token, of this file and less than an hour old; ask for a new one.")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _announced_in_headers(request: web.Request) -> Announced | web.Response:
    try:
        return _announced(request, request.headers.get("X-Fal-File-Name"), request.headers.get("Content-Type"))
    except ValueError as error:
        return auth.problem(422, f"The announcement of an upload is broken: {error}")


def _announced(request: web.Request, name: Any, content_type: Any) -> Announced:
    """Errors: ValueError for a name or type that is no text, or a lifecycle that is none."""
    if not all(text is None or isinstance(text, str) for text in (name, content_type)):
        raise ValueError("file_name and content_type are texts")
    return Announced(_plain_name(name or ""), _plain_type(content_type or ""), _keep_seconds(request))


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


def file_headers(content_type: str, name: str) -> dict[str, str]:
    """Of an answer that is a file from outside: a browser plays it or saves it, and never runs it on this origin."""
    plays = re.fullmatch(r"(audio|video)/[\w.+-]+|image/(?!svg)[\w.+-]+", content_type)
    return {
        "Content-Type": content_type if plays else "application/octet-stream",
        "Content-Disposition": f'{"inline" if plays else "attachment"}; filename="{name}"',
        "X-Content-Type-Options": "nosniff",
    }


def _join(paths: list[Path], file: Incoming) -> None:
    for path in paths:
        with path.open("rb") as part:
            while piece := part.read(CHUNK):
                file.write_now(piece)


def _digest(session: Session, upload_id: str) -> str | None:
    return session.scalar(select(Upload.digest).where(Upload.id == upload_id))


def _finish(session: Session, upload_id: str, digest: str, size: int) -> None:
    session.execute(update(Upload).where(Upload.id == upload_id).values(digest=digest, size=size))
    session.execute(delete(Part).where(Part.upload == upload_id))


def _parts(session: Session, upload_id: str) -> list[Part]:
    return list(session.scalars(select(Part).where(Part.upload == upload_id)))


def _stored(session: Session, upload_id: str) -> int:
    return sum(part.size for part in _parts(session, upload_id))


def _finish_part(session: Session, upload_id: str, number: int, etag: str, size: int) -> int:
    """Bytes of the part of that number that this one replaces."""
    old = session.get(Part, (upload_id, number))
    replaced = old.size if old else 0
    session.merge(Part(upload=upload_id, number=number, etag=etag, size=size))
    return replaced


async def purge(settings: Settings, store: Store) -> None:
    """Deletes what nobody can use any more: tokens past their hour, uploads that never became whole, and those whose
    clients wished them gone by now."""
    now = time.time()
    for upload_id in await store.run(_forget, now):
        await asyncio.to_thread(_delete, folder(settings), f"{upload_id}*")
    for where in (folder(settings), settings.input_folder):  # what a killed server left half-written
        await asyncio.to_thread(_delete, where, ".*.part", now - TOKEN_SECONDS)


def _forget(session: Session, now: float) -> list[str]:
    session.execute(delete(Bearer).where(Bearer.until <= now))
    unfinished = Upload.digest.is_(None) & (Upload.until + TOKEN_SECONDS <= now)  # a Bearer token may outlive its own
    over = Upload.created + Upload.keep_seconds <= now
    ids = list(session.scalars(select(Upload.id).where(unfinished | over)))
    for upload_id in ids:
        session.execute(delete(Upload).where(Upload.id == upload_id))
    return ids


def _delete(where: Path, pattern: str, before: float | None = None) -> None:
    for path in where.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another server may do the same
            if before is None or path.stat().st_mtime < before:
                path.unlink()
