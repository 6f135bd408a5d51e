"""Leases: which worker has which request in hand. A lease is renewed as long as its worker works on the request."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import threading
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from .. import clock
from ..database import rows
from ..database.rows import StoredRequest
from ..database.store import Store, StoreFailed
from ..faults import log_unexpected
from ..settings import Settings


class Leases:
    """The leases of one worker: of this server, or of another machine that works for it.

    Leases of requests in hand are renewed. If a task ends without ending its request, the next `sweep` returns that to
    the queue.
    """

    def __init__(self, database: Store, settings: Settings) -> None:
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._store, self._settings = database, settings
        self._stopped = threading.Event()
        # This set is replaced and never changed, because the heartbeat's thread reads it.
        self._held: frozenset[str] = frozenset()

    def start(self) -> None:
        threading.Thread(target=self._heartbeat, name="ltx-a2v-lease", daemon=True).start()
        atexit.register(self.give_back)

    def stop(self) -> None:
        """Returns all requests to the queue. It blocks on the store."""
        self.give_back()
        atexit.unregister(self.give_back)

    def give_back(self) -> None:
        """Returns all requests to the queue at once, when the process ends in good order."""
        self._stopped.set()
        try:
            with self._store.session() as session:
                rows.release(session, self.holder)
        except StoreFailed:
            logging.warning("LTX A2V: requests in hand could not be given back; they are when their leases are over.")

    def _heartbeat(self) -> None:
        """Renews the leases from a thread of its own, so that a busy event loop loses none."""
        while not self._stopped.wait(self._settings.heartbeat_seconds):
            if not (held := self._held):
                continue
            try:
                with self._store.session() as session:
                    rows.renew(session, self.holder, held, clock.now(), self._settings.lease_seconds)
            except StoreFailed:
                pass  # the store has logged it
            except Exception as error:  # a bug must not end this thread: all leases of the server would run out
                log_unexpected("a lease could not be renewed", error)

    async def claim(self, which: ColumnElement[bool] | None = None) -> StoredRequest | None:
        """Claims the next request, which is in hand from now on. which: as in `rows.claim`.

        It claims none that still is in hand here. The fetcher returns a request to the queue a moment before it drops
        it. If a lane of this server claimed the request in between, the fetcher would drop it for the lane, too, and
        the next sweep would return a running request.
        """
        request = await self._store.run(_claim, self.holder, self._settings.lease_seconds, which, self._held)
        if request:
            self._held |= {request.id}
        return request

    def drop(self, request_id: str) -> None:
        """Says that the work on that request is over."""
        self._held -= {request_id}

    async def sweep(self, *, others: bool = False) -> int:
        """Returns requests that are leased here but not in hand to the queue; with `others` also those of dead servers.
        Returns their number.

        While the database could not be written, servers that work could not renew their leases. They get two heartbeats
        for that before any lease counts as over.
        """
        return await self._store.run(self._sweep, others)

    def _sweep(self, session: Session, others: bool) -> int:
        now, expired = clock.now(), 0
        if others and now.steady >= self._store.troubled + 2 * self._settings.heartbeat_seconds:
            expired = rows.release_expired(session, now, self.holder)
        return expired + rows.release(session, self.holder, but=self._held)

    async def give_back_one(self, request_id: str, *, counts: bool, last: bool = False) -> None:
        """Returns one request to the queue. counts: it was an attempt, and the request goes to the end. last: it goes
        there in any case."""
        await self._store.run_patiently(rows.release_one, request_id, self.holder, counts=counts, last=last)

    async def change(self, request_id: str, **values: Any) -> bool:
        """Changes a request in hand, however long that takes, and says whether it still is in hand."""
        return await self._store.run_patiently(rows.change, request_id, self.holder, **values)

    async def marked(self) -> set[str]:
        """The ids of requests in hand that shall be cancelled."""
        return await self._store.read(rows.marked, self.holder) if self._held else set()


# The clock is read within the transaction: another server may have claimed or renewed while it waited for its turn.


def _claim(
    session: Session, holder: str, seconds: float, which: ColumnElement[bool] | None, held: Collection[str]
) -> StoredRequest | None:
    return rows.claim(session, holder, clock.now(), seconds, which, but=held)
