"""This server's queue: what the routes ask of it, and the work on it.

One request at a time runs here, in order of priority and arrival, while the files of others are fetched. Other people's
prompts in ComfyUI's own queue run in between. Everything that must outlive this process is in the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial

from sqlalchemy.orm import Session

from .. import clock
from ..applications import Application
from ..database import rows
from ..database.rows import DONE, StoredRequest
from ..database.store import Store, StoreFailed
from ..host import Host
from ..settings import Settings
from ..ticking import TICK_SECONDS, Ticker, each_of
from ..waiting import is_set_within
from ..webhooks.deliveries import Webhooks
from .cleaner import Cleaner
from .crew import Crew
from .endings import cancelled, late
from .fetcher import Fetcher
from .finishing import Finishing
from .journal import Journal
from .lane import Lane
from .preparation import Preparation
from .snapshots import Snapshot, Snapshots
from .submissions import Submission, Submissions

ENDED_AT_ONCE = 16  # waiting requests that a tick ends: each costs a transaction, and other work waits meanwhile
CANCEL_SECONDS = 5.0  # that the answer to a cancellation waits for the request's end


class RequestQueue:
    """All requests, and the work of this server on them."""

    def __init__(self, host: Host, database: Store, settings: Settings, webhooks: Webhooks) -> None:
        self.host, self.store, self.settings = host, database, settings
        self._webhooks = webhooks
        self._snapshots = Snapshots(database, settings.hold_seconds)
        self._ticker = Ticker("the queue", self._tick)
        self.journal = Journal(database, self._snapshots)
        self.finishing = Finishing(database, settings, webhooks, self.journal)
        self.crew = Crew(host)
        self._lane = Lane(host, database, settings, self.journal, self.finishing, self._ticker.wake, self.crew)
        self._fetcher = Fetcher(self._lane.leases, database, settings, self.finishing, self._ticker.wake)
        self._cleaner = Cleaner(database, settings)
        self._submissions = Submissions(Preparation(host, settings), database, settings, self._queued)

    async def start(self) -> None:
        """Begins to work. Call it on the loop that answers requests."""
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

    async def submit(self, application: Application, submission: Submission) -> tuple[StoredRequest, int]:
        """Puts a request into the queue. Returns it and the number of those before it. Errors: as
        `Submissions.submit`."""
        return await self._submissions.submit(application, submission)

    async def look(self, request_id: str) -> Snapshot | None:
        """A request's present state."""
        return await self._snapshots.look(request_id)

    async def find(self, request_id: str) -> StoredRequest | None:
        """A request with all of its columns."""
        return await self.store.read(rows.find, request_id, whole=True)

    async def note_read(self, request_id: str) -> None:
        """Notes the first reading of a result that is sent once. Its last minutes begin then."""
        await self.store.run(_note_read, request_id)

    def watch(self, request_id: str) -> AbstractContextManager[asyncio.Event]:
        """An event that is set whenever this server changes that request."""
        return self.journal.watch(request_id)

    async def wait(self, request_id: str, alive: Callable[[], bool] = lambda: True) -> StoredRequest | None:
        """The request once it has ended; None if the waiting client has gone.

        It waits on while the database cannot be read. The client would take an error for the request's, and send that
        again.
        """
        with self.watch(request_id) as changed:
            while alive():
                changed.clear()
                with suppress(StoreFailed):
                    snapshot = await self.look(request_id)
                    if snapshot is None or snapshot.request.status == DONE:
                        return await self.find(request_id)
                await is_set_within(changed, TICK_SECONDS)
        return None

    def is_awaited(self, request_id: str) -> bool:
        """Whether somebody waits for that request, or follows it."""
        return self.journal.is_watched(request_id)

    async def cancel(self, request_id: str) -> bool | None:
        """Cancels a waiting or running request. False: it has ended; None: there is none.

        It stops a run on this server even if the database takes nothing at the moment. Errors: StoreFailed.
        """
        with self.watch(request_id) as changed:
            try:
                request = await self.store.run_durably(_ask_cancel, request_id)
            except StoreFailed:
                self._lane.stop(request_id, cancelled())
                self._fetcher.stop(request_id, cancelled())
                raise
            if request is None or request.status == DONE:
                return None if request is None else False
            self._ticker.wake()  # if another server has it, that one sees the mark
            deadline = time.monotonic() + CANCEL_SECONDS
            while time.monotonic() < deadline:
                changed.clear()
                found = await self.look(request_id)
                if found is None or found.request.status == DONE:
                    break
                await is_set_within(changed, TICK_SECONDS)
        return True

    # --- the work ---

    async def _tick(self) -> None:
        await each_of((self._sweep, self._end_waiting, self._fetcher.tick, self._lane.tick))

    async def _sweep(self) -> None:
        if await self._lane.leases.sweep(others=True):
            self.journal.all_changed()

    async def _end_waiting(self) -> None:
        overdue, unwanted = await self.store.read(_waiting_in_vain)
        ends = [(request, late(request)) for request in overdue] + [(request, cancelled()) for request in unwanted]
        if len(ends) > ENDED_AT_ONCE:
            self._ticker.wake()  # for the others, after the queue's other work
        await each_of(partial(self.finishing.finish, *end) for end in ends[:ENDED_AT_ONCE])


def _waiting_in_vain(session: Session) -> tuple[list[StoredRequest], list[StoredRequest]]:
    """Waiting requests that nobody has in hand: those whose time to start is over, and cancelled ones."""
    return rows.overdue(session, clock.now()), rows.cancelled(session)


def _ask_cancel(session: Session, request_id: str) -> StoredRequest | None:
    request = rows.find(session, request_id)
    if request and request.status != DONE:
        request.cancel = True
    return request


def _note_read(session: Session, request_id: str) -> None:
    request = rows.find(session, request_id)
    if request and request.read is None:
        request.read = time.time()
