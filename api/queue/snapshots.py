"""Requests as pollers see them.

Many pollers of many requests cost one look at the store in each half second. A look reads all requests that pollers
asked for lately and that are not fresh. A change by this server outdates a request at once; a change by another one
shows after that half second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from ..database import rows
from ..database.rows import QUEUED, StoredRequest
from ..database.store import Store

FRESH_SECONDS = 0.5
LATELY = 1.0  # seconds within which a poller asks again


@dataclass(frozen=True)
class Snapshot:
    """A request, the number of those before it, and its log. Each line has its id, so that streams know which ones they
    sent."""

    request: StoredRequest
    position: int
    logs: tuple[tuple[int, dict[str, Any]], ...]


class Snapshots:
    """The last looks at requests."""

    def __init__(self, database: Store, patience: float = 0.0) -> None:
        """patience: seconds that a look may wait for others if nobody asks."""
        self.store, self._remembered = database, LATELY + patience
        self._known: dict[str, tuple[float, Snapshot]] = {}  # id → the time until which it is fresh, and the snapshot
        self._asked: dict[str, float] = {}
        self._looking: dict[str, asyncio.Task[dict[str, Snapshot]]] = {}

    async def look(self, request_id: str) -> Snapshot | None:
        """A request's present state; None if there is none."""
        now = time.monotonic()
        self._asked[request_id] = now
        kept = self._known.get(request_id)
        if kept and kept[0] > now:
            return kept[1]
        task = self._looking.get(request_id)
        if task is None:
            task = self._begin(request_id, now)
        return (await asyncio.shield(task)).get(request_id)

    def _begin(self, request_id: str, now: float) -> asyncio.Task[dict[str, Snapshot]]:
        self._asked = {each: at for each, at in self._asked.items() if at > now - self._remembered}
        self._known = {each: kept for each, kept in self._known.items() if each in self._asked}
        stale = {each for each, (until, _) in self._known.items() if until <= now and each not in self._looking}
        ids = stale | {request_id}
        task = asyncio.create_task(self._look(ids))
        self._looking |= dict.fromkeys(ids, task)
        return task

    async def _look(self, ids: Collection[str]) -> dict[str, Snapshot]:
        this, found = asyncio.current_task(), {}
        try:
            found = await self.store.read(_look_up, ids)
            return found
        finally:
            until = time.monotonic() + FRESH_SECONDS
            for each in ids:
                if self._looking.get(each) is this:  # otherwise it has been outdated meanwhile
                    del self._looking[each]
                    if each in found:
                        self._known[each] = (until, found[each])

    def outdate(self, request_id: str | None = None) -> None:
        """Outdates that request, or all. Whoever asks from now on gets what the store has now."""
        if request_id is None:
            self._known.clear()
            self._looking.clear()
        else:
            self._known.pop(request_id, None)
            self._looking.pop(request_id, None)


def _look_up(session: Session, ids: Collection[str]) -> dict[str, Snapshot]:
    requests = rows.find_all(session, ids)
    positions = rows.positions(session, [request.id for request in requests if request.status == QUEUED])
    logs: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for line in rows.logs_of(session, [request.id for request in requests if request.status != QUEUED]):
        logs.setdefault(line.request_id, []).append((line.id, log_line(line)))
    return {
        request.id: Snapshot(request, positions.get(request.id, 0), tuple(logs.get(request.id, ())))
        for request in requests
    }


def log_line(log: Any) -> dict[str, Any]:
    """A line in the form that the clients read. log: a row of `Log`."""
    seconds, fraction = divmod(log.timestamp, 1)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(fraction * 1e6):06d}Z"
    return {"message": log.message, "level": log.level, "source": log.source, "timestamp": stamp}
