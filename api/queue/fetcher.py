"""Fetches the files of waiting requests before their turn, so a slow address holds up no other request.

The number of fetches at once is limited, in all and for each server. Files of this server do not count.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from sqlalchemy.orm import Session

from ...ltx.errors import InputError
from .. import clock
from ..database import rows
from ..database.rows import StoredRequest, is_late
from ..database.store import Store, StoreFailed
from ..faults import Complaints, log_unexpected
from ..files import owners
from ..files.looks import Kind
from ..files.media import Inbox
from ..settings import Settings
from .endings import ATTEMPTS, LeaseLost, RequestFailed, application_of, broken, cancelled, late, lost, refused
from .finishing import Finishing
from .leases import Leases

FETCHES = 64  # requests whose files are fetched from other servers at once
FETCHES_OF_A_HOST = 24
OWN_FETCHES = 16  # requests whose files are copied here at once
CLOSE_SECONDS = 5.0  # that ends may take that are being written when the server ends
RETRY_SECONDS = 5.0  # until the next try if the disk is full or fails

Files = dict[str, str]
"""Field → name in the input folder."""


class Fetcher:
    """wake: is called when a request's files are there, or cannot be fetched."""

    def __init__(
        self, leases: Leases, database: Store, settings: Settings, finishing: Finishing, wake: Callable[[], None]
    ) -> None:
        self._leases, self._store, self._finishing, self._wake = leases, database, finishing, wake
        self._input = settings.input
        self._inbox = Inbox(settings, database)
        self._fetching: dict[str, _Fetch] = {}
        self._disk = Complaints()

    async def close(self) -> None:
        """Ends the work. Ends of requests that are being written get a little time; other requests are given back."""
        fetches = list(self._fetching.values())
        for fetch in fetches:
            fetch.fetching.cancel()
        if fetches:
            await asyncio.wait({fetch.task for fetch in fetches}, timeout=CLOSE_SECONDS)
        for fetch in fetches:
            fetch.task.cancel()
        await asyncio.gather(*(fetch.task for fetch in fetches), return_exceptions=True)

    async def tick(self) -> None:
        """Begins to fetch the files of waiting requests, and stops fetches that clients have cancelled."""
        marked = await self._leases.marked()
        for request_id, fetch in self._fetching.items():
            if request_id in marked:
                fetch.stop(cancelled())
            elif is_late(fetch.request, clock.now()):
                fetch.stop(late(fetch.request))
        while request := await self._claim():
            fetch = self._fetching[request.id] = _Fetch(request, asyncio.create_task(self._fetch(request)))
            fetch.task = asyncio.create_task(self._work(fetch))

    def stop(self, request_id: str, ending: RequestFailed) -> None:
        """Ends a request if its files are being fetched. Its end is written soon after."""
        if request_id in self._fetching:
            self._fetching[request_id].stop(ending)

    async def _claim(self) -> StoredRequest | None:
        hosts = Counter(each.request.origin for each in self._fetching.values())
        own = hosts.pop(None, 0) < OWN_FETCHES
        far = hosts.total() < FETCHES
        busy = [host for host, count in hosts.items() if count >= FETCHES_OF_A_HOST]
        return await self._leases.claim(rows.unfetched(own, far, busy))

    async def _work(self, fetch: _Fetch) -> None:
        """Takes a request from its claim until its files are there or its end is written. `stop` ends only the
        fetching."""
        request = fetch.request
        try:
            await asyncio.wait({fetch.fetching})
            if isinstance(found := fetch.outcome(), RequestFailed):
                await self._finishing.finish_patiently(request, found)
            else:
                await self._store.run_patiently(_make_ready, request.id, self._leases.holder, found)
        except (LeaseLost, asyncio.CancelledError):  # another server has it, or this one ends
            pass
        except Exception as error:  # the request goes back into the queue
            log_unexpected(f"the names of the files of request {request.id} could not be written", error)
        finally:
            self._leases.drop(request.id)
            del self._fetching[request.id]
            self._wake()

    async def _fetch(self, request: StoredRequest) -> Files | RequestFailed:
        try:
            application = application_of(request)
            if request.attempts > ATTEMPTS:
                raise lost()
            there: Files = dict(request.media)
            for field, kind in application.files.items():
                if field in request.arguments and field not in there:
                    value = request.arguments[field]
                    try:
                        there[field] = await self._bring(value, field, kind, request)
                    except InputError as error:
                        raise refused(application.invalid_from(error, field)) from None
            return there
        except RequestFailed as failed:
            return failed
        except LeaseLost:
            raise
        except Exception as error:  # a bug must end this request and not the queue
            return broken(request, error)

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
    if rows.make_ready(session, request_id, holder, files):
        owners.keep(session, request_id)


class _Fetch:
    """A request whose files a task fetches. `task` yields its outcome."""

    def __init__(self, request: StoredRequest, fetching: asyncio.Task[Files | RequestFailed]) -> None:
        self.request, self.fetching = request, fetching
        self.task: asyncio.Task[None]
        self._ending: RequestFailed | None = None

    def stop(self, ending: RequestFailed) -> None:
        if self._ending is None and not self.fetching.done():
            self._ending = ending
            self.fetching.cancel()

    def outcome(self) -> Files | RequestFailed:
        """How the fetching ended. Errors: CancelledError if the server ends; LeaseLost."""
        if self.fetching.cancelled() and self._ending:
            return self._ending
        return self.fetching.result()
