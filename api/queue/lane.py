"""A lane: one ComfyUI that runs one request at a time, from its claim to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .. import clock
from ..database.rows import StoredRequest, is_late
from ..database.store import Store, StoreFailed
from ..faults import log_unexpected, public
from ..host import Host, HostLost
from ..settings import Settings
from .endings import LeaseLost, RequestFailed, broken, cancelled, late
from .finishing import Finishing
from .journal import Journal
from .leases import Leases
from .runner import Runner

CLOSE_SECONDS = 5.0  # that an end may take that is being written when the server ends


class Lane:
    """name: of the ComfyUI, if it is another machine's. wake: is called when the lane is free again. on_end: is called
    at each run's end with None, or with the reason why the ComfyUI was lost, and whether the run had begun."""

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
        on_end: Callable[[str | None, bool], None] = lambda reason, started: None,
    ) -> None:
        self._journal, self._finishing, self._wake = journal, finishing, wake
        self._name, self._on_end = name, on_end
        self.leases = Leases(database, settings)
        self._runner = Runner(host, self.leases, journal, finishing, settings)
        self._request: StoredRequest | None = None
        self._run_task: asyncio.Task[RequestFailed | dict[str, Any]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._ending: RequestFailed | None = None  # why the running request is being stopped

    @property
    def is_busy(self) -> bool:
        return self._task is not None

    def is_running(self, request_id: str) -> bool:
        return self._request is not None and self._request.id == request_id

    async def close(self) -> None:
        """Ends the work. An end that is being written gets a little time; a running request goes back into the
        queue."""
        if self._run_task:
            self._run_task.cancel()
        if task := self._task:
            await asyncio.wait({task}, timeout=CLOSE_SECONDS)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def tick(self) -> None:
        """Claims the next request, or stops the running one if its client has cancelled it or it begins too late."""
        if self._request:
            if not self._runner.started and is_late(self._request, clock.now()):
                self.stop(late(self._request))
            elif self._request.id in await self.leases.marked():
                self.stop(cancelled())
        elif request := await self.leases.claim():
            self._request, self._ending = request, None
            self._task = asyncio.create_task(self._work(request))

    def stop(self, ending: RequestFailed) -> None:
        """Stops the run of the request in hand. Its end is written soon after."""
        if self._run_task and not self._run_task.done() and self._ending is None:
            self._ending = ending
            self._run_task.cancel()

    def stop_request(self, request_id: str, ending: RequestFailed) -> None:
        """As `stop`, if that request is the running one."""
        if self.is_running(request_id):
            self.stop(ending)

    async def _work(self, request: StoredRequest) -> None:
        """Takes a request from its claim to its end. `stop` ends the run, not the writing of the end."""
        try:
            if self._name:
                self._journal.log(request.id, f"Sent to {self._name}")
            self._run_task = asyncio.create_task(self._ending_of(request))
            await asyncio.wait({self._run_task})
            await self._finishing.finish_patiently(request, self._run_task.result())
        except (LeaseLost, asyncio.CancelledError):  # cancelled: this server ends, and another one takes the request
            await asyncio.to_thread(self._finishing.discard_files, request.token)
        except Exception as error:  # the request goes back into the queue
            log_unexpected(f"the end of request {request.id} could not be written", error)
        finally:
            self.leases.drop(request.id)
            self._task = self._run_task = self._request = None
            self._wake()

    async def _ending_of(self, request: StoredRequest) -> RequestFailed | dict[str, Any]:
        """Runs a request and returns how it ends. Errors: LeaseLost."""
        try:
            result = await self._runner.run(request)
            self._on_end(None, True)
            return result
        except RequestFailed as failed:
            return failed
        except asyncio.CancelledError:
            if self._ending is None:
                raise
            return self._ending
        except LeaseLost:
            raise
        except StoreFailed:  # not the request's fault: it goes back into the queue
            raise LeaseLost from None
        except HostLost as error:
            await self._give_up(request, str(error))
            raise LeaseLost from None
        except Exception as error:  # a bug must end this request and not the queue
            return broken(request, error)

    async def _give_up(self, request: StoredRequest, reason: str) -> None:
        """Returns the request to the queue because its ComfyUI is lost. This counts as an attempt if the run had
        begun."""
        told = public(reason)
        logging.warning("LTX A2V: %s did not finish request %s, another one will: %s", self._name, request.id, told)
        self._on_end(reason, self._runner.started)
        self._journal.log(request.id, f"{self._name} did not finish it, another one will: {reason}", "WARN")
        await self.leases.give_back_one(request.id, counts=self._runner.started)
