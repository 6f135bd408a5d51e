"""Requests and their logs as rows of the database.

All functions take the session of one transaction. A claim is one statement, so two servers never take the same request,
and a server that has lost a lease cannot change the request any more. This file knows neither HTTP nor ComfyUI. Stored
times are seconds since 1970; durations are measured by the clock that only goes forward.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    ColumnElement,
    ForeignKey,
    Index,
    Row,
    Text,
    UniqueConstraint,
    and_,
    delete,
    false,
    func,
    not_,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.orm import Mapped, Session, mapped_column, undefer

from ..clock import Moment
from .store import Base

QUEUED, RUNNING, DONE = "IN_QUEUE", "IN_PROGRESS", "COMPLETED"
PRIORITIES = {"normal": 0, "low": 1}
Ended = tuple[float, int]
"""When a request ended, and its number. Old requests are visited in this order."""
FIRST_ENDED: Ended = (0.0, 0)
WITH_FILES = text("ended IS NOT NULL AND gone = 0")
WITHOUT_FILES = text("ended IS NOT NULL AND gone = 1")
SENT_ONCE = text("ended IS NOT NULL AND gone = 0 AND sync_mode = 1")
SHORT_LIVED = text("ended IS NOT NULL AND gone = 0 AND keep_seconds IS NOT NULL")
"""Conditions of partial indexes. A query must have the very same words: SQLite does not use the index otherwise."""
ANY_START: dict[str, Any] = {"start_timeout": None, "start_before": None}
"""Of a request that has started in time. If its server ends, the next start may be at any time."""
NOT_HELD: dict[str, Any] = {"lease_server": None, "lease_boot": None, "lease_from": None, "lease_until": None}


class StoredRequest(Base):
    """One request, from its submission on. Its log is in rows of its own."""

    __tablename__ = "requests"
    __table_args__ = (
        UniqueConstraint("app", "idempotency_key"),
        Index("requests_in_order", "status", "priority", "turn", "number"),
        Index("requests_with_files", "ended", sqlite_where=WITH_FILES),
        Index("requests_without_files", "ended", sqlite_where=WITHOUT_FILES),
        Index("requests_sent_once", "ended", sqlite_where=SENT_ONCE),
        Index("requests_short_lived", "ended", sqlite_where=SHORT_LIVED),
    )

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    app: Mapped[str]
    arguments: Mapped[dict[str, Any]] = mapped_column(deferred=True)  # as they were sent, with the seed
    media: Mapped[dict[str, Any]] = mapped_column(default=dict)  # field → name in the input folder, once it is there
    ready: Mapped[bool] = mapped_column(default=True)  # whether all of its media are there
    origin: Mapped[str | None] = mapped_column(Text)  # host and port of media that must be fetched
    status: Mapped[str] = mapped_column(default=QUEUED)
    priority: Mapped[int] = mapped_column(default=0)
    turn: Mapped[int] = mapped_column(default=0, server_default="0")  # its place among requests of its priority
    idempotency_key: Mapped[str | None]
    digest: Mapped[str]  # of the body; it tells a retry from another request
    base_url: Mapped[str] = mapped_column(default="")  # as the client knows this server
    webhook_url: Mapped[str | None] = mapped_column(Text)
    created: Mapped[float]
    started: Mapped[float | None]
    ended: Mapped[float | None]
    start_timeout: Mapped[float | None]  # seconds that it may wait for its start
    boot: Mapped[str] = mapped_column(default="", server_default="")  # the boot of `start_before`
    start_before: Mapped[float | None]  # by the clock that only goes forward
    cancel: Mapped[bool] = mapped_column(default=False)  # by its client; the server that runs it stops it
    attempts: Mapped[int] = mapped_column(default=0)
    lease_server: Mapped[str | None]
    lease_boot: Mapped[str | None]
    lease_from: Mapped[float | None]  # this and the next by the clock that only goes forward
    lease_until: Mapped[float | None]
    token: Mapped[str | None]  # of the last start: 128 random bits, the beginning of its file's name
    prompt_id: Mapped[str | None]  # in ComfyUI's queue
    workflow: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)  # the graph in API form, as it was queued
    result: Mapped[dict[str, Any] | None]  # with the file's name in place of its URL
    sync_mode: Mapped[bool] = mapped_column(default=False)
    error: Mapped[str | None] = mapped_column(Text)
    error_type: Mapped[str | None]
    error_status: Mapped[int | None]  # the status of the answer to those who ask for the result
    error_detail: Mapped[list[dict[str, Any]] | None]  # the list of a 422
    safety: Mapped[str | None]  # the value of the header x-ltx-safety
    read: Mapped[float | None]  # when a result that is sent once was first read
    gone: Mapped[bool] = mapped_column(default=False)  # whether its files were deleted
    keep_seconds: Mapped[float | None]  # after its end, as the client wishes; None: as long as the server keeps files


class Log(Base):
    """One line of a request's log. Lines are only ever added."""

    __tablename__ = "logs"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"), index=True)
    timestamp: Mapped[float]
    level: Mapped[str]
    source: Mapped[str]
    message: Mapped[str] = mapped_column(Text)


