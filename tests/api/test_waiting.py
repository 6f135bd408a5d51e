"""Waiting with a limit, and what cancels it: the very moment in which the standard library's own loses one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from a2v.api.waiting import is_set_within, wait_for


def test_a_cancellation_in_the_moment_of_the_event_is_not_lost() -> None:
    async def main() -> bool:
        event = asyncio.Event()
        task = asyncio.create_task(is_set_within(event, 10))
        for _ in range(3):
            await asyncio.sleep(0)
        event.set()
        for _ in range(4):  # whatever of the two is noticed first
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait({task})
        return task.cancelled()

    assert asyncio.run(main())


@pytest.mark.parametrize("turns", range(4))
def test_whenever_it_comes_it_ends_the_wait(turns: int) -> None:
    """turns: of the event loop, between the event and the cancellation."""

    async def main() -> bool:
        event = asyncio.Event()

        async def forever() -> None:
            while True:
                event.clear()
                await is_set_within(event, 10)

        task = asyncio.create_task(forever())
        await asyncio.sleep(0.01)
        event.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=2)
        return bool(done)

    assert asyncio.run(main())


def test_an_event_and_its_absence() -> None:
    async def main() -> tuple[bool, bool, bool]:
        event = asyncio.Event()
        before = await is_set_within(event, 0.01)
        asyncio.get_running_loop().call_later(0.01, event.set)
        return before, await is_set_within(event, 10), await is_set_within(event, 0)

    assert asyncio.run(main()) == (False, True, True)


@pytest.mark.parametrize("kind", [asyncio.TimeoutError, ValueError])
def test_results_errors_and_the_limit(kind: type[Exception]) -> None:
    ended: list[str] = []

    async def work(act: Callable[[], str]) -> str:
        try:
            await asyncio.sleep(0.01)
            return act()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    def fail() -> str:
        raise kind("its own")

    async def main() -> None:
        assert await wait_for(work(lambda: "done"), 10) == "done"
        with pytest.raises(kind, match="its own"):
            await wait_for(work(fail), 10)
        with pytest.raises(asyncio.TimeoutError):
            await wait_for(work(lambda: "late"), 0.001)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert ended == ["cancelled"]
