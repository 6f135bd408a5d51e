"""Writes the events of requests into the store, in order, and tells those who watch the requests."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from ..database import rows
from ..database.store import Store, StoreFailed
from ..faults import log_unexpected, public
from .snapshots import Snapshots

RETRY_SECONDS = 1.0
MOST_PENDING = 10_000  # log lines that wait for the store; older ones are dropped

Work = Callable[[Session], object]


@dataclass(frozen=True)
class _Note:
    """A change of a request that is not written yet. is_line: it is a line of the log, which may be dropped."""

    request_id: str
    work: Work
    is_line: bool


class Journal:
    """Makes notes from code that cannot await. `flush` writes all notes that were made before it."""

    def __init__(self, database: Store, snapshots: Snapshots) -> None:
        self._store, self._snapshots = database, snapshots
        self._pending: list[_Note] = []
        self._writing = asyncio.Lock()
        self._flushing: asyncio.Task[None] | None = None
        self._watched: dict[str, set[asyncio.Event]] = defaultdict(set)

    def log(self, request_id: str, message: str, level: str = "INFO") -> None:
        """Adds a line to the request's log, without the paths and tokens in it."""
        now = time.time()
        line = partial(rows.add_log, request_id=request_id, message=public(message), timestamp=now, level=level)
        self._add(_Note(request_id, line, is_line=True))

    def note(self, request_id: str, work: Work) -> None:
        """Notes a change of that request. It is written after all earlier notes."""
        self._add(_Note(request_id, work, is_line=False))

    def _add(self, note: _Note) -> None:
        self._pending.append(note)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._flush_soon())

    async def _flush_soon(self) -> None:
        while self._pending:
            try:
                await self.flush()
            except StoreFailed:
                await asyncio.sleep(RETRY_SECONDS)

    async def flush(self) -> None:
        """Writes all notes. A note that cannot be written at all is logged and dropped.

        Errors: StoreFailed; the notes are kept then.
        """
        async with self._writing:
            pending, self._pending = self._pending, []
            ids = {note.request_id for note in pending}
            try:
                await self._write(pending)
            except StoreFailed:
                self._pending = _newest(pending) + self._pending
                raise
        for request_id in ids:
            self.changed(request_id)

    async def _write(self, pending: list[_Note]) -> None:
        """Writes notes, all at once if that is possible, and removes them from the list."""
        size = len(pending)
        while pending:
            try:
                await self._store.run(_write, [note.work for note in pending[:size]])
            except StoreFailed:
                raise
            except Exception as error:  # one of them is wrong, or its request was deleted: the others are written
                if size > 1:
                    size = 1
                    continue
                log_unexpected(f"a note about request {pending[0].request_id} could not be written", error)
            del pending[:size]

    def changed(self, request_id: str) -> None:
        """Says that the store has news of that request."""
        self._snapshots.outdate(request_id)
        for event in self._watched.get(request_id, ()):
            event.set()

    def all_changed(self) -> None:
        """Says that any request may have changed, if only its place in the queue."""
        self._snapshots.outdate()

    def is_watched(self, request_id: str) -> bool:
        """Whether somebody waits for news of that request."""
        return request_id in self._watched

    @contextmanager
    def watch(self, request_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever this server changes that request."""
        event = asyncio.Event()
        self._watched[request_id].add(event)
        try:
            yield event
        finally:
            self._watched[request_id].discard(event)
            if not self._watched[request_id]:
                del self._watched[request_id]


def _write(session: Session, works: list[Work]) -> None:
    for work in works:
        work(session)


def _newest(pending: list[_Note]) -> list[_Note]:
    """Keeps all changes, and the newest of the log lines."""
    surplus = sum(note.is_line for note in pending) - MOST_PENDING
    kept = []
    for note in pending:
        if note.is_line and surplus > 0:
            surplus -= 1
        else:
            kept.append(note)
    return kept
