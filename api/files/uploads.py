"""Uploads in the database and on the disk. The files lie in the API's system folder under random names.

A file is announced, then it arrives whole or in parts, and is whole once it has a digest. Whoever knows its address may
read it, and nobody can change it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ForeignKey, delete, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from ..database.store import Base, Store
from ..settings import Settings
from .incoming import CHUNK, Incoming

TOKEN_SECONDS = 3600
FILES = "/cdn/files/"
ID = re.compile(r"[0-9a-f]{32}")


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


class UploadPart(Base):
    """A part that is whole; its path is `folder / id.number.etag`."""

    __tablename__ = "upload_parts"

    upload: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    etag: Mapped[str]
    size: Mapped[int]


class UploadToken(Base):
    """A token of `storage/auth/token`, as its SHA-256."""

    __tablename__ = "upload_bearers"

    token: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[float]


@dataclass(frozen=True)
class Announcement:
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


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


async def announce(announcement: Announcement, multipart: bool, store: Store) -> tuple[Upload, str]:
    """The upload that was announced, and the token with which its bytes may be sent."""
    token, now = secrets.token_urlsafe(32), time.time()
    upload = Upload(
        id=secrets.token_hex(16),
        name=announcement.name,
        content_type=announcement.content_type,
        multipart=secrets.token_hex(16) if multipart else None,
        token=token_hash(token),
        created=now,
        until=now + TOKEN_SECONDS,
        keep_seconds=announcement.keep_seconds,
    )
    await store.run(lambda session: session.add(upload))
    return upload, token


def part_path(settings: Settings, upload_id: str, number: int, etag: str) -> Path:
    return folder(settings) / f"{upload_id}.{number}.{etag}"


def join(paths: list[Path], file: Incoming) -> None:
    for path in paths:
        with path.open("rb") as part:
            while piece := part.read(CHUNK):
                file.write_now(piece)


def digest_of(session: Session, upload_id: str) -> str | None:
    return session.scalar(select(Upload.digest).where(Upload.id == upload_id))


def finish(session: Session, upload_id: str, digest: str, size: int) -> None:
    session.execute(update(Upload).where(Upload.id == upload_id).values(digest=digest, size=size))
    session.execute(delete(UploadPart).where(UploadPart.upload == upload_id))


def parts_of(session: Session, upload_id: str) -> list[UploadPart]:
    return list(session.scalars(select(UploadPart).where(UploadPart.upload == upload_id)))


def stored_bytes(session: Session, upload_id: str) -> int:
    return sum(part.size for part in parts_of(session, upload_id))


def finish_part(session: Session, upload_id: str, number: int, etag: str, size: int) -> int:
    """Bytes of the part of that number that this one replaces."""
    old = session.get(UploadPart, (upload_id, number))
    replaced = old.size if old else 0
    session.merge(UploadPart(upload=upload_id, number=number, etag=etag, size=size))
    return replaced


async def purge(settings: Settings, store: Store) -> None:
    """Deletes what nobody can use any more: tokens past their hour, uploads that never became whole, and those whose
    clients wished them gone by now."""
    now = time.time()
    for upload_id in await store.run(_forget, now):
        await asyncio.to_thread(delete_files, folder(settings), f"{upload_id}*")
    for where in (folder(settings), settings.input_folder):  # what a killed server left half-written
        await asyncio.to_thread(delete_files, where, ".*.part", now - TOKEN_SECONDS)


def _forget(session: Session, now: float) -> list[str]:
    session.execute(delete(UploadToken).where(UploadToken.until <= now))
    unfinished = Upload.digest.is_(None) & (Upload.until + TOKEN_SECONDS <= now)  # a Bearer token may outlive its own
    over = Upload.created + Upload.keep_seconds <= now
    ids = list(session.scalars(select(Upload.id).where(unfinished | over)))
    for upload_id in ids:
        session.execute(delete(Upload).where(Upload.id == upload_id))
    return ids


def delete_files(where: Path, pattern: str, before: float | None = None) -> None:
    for path in where.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another server may do the same
            if before is None or path.stat().st_mtime < before:
                path.unlink()
