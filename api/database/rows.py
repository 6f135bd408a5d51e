"""Requests and their logs as rows of the database.

Functions take the session of one transaction. Claiming is one statement, so that two servers never take the same
request, and a server that has lost a lease changes nothing any more. Nothing here knows HTTP or ComfyUI. Times are
seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Index, Row, Text, UniqueConstraint, func, or_, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column, undefer

from .store import Base

QUEUED, RUNNING, DONE = "IN_QUEUE", "IN_PROGRESS", "COMPLETED"
PRIORITIES = {"normal": 0, "low": 1}


class StoredRequest(Base):
    """One request from its submission on; `logs` are rows of their own."""

    __tablename__ = "requests"
    __table_args__ = (
        UniqueConstraint("app", "idempotency_key"),
        Index("requests_in_order", "status", "priority", "number"),
    )

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    app: Mapped[str]
    arguments: Mapped[dict[str, Any]] = mapped_column(deferred=True)  # as they were sent, the seed filled in
    media: Mapped[dict[str, Any]] = mapped_column(default=dict)  # field → name in the input folder, once it is there
    ready: Mapped[bool] = mapped_column(default=True)  # all of its media are there
    status: Mapped[str] = mapped_column(default=QUEUED)
    priority: Mapped[int] = mapped_column(default=0)
    idempotency_key: Mapped[str | None]
    digest: Mapped[str]  # of the body, by which a retry is told from another request
    base_url: Mapped[str] = mapped_column(default="")  # as the client knows this server
    webhook_url: Mapped[str | None] = mapped_column(Text)
    created: Mapped[float]
    started: Mapped[float | None]
    ended: Mapped[float | None]
    start_timeout: Mapped[float | None]  # seconds that it may wait for its start
    cancel: Mapped[bool] = mapped_column(default=False)  # asked for; the server that runs it stops it
    attempts: Mapped[int] = mapped_column(default=0)
    lease_server: Mapped[str | None]
    lease_until: Mapped[float | None]
    token: Mapped[str | None]  # of this start: 128 random bits, with which its file's name begins
    prompt_id: Mapped[str | None]  # of ComfyUI's queue
    workflow: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)  # API form, as it was queued
    result: Mapped[dict[str, Any] | None]  # with the file's name in place of its URL
    sync_mode: Mapped[bool] = mapped_column(default=False)
    error: Mapped[str | None] = mapped_column(Text)
    error_type: Mapped[str | None]
    error_status: Mapped[int | None]  # of the answer to whoever asks for the result
    error_detail: Mapped[list[dict[str, Any]] | None]  # of a 422
    safety: Mapped[str | None]  # the header x-ltx-safety
    read: Mapped[float | None]  # when a result that is sent but once was first read
    gone: Mapped[bool] = mapped_column(default=False)  # its files were deleted


class Log(Base):
    """A line of a request's log; only ever appended."""

    __tablename__ = "logs"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"), index=True)
    timestamp: Mapped[float]
    level: Mapped[str]
    source: Mapped[str]
    message: Mapped[str] = mapped_column(Text)


def find(session: Session, request_id: str, *, whole: bool = False) -> StoredRequest | None:
    """whole: with the columns that may be large."""
    loading = (undefer(StoredRequest.arguments), undefer(StoredRequest.workflow)) if whole else ()
    return session.scalar(select(StoredRequest).where(StoredRequest.id == request_id).options(*loading))


def find_all(session: Session, ids: Collection[str]) -> list[StoredRequest]:
    return list(session.scalars(select(StoredRequest).where(StoredRequest.id.in_(ids))))


def find_retried(session: Session, app: str, key: str) -> StoredRequest | None:
    """The request that was submitted under that idempotency key."""
    return session.scalar(select(StoredRequest).where(StoredRequest.app == app, StoredRequest.idempotency_key == key))


def position(session: Session, request: StoredRequest) -> int:
    """How many wait before it."""
    before = or_(
        StoredRequest.priority < request.priority,
        (StoredRequest.priority == request.priority) & (StoredRequest.number < request.number),
    )
    return session.scalar(select(func.count()).where(StoredRequest.status == QUEUED, before)) or 0


def positions(session: Session, ids: Collection[str]) -> dict[str, int]:
    """`position` of many that are in the queue."""
    if not ids:
        return {}
    place = func.row_number().over(order_by=(StoredRequest.priority, StoredRequest.number)) - 1
    queue = select(StoredRequest.id, place.label("place")).where(StoredRequest.status == QUEUED).subquery()
    return dict(session.execute(select(queue).where(queue.c.id.in_(ids))).all())