_R = StoredRequest


def add(session: Session, request: StoredRequest) -> None:
    """Adds a request to the queue, behind all others."""
    session.add(request)
    session.flush()
    request.turn = request.number


def find(session: Session, request_id: str, *, whole: bool = False) -> StoredRequest | None:
    """Finds a request by id. whole: loads the large columns, too."""
    loading = (undefer(_R.arguments), undefer(_R.workflow)) if whole else ()
    return session.scalar(select(_R).where(_R.id == request_id).options(*loading))


def find_all(session: Session, ids: Collection[str]) -> list[StoredRequest]:
    return list(session.scalars(select(_R).where(_R.id.in_(ids))))


def find_retried(session: Session, app: str, key: str) -> StoredRequest | None:
    """Finds the request that was submitted with that idempotency key."""
    return session.scalar(select(_R).where(_R.app == app, _R.idempotency_key == key))


def position(session: Session, request: StoredRequest) -> int:
    """How many requests wait before this one."""
    earlier = or_(_R.turn < request.turn, and_(_R.turn == request.turn, _R.number < request.number))
    before = or_(_R.priority < request.priority, and_(_R.priority == request.priority, earlier))
    return session.scalar(select(func.count()).where(_R.status == QUEUED, before)) or 0


def positions(session: Session, ids: Collection[str]) -> dict[str, int]:
    """`position` of many waiting requests at once."""
    if not ids:
        return {}
    place = func.row_number().over(order_by=(_R.priority, _R.turn, _R.number)) - 1
    queue = select(_R.id, place.label("place")).where(_R.status == QUEUED).subquery()
    return dict(session.execute(select(queue).where(queue.c.id.in_(ids))).all())


# --- leases ---


def _unended() -> ColumnElement[bool]:
    """Requests that have not ended. SQLite has an index for equal statuses and none for different ones: `!=` would read
    all requests that ever were, each second."""
    return _R.status.in_((QUEUED, RUNNING))


def _free() -> ColumnElement[bool]:
    return and_(_R.status == QUEUED, _R.lease_server.is_(None), _R.cancel.is_(False))


def claim(
    session: Session,
    server: str,
    now: Moment,
    seconds: float,
    which: ColumnElement[bool] | None = None,
    *,
    but: Collection[str] = (),
) -> StoredRequest | None:
    """Leases the next request of the queue to this server for so many seconds; None if none waits.

    which: the requests that may be claimed, by default those whose media are all there. but: ids that may not.
    """
    which = and_(_R.ready.is_(True) if which is None else which, _R.id.not_in(but))
    order = (_R.priority, _R.turn, _R.number)
    first = select(_R.number).where(_free(), which).order_by(*order).limit(1).scalar_subquery()
    taken = {**_held_until(now, seconds), "lease_server": server, "attempts": _R.attempts + 1}
    claimed = session.scalar(update(_R).where(_R.number == first).values(**taken).returning(_R.id))
    return find(session, claimed, whole=True) if claimed else None


