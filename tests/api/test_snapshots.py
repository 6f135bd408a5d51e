"""What pollers see: fresh after this server's changes, soon after another's, and one look at the store for many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from a2v.api.database import rows
from a2v.api.database.rows import DONE, RUNNING, StoredRequest
from a2v.api.database.store import Store
from a2v.api.queue import snapshots
from a2v.api.queue.snapshots import Snapshots
from a2v.api.settings import Settings
from a2v.tests.api.edges import opened
from sqlalchemy import event


@pytest.fixture
def database(settings: Settings) -> Iterator[Store]:
    with opened(settings) as made:
        with made.session() as session:
            for number in range(5):
                session.add(StoredRequest(id=str(number), app="app", arguments={}, digest="", created=time.time()))
                session.flush()
        yield made


def change(database: Store, request_id: str, **values: Any) -> None:
    with database.session() as session:
        request = rows.find(session, request_id)
        for name, value in values.items():
            setattr(request, name, value)


def questions(database: Store, ask: Callable[[Snapshots], Awaitable[Any]], patience: float = 0) -> tuple[Any, int]:
    """What comes of it, and how many statements the database was given."""
    asked: list[str] = []
    engine = database.engines[0]

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement != "BEGIN":
            asked.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        return asyncio.run(ask(Snapshots(database, patience))), len(asked)
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_positions_and_logs(database: Store) -> None:
    change(database, "0", status=RUNNING)
    with database.session() as session:
        rows.add_log(session, "0", "one", 0.25)

    async def ask(seen: Snapshots) -> list[Any]:
        return [await seen.look(name) for name in ("0", "1", "4", "none")]

    (first, second, last, none), _ = questions(database, ask)
    assert (first.request.status, [line for _, line in first.logs]) == (
        RUNNING,
        [{"message": "one", "level": "INFO", "source": "USER", "timestamp": "1970-01-01T00:00:00.250000Z"}],
    )
    assert (second.position, last.position, last.logs, none) == (0, 3, (), None)


def test_many_pollers_cost_nothing_while_it_is_fresh(database: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "FRESH_SECONDS", 60)
    monkeypatch.setattr(snapshots, "LATELY", 60)

    async def ask(seen: Snapshots) -> None:
        await asyncio.gather(*(seen.look("0") for _ in range(50)))
        for _ in range(20):
            await asyncio.gather(*(seen.look(name) for name in "01234"))

    assert questions(database, ask)[1] == 2 * 5  # of the requests, and of their places in the queue


def test_stale_ones_are_taken_along(database: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "FRESH_SECONDS", 0)
    monkeypatch.setattr(snapshots, "LATELY", 60)

    async def ask(seen: Snapshots) -> None:
        for name in "01234":
            await seen.look(name)
        monkeypatch.setattr(snapshots, "FRESH_SECONDS", 60)
        for name in "01234" * 3:
            await seen.look(name)

    assert questions(database, ask)[1] == 2 * 5 + 2  # one look more for all five


@pytest.mark.parametrize(("patience", "looks"), [(60, 1), (0, 5)])
def test_whoever_waits_for_an_answer_is_not_forgotten(
    database: Store, monkeypatch: pytest.MonkeyPatch, patience: float, looks: int
) -> None:
    """Pollers who were kept waiting longer than they would have been silent of themselves."""
    monkeypatch.setattr(snapshots, "FRESH_SECONDS", 0)
    monkeypatch.setattr(snapshots, "LATELY", 0.1)

    async def ask(seen: Snapshots) -> None:
        await asyncio.gather(*(seen.look(name) for name in "01234"))
        await asyncio.sleep(0.3)
        monkeypatch.setattr(snapshots, "FRESH_SECONDS", 60)
        for name in "01234":
            await seen.look(name)

    assert questions(database, ask, patience)[1] == 2 * 5 + 2 * looks


def test_what_this_server_changes_is_seen_at_once(database: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "FRESH_SECONDS", 60)

    async def ask(seen: Snapshots) -> list[str]:
        found = [(await seen.look("0")).request.status]
        change(database, "0", status=RUNNING)
        found.append((await seen.look("0")).request.status)  # nobody said so
        seen.outdate("0")
        found.append((await seen.look("0")).request.status)
        early = asyncio.create_task(seen.look("0"))
        change(database, "0", status=DONE)
        seen.outdate()
        found.append((await seen.look("0")).request.status)
        await early
        return [*found, (await seen.look("0")).request.status]

    assert questions(database, ask)[0] == ["IN_QUEUE", "IN_QUEUE", RUNNING, DONE, DONE]


def test_a_look_that_was_begun_before_a_change_is_not_kept(database: Store) -> None:
    async def ask(seen: Snapshots) -> str:
        before = asyncio.create_task(seen.look("0"))
        await asyncio.sleep(0)  # it is on its way
        seen.outdate("0")
        change(database, "0", status=DONE)
        await before
        return (await seen.look("0")).request.status

    assert questions(database, ask)[0] == DONE
