"""The queue of this server: what routes ask of it, and the work on it.

One request at a time runs here, in order of priority and arrival, while the files of others are fetched. Prompts of
other people in ComfyUI's own queue go their own way in between. Whatever must outlive this process is in the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Session

from ..applications import Application
from ..database import rows
from ..database.rows import DONE, StoredRequest
from ..database.store import Store
from ..host import Host
from ..settings import Settings
from ..waiting import is_set_within
from ..webhooks.deliveries import Webhooks
from .cleaner import Cleaner
from .endings import cancelled, late
from .fetcher import Fetcher
from .finishing import Finishing
from .journal import Journal
from .lane import Lane
from .preparation import Preparation
from .snapshots import Snapshot, Snapshots
from .submissions import Submission, Submissions
from .ticking import TICK_SECONDS, Ticker


class RequestQueue:
    """All requests, and what this server has in hand of them."""

    def __init__(self, host: Host, database: Store, settings: Settings, webhooks: Webhooks) -> None:
        self.host, self.store, self.settings = host, database, settings
        self._webhooks = webhooks
        self._snapshots = Snapshots(database, settings.hold_seconds)
        self._ticker = Ticker(self._tick)
        self.journal = Journal(database, self._snapshots)
        self.finishing = Finishing(database, settings, webhooks, self.journal)
        self._lane = Lane(host, database, settings, self.journal, self.finishing, self._ticker.wake)
        self._fetcher = Fetcher(self._lane.leases, database, settings, self.finishing, self._ticker.wake)
        self._cleaner = Cleaner(database, settings)
        self._submissions = Submissions(Preparation(host, settings), database, settings, self._queued)

    async def start(self) -> None:
        """Begins to work; must be called on the loop that answers requests."""
        self._lane.leases.start()
        self._webhooks.start()
        self._ticker.start()
        self._cleaner.start()

    async def close(self) -> None:
        await self._ticker.stop()
        await self._cleaner.stop()
        await self._fetcher.close()
        await self._lane.close()
        await self._webhooks.stop()
        self._lane.leases.stop()

    def _queued(self) -> None:
        self.journal.all_changed()
        self._ticker.wake()

    # --- what routes ask for ---

    async def submit(
        self, application: Application, body: Any, digest: str, submission: Submission
    ) -> tuple[StoredRequest, int]:
        """Into the queue; the request and how many wait before it. Errors: Invalid, ModelMissing, ReusedKey."""
        return await self._submissions.submit(application, body, digest, submission)

    async def look(self, request_id: str) -> Snapshot | None:
        """A request as it stands."""
        return await self._snapshots.look(request_id)

    async def find(self, request_id: str) -> StoredRequest | None:
        """A request with all of its columns."""
        return await self.store.run(rows.find, request_id, whole=True)

    async def note_read(self, request_id: str) -> None:
        """The clock of a result that is kept nowhere starts when it is first read."""
        await self.store.run(_note_read, request_id)

    @contextmanager
    def watch(self, request_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever this server changes that request."""
        with self.journal.watch(request_id) as changed:
            yield changed

    async def wait(self, request_id: str, alive: Callable[[], bool] = lambda: True) -> StoredRequest | None:
        """The request once it has ended; None where whoever waits has gone."""
        with self.watch(request_id) as changed:
            while alive():
                changed.clear()
                snapshot = await self.look(request_id)
                if snapshot is None or snapshot.request.status == DONE:
                    return await self.find(request_id)
                await is_set_within(changed, TICK_SECONDS)
        return None

    async def cancel(self, request_id: str) -> bool | None:
        """Ends a request, waiting or running; False where it has ended, None where there is none."""
        async with self._ticker.lock:  # nothing is claimed meanwhile
            request = await self.store.run(_ask_cancel, request_id)
            if request is None or request.status == DONE:
                return None if request is None else False
            if self._lane.is_running(request_id):
                await self._lane.stop(cancelled())
            elif request_id in self._fetcher:
                await self._fetcher.stop(request_id, cancelled())
            elif request.lease_server is None:
                await self.finishing.finish(request, cancelled())
        return True  # where another server has it, that one sees the mark

    # --- the work ---

    async def _tick(self) -> None:
        now = time.time()
        if await self.store.run(rows.release_expired, now, self._lane.leases.holder):
            self.journal.all_changed()
        for request in await self.store.run(rows.overdue, now):
            await self.finishing.finish(request, late(request))
        marked = await self._lane.leases.marked() if self._fetcher else set()
        await self._fetcher.tick(now, marked)
        await self._lane.tick(now)


def _ask_cancel(session: Session, request_id: str) -> StoredRequest | None:
    request = rows.find(session, request_id)
    if request and request.status != DONE:
        request.cancel = True
    return request


def _note_read(session: Session, request_id: str) -> None:
    request = rows.find(session, request_id)
    if request and request.read is None:
        request.read = time.time()
