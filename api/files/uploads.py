"""Uploads in the database and on the disk. The files lie in the API's system folder under random names.

A client announces a file and then sends it whole or in parts. A whole file has a digest. Whoever knows its address may
read it, and nobody can change it. The database decides: files get and lose their names within its transactions.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ForeignKey, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from ..database.store import Base, Store
from ..settings import Settings
from . import owners
from .incoming import CHUNK, Incoming, in_thread

TOKEN_SECONDS = 3600
FILES = "/cdn/files/"
ID = re.compile(r"[0-9a-f]{32}")
OURS = re.compile(r"[0-9a-f]{32}(\.[0-9]{1,5}\.[0-9a-f]{32})?")
"""The names that the API gives to files in the uploads' folder."""
ETAG = 32  # digits of a part's hash


class Upload(Base):
    """One file, announced or whole; a whole one has a digest. Its path is `folder / id`."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    content_type: Mapped[str]
    multipart: Mapped[str | None]  # the id of the upload in parts
    token: Mapped[str]  # the SHA-256 of the one in its URL
    created: Mapped[float]
    until: Mapped[float]  # when the token ends
    keep_seconds: Mapped[float | None]  # as the client wishes; None: for ever
    digest: Mapped[str | None]
    size: Mapped[int | None]


class UploadPart(Base):
    """A whole part. Its path is `folder / id.number.etag`."""

    __tablename__ = "upload_parts"

    upload: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    etag: Mapped[str]
    size: Mapped[int]


class UploadToken(Base):
    """A token of `storage/auth/token`, stored as its SHA-256."""

    __tablename__ = "upload_bearers"

    token: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[float]


@dataclass(frozen=True)
class Announcement:
    """What a client says about a file before it sends it."""

    name: str
    content_type: str
    keep_seconds: float | None


class Complete(Exception):
    """The upload is whole or deleted. Nothing can be added any more."""


def folder(settings: Settings) -> Path:
    return settings.system / "uploads"


async def find(path: str, settings: Settings, store: Store) -> tuple[Path, str, str] | None:
    """(file, name, content type) of the upload at that URL path; None if there is none, it is not whole, or its file
    was deleted."""
    _, ours, rest = path.partition(settings.prefix + FILES)
    upload_id = rest.partition("/")[0]
    if not ours or not ID.fullmatch(upload_id):
        return None
    upload = await store.read(get, upload_id)
    if upload is None or upload.digest is None or _over(upload, time.time()):
        return None
    file = folder(settings) / upload.id
    return (file, upload.name, upload.content_type) if await in_thread(file.is_file) else None


def get(session: Session, upload_id: str) -> Upload | None:
    return session.get(Upload, upload_id)


def _over(upload: Upload, now: float) -> bool:
    return upload.keep_seconds is not None and now >= upload.created + upload.keep_seconds


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


async def announce(announcement: Announcement, multipart: bool, store: Store) -> tuple[Upload, str]:
    """Creates an upload. Returns it and the token that its sender needs."""
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


def finish(session: Session, upload_id: str, file: Incoming, where: Path) -> list[Path]:
    """Makes a sealed file the upload. The same bytes may come twice, as in a retry. Returns the files of its parts,
    which are of no use once this is committed. Errors: Complete, for other bytes."""
    useless = []
    upload = session.get(Upload, upload_id)
    if upload is None or upload.digest not in (None, file.digest):
        raise Complete
    if upload.digest is None:
        file.place(where / upload_id)
        upload.digest, upload.size = file.digest, file.size
        for part in parts_of(session, upload_id):
            useless.append(part_path(where, upload_id, part.number, part.etag))
            session.delete(part)
    return useless


def finish_part(session: Session, upload_id: str, number: int, file: Incoming, where: Path) -> list[Path]:
    """Makes a sealed file the part of that number. Returns the file of an earlier one, which is of no use once this is
    committed. Errors: Complete."""
    upload = session.get(Upload, upload_id)
    if upload is None or upload.digest is not None:
        raise Complete
    etag = file.digest[:ETAG]
    file.place(part_path(where, upload_id, number, etag))
    old = session.get(UploadPart, (upload_id, number))
    useless = [part_path(where, upload_id, number, old.etag)] if old is not None and old.etag != etag else []
    session.merge(UploadPart(upload=upload_id, number=number, etag=etag, size=file.size))
    return useless


def remove(paths: Iterable[Path]) -> None:
    """Deletes files. Those that cannot be deleted are swept later."""
    for path in paths:
        owners.remove(path)


def part_path(where: Path, upload_id: str, number: int, etag: str) -> Path:
    return where / f"{upload_id}.{number}.{etag}"


def parts_of(session: Session, upload_id: str) -> list[UploadPart]:
    return list(session.scalars(select(UploadPart).where(UploadPart.upload == upload_id)))


def join(paths: list[Path], file: Incoming) -> None:
    """Joins the parts. Errors: FileNotFoundError if a part was replaced just now."""
    for path in paths:
        with path.open("rb") as part:
            while piece := part.read(CHUNK):
                file.write_now(piece)


class Parts:
    """The parts of one upload, whole and arriving. The newest of each number counts."""

    def __init__(self, sizes: dict[int, int]) -> None:
        self._whole = sizes
        self._arriving: dict[int, Arriving] = {}

    def begin(self, number: int) -> Arriving:
        """Notes a part that begins to arrive. An older one of its number is not awaited any more."""
        if number in self._arriving:
            self._arriving[number].is_over = True
        self._arriving[number] = Arriving()
        return self._arriving[number]

    def end(self, number: int, part: Arriving, *, whole: bool) -> None:
        if self._arriving.get(number) is part:
            del self._arriving[number]
            if whole:
                self._whole[number] = part.size

    @property
    def size(self) -> int:
        """Bytes of all parts, where arriving ones replace older ones of their numbers."""
        whole = sum(size for number, size in self._whole.items() if number not in self._arriving)
        return whole + sum(part.size for part in self._arriving.values())

    @property
    def is_idle(self) -> bool:
        return not self._arriving


@dataclass
class Arriving:
    """A part that is arriving. is_over: a newer one of its number has begun."""

    size: int = 0
    is_over: bool = False


def purge(session: Session, now: float, limit: int, settings: Settings) -> int:
    """Deletes what is of no use any more: tokens after their hour, uploads that never became whole, uploads whose time
    the client has limited, and, if results expire, all uploads of that age. Returns the number of deleted uploads."""
    session.execute(delete(UploadToken).where(UploadToken.until <= now))
    # a Bearer token may live longer than the upload's own
    unfinished = Upload.digest.is_(None) & (Upload.until + TOKEN_SECONDS <= now)
    over = unfinished | (Upload.created + Upload.keep_seconds <= now)
    if settings.expire_seconds:
        over |= Upload.until + settings.expire_seconds <= now
    ids = list(session.scalars(select(Upload.id).where(over).limit(limit)))
    for upload_id in ids:
        for part in parts_of(session, upload_id):
            owners.remove(part_path(folder(settings), upload_id, part.number, part.etag))
        owners.remove(folder(settings) / upload_id)
        session.execute(delete(Upload).where(Upload.id == upload_id))
    return len(ids)


def sweep(session: Session, names: Collection[str], settings: Settings) -> None:
    """Deletes those of these files in the uploads' folder that no row tells of."""
    ids = {name.split(".")[0] for name in names}
    known = set(session.scalars(select(Upload.id).where(Upload.id.in_(ids), Upload.digest.is_not(None))))
    parts = session.scalars(select(UploadPart).where(UploadPart.upload.in_(ids)))
    known |= {part_path(Path(), part.upload, part.number, part.etag).name for part in parts}
    for name in set(names) - known:
        owners.remove(folder(settings) / name)
