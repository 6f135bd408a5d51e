"""Waiting with a limit. Before Python 3.12 `asyncio.wait_for` loses a cancellation that comes as the wait ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class TimeIsOverError(asyncio.TimeoutError):
    """What was awaited did not come in time. It is none that it raised itself."""


async def wait_for(awaitable: Awaitable[T], seconds: float) -> T:
    """Awaits something for at most so many seconds. Errors: `TimeIsOverError`; the awaitable is cancelled then."""
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise TimeIsOverError
        return task.result()
    finally:
        task.cancel()


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Waits for the event and says whether it was set in time."""
    if not event.is_set():
        try:
            await wait_for(event.wait(), seconds)
        except asyncio.TimeoutError:
            return False
    return True


class TooSlowError(Exception):
    """Data came too slowly, or not at all."""


async def paced(read: Callable[[], Awaitable[bytes]], idle: float, least: float, window: float) -> AsyncIterator[bytes]:
    """Yields what `read` returns until that is empty. Errors: TooSlowError.

    idle: seconds in which something must come. least: bytes a second that must come on average, measured over windows
    of so many seconds. Only the time spent waiting counts, not the work on the pieces.
    """
    waited, came = 0.0, 0
    while True:
        begun = time.monotonic()
        try:
            piece = await wait_for(read(), idle)
        except TimeIsOverError:
            raise TooSlowError(f"nothing came for {idle:g} s") from None
        if not piece:
            return
        waited, came = waited + time.monotonic() - begun, came + len(piece)
        if waited >= window:
            if came < least * waited:
                raise TooSlowError(f"less than {least:g} bytes a second came")
            waited, came = 0.0, 0
        yield piece
