"""A database that takes nothing for a while, at every write of a request's life: each request ends once, or waits."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from a2v.api import clock
from a2v.api.database import rows
from a2v.api.database.rows import DONE, QUEUED, StoredRequest
from a2v.api.database.store import Store, StoreFailed
from a2v.api.faults import public
from a2v.api.files.owners import MediaNeed
from a2v.api.graph.graph import Prompt
from a2v.api.host import Outcome
from a2v.api.queue import endings, fetcher
from a2v.api.settings import Settings
from a2v.api.webhooks.deliveries import Delivery
from a2v.tests.api.edges import APP, answering, before_writes, make_settings, opened, wav
from a2v.tests.api.stand_ins import BODY, Place, failing, working
from aiohttp import web
from sqlalchemy import select

FULL, LOCKED, IO = "database or disk is full", "database is locked", "disk I/O error"
SECRETS = re.compile(r"INSERT|UPDATE|SELECT|parameters|[0-9a-f]{32}|/tmp/")


class Faults:
    """Statements that write, counted; from one of them on some fail as SQLite lets them fail."""

    def __init__(self, store: Store, message: str = FULL) -> None:
        self.message, self.count = message, 0
        self.first, self.last = 0, -1
        before_writes(store, self._look)

    def _look(self) -> None:
        self.count += 1
        if self.first <= self.count <= self.last:
            raise sqlite3.OperationalError(self.message)

    def begin(self, first: int, times: int) -> None:
        self.first, self.last = first, first + times - 1

    def now(self, times: int = 10**9) -> None:
        self.begin(self.count + 1, times)

    def over(self) -> None:
        self.last = -1


async def accepted(place: Place, body: dict[str, Any], **submission: Any) -> str:
    """A client that tries again, as the official ones do on a 503."""
    while True:
        with suppress(StoreFailed):
            return await place.submit(body, **submission)
        await asyncio.sleep(0.02)


async def ended(place: Place, request_id: str) -> StoredRequest:
    while True:
        with suppress(StoreFailed):
            return await place.end_of(request_id)
        await asyncio.sleep(0.02)


async def succeeds(place: Place, _: Faults) -> None:
    request_id = await accepted(place, BODY, webhook_url="http://10.0.0.1/hook", idempotency_key="k")
    request = await ended(place, request_id)
    assert request.error is None and place.files() == [request.result["video"]["file_name"]]
    assert (await place.log_of(request_id)).count("Started") == len(place.host.runs)


async def fails(place: Place, _: Faults) -> None:
    place.host.act = failing("RuntimeError", "it broke")
    request_id = await accepted(place, BODY, webhook_url="http://10.0.0.1/hook", idempotency_key="k")
    assert (await ended(place, request_id)).error_type == "node_error" and place.files() == []
    assert len([line for line in await place.log_of(request_id) if "it broke" in line]) == 1


async def is_cancelled(place: Place, _: Faults) -> None:
    entered = asyncio.Event()

    async def act(_: Prompt) -> Outcome | None:
        entered.set()
        await asyncio.sleep(60)
        return None

    place.host.act = act
    request_id = await accepted(place, BODY, webhook_url="http://10.0.0.1/hook", idempotency_key="k")
    await asyncio.wait_for(entered.wait(), place.seconds)
    while True:
        with suppress(StoreFailed):
            assert await place.queue.cancel(request_id) in (True, False)
            break
    assert (await ended(place, request_id)).error_type == "client_cancelled"


async def fetches(place: Place, _: Faults) -> None:
    with answering(lambda _: web.Response(body=wav())) as (port, _):
        body = {**BODY, "audio_url": f"http://127.0.0.1:{port}/a.wav"}
        request_id = await accepted(place, body, webhook_url="http://10.0.0.1/hook", idempotency_key="k")
        assert (await ended(place, request_id)).error is None


LIVES: dict[str, Callable[[Place, Faults], Awaitable[None]]] = {
    "succeeds": succeeds,
    "fails": fails,
    "is cancelled": is_cancelled,
    "fetches": fetches,
}


def live(folder: Path, name: str, first: int, times: int, message: str) -> int:
    """One life with faults from that write on; how many writes there were."""
    folder.mkdir()
    settings = make_settings(folder, allowed_hosts=("127.0.0.1",))

    async def main(store: Store) -> int:
        async with working(settings, store) as place:
            faults = Faults(store, message)
            faults.begin(first, times)
            await LIVES[name](place, faults)
            count = faults.count
            check(place)
            return count

    with opened(settings) as store:
        return asyncio.run(asyncio.wait_for(main(store), 2 * Place.seconds))


def check(place: Place) -> None:
    """One request, which ended once: one end, one webhook, one file and no lease."""
    with place.database.session() as session:
        (request,) = session.scalars(select(StoredRequest)).all()
        assert (
            request.status == DONE
            and request.lease_server is None
            and (request.result is None) != (request.error is None)
        )
        (delivery,) = session.scalars(select(Delivery)).all()
        assert (delivery.body["status"] == "OK") == (request.error is None)
        needs = session.scalars(select(MediaNeed)).all()
        assert set(place.files("input")) == {need.name.rpartition("/")[2] for need in needs}
        # what was reserved for a submission that failed goes after an hour
        assert all((need.until is None) == (need.request_id == request.id) for need in needs)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits between tries, which change nothing else. A life with 25 faults may still take 25 looks, one a
    second."""
    monkeypatch.setattr(Place, "seconds", 120.0)
    for name in ("database.store.LONGEST_WAIT", "queue.journal.RETRY_SECONDS"):
        monkeypatch.setattr(f"a2v.api.{name}", 0.1)
    monkeypatch.setattr(fetcher, "RETRY_SECONDS", 0.1)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.soak] * (n != "fetches")) for n in LIVES])
