"""Who has which request in hand: a lease for each, renewed as long as its server lives."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ..database import rows
from ..database.rows import StoredRequest
from ..database.store import Store
from ..settings import Settings


class Leases:
    """Those of one worker: of this server, or of another machine that this server has do its work."""

    def __init__(self, database: Store, settings: Settings) -> None:
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._store, self._settings = database, settings
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._heartbeat, name="ltx-a2v-lease", daemon=True).start()
        atexit.register(self.give_back)

    def stop(self) -> None:
        """Gives everything back; blocks on the store."""
        self.give_back()
        atexit.unregister(self.give_back)

    def give_back(self) -> None:
        """Requests go back into the queue at once, where the process ends in good order."""
        self._stopped.set()
        with suppress(SQLAlchemyError), self._store.session() as session:
            rows.release(session, server=self.holder)

    def _heartbeat(self) -> None:
        """A thread of its own: a loop that is busy must not cost a lease."""
        while not self._stopped.wait(self._settings.heartbeat_seconds):
            try:
                with self._store.session() as session:
                    rows.renew(session, self.holder, time.time(), self._settings.lease_seconds)
            except SQLAlchemyError as error:
                logging.warning("LTX A2V: the lease could not be renewed: %s", error)

    async def claim(self, now: float, *, ready: bool = True) -> StoredRequest | None:
        """The next request in the queue that is ready to run, or whose media are to be fetched."""
        return await self._store.run(rows.claim, self.holder, now, self._settings.lease_seconds, ready=ready)

    async def change(self, request_id: str, **values: Any) -> bool:
        """Changes a request that is in hand, and says whether it is."""
        return await self._store.run(rows.change, request_id, self.holder, **values)

    async def marked(self) -> set[str]:
        """The requests in hand whose end was asked for."""
        return await self._store.run(rows.marked, self.holder)
