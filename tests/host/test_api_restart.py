"""A queue that loses nothing: servers that are killed, and two that share one folder. Through the Python client."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import fal_client
import pytest
from a2v.api.webhooks.deliveries import CLAIM_SECONDS
from a2v.tests.host.api import APP, LONG, SMALL, SPEECH, Outside, client_of, environment, outside, write_published
from a2v.tests.host.comfy import Comfy

LEASE = 6
COUNT = 20


@pytest.fixture
def receiver() -> Iterator[Outside]:
    with outside() as found:
        yield found


@pytest.fixture
def base(tmp_path: Path, receiver: Outside) -> Iterator[Path]:
    write_published(tmp_path)
    with environment(LTX_A2V_LEASE_SECONDS=str(LEASE)):
        yield tmp_path


def submit(fal: Any, count: int, receiver: Outside, steps: int = 8) -> list[str]:
    client, sound = fal.SyncClient(key="any"), fal_client.encode_file(SPEECH)

    def one(seed: int) -> str:
        arguments = {**SMALL, "audio_url": sound, "seed": seed, "num_inference_steps": steps}
        return client.submit(APP, arguments, webhook_url=receiver.url + "/").request_id

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(count)))


def wait(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def check_ends(fal: Any, base: Path, ids: list[str], receiver: Outside, again: Collection[str] = frozenset()) -> None:
    """Each request has its own result, told once, in a file of its own; and there is no other file.

    again: requests that may be told twice: their webhooks were being sent when the server was killed.
    """
    client = fal.SyncClient(key="any")
    results = [client.result(APP, request_id) for request_id in ids]
    assert sorted(result["seed"] for result in results) == list(range(len(ids)))
    names = [result["video"]["file_name"] for result in results]
    assert sorted(path.name for path in (base / "output" / "ltx_a2v_api").iterdir()) == sorted(names)
    wait(lambda: {body["request_id"] for body in receiver.bodies} >= set(ids), CLAIM_SECONDS + 30)
    told = Counter(body["request_id"] for body in receiver.bodies)
    assert told.keys() == set(ids)
    assert all(count == 1 or (count == 2 and each in again) for each, count in told.items()), told
    assert {body["status"] for body in receiver.bodies} == {"OK"}


@pytest.mark.soak
def test_twenty_requests_outlive_a_kill(base: Path, receiver: Outside) -> None:
    with Comfy(base) as comfy, client_of(comfy) as fal:
        ids = submit(fal, COUNT, receiver)
        assert len(set(ids)) == COUNT
        wait(lambda: len(receiver.bodies) >= 5)
        os.killpg(comfy.pid, signal.SIGKILL)
    with closing(sqlite3.connect(base / "user" / "__ltx_a2v" / "requests.sqlite")) as database:
        (left,) = database.execute("SELECT count(*) FROM requests WHERE status != 'COMPLETED'").fetchone()
        being_told = "SELECT request_id FROM webhook_deliveries WHERE state = 'PENDING' AND tries > 0"
        again = {request_id for (request_id,) in database.execute(being_told)}
    assert 0 < left <= COUNT - 5
    with Comfy(base) as comfy, client_of(comfy) as fal:
        check_ends(fal, base, ids, receiver, again)
        assert len(comfy.get("/history")) == left


@pytest.mark.soak
def test_two_servers_share_the_work_and_do_not_rob_each_other(base: Path, receiver: Outside) -> None:
    with Comfy(base) as first, Comfy(base) as second, client_of(first) as fal:
        ids = submit(fal, 8, receiver, steps=30)
        check_ends(fal, base, ids, receiver)
        counts = [len(server.get("/history")) for server in (first, second)]
    assert sum(counts) == 8 and min(counts) >= 2


@pytest.mark.soak
def test_one_of_two_servers_dies(base: Path, receiver: Outside) -> None:
    with Comfy(base) as first, Comfy(base) as second, client_of(first) as fal:
        ids = submit(fal, 6, receiver, steps=30)
        wait(lambda: all(server.get("/queue")["queue_running"] for server in (first, second)))
        os.killpg(second.pid, signal.SIGKILL)
        check_ends(fal, base, ids, receiver)


PHASES = {
    "while models are loaded": "Load Model",
    "while it waits": None,
    "while the prompt is encoded": "Encode prompt",
    "while it is sampled": "First stage: step 2/",
    "in the second stage": "Second stage: step 1/",
    "while it is decoded and written": "Decode and Save",
    "while its webhook is sent": None,
}
"""When a server dies → the beginning of the log's line that says so."""
LARGER = {"num_frames": 49, "video_size": {"width": 192, "height": 192}}


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_one_of_two_servers_dies_in_each_phase(base: Path, receiver: Outside) -> None:
    """The other one ends the request: with one file, and one webhook unless the first was being sent."""
    servers = [Comfy(base), Comfy(base)]
    done: list[str] = []
    try:
        for seed, (phase, line) in enumerate(PHASES.items()):
            if phase == "while its webhook is sent":
                receiver.answers.clear()
            with client_of(servers[0]) as fal:
                busy = block(fal, 2) if phase == "while it waits" else []
                arguments = {**SMALL, **LARGER, "audio_url": fal_client.encode_file(SPEECH), "seed": seed}
                taken = fal.SyncClient(key="any").submit(APP, arguments, webhook_url=receiver.url + "/").request_id
                dying = servers[0] if busy else reached(servers, base, taken, line, receiver)
            os.killpg(dying.pid, signal.SIGKILL)
            dying.stop()
            servers.remove(dying)
            receiver.answers.set()
            with client_of(servers[0]) as fal:
                for each in busy:
                    fal.SyncClient(key="any").cancel(APP, each)
                done.append(taken)
                again = {taken} if phase == "while its webhook is sent" else frozenset()
                wait_for_end(fal, taken)
                if again:  # the first one was not answered
                    wait(partial(is_told_twice, receiver, taken), CLAIM_SECONDS + 60)
                check_ends(fal, base, done, receiver, again)
            servers.append(Comfy(base))
            assert not [*base.rglob(".*.part")], phase
    finally:
        for server in servers:
            server.stop()


