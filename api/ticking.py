"""Repeats a piece of work: whenever something has happened, and after some seconds at the latest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from .database.store import StoreFailed
from .faults import log_unexpected
from .waiting import is_set_within

TICK_SECONDS = 1.0  # between looks for changes by other servers and by the clock


async def each_of(steps: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Does one step after the other, and the later ones even if an earlier one raises. Errors: the first one; a
    StoreFailed ends the work at once."""
    errors = []
    for step in steps:
        try:
            await step()
        except StoreFailed:
            raise
        except Exception as error:  # a bug in one step must not prevent the others
            errors.append(error)
    if errors:
        raise errors[0]


class Ticker:
    """Call `start` and `stop` on the loop that answers requests. An exception in a tick does not prevent the next one.

    what: names the work in the log. tick: may return the seconds until the next one. seconds: until the next one if it
    returns None.
    """

    def __init__(self, what: str, tick: Callable[[], Awaitable[float | None]], seconds: float = TICK_SECONDS) -> None:
        self._what, self._tick, self._seconds = what, tick, seconds
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._logged = ""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def wake(self) -> None:
        """Begins the next tick now."""
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            wait = None
            try:
                wait = await self._tick()
                self._logged = ""
            except StoreFailed:
                pass  # the store has logged it, and the next tick tries again
            except Exception as error:  # a bug must not end the ticker: nothing would start it again
                if repr(error) != self._logged:  # not every second again
                    self._logged = repr(error)
                    log_unexpected(f"{self._what} failed; it is tried again", error)
            await is_set_within(self._wake, self._seconds if wait is None else wait)
