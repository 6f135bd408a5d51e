"""A lane: one ComfyUI that takes the next request whenever it is free, and runs it to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from ..database import rows
from ..database.rows import StoredRequest
from ..database.store import Store
from ..host import Host, HostLost
from ..settings import Settings
from .endings import LeaseLost, RequestFailed, broken, cancelled, is_late, late
from .finishing import Finishing
from .journal import Journal
from .leases import Leases
from .runner import Runner


class Lane:
    """name: of the ComfyUI, where it is another machine's. wake: called when the lane is free again.

    on_end: told of each run's end, with None; or that the ComfyUI was lost, with the reason, and whether it had begun.
    """

    def __init__(
        self,
        host: Host,
        database: Store,
        settings: Settings,
        journal: Journal,
        finishing: Finishing,
        wake: Callable[[], None],
        *,
        name: str | None = None,
        passing: str = "temp",
        on_end: Callable[[str | None, bool], None] = lambda reason, started: None,
    ) -> None:
        self._store, self._journal, self._finishing, self._wake = database, journal, finishing, wake
        self._name, self._on_end = name, on_end
        self.leases = Leases(database, settings)
        self._runner = Runner(host, self.leases, journal, finishing, settings, passing)
        self._task: asyncio.Task[None] | None = None
        self._request: StoredRequest | None = None
        self._ending: RequestFailed | None = None  # why the running one is being stopped

    @property
    def is_busy(self) -> bool:
        return self._task is not None

    def is_running(self, request_id: str) -> bool:
        return self._request is not None and self._request.id == request_id

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def tick(self, now: float) -> None:
        """Takes the next request; ends the one that runs where its client wants that, or where it begins too late."""
        if self._task:
            mine = self._request
            if mine and not self._runner.started and is_late(mine, now):
                await self.stop(late(mine))
            elif mine and mine.id in await self.leases.marked():
                await self.stop(cancelled())
            return
        if request := await self.leases.claim(now):
            self._request, self._ending = request, None
            self._task = asyncio.create_task(self._run(request))

    async def stop(self, ending: RequestFailed) -> None:
        """Ends the request that runs."""
        if self._task:
            self._ending = ending
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self, request: StoredRequest) -> None:
        try:
            if self._name:
                self._journal.log(request.id, f"Sent to {self._name}")
            ending = await self._ending_of(request)
            await asyncio.shield(self._finishing.finish(request, ending))
        except LeaseLost:
            await asyncio.to_thread(self._finishing.discard_files, request.token)
        finally:
            self._task = self._request = None
            self._wake()

    async def _ending_of(self, request: StoredRequest) -> RequestFailed | dict[str, object]:
        """How a request ends. Errors: LeaseLost."""
        try:
            result = await self._runner.run(request)
            self._on_end(None, True)
            return result
        except RequestFailed as failed:
            return failed
        except asyncio.CancelledError:
            if self._ending is None:  # the server ends, and the request will go on in another one
                raise
            return self._ending
        except LeaseLost:
            raise
        except HostLost as error:
            await self._give_up(request, str(error))
            raise LeaseLost from None
        except Exception as error:  # a bug must end this request, and not the queue
            return broken(request, error)

    async def _give_up(self, request: StoredRequest, reason: str) -> None:
        """The ComfyUI is lost, and the request goes back into the queue. Only starts count as attempts."""
        started = self._runner.started
        logging.warning("LTX A2V: %s did not finish request %s, another one will: %s", self._name, request.id, reason)
        self._on_end(reason, started)
        self._journal.log(request.id, f"{self._name} did not finish it, another one will: {reason}", "WARN")
        await self._journal.flush()
        if not started:
            await self.leases.change(request.id, attempts=request.attempts - 1)
        await self._store.run(rows.release, server=self.leases.holder)