def unfetched(own: bool, far: bool, busy: Collection[str] = ()) -> ColumnElement[bool]:
    """For `claim`: requests whose media are not there yet. own: their files are this server's; far: the files of
    others, except at `busy` hosts."""
    near = _R.origin.is_(None) if own else false()
    others = and_(_R.origin.is_not(None), _R.origin.not_in(busy)) if far else false()
    return and_(_R.ready.is_(False), or_(near, others))


def _held_until(now: Moment, seconds: float) -> dict[str, Any]:
    return {"lease_boot": now.boot, "lease_from": now.steady, "lease_until": now.steady + seconds}


def renew(session: Session, server: str, ids: Collection[str], now: Moment, seconds: float) -> None:
    """Renews the leases of requests that a server has in hand, even if they ran out while it slept, unless another
    server has them."""
    mine = (_R.lease_server == server, _R.id.in_(ids), _unended())
    session.execute(update(_R).where(*mine).values(**_held_until(now, seconds)))


def release(session: Session, server: str, *, but: Collection[str] = ()) -> int:
    """Returns a server's requests to their places in the queue, except those it still works on. Returns their number.

    Nothing happened to these requests, so this counts as no attempt.
    """
    held = and_(_R.lease_server == server, _R.id.not_in(but))
    return _release(session, held, attempts=func.max(_R.attempts - 1, 0))


def release_one(session: Session, request_id: str, server: str, *, counts: bool, last: bool = False) -> bool:
    """Returns one request of a server to the queue. counts: it may have killed its worker; it goes to the end as an
    attempt. last: it goes to the end in any case."""
    held = and_(_R.id == request_id, _R.lease_server == server)
    place = {"turn": _last_turn()} if counts or last else {}
    return bool(_release(session, held, **place, **({} if counts else {"attempts": func.max(_R.attempts - 1, 0)})))


def release_expired(session: Session, now: Moment, server: str) -> int:
    """Returns requests of dead servers to the end of the queue, for they may have killed their servers. Returns their
    number.

    A lease is over after its window, before its window (the machine has started anew since), and in another boot.
    """
    alive = and_(_R.lease_boot == now.boot, _R.lease_from <= now.steady, _R.lease_until > now.steady)
    expired = and_(_R.lease_server != server, or_(_R.lease_from.is_(None), not_(alive)))
    return _release(session, expired, turn=_last_turn())


def _last_turn() -> Any:
    return select(func.max(_R.turn) + 1).scalar_subquery()


def _release(session: Session, held: ColumnElement[bool], **more: Any) -> int:
    back = {"status": QUEUED, "started": None, "prompt_id": None, **NOT_HELD, **more}
    return session.execute(update(_R).where(held, _unended()).values(**back)).rowcount


def change(session: Session, request_id: str, server: str, **values: Any) -> bool:
    """Changes a request if the server holds its lease, and says whether it does."""
    mine = (_R.id == request_id, _R.lease_server == server, _unended())
    return bool(session.execute(update(_R).where(*mine).values(**values)).rowcount)


def make_ready(session: Session, request_id: str, server: str, media: dict[str, Any]) -> bool:
    """Returns a request whose media are all there to the queue, for any free server to run."""
    return change(session, request_id, server, media=media, ready=True, attempts=0, **NOT_HELD)


def marked(session: Session, server: str) -> set[str]:
    """The ids of that server's requests that shall be cancelled."""
    held = (_R.lease_server == server, _unended(), _R.cancel.is_(True))
    return set(session.scalars(select(_R.id).where(*held)))


# --- ends ---


def finish(session: Session, request: StoredRequest, now: float, **values: Any) -> bool:
    """Ends a request that has not ended, and says whether it did. `request` is refreshed."""
    ending = {"status": DONE, "ended": now, **NOT_HELD, **values}
    held = _R.lease_server == request.lease_server if request.lease_server else _R.lease_server.is_(None)
    mine = (_R.number == request.number, _unended(), held)
    done = session.execute(update(_R).where(*mine).values(**ending)).rowcount
    session.refresh(request)
    return bool(done)


