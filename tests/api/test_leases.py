"""Leases of two servers at once: a server that waited for the database takes nothing from one that works."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from a2v.api import clock
from a2v.api.database import rows, store
from a2v.api.database.rows import StoredRequest
from a2v.api.database.store import Store
from a2v.api.queue.leases import Leases
from a2v.api.settings import Settings
from a2v.tests.api.edges import answering, make_settings, opened, wav
from a2v.tests.api.stand_ins import BODY, Place, working
from aiohttp import web
from sqlalchemy import event

HERE = "127.0.0.1"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, allowed_hosts=(HERE,), lease_seconds=30.0)


@pytest.fixture
def another(settings: Settings, database: Store) -> Iterator[Store]:
    """The same database, as another server has it."""
    with opened(settings) as made:
        yield made


def put(database: Store, name: str, **values: Any) -> None:
    known = {"id": name, "app": "app", "arguments": {}, "digest": "d", "created": 100.0, **values}
    with database.session() as session:
        rows.add(session, StoredRequest(**known))


def look(database: Store, name: str) -> StoredRequest:
    with database.session() as session:
        return rows.find(session, name)


def after(database: Store, another: Store, meanwhile: Callable[[Any], None], late: Callable[[], Any]) -> Any:
    """What comes of `late()` on the other server's store, which begins while a transaction of `database` is open that
    does `meanwhile(session)`."""
    asks = threading.Event()
    for engine in another.engines[1:]:
        event.listen(engine, "before_cursor_execute", lambda *_: asks.set())  # the first statement asks for a turn
    with ThreadPoolExecutor(1) as threads:
        with database.session() as session:
            waiting = threads.submit(late)
            assert asks.wait(30)
            meanwhile(session)
            assert not waiting.done()
        return waiting.result(30)


def test_a_sweep_that_waited_spares_what_was_claimed_meanwhile(
    settings: Settings, database: Store, another: Store
) -> None:
    put(database, "a")
    sweeps = Leases(another, settings)

    def claim(session: Any) -> None:
        assert rows.claim(session, "works", clock.now(), 30.0).id == "a"

    assert after(database, another, claim, lambda: asyncio.run(sweeps.sweep(others=True))) == 0
    assert (look(database, "a").lease_server, look(database, "a").attempts) == ("works", 1)


def test_a_lease_begins_when_its_server_has_its_turn(settings: Settings, database: Store, another: Store) -> None:
    put(database, "a")
    leases, turns = Leases(another, settings), []

    def wait(_: Any) -> None:
        turns.append(clock.now().steady)

    assert after(database, another, wait, lambda: asyncio.run(leases.claim())).id == "a"
    claimed = look(database, "a")
    assert claimed.lease_from >= turns[0] and claimed.lease_until == claimed.lease_from + 30.0


def test_a_renewed_lease_begins_when_its_server_has_its_turn(tmp_path: Path) -> None:
    settings, turns = make_settings(tmp_path, lease_seconds=0.06), []
    with opened(settings) as database, opened(settings) as another:
        put(database, "a")
        leases = Leases(another, settings)
        assert asyncio.run(leases.claim()).id == "a"

        def wait(_: Any) -> None:
            turns.append(clock.now().steady)
            leases._stopped.set()  # this renewal is the last one

        after(database, another, wait, leases._heartbeat)
        assert look(database, "a").lease_from >= turns[0]


def test_a_server_that_could_not_renew_keeps_its_request(
    settings: Settings, database: Store, another: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program holds the file until the lease is over. The other server is the first to have its turn then."""
    put(database, "a")
    works, sweeps = Leases(database, replace(settings, lease_seconds=0.1)), Leases(another, settings)
    monkeypatch.setattr(store, "LONG_SECONDS", 0.1)
    assert asyncio.run(works.claim()).id == "a"
    assert after(database, another, lambda _: time.sleep(0.3), lambda: asyncio.run(sweeps.sweep(others=True))) == 0

    def renew_for(seconds: float) -> int:
        with database.session() as session:
            rows.renew(session, works.holder, works._held, clock.now(), seconds)
        another.troubled -= 2 * settings.heartbeat_seconds
        return asyncio.run(sweeps.sweep(others=True))

    assert renew_for(60) == 0 and look(database, "a").lease_server == works.holder
    assert renew_for(0) == 1, "that server has died since"


def test_what_is_in_hand_is_not_claimed_a_second_time(settings: Settings, database: Store, another: Store) -> None:
    put(database, "a", ready=False)
    leases = Leases(database, settings)

    async def main() -> None:
        fetched = await leases.claim(rows.unfetched(own=True, far=True))
        await database.run(rows.make_ready, fetched.id, leases.holder, {})
        assert await leases.claim() is None, "the fetcher has not dropped it yet"
        leases.drop(fetched.id)
        assert (await leases.claim()).id == "a" and await leases.sweep(others=True) == 0
        leases.drop("a")
        assert await leases.sweep() == 1
        assert (await Leases(another, settings).claim()).id == "a"

    asyncio.run(main())


def test_a_look_between_a_fetch_and_its_end_takes_nothing_from_the_lane(
    settings: Settings, database: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with working(settings, database) as place:
            await visit(place)

    async def visit(place: Place) -> None:
        gate, patiently = asyncio.Event(), database.run_patiently

        async def act(_: Any) -> None:
            await gate.wait()

        async def then_a_look(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            found = await patiently(work, *args, **kwargs)
            if work.__name__ == "_make_ready":
                await place.queue._tick()
                if place.queue._lane.is_busy:  # it must not be; if it is, the run begins before the fetch ends
                    await place.until(lambda: place.host.runs)
            return found

        place.host.act = act
        await place.queue._ticker.stop()  # the test looks itself
        monkeypatch.setattr(database, "run_patiently", then_a_look)
        with answering(lambda _: web.Response(body=wav())) as (port, _):
            request_id = await place.submit({**BODY, "audio_url": f"http://{HERE}:{port}/a.wav"})
            await place.queue._tick()
            await place.until(lambda: not place.queue._fetcher._fetching)
        for _ in range(3):
            await place.queue._tick()
        await place.until(lambda: place.host.runs)
        assert place.request(request_id).lease_server == place.queue._lane.leases.holder
        gate.set()
        assert (await place.end_of(request_id)).error is None and len(place.host.runs) == 1

    asyncio.run(main())
