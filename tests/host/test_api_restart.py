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
from pathlib import Path
from typing import Any

import fal_client
import pytest
from a2v.api.webhooks.deliveries import CLAIM_SECONDS
from a2v.tests.host.api import APP, SMALL, SPEECH, Outside, client_of, environment, outside, write_published
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
