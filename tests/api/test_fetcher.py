"""Files of requests that wait: slow servers hold up no other, own files need no place, and each server has a few."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from a2v.api.database import rows
from a2v.api.database.rows import DONE, QUEUED
from a2v.api.files import owners, uploads
from a2v.api.files.incoming import Incoming
from a2v.api.files.media import Inbox
from a2v.api.files.uploads import Announcement
from a2v.api.network import fetching
from a2v.api.queue import fetcher
from a2v.api.queue.cleaner import Cleaner
from a2v.tests.api.edges import APP, answering, make_settings, opened, png, wav
from a2v.tests.api.stand_ins import BODY, Place, working
from aiohttp import web

HERE = "127.0.0.1"


@contextmanager
def slow() -> Iterator[tuple[str, list[web.Request]]]:
    """A server that takes questions and does not answer before the test is over."""
    over = threading.Event()

    async def answer(_: web.Request) -> web.Response:
        while not over.is_set():
            await asyncio.sleep(0.02)
        return web.Response(body=wav())

    with answering(answer) as (port, got):
        try:
            yield f"http://{HERE}:{port}", got
        finally:
            over.set()


def at(folder: Path, visit: Callable[[Place], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        with opened(settings) as store:
            async with working(settings, store) as place:
                return await asyncio.wait_for(visit(place), 90)

    settings = make_settings(folder, allowed_hosts=(HERE,), fetch_seconds=60)
    return asyncio.run(main())


async def uploaded(place: Place, data: bytes) -> str:
    """An upload of this server's, by its address."""
    upload, _ = await uploads.announce(Announcement("a.wav", "audio/wav", None), False, place.database)
    where = uploads.folder(place.settings)
    async with Incoming(where, 2**20) as file:
        await file.write(data)
        await file.seal()
        await place.database.run(uploads.finish, upload.id, file, where)
    return f"http://host/fal/cdn/files/{upload.id}/a.wav"


def test_slow_servers_hold_up_no_request_with_a_file_of_our_own_or_of_another(tmp_path: Path) -> None:
    async def visit(place: Place) -> None:
        with ExitStack() as stack:
            servers = [stack.enter_context(slow()) for _ in range(20)]
            quick, _ = stack.enter_context(answering(lambda _: web.Response(body=wav())))
            ids = [await place.submit({**BODY, "audio_url": f"{url}/{n}.wav"}) for n, (url, _) in enumerate(servers)]
            await place.until(lambda: all(got for _, got in servers))
            for url in (await uploaded(place, wav()), f"http://{HERE}:{quick}/a.wav"):
                assert (await place.end_of(await place.submit({**BODY, "audio_url": url}))).error is None
            assert {place.request(each).status for each in ids} == {QUEUED}
            for each in ids:
                assert await place.queue.cancel(each)

    at(tmp_path, visit)


def test_one_server_has_so_many_places_and_others_go_on_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "FETCHES_OF_A_HOST", 3)

    async def visit(place: Place) -> None:
        with slow() as (url, got), answering(lambda _: web.Response(body=wav())) as (port, _):
            ids = [await place.submit({**BODY, "audio_url": f"{url}/{number}.wav"}) for number in range(6)]
            await place.until(lambda: len(got) == 3)
            other = await place.submit({**BODY, "audio_url": f"http://{HERE}:{port}/a.wav"})
            assert (await place.end_of(other)).error is None
            assert len(got) == 3
            assert await place.queue.cancel(ids[0])
            await place.until(lambda: len(got) == 4)
            for each in ids[1:]:
                assert await place.queue.cancel(each)

    at(tmp_path, visit)


def test_however_many_are_slow_a_file_of_our_own_comes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "FETCHES", 2)

    async def visit(place: Place) -> None:
        with slow() as (url, got):
            ids = [await place.submit({**BODY, "audio_url": f"{url}/{number}.wav"}) for number in range(4)]
            await place.until(lambda: len(got) == 2)
            own = await place.submit({**BODY, "audio_url": await uploaded(place, wav())})
            assert (await place.end_of(own)).error is None and len(got) == 2
            for each in ids:
                assert await place.queue.cancel(each)

    at(tmp_path, visit)


def test_many_files_that_cannot_be_fetched_hold_up_no_run(tmp_path: Path) -> None:
    """Each makes room for the next one at once, and the queue's other work comes in between."""

    async def visit(place: Place) -> None:
        url = f"http://{HERE}:9/none.wav"
        ids = [f"bad-{number}" for number in range(60)]
        like = {"app": APP, "digest": "d", "created": time.time(), "ready": False, "origin": f"{HERE}:9"}
        with place.database.session() as session:
            for each in ids:
                rows.add(session, rows.StoredRequest(id=each, arguments={**BODY, "audio_url": url}, **like))
        good = await place.end_of(await place.submit(BODY))
        assert good.error is None and place.request(ids[-1]).status == QUEUED
        await place.until(lambda: place.request(ids[-1]).status == DONE)

    at(tmp_path, visit)


def test_many_cancellations_hold_up_no_run(tmp_path: Path) -> None:
    async def visit(place: Place) -> None:
        ids = [f"unwanted-{number}" for number in range(60)]
        like = {"app": APP, "digest": "d", "created": time.time(), "ready": True, "cancel": True}
        with place.database.session() as session:
            for each in ids:
                rows.add(session, rows.StoredRequest(id=each, arguments=BODY, **like))
        good = await place.end_of(await place.submit(BODY))
        assert good.error is None and place.request(ids[-1]).status == QUEUED
        await place.until(lambda: place.request(ids[-1]).status == DONE)

    at(tmp_path, visit)


