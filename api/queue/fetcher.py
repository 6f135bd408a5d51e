"""The files of requests that wait: fetched before their turn, so that a slow address holds up no other request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set

from ...ltx.errors import InputError
from ..applications import APPLICATIONS
from ..database import rows
from ..database.rows import StoredRequest
from ..database.store import Store
from ..files.media import localize
from ..settings import Settings
from .endings import ATTEMPTS, RequestFailed, broken, cancelled, is_late, late, lost, refused
from .finishing import Finishing
from .leases import Leases

FETCHES = 8  # requests whose files are fetched at once

Files = dict[str, str]
"""Field → name in the input folder."""


class Fetcher:
    """wake: called when the files of a request are there, or cannot be had."""

    def __init__(
        self, leases: Leases, database: Store, settings: Settings, finishing: Finishing, wake: Callable[[], None]
    ) -> None:
        self._leases, self._store, self._settings, self._finishing = leases, database, settings, finishing
        self._wake = wake
        self._fetching: dict[str, tuple[StoredRequest, asyncio.Task[Files | RequestFailed]]] = {}

    def __contains__(self, request_id: str) -> bool:
        """Whether that request's files are being fetched here."""
        return request_id in self._fetching

    def __bool__(self) -> bool:
        return bool(self._fetching)

    async def close(self) -> None:
        tasks = [task for _, task in self._fetching.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def tick(self, now: float, marked: Set[str]) -> None:
        """Requests whose files have come are ready to run; others are begun with. marked: their end was asked for."""
        for request_id, (request, task) in list(self._fetching.items()):
            if request_id in marked:
                await self.stop(request_id, cancelled())
            elif task.done():
                del self._fetching[request_id]
                found = task.result()
                if isinstance(found, RequestFailed):
                    await self._finishing.finish(request, found)
                else:
                    await self._store.run(rows.make_ready, request_id, self._leases.holder, found)
            elif is_late(request, now):
                await self.stop(request_id, late(request))
        while len(self._fetching) < FETCHES and (request := await self._leases.claim(now, ready=False)):
            task = asyncio.create_task(self._fetch(request))
            task.add_done_callback(lambda _: self._wake())
            self._fetching[request.id] = (request, task)

    async def stop(self, request_id: str, ending: RequestFailed) -> None:
        """Ends a request whose files are being fetched."""
        request, task = self._fetching.pop(request_id)
        task.cancel()
        await asyncio.wait({task})
        await self._finishing.finish(request, ending)

    async def _fetch(self, request: StoredRequest) -> Files | RequestFailed:
        there: Files = dict(request.media)
        if request.attempts > ATTEMPTS:
            return lost()
        application = APPLICATIONS[request.app]
        for field, kind in application.files.items():
            if field in request.arguments and field not in there:
                try:
                    there[field] = await localize(request.arguments[field], field, kind, self._settings, self._store)
                except InputError as error:
                    return refused(application.invalid_from(error, field))
                except Exception as error:  # a bug must end this request, and not the queue
                    return broken(request, error)
        return there