def claim(session: Session, server: str, now: float, seconds: float, *, ready: bool = True) -> StoredRequest | None:
    """The next request in the queue, from now on this server's for that long; None where none waits.

    ready: one to be run; otherwise one whose media are to be fetched, which stays in the queue meanwhile.
    """
    first = (
        select(StoredRequest.number)
        .where(StoredRequest.status == QUEUED, StoredRequest.lease_server.is_(None), StoredRequest.ready.is_(ready))
        .order_by(StoredRequest.priority, StoredRequest.number)
        .limit(1)
        .scalar_subquery()
    )
    taken = {"lease_server": server, "lease_until": now + seconds, "attempts": StoredRequest.attempts + 1}
    claimed = session.scalar(
        update(StoredRequest).where(StoredRequest.number == first).values(**taken).returning(StoredRequest.id)
    )
    return find(session, claimed, whole=True) if claimed else None


def renew(session: Session, server: str, now: float, seconds: float) -> None:
    """Keeps all leases of a server, also those that ran out while it slept, unless another one has released them."""
    mine = (StoredRequest.lease_server == server, StoredRequest.status != DONE)
    session.execute(update(StoredRequest).where(*mine).values(lease_until=now + seconds))


def release(session: Session, *, server: str) -> int:
    """The requests of a server that ends go back into the queue. How many."""
    return _release(session, StoredRequest.lease_server == server)


def release_expired(session: Session, now: float, server: str) -> int:
    """The requests of servers that are not heard of go back into the queue; one's own are one's own. How many."""
    return _release(session, (StoredRequest.lease_until < now) & (StoredRequest.lease_server != server))


def _release(session: Session, held: ColumnElement[bool]) -> int:
    back = {"status": QUEUED, "lease_server": None, "lease_until": None, "started": None, "prompt_id": None}
    return session.execute(update(StoredRequest).where(held, StoredRequest.status != DONE).values(**back)).rowcount


def change(session: Session, request_id: str, server: str, **values: Any) -> bool:
    """Changes a request whose lease the server holds, and says whether it does."""
    mine = (StoredRequest.id == request_id, StoredRequest.lease_server == server, StoredRequest.status != DONE)
    return bool(session.execute(update(StoredRequest).where(*mine).values(**values)).rowcount)


def make_ready(session: Session, request_id: str, server: str, media: dict[str, Any]) -> bool:
    """A request whose media are all there goes back into the queue, to be run by whoever is free."""
    back = {"lease_server": None, "lease_until": None, "attempts": 0}
    return change(session, request_id, server, media=media, ready=True, **back)


def marked(session: Session, server: str) -> set[str]:
    """The requests held by that server whose end was asked for."""
    held = (StoredRequest.lease_server == server, StoredRequest.status != DONE, StoredRequest.cancel.is_(True))
    return set(session.scalars(select(StoredRequest.id).where(*held)))


def finish(session: Session, request: StoredRequest, now: float, **values: Any) -> bool:
    """Ends a request that nobody has ended before; `request` shows it. Says whether this did it."""
    ending = {"status": DONE, "ended": now, "lease_server": None, "lease_until": None, **values}
    held = (
        StoredRequest.lease_server == request.lease_server
        if request.lease_server
        else StoredRequest.lease_server.is_(None)
    )
    done = session.execute(
        update(StoredRequest)
        .where(StoredRequest.number == request.number, StoredRequest.status != DONE, held)
        .values(**ending)
    ).rowcount
    session.refresh(request)
    return bool(done)


def overdue(session: Session, now: float) -> list[StoredRequest]:
    """Requests in the queue that nobody has claimed and that should have started by now."""
    late = StoredRequest.created + StoredRequest.start_timeout < now
    return list(
        session.scalars(
            select(StoredRequest).where(StoredRequest.status == QUEUED, StoredRequest.lease_server.is_(None), late)
        )
    )


def with_files(session: Session) -> list[StoredRequest]:
    """Ended requests whose result is still there."""
    return list(
        session.scalars(
            select(StoredRequest).where(
                StoredRequest.status == DONE, StoredRequest.error.is_(None), StoredRequest.gone.is_(False)
            )
        )
    )


def unused_media(session: Session) -> set[str]:
    """Names in the input folder that only requests need whose files are gone."""
    known: dict[bool, set[str]] = {True: set(), False: set()}
    for names, gone in session.execute(select(StoredRequest.media, StoredRequest.gone)):
        known[gone].update(names.values())
    return known[True] - known[False]


def add_log(session: Session, request_id: str, message: str, timestamp: float, level: str = "INFO") -> None:
    session.add(Log(request_id=request_id, message=message, timestamp=timestamp, level=level, source="USER"))


def logs_of(session: Session, ids: Collection[str]) -> list[Row[Any]]:
    """The lines of these requests' logs, in order: rows with the columns of `Log`."""
    if not ids:
        return []
    columns = (Log.id, Log.request_id, Log.timestamp, Log.level, Log.source, Log.message)
    return list(session.execute(select(*columns).where(Log.request_id.in_(ids)).order_by(Log.id)))
