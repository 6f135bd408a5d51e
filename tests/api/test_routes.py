"""What the routes answer before any request is looked at: other applications, other paths, the proxy on them. And whom
the status keeps waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from a2v.api.applications import APPLICATIONS
from a2v.api.database import rows
from a2v.api.database.rows import DONE, QUEUED, RUNNING, StoredRequest
from a2v.api.database.store import Store
from a2v.api.install import routes
from a2v.api.protocol.pollers import LATELY, Told
from a2v.api.queue.queue import RequestQueue
from a2v.tests.api.edges import APP, make_settings, opened
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

Client = TestClient[web.Request, web.Application]


def asked(tmp_path: Path, questions: Callable[[Client], Awaitable[Any]]) -> Any:
    """What comes of questions to all routes; none gets as far as the queue."""
    settings = make_settings(tmp_path)

    async def main(database: Store) -> Any:
        app = web.Application()
        app.add_routes(routes(RequestQueue(None, database, settings, None), settings, database, None))
        async with TestClient(TestServer(app)) as client:
            return await questions(client)

    with opened(settings) as database:
        return asyncio.run(main(database))


OTHERS = ["fal-ai/ltx-2.3-22b/text-to-video", "fal-ai/other", "x/y/requests/1/status", "fal-ai/ltx-2.3-22b-x"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize("app", OTHERS)
def test_another_application_is_answered_with_the_known_ones(tmp_path: Path, app: str, method: str) -> None:
    async def questions(client: Client) -> list[tuple[int, str]]:
        found = []
        for kind, host in (("run", "fal.run"), ("queue", "queue.fal.run")):
            straight = await client.request(method, f"/fal/{kind}/{app}", json={})
            headers = {"x-fal-target-url": f"https://{host}/{app}"}
            proxied = await client.request(method, "/fal/proxy", json={}, headers=headers)
            found += [(answer.status, (await answer.json())["detail"]) for answer in (straight, proxied)]
        return found

    name = app.split("/requests/")[0]
    known = ", ".join(APPLICATIONS)
    assert set(asked(tmp_path, questions)) == {(404, f"Application {name!r} not found; this server has {known}.")}


def test_streams_and_realtime_connections_are_refused_with_what_to_do(tmp_path: Path) -> None:
    """`fal.stream` and `fal.realtime` of both clients: what they ask for, straight and through the proxy."""

    async def questions(client: Client) -> list[tuple[int, str]]:
        stream = {"x-fal-target-url": f"https://fal.run/{APP}/stream"}
        answers = [
            await client.post(f"/fal/run/{APP}/stream", json={}),
            await client.post("/fal/proxy", json={}, headers=stream),
            await client.get(f"/fal/run/{APP}/realtime?max_buffering=1", headers={"Upgrade": "websocket"}),
            await client.post("/fal/rest/tokens/", json={"allowed_apps": ["ltx-2.3-22b"]}),
        ]
        return [(answer.status, (await answer.json())["detail"]) for answer in answers]

    said = (
        "This server has no streams of results and no realtime connections; submit the request and follow its status."
    )
    assert asked(tmp_path, questions) == [(404, said)] * 4


@pytest.mark.parametrize(
    "target",
    [
        "https://fal.run/one",
        "https://queue.fal.run/",
        "https://rest.fal.ai/fal-ai/other",
        "https://rest.fal.ai/users/me",
        "https://fal.run/../prompt",
        "https://evil.example/fal-ai/other",
    ],
)
def test_what_looks_like_no_application_stays_refused_by_the_proxy(tmp_path: Path, target: str) -> None:
    async def question(client: Client) -> int:
        return (await client.post("/fal/proxy", json={}, headers={"x-fal-target-url": target})).status

    assert asked(tmp_path, question) == 403


@pytest.mark.parametrize(
    "path", ["/fal/queue", "/fal/x", "/fal/run/one", f"/fal/queue/{APP}/requests/1/nothing", "/fal/"]
)
def test_a_path_that_there_is_none_of(tmp_path: Path, path: str) -> None:
    async def question(client: Client) -> tuple[int, str]:
        answer = await client.get(path)
        return answer.status, (await answer.json())["detail"]

    status, said = asked(tmp_path, question)
    assert status == 404 and "openapi.json" in said


def test_a_body_that_is_no_json_type_or_too_large(tmp_path: Path) -> None:
    """One reader for every JSON route: the same refusals at a submission as at an upload's announcement."""

    async def questions(client: Client) -> list[int]:
        found = []
        for headers, body in (
            ({"Content-Type": "text/plain"}, b"{}"),
            ({}, b"{}"),
            ({"Content-Type": "application/json"}, b"["),
        ):
            for kind in ("run", "queue"):
                answer = await client.post(f"/fal/{kind}/{APP}", data=body, headers=headers)
                assert (await answer.json())["detail"]
                found.append(answer.status)
        return found

    assert asked(tmp_path, questions) == [415, 415, 415, 415, 422, 422]


def test_a_poller_that_would_read_the_same_again_waits_for_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over whatever connection; another client is answered at once when it first asks, and all are in the end."""
    monkeypatch.setattr("a2v.api.protocol.pollers.LATELY", 1e6)
    monkeypatch.setattr("a2v.api.queue.snapshots.LATELY", 1e6)
    settings = make_settings(tmp_path, hold_seconds=1e6)

    async def main(database: Store) -> list[tuple[int, str]]:
        queue = RequestQueue(None, database, settings, None)
        app = web.Application()
        app.add_routes(routes(queue, settings, database, None))
        agent = {"User-Agent": "another"}
        async with TestServer(app) as server, TestClient(server) as one, TestClient(server, headers=agent) as other:

            async def poll(client: Client) -> tuple[int, str]:
                answer = await client.get(f"/fal/queue/{APPLICATIONS[APP].owner}/requests/1/status")
                return answer.status, (await answer.json())["status"]

            async def becomes(status: str) -> None:
                await database.run(lambda session: setattr(rows.find(session, "1"), "status", status))
                queue.journal.changed("1")

            found = [await poll(one)]
            held = asyncio.create_task(poll(one))
            while not queue.journal.is_watched("1"):
                await asyncio.sleep(0.01)
            found.append(await poll(other))
            assert not held.done()
            await becomes(RUNNING)
            found.append(await held)
            found.append(await poll(other))  # that was told otherwise
            await becomes(DONE)
            return [*found, *[await poll(client) for client in (one, one, other)]]

    with opened(settings) as database:
        with database.session() as session:
            session.add(StoredRequest(id="1", app=APP, arguments={}, digest="", created=time.time()))
        found = asyncio.run(asyncio.wait_for(main(database), 60))
    assert found == [(202, QUEUED)] * 2 + [(202, RUNNING)] * 2 + [(200, DONE)] * 3


def test_what_pollers_were_told_is_remembered_for_a_second() -> None:
    told = Told()
    assert not told.knows("one", {"status": QUEUED})
    told.note("one", {"status": QUEUED})
    assert told.knows("one", {"status": QUEUED}) and not told.knows("one", {"status": RUNNING})
    assert not told.knows("other", {"status": QUEUED})
    time.sleep(LATELY + 0.1)
    assert not told.knows("one", {"status": QUEUED})
    told.note("other", {})
    assert len(told._last) == 1  # nobody is remembered for ever
