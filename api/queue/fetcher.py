"""Fetches the files of waiting requests before their turn, so a slow address holds up no other request.

The number of fetches at once is limited, in all and for each server. Files of this server do not count.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial

from sqlalchemy.orm import Session

from ...ltx.errors import InputError
from .. import clock
from ..database import rows
from ..database.rows import StoredRequest, is_late
from ..database.store import Store, StoreFailed
from ..faults import Complaints
from ..files import owners
from ..files.looks import Kind
from ..files.media import Inbox
from ..settings import Settings
from .endings import RequestFailed, application_of, cancelled, late, refused
from .finishing import Finishing
from .in_hand import InHand
from .leases import Leases

FETCHES = 64  # requests whose files are fetched from other servers at once
FETCHES_OF_A_HOST = 24
OWN_FETCHES = 16  # requests whose files are copied here at once
BEGUN_AT_ONCE = 16  # fetches that a tick begins: one that fails at once makes room for the next, for hours on end
RETRY_SECONDS = 5.0  # until the next try if the disk is full or fails

Files = dict[str, str]
"""Field → name in the input folder."""


class Fetcher:
    """wake: is called when a request's files are there, or cannot be fetched, and when there may be more to fetch."""

    def __init__(
        self, leases: Leases, database: Store, settings: Settings, finishing: Finishing, wake: Callable[[], None]
    ) -> None:
        self._leases, self._store, self._finishing, self._wake = leases, database, finishing, wake
        self._input = settings.input
        self._inbox = Inbox(settings, database)
        self._fetching: dict[str, InHand[Files]] = {}
        self._disk = Complaints()

    async def close(self) -> None:
        """Ends the work. The requests go back into the queue."""
        await asyncio.gather(*(fetch.close() for fetch in list(self._fetching.values())))

    async def tick(self) -> None:
        """Begins to fetch the files of waiting requests, and stops fetches that clients have cancelled."""
        marked = await self._leases.marked()
        for request_id, fetch in self._fetching.items():
            if request_id in marked:
                fetch.stop(cancelled())
            elif is_late(fetch.request, clock.now()):
                fetch.stop(late(fetch.request))
        for _ in range(BEGUN_AT_ONCE):
            if (request := await self._claim()) is None:
                return
            over = partial(self._over, request.id)
            self._fetching[request.id] = InHand(request, self._leases, self._finishing, self._fetch, self._settle, over)
        self._wake()  # for more, after the queue's other work

    def stop(self, request_id: str, ending: RequestFailed) -> None:
        """Ends a request if its files are being fetched. Its end is written soon after."""
        if request_id in self._fetching:
            self._fetching[request_id].stop(ending)

    def _over(self, request_id: str) -> None:
        del self._fetching[request_id]
        self._wake()

    async def _claim(self) -> StoredRequest | None:
        hosts = Counter(each.request.origin for each in self._fetching.values())
        own = hosts.pop(None, 0) < OWN_FETCHES
        far = hosts.total() < FETCHES
        busy = [host for host, count in hosts.items() if count >= FETCHES_OF_A_HOST]
        return await self._leases.claim(rows.unfetched(own, far, busy))

    async def _settle(self, request: StoredRequest, outcome: Files | RequestFailed) -> None:
        """Writes that a request's files are there, or its end."""
        if isinstance(outcome, RequestFailed):
            await self._finishing.finish_patiently(request, outcome)
        else:
            await self._store.run_patiently(_make_ready, request.id, self._leases.holder, outcome)

    async def _fetch(self, request: StoredRequest) -> Files:
        """Brings a request's files. Errors: RequestFailed."""
        application = application_of(request)
        there: Files = dict(request.media)
        for field, kind in application.files.items():
            if field in request.arguments and field not in there:
                try:
                    there[field] = await self._bring(request.arguments[field], field, kind, request)
                except InputError as error:
                    raise refused(application.invalid_from(error, field)) from None
        return there

    async def _bring(self, value: str, field: str, kind: Kind, request: StoredRequest) -> str:
        """Brings a file, and tries again while the disk or the database fails, which is no fault of the request."""
        while True:
            try:
                name = await self._inbox.localize(value, field, kind, request.id)
                await asyncio.to_thread(application_of(request).check_file, field, self._input / name)
                return name
            except StoreFailed:
                pass  # the store has logged it
            except OSError as error:
                self._disk.note(f"A request's file cannot be kept ({error.strerror or type(error).__name__}).")
            await asyncio.sleep(RETRY_SECONDS)


def _make_ready(session: Session, request_id: str, holder: str, files: Files) -> None:
    """Notes that the files are there. If the disk took one of them so late that another is gone, since its reservation
    was over, the request goes back to be fetched again."""
    if not owners.has_all(session, request_id, files.values()):
        rows.release_one(session, request_id, holder, counts=False)
    elif rows.make_ready(session, request_id, holder, files):
        owners.keep(session, request_id)
