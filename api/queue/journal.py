"""What happens to requests, written down soon and in order, and told to whoever watches them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from sqlalchemy.orm import Session

from ..database import rows
from ..database.store import Store
from .snapshots import Snapshots


class Journal:
    """Notes may be made where nothing can be awaited; `flush` has written those that were made before it."""

    def __init__(self, database: Store, snapshots: Snapshots) -> None:
        self._store, self._snapshots = database, snapshots
        self._pending: list[tuple[str, Callable[[Session], object]]] = []
        self._writing = asyncio.Lock()
        self._flushing: asyncio.Task[None] | None = None
        self._watched: dict[str, set[asyncio.Event]] = defaultdict(set)

    def log(self, request_id: str, message: str, level: str = "INFO") -> None:
        """A line of the request's log."""
        now = time.time()
        self.note(request_id, partial(rows.add_log, request_id=request_id, message=message, timestamp=now, level=level))

    def note(self, request_id: str, work: Callable[[Session], object]) -> None:
        """A change of that request, to be written after the notes that were made before."""
        self._pending.append((request_id, work))
        if len(self._pending) == 1:
            self._flushing = asyncio.get_running_loop().create_task(self.flush())
            self._flushing.add_done_callback(_complain)

    async def flush(self) -> None:
        async with self._writing:
            pending, self._pending = self._pending, []
            if pending:
                await self._store.run(_write, [work for _, work in pending])
        for request_id in {request_id for request_id, _ in pending}:
            self.changed(request_id)

    def changed(self, request_id: str) -> None:
        """That request is another in the store by now."""
        self._snapshots.outdate(request_id)
        for event in self._watched.get(request_id, ()):
            event.set()

    def all_changed(self) -> None:
        """Any request may be another by now, if only by its place in the queue."""
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


def _write(session: Session, works: list[Callable[[Session], object]]) -> None:
    for work in works:
        work(session)


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception():
        logging.error("LTX A2V: a request's log could not be written", exc_info=task.exception())
