"""Which request needs which file in the input folder, and until when. A file that nobody needs is deleted.

Requests with equal files share one file. A need is written before its file gets its name, and a file is deleted within
the transaction that deletes its last need. So no request loses a file that another one gives up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from sqlalchemy import Index, delete, select, text, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from ..database.store import Base
from ..settings import Settings

RESERVED_SECONDS = 3600.0
"""How long a file waits for its request to be submitted."""
UNDELETED = ""
"""The request id of files that could not be deleted, until the next try."""


class MediaNeed(Base):
    """A request's need of a file. until: seconds since 1970; None: as long as the request has files."""

    __tablename__ = "media_needs"
    __table_args__ = (
        Index("media_needs_of_request", "request_id"),
        Index("media_needs_until", "until", sqlite_where=text("until IS NOT NULL")),
    )

    name: Mapped[str] = mapped_column(primary_key=True)  # in the input folder
    request_id: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[float | None]


def reserve(session: Session, name: str, request_id: str, now: float) -> None:
    """Notes that a request will need that file: one that is being submitted, or whose files are being fetched."""
    need = insert(MediaNeed).values(name=name, request_id=request_id, until=now + RESERVED_SECONDS)
    longer = {"until": need.excluded.until}
    session.execute(need.on_conflict_do_update(set_=longer, where=MediaNeed.until.is_not(None)))


def has_all(session: Session, request_id: str, names: Collection[str]) -> bool:
    """Whether that request's needs of all these files are still known."""
    known = select(MediaNeed.name).where(MediaNeed.request_id == request_id, MediaNeed.name.in_(names))
    return set(session.scalars(known)) == set(names)


def keep(session: Session, request_id: str) -> None:
    """Keeps the files of a request that has been submitted and has all of them."""
    session.execute(update(MediaNeed).where(MediaNeed.request_id == request_id).values(until=None))


def give_up(session: Session, request_ids: Iterable[str], settings: Settings) -> None:
    """Ends the needs of requests."""
    mine = MediaNeed.request_id.in_(list(request_ids))
    names = session.scalars(delete(MediaNeed).where(mine).returning(MediaNeed.name)).all()
    _delete_unneeded(session, names, time.time(), settings)


def give_up_reserved(session: Session, now: float, limit: int, settings: Settings) -> int:
    """Ends reservations whose time is over: their requests were not submitted. Returns the number of these
    reservations."""
    over = select(MediaNeed.name, MediaNeed.request_id).where(MediaNeed.until <= now).limit(limit)
    found = session.execute(over).all()
    for name, request_id in found:
        session.execute(delete(MediaNeed).where(MediaNeed.name == name, MediaNeed.request_id == request_id))
    _delete_unneeded(session, [name for name, _ in found], now, settings)
    return len(found)


def _delete_unneeded(session: Session, names: Iterable[str], now: float, settings: Settings) -> None:
    names = set(names)
    if names:
        names -= set(session.scalars(select(MediaNeed.name).where(MediaNeed.name.in_(names))))
    for name in names:
        path = settings.input / name
        if path.parent == settings.input_folder and not remove(path):  # the API deletes nothing else there
            reserve(session, name, UNDELETED, now)


def remove(path: Path) -> bool:
    """Deletes a file and says whether it is gone. It logs an error and goes on."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logging.warning("LTX A2V: a file could not be deleted (%s); this is tried again later.", error.strerror)
        return False
    return True
