"""Waiting with a limit. Before Python 3.12 `asyncio.wait_for` swallows a cancellation that comes as the wait ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def wait_for(awaitable: Awaitable[T], seconds: float) -> T:
    """Errors: `asyncio.TimeoutError` after that time, and then the awaitable is cancelled."""
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event is set by then."""
    if not event.is_set():
        try:
            await wait_for(event.wait(), seconds)
        except asyncio.TimeoutError:
            return False
    return True