def test_a_server_that_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "RATE_SECONDS", 1.0)

    async def drips(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100000"})
        await response.prepare(request)
        for byte in wav()[:600]:
            await response.write(bytes([byte]))
            await asyncio.sleep(0.05)
        return response

    async def visit(place: Place) -> None:
        with answering(drips) as (port, _):
            ended = await place.end_of(await place.submit({**BODY, "audio_url": f"http://{HERE}:{port}/a.wav"}))
            assert ended.error_status == 422 and "sends too slowly" in ended.error
            assert ended.error_detail[0]["loc"] == ["body", "audio_url"]
            assert place.files("input") == []

    at(tmp_path, visit)


def test_a_slow_disk_is_not_taken_for_a_slow_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the time that is spent waiting for the server counts."""
    monkeypatch.setattr(fetching, "RATE_SECONDS", 0.2)
    write = Incoming.write_now

    def slowly(file: Incoming, data: bytes) -> None:
        time.sleep(0.3)
        write(file, data[: 2**20])

    monkeypatch.setattr(Incoming, "write_now", slowly)

    async def visit(place: Place) -> None:
        with answering(lambda _: web.Response(body=wav(30))) as (port, _):
            ended = await place.end_of(await place.submit({**BODY, "audio_url": f"http://{HERE}:{port}/a.wav"}))
            assert ended.error is None

    at(tmp_path, visit)


def test_a_request_is_fetched_again_by_the_next_server_and_goes_behind_the_others(tmp_path: Path) -> None:
    """Its own server has died: nobody renews its lease."""
    settings = make_settings(tmp_path, allowed_hosts=(HERE,), lease_seconds=1.0)

    async def main() -> None:
        with opened(settings) as store, slow() as (url, got):
            dead = Place(settings, store)
            request_id = await dead.submit({**BODY, "audio_url": f"{url}/a.wav"})
            await dead.queue._fetcher.tick()  # it claims, and then nothing more is heard of it
            await dead.until(lambda: got)
            async with working(settings, store) as place:
                await place.until(lambda: len(got) == 2)
                assert place.request(request_id).attempts == 2
                assert await place.queue.cancel(request_id)
            await dead.queue.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_names_without_an_answer_hold_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup holds its thread until the system gives up, and everything in ComfyUI shares a few threads."""
    over, asked, system = threading.Event(), [], socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
        if host != "silent.example":
            return system(host, *rest, **named)
        asked.append(host)
        over.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    async def visit(place: Place) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        try:
            ids = [await place.submit({**BODY, "audio_url": f"http://silent.example/{n}.wav"}) for n in range(4)]
            await place.until(lambda: len(asked) >= 2)
            own = await asyncio.wait_for(place.submit(), 10)
            assert (await asyncio.wait_for(place.end_of(own), 10)).error is None
            await place.until(lambda: len(asked) == 4)
            for each in ids:
                assert await place.queue.cancel(each)
        finally:
            over.set()

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    at(tmp_path, visit)


def test_an_upload_whose_file_was_deleted_ends_its_request(tmp_path: Path) -> None:
    """Otherwise it would be tried again for ever, as if the disk were full."""

    async def visit(place: Place) -> None:
        url = (await uploaded(place, wav())).replace("//host/", f"//{HERE}:{port}/")
        for path in uploads.folder(place.settings).iterdir():
            path.unlink()
        ended = await asyncio.wait_for(place.end_of(await place.submit({**BODY, "audio_url": url})), 10)
        assert (ended.error_status, ended.error_type) == (422, "validation_error")

    with answering(lambda _: web.Response(status=404)) as (port, _):
        at(tmp_path, visit)


def test_a_file_whose_reservation_ends_while_the_next_one_waits_for_the_disk_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(owners, "RESERVED_SECONDS", 0.2)
    full = threading.Event()
    full.set()
    keep = Inbox.keep

    async def until_it_is_full(self: Inbox, file: Any, name: str, kind: str, field: str, *rest: Any) -> str:
        if field == "image_url" and full.is_set():
            raise OSError(28, "No space left on device")
        return await keep(self, file, name, kind, field, *rest)

    def answer(request: web.Request) -> web.Response:
        return web.Response(body=png(64) if request.path.endswith(".png") else wav())

    async def visit(place: Place) -> None:
        there: list[bool] = []

        async def look(prompt: Any) -> None:
            values = [value for node in prompt.values() for value in node["inputs"].values()]
            names = [value for value in values if isinstance(value, str) and value.endswith((".png", ".wav"))]
            there.extend((place.settings.input / name).is_file() for name in names)

        place.host.act = look
        urls = {"audio_url": f"http://{HERE}:{port}/a.wav", "image_url": f"http://{HERE}:{port}/a.png"}
        request_id = await place.submit({**BODY, **urls})
        await place.until(lambda: place.files("input"))
        await asyncio.sleep(0.3)
        await Cleaner(place.database, place.settings).clean()
        monkeypatch.setattr(owners, "RESERVED_SECONDS", 3600.0)
        full.clear()
        assert (await place.end_of(request_id)).error is None
        assert there == [True, True] and place.request(request_id).attempts == 1

    monkeypatch.setattr(Inbox, "keep", until_it_is_full)
    with answering(answer) as (port, _):
        at(tmp_path, visit)
