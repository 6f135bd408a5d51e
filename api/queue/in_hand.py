"""A request in hand: a task works on it and can be stopped, and another task writes what came of that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from ..database.rows import StoredRequest
from ..faults import log_unexpected
from .endings import ATTEMPTS, LeaseLost, RequestFailed, broken, lost
from .finishing import Finishing
from .leases import Leases

CLOSE_SECONDS = 5.0  # that an outcome may take that is being written when the server ends
PAUSE_SECONDS = 0.2  # after an outcome that could not be written: the next try fails as fast

T = TypeVar("T")


class InHand(Generic[T]):
    """A claimed request, until its outcome is written or it goes back into the queue.

    work: yields the outcome; a RequestFailed that it raises is one, too. It raises LeaseLost to give the request back.
    settle: writes the outcome. over: is called when the request is no longer in hand.
    """

    def __init__(
        self,
        request: StoredRequest,
        leases: Leases,
        finishing: Finishing,
        work: Callable[[StoredRequest], Awaitable[T]],
        settle: Callable[[StoredRequest, T | RequestFailed], Awaitable[None]],
        over: Callable[[], None],
    ) -> None:
        self.request = request
        self._leases, self._finishing = leases, finishing
        self._ending: RequestFailed | None = None  # why the work is being stopped
        self._work = asyncio.create_task(self._do(work))
        self._task = asyncio.create_task(self._settle(settle, over))

    def stop(self, ending: RequestFailed) -> None:
        """Stops the work, not the writing of its outcome. The outcome is `ending` then."""
        if self._ending is None and not self._work.done():
            self._ending = ending
            self._work.cancel()

    async def close(self) -> None:
        """Ends the work. An outcome that is being written gets a little time; otherwise the request goes back into the
        queue."""
        self._work.cancel()
        await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _do(self, work: Callable[[StoredRequest], Awaitable[T]]) -> T | RequestFailed:
        try:
            if self.request.attempts > ATTEMPTS:
                raise lost()
            return await work(self.request)
        except RequestFailed as failed:
            return failed
        except LeaseLost:
            raise
        except Exception as error:  # a bug must end this request and not the queue
            return broken(self.request, error)

    async def _settle(
        self, settle: Callable[[StoredRequest, T | RequestFailed], Awaitable[None]], over: Callable[[], None]
    ) -> None:
        try:
            await asyncio.wait({self._work})
            await settle(self.request, self._outcome())
        except (LeaseLost, asyncio.CancelledError):  # cancelled: this server ends, and another one takes the request
            await asyncio.to_thread(self._finishing.discard_files, self.request.token)
        except Exception as error:  # a bug: the request goes to the end of the queue, where it holds up no other
            log_unexpected(f"the outcome of request {self.request.id} could not be written", error)
            await asyncio.sleep(PAUSE_SECONDS)
            await self._leases.give_back_one(self.request.id, counts=False, last=True)
        finally:
            self._leases.drop(self.request.id)
            over()

    def _outcome(self) -> T | RequestFailed:
        """Errors: CancelledError if this server ends; LeaseLost."""
        if self._work.cancelled() and self._ending:
            return self._ending
        return self._work.result()