def block(fal: Any, count: int) -> list[str]:
    """Requests that keep so many servers busy."""
    client = fal.SyncClient(key="any")
    arguments = {**LONG, "audio_url": fal_client.encode_file(SPEECH)}
    handles = [client.submit(APP, {**arguments, "seed": 1000 + number}) for number in range(count)]
    wait(lambda: all(isinstance(handle.status(), fal.InProgress) for handle in handles))
    return [handle.request_id for handle in handles]


def is_told_twice(receiver: Outside, request_id: str) -> bool:
    return [body["request_id"] for body in receiver.bodies].count(request_id) == 2


def wait_for_end(fal: Any, request_id: str) -> None:
    wait(lambda: isinstance(fal.SyncClient(key="any").status(APP, request_id), fal.Completed))


def reached(servers: list[Comfy], base: Path, request_id: str, line: str | None, receiver: Outside) -> Comfy:
    """The server that has the request in hand, as soon as its log has that line, or else as its webhook has come."""
    lines = "SELECT count(*) FROM logs WHERE request_id = ? AND message LIKE ?"
    holder = "SELECT lease_server FROM requests WHERE id = ?"
    found: list[str] = []
    with closing(sqlite3.connect(base / "user" / "__ltx_a2v" / "requests.sqlite")) as database:
        deadline = time.monotonic() + 120
        while line is None or not database.execute(lines, (request_id, line + "%")).fetchone()[0]:
            (held,) = database.execute(holder, (request_id,)).fetchone()
            found += [held] if held else []
            if line is None and any(body["request_id"] == request_id for body in receiver.bodies):
                break
            assert time.monotonic() < deadline, line
        (held,) = database.execute(holder, (request_id,)).fetchone()
        found += [held] if held else []
    (dying,) = (server for server in servers if f":{server.pid}:" in found[-1])
    return dying


@pytest.mark.soak  # tests/api/test_fetcher.py has the same without servers
def test_a_server_that_dies_while_media_are_fetched(base: Path, receiver: Outside) -> None:
    receiver.files["/speech.opus"] = SPEECH.read_bytes()
    receiver.open.clear()
    with Comfy(base) as comfy, client_of(comfy) as fal:
        arguments = {**SMALL, "audio_url": receiver.url + "/speech.opus", "seed": 0}
        ids = [fal.SyncClient(key="any").submit(APP, arguments, webhook_url=receiver.url + "/").request_id]
        wait(lambda: receiver.asked)
        os.killpg(comfy.pid, signal.SIGKILL)
    receiver.open.set()
    with Comfy(base) as comfy, client_of(comfy) as fal:
        check_ends(fal, base, ids, receiver)
    assert len(receiver.asked) == 2