def overdue(session: Session, now: Moment) -> list[StoredRequest]:
    """Waiting requests that nobody has claimed and whose time to start is over."""
    return list(session.scalars(select(_R).where(_R.status == QUEUED, _R.lease_server.is_(None), _late(now))))


def _late(now: Moment) -> ColumnElement[bool]:
    this_boot = and_(_R.boot == now.boot, _R.start_before < now.steady)
    return or_(this_boot, and_(_R.boot != now.boot, _R.created + _R.start_timeout < now.wall))


def is_late(request: StoredRequest, now: Moment) -> bool:
    """Whether the time to start of a request that has not started is over."""
    if request.start_timeout is None:
        return False
    if request.boot == now.boot and request.start_before is not None:
        return request.start_before < now.steady
    return request.created + request.start_timeout < now.wall


def cancelled(session: Session) -> list[StoredRequest]:
    """Waiting requests that nobody has claimed and that shall be cancelled."""
    waiting = (_R.status == QUEUED, _R.lease_server.is_(None), _R.cancel.is_(True))
    return list(session.scalars(select(_R).where(*waiting)))


# --- deletion ---


def with_files(session: Session, ended_before: float, after: Ended, limit: int) -> list[StoredRequest]:
    """Ended requests that still have files, the oldest first, from the one behind `after` on."""
    kept = (WITH_FILES, _R.ended <= ended_before, tuple_(_R.ended, _R.number) > after)
    return list(session.scalars(select(_R).where(*kept).order_by(_R.ended, _R.number).limit(limit)))


def short_lived(session: Session, now: float, limit: int) -> list[StoredRequest]:
    """Ended requests whose files their clients no longer wish to keep."""
    over = (SHORT_LIVED, _R.ended + _R.keep_seconds <= now)
    return list(session.scalars(select(_R).where(*over).order_by(_R.ended).limit(limit)))


def inline(session: Session, ended_before: float, read_before: float, limit: int) -> list[StoredRequest]:
    """Ended requests whose result is sent once, and whose time is over."""
    over = or_(_R.read <= read_before, and_(_R.read.is_(None), _R.ended <= ended_before))
    return list(session.scalars(select(_R).where(SENT_ONCE, over).order_by(_R.ended).limit(limit)))


def forget(session: Session, ended_before: float, limit: int) -> list[str]:
    """Deletes ended requests without files, with their logs and graphs. Returns their ids."""
    over = select(_R.number).where(WITHOUT_FILES, _R.ended <= ended_before).order_by(_R.ended).limit(limit)
    return list(session.scalars(delete(_R).where(_R.number.in_(over)).returning(_R.id)))


def mark_gone(session: Session, ids: Collection[str]) -> None:
    """Notes that the files of these requests were deleted."""
    session.execute(update(_R).where(_R.id.in_(ids)).values(gone=True))


def forget_words(session: Session, ids: Collection[str]) -> None:
    """Deletes everything that requests said and were answered. Only the fact that they existed stays."""
    silent = {"arguments": {}, "workflow": None, "result": None, "gone": True}
    session.execute(update(_R).where(_R.id.in_(ids)).values(**silent))
    session.execute(delete(Log).where(Log.request_id.in_(ids)))


def add_log(session: Session, request_id: str, message: str, timestamp: float, level: str = "INFO") -> None:
    session.add(Log(request_id=request_id, message=message, timestamp=timestamp, level=level, source="USER"))


def logs_of(session: Session, ids: Collection[str]) -> list[Row[Any]]:
    """The log lines of these requests, in order, as rows with the columns of `Log`."""
    if not ids:
        return []
    columns = (Log.id, Log.request_id, Log.timestamp, Log.level, Log.source, Log.message)
    return list(session.execute(select(*columns).where(Log.request_id.in_(ids)).order_by(Log.id)))
