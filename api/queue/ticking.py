"""A tick of work again and again: whenever something has happened, and every second at the latest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from ..waiting import is_set_within

TICK_SECONDS = 1.0  # between looks at what other servers and the clock have done


class Ticker:
    """`start` and `stop` on the loop that answers requests. Whoever holds `lock` has no tick beside them."""

    def __init__(self, tick: Callable[[], Awaitable[None]]) -> None:
        self._tick = tick
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.lock = asyncio.Lock()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def wake(self) -> None:
        """The next tick is now."""
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                async with self.lock:
                    await self._tick()
            except (SQLAlchemyError, OSError) as error:
                logging.error("LTX A2V: the request database failed: %s", error)
            await is_set_within(self._wake, TICK_SECONDS)