def test_a_disk_that_is_full_for_a_moment_costs_nothing(tmp_path: Path, name: str, hasty: None) -> None:
    """At every eighth write; at each one, and locked, in the soak tests."""
    count = live(tmp_path / "without", name, 0, 0, FULL)
    assert count >= 6
    for first in range(1, count + 1, 8):
        live(tmp_path / f"at {first}", name, first, 3, FULL)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LIVES)
@pytest.mark.parametrize("message", [FULL, LOCKED, IO])
def test_nor_does_any_other_fault_at_any_write(tmp_path: Path, name: str, message: str, hasty: None) -> None:
    count = live(tmp_path / "without", name, 0, 0, message)
    for first in range(1, count + 3):
        for times in (1, 5, 25):
            live(tmp_path / f"at {first}, {times} times", name, first, times, message)


def at(settings: Settings, database: Store, visit: Callable[[Place], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with working(settings, database) as place:
            return await asyncio.wait_for(visit(place), 60)

    return asyncio.run(main())


def test_an_end_that_cannot_be_written_is_written_later(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> None:
        faults = Faults(database)

        async def act(_: Prompt) -> None:
            faults.now()

        place.host.act = act
        request_id = await place.submit()
        await place.until(lambda: faults.first and faults.count > faults.first + 8)
        assert place.request(request_id).status != DONE, "it is run, and its end cannot be written"
        faults.over()
        assert (await ended(place, request_id)).error is None and len(place.host.runs) == 1

    at(settings, database, visit)


def test_cancelling_stops_a_run_even_where_it_cannot_be_written(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> None:
        faults = Faults(database)
        entered = asyncio.Event()

        async def act(_: Prompt) -> None:
            entered.set()
            await asyncio.sleep(60)

        place.host.act = act
        request_id = await place.submit()
        await entered.wait()
        faults.now()
        with pytest.raises(StoreFailed):
            await place.queue.cancel(request_id)
        await place.until(lambda: place.host.stopped)
        faults.over()
        assert (await ended(place, request_id)).error_type == "client_cancelled"

    at(settings, database, visit)


@pytest.mark.parametrize("what", ["lane", "fetcher"])
def test_a_task_that_dies_gives_its_request_back(
    settings: Settings, database: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """A mistake of this program's, after all: the lease is not renewed for what nobody works on."""

    async def visit(place: Place) -> None:
        times = [0]
        finish, patiently = place.queue.finishing.finish_patiently, database.run_patiently

        async def once(real: Any, *arguments: Any) -> Any:
            times[0] += 1
            if times[0] == 1:
                raise ZeroDivisionError
            return await real(*arguments)

        if what == "lane":
            monkeypatch.setattr(place.queue.finishing, "finish_patiently", lambda *given: once(finish, *given))
            body = BODY
        else:
            monkeypatch.setattr(database, "run_patiently", lambda *given, **named: once(patiently, *given))
            body = {**BODY, "audio_url": f"http://127.0.0.1:{port}/a.wav"}
        request_id = await place.submit(body)
        await place.until(lambda: times[0])
        if what == "fetcher":
            monkeypatch.setattr(database, "run_patiently", patiently)
        request = await place.end_of(request_id)
        assert request.error is None and request.attempts == 1, "and that was no attempt"

    with answering(lambda _: web.Response(body=wav())) as (port, _):
        at(make_settings(settings.system.parent, allowed_hosts=("127.0.0.1",)), database, visit)
    assert "could not be written: ZeroDivisionError" in caplog.text


def test_a_tick_that_raises_is_logged_once_and_the_next_one_comes(
    settings: Settings, database: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("a2v.api.ticking.TICK_SECONDS", 0.01)

    async def visit(place: Place) -> None:
        real, broken = rows.overdue, [0]

        def overdue(*arguments: Any) -> Any:
            broken[0] += 1
            if broken[0] <= 5:
                raise KeyError("a mistake")
            return real(*arguments)

        monkeypatch.setattr(rows, "overdue", overdue)
        for number in range(6):
            place.queue._ticker.wake()
            await place.until(lambda number=number: broken[0] > number)
        assert (await place.end_of(await place.submit())).error is None

    at(settings, database, visit)
    assert caplog.text.count("the queue failed; it is tried again: KeyError") == 1


def test_a_note_about_a_deleted_request_costs_no_other_note(
    settings: Settings, database: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async def visit(place: Place) -> None:
        request_id = await place.submit()
        assert (await place.end_of(request_id)).error is None
        for name, line in ((request_id, "one"), ("deleted", "two"), (request_id, "three")):
            place.queue.journal.log(name, line)
        assert [line for line in await place.log_of(request_id) if line in ("one", "two", "three")] == ["one", "three"]

    at(settings, database, visit)
    assert caplog.text.count("a note about request deleted could not be written: StoreConflict") == 1
    assert "INSERT" not in caplog.text


def test_a_request_that_cannot_be_ended_holds_up_no_other(settings: Settings, database: Store) -> None:
    """A mistake of this program's at one row."""
    now = clock.now()
    values = {"app": APP, "arguments": {}, "media": {}, "digest": "d", "created": now.wall - 9, "boot": now.boot}
    with database.session() as session:
        for name in ("bad", "good"):
            rows.add(session, StoredRequest(id=name, start_timeout=1, start_before=now.steady - 8, **values))

    async def visit(place: Place) -> None:
        finish = place.queue.finishing.finish

        async def broken(request: StoredRequest, ending: Any) -> None:
            if request.id == "bad":
                raise KeyError("a mistake")
            await finish(request, ending)

        place.queue.finishing.finish = broken
        assert (await place.end_of(await place.submit())).error is None
        assert (await place.end_of("good")).error_type == "request_timeout"
        assert place.request("bad").status == QUEUED

    at(settings, database, visit)


def test_a_run_whose_end_cannot_be_written_goes_behind_the_others(settings: Settings, database: Store) -> None:
    """The lane would take it again and again: it is the first of the queue."""
    now = clock.now()
    values = {"app": APP, "arguments": {}, "media": {}, "digest": "d", "created": now.wall - 9, "boot": now.boot}
    with database.session() as session:
        rows.add(session, StoredRequest(id="bad", **values))

    async def visit(place: Place) -> None:
        finish, tries = place.queue.finishing.finish, []

        async def broken(request: StoredRequest, ending: Any) -> None:
            if request.id == "bad":
                tries.append(place.request("bad").turn)
                raise KeyError("a mistake")
            await finish(request, ending)

        place.queue.finishing.finish = broken
        await place.until(lambda: len(tries) > 1)
        assert tries[1] > tries[0]
        assert (await place.end_of(await place.submit())).error is None

    at(settings, database, visit)


def test_files_that_the_disk_does_not_take_are_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetcher, "RETRY_SECONDS", 0.05)
    settings = make_settings(tmp_path, allowed_hosts=("127.0.0.1",))
    settings.input_folder.write_bytes(b"no folder")  # as a disk that takes nothing

    async def visit(place: Place) -> None:
        request_id = await place.submit({**BODY, "audio_url": f"http://127.0.0.1:{port}/a.wav"})
        await place.until(lambda: len(got) > 2)
        assert place.request(request_id).status == QUEUED
        settings.input_folder.unlink()
        assert (await place.end_of(request_id)).error is None

    with opened(settings) as store, answering(lambda _: web.Response(body=wav())) as (port, got):
        at(settings, store, visit)
    assert caplog.text.count("A request's file cannot be kept") == 1


def test_nothing_of_the_inside_reaches_a_client_a_webhook_or_the_log(
    settings: Settings, database: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither SQL, parameters, paths nor tokens: of a mistake, of a node's error, of a failing database."""
    caplog.set_level(logging.INFO)

    async def visit(place: Place) -> list[StoredRequest]:
        faults = Faults(database)

        async def raises(prompt: Prompt) -> Outcome:
            faults.now(6)
            name = next(
                node["inputs"]["filename_prefix"] for node in prompt.values() if "filename_prefix" in node["inputs"]
            )
            raise RuntimeError(f"[Errno 28] No space left on device: '/tmp/a b/output/{name}.partial'")

        found = []
        for act in (raises, failing("OSError", f"[Errno 2] No such file: '/tmp/models/x y/{'a' * 32}_1.safetensors'")):
            place.host.act = act
            request_id = await place.submit(webhook_url="http://10.0.0.1/hook")
            found.append(await ended(place, request_id))
            found[-1].lines = await place.log_of(request_id)
        return found

    for request in at(settings, database, visit):
        with database.session() as session:
            told = session.get_one(Delivery, request.id).body
        for text in (request.error, json.dumps(request.error_detail), json.dumps(told), "\n".join(request.lines)):
            assert not SECRETS.search(text.replace(request.id, "")), text
    plain = "\n".join(line for line in caplog.text.splitlines() if "File " not in line)  # where in the code it was
    assert "The request database cannot be used (database or disk is full)" in plain
    assert not re.search(r"INSERT|UPDATE|\[SQL|parameters:|[0-9a-f]{32}", plain), plain


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("/a/b/c.txt is missing", "c.txt is missing"),
        ("No such file: '/a b/c d.txt' (2)", "No such file: 'c d.txt' (2)"),
        ('open "C:\\Users\\me\\x.bin"', 'open "x.bin"'),
        ("at C:\\Users\\me\\x.bin: no", "at x.bin: no"),
        ("/home/John Smith/my models/ltx 2.3.safetensors: is damaged", "ltx 2.3.safetensors: is damaged"),
        ("at C:\\Program Files (x86)\\a b\\x.bin: no", "at x.bin: no"),
        ("at \\\\server\\John Smith\\x.bin: no", "at x.bin: no"),
        ("at \\\\?\\C:\\Users\\me\\x.bin: no", "at x.bin: no"),  # as Windows names paths of any length
        ("/home/O'Brien/a/x.bin and '/b c/y' and \"/home/O'Brien/z\"", "x.bin and 'y' and \"z\""),
        ("/a b/x.bin is 24/1 of /c d/y.bin", "x.bin is 24/1 of y.bin"),
        ("x.safetensors is not in models/checkpoints: get it from https://huggingface.co/Lightricks/LTX-2.3.",) * 2,
        (f"output/{'0a' * 16}_00001_.mp4 is there", "output/…_00001_.mp4 is there"),
        ("give 1/2 or 3 / 4 of the frames, and/or none",) * 2,
        ("width 64x64, 24000/1001 frames a second",) * 2,
        ("",) * 2,
    ],
)
def test_what_is_public_of_a_message(message: str, told: str) -> None:
    assert public(message) == told


def test_a_request_of_an_application_that_is_no_more_ends(settings: Settings, database: Store) -> None:
    with database.session() as session:
        values = {"arguments": {}, "media": {}, "digest": "d", "created": 1.0}
        rows.add(session, StoredRequest(id="run", app="a/b/old", **values))
        rows.add(session, StoredRequest(id="fetch", app="a/b/old", ready=False, **values))

    async def visit(place: Place) -> None:
        for name in ("run", "fetch"):
            request = await place.end_of(name)
            assert (request.error_type, request.error_status) == ("no_such_application", endings.FAILED)

    at(settings, database, visit)
