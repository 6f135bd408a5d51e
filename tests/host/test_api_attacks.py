"""The API under attack and failure, on a real ComfyUI: what each attack of attacks.py may cost, and fifty kills."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from a2v.tests.api.edges import data_uri, wav
from a2v.tests.host import attacks
from a2v.tests.host.api import LONG, ROOT, SPEECH, outside, write_published
from a2v.tests.host.attack_place import Place, Server, locked, wait
from a2v.tests.host.attacks import ATTACKS, Figures
from a2v.tests.host.comfy import Comfy


def goes_on_beside_bodies(figures: Figures) -> bool:
    """Whether a run and the event loop go on while bodies arrive, and nothing waits for more than the bodies.

    No bound falls when runs get faster. A sixth of the processor is the run's, beside the event loop and four threads
    for files; an event loop that the bodies hold up answers nothing for most of their time, and starts no run.
    """
    bodies = figures["bodies, s"]
    return (
        figures["the run's share"] >= 0.05
        and figures["longest answer, s"] <= bodies / 3
        and figures["beside, s"] <= 2 * (figures["alone, s"] + bodies)
    )


HOLDS: dict[str, Any] = {
    "lock_at_the_end": lambda f: f["ends within 60 s"] and f["cancel works"],
    "lock_as_media_arrive": lambda f: f["ends within 60 s"],
    "small_pictures": lambda f: f["MiB for the GIF"] < 300 and f["the PNG is refused"],
    "kill_goes_to_the_end": lambda f: f["the other one is run first"],
    "one_of_two_leaves": lambda f: f["the other gets the result"],
    "files_after_expiry": lambda f: f["the waiting request keeps its sound"] and f["files left"] == 0,
    "parts_again": lambda f: f["KB kept"] <= 1000 and (f["a resend"], f["a late part"]) == (200, 410),
    "many_old_requests": lambda f: f["longest answer, s"] < 2 and f["MiB"] < 200 and f["not expired"] == 0,
    "large_json": lambda f: f["longest answer, s"] < 2 and f["MiB"] < 200,
    "data_uri_of_100_mb": lambda f: f["taken"] and f["longest answer, s"] < 2 and f["MiB"] < 300,
    "bodies_given_up": lambda f: f["MiB"] < 300 and f["ended of 20"] == 20,
    "slow_addresses": lambda f: f["beside, s"] <= 2 * f["alone, s"] + 1,
    "hanging_webhooks": lambda f: f["told after, s"] < 10,
    "stalled_uploads": lambda f: (f["ended of 200"], f["files half written"]) == (200, 0) and f["MiB"] < 200,
    "all_at_once": lambda f: goes_on_beside_bodies(f) and f["MiB above idle"] < 2048,
    "a_second_server": lambda f: f["the result is there"] and f["the run succeeds"],
    "without_a_key": lambda f: list(f.values()) == [403, 401, 401, 200],
    "clock_an_hour_back": lambda f: f["goes on after, s"] < 30,
    "broken_files": lambda f: not f["tracebacks"] and f["left alone"] and f["works with an empty key"],
    "small_ones": lambda f: not f["files outside"] and not f["the prompt is in the database"],
}


def test_each_attack_has_its_figures() -> None:
    assert HOLDS.keys() == ATTACKS.keys()


@pytest.mark.parametrize(
    "name",
    ["without_a_key", *(pytest.param(n, marks=pytest.mark.soak) for n in ("one_of_two_leaves", "small_pictures"))],
)
def test_an_attack_in_seconds(name: str, server: Comfy, api_base: Path) -> None:
    """Of the others tests/api has the small form: each is held there by what is done, and here by what it costs."""
    figures = ATTACKS[name](Place(api_base, ROOT, server))
    assert HOLDS[name](figures), figures


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_costs_little(name: str) -> None:
    figures = attacks.run(name, ROOT)
    if "skipped" in figures:
        pytest.skip(figures["skipped"])
    assert HOLDS[name](figures), figures


KILLS, SENT, ACCEPTED = 50, 6, 200
"""Some of the requests that are sent before a kill are not accepted any more."""


class Accepted:
    """What was accepted, and what its clients were told."""

    def __init__(self, place: Place, url: str) -> None:
        self.place, self.url = place, url
        self.ids: list[str] = []
        self.ended: dict[str, tuple[Any, ...]] = {}

    def submit(self, server: Server, draw: random.Random) -> None:
        """One of the kinds that there are; a server that is killed meanwhile has accepted nothing."""
        kinds: dict[str, dict[str, Any]] = {
            "a sound in the body": {"audio_url": data_uri(wav(0.2 + draw.random() / 5), "audio/wav")},
            "one from elsewhere": {"audio_url": f"{self.url}/speech.opus"},
            "one that is not there": {"audio_url": f"{self.url}/none.wav"},
            "an upload": {},
            "sent but once": {"sync_mode": True},
        }
        kind = draw.choice(list(kinds))
        body = {"seed": draw.randrange(2**30), **kinds[kind]}
        if kind == "an upload":
            body["audio_url"] = server.upload(wav(0.2 + draw.random() / 5))
        headers = {"Idempotency-Key": str(draw.random())} if draw.random() < 0.3 else {}
        answer = server.submit(f"?fal_webhook={self.url}/hook", headers=headers, **body)
        assert answer.status_code == 200, answer.text
        self.ids.append(answer.json()["request_id"])
        if draw.random() < 0.15:
            requests.put(answer.json()["cancel_url"], timeout=60)

    def look(self) -> None:
        """What has ended stays as it ended."""
        columns = "id, status, json_extract(result, '$.video.file_name'), error_type, ended"
        rows = {row[0]: row for row in self.place.rows(f"SELECT {columns} FROM requests")}
        assert rows.keys() >= set(self.ids), "an accepted request is lost"
        for request_id, row in self.ended.items():
            assert rows[request_id] == row
        self.ended = {name: row for name, row in rows.items() if row[1] == "COMPLETED"}


def hours_later(place: Place) -> None:
    """Of what killed servers were receiving and reserving, and of uploads, some hours go by."""
    for folder in (
        place.base / "input" / "ltx_a2v_api",
        place.base / "output" / "ltx_a2v_api",
        place.system / "uploads",
    ):
        for part in folder.glob(".*.part"):
            os.utime(part, (time.time() - 7200,) * 2)
    place.rows("UPDATE media_needs SET until = until - 7200 WHERE until IS NOT NULL")
    place.rows("UPDATE uploads SET until = until - 7200")


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
def test_fifty_kills_and_two_hundred_requests(tmp_path: Path, receiver: Any) -> None:
    """Each accepted request ends once and is told; locks of the database beside it. At the end nothing is left."""
    write_published(tmp_path)
    place, accepted = Place(tmp_path, ROOT), Accepted(Place(tmp_path, ROOT), receiver.url)
    receiver.files["/speech.opus"] = SPEECH.read_bytes()
    seed = random.randrange(2**30)
    print(f"seed {seed}")
    draw = random.Random(seed)
    settings = {"LTX_A2V_LEASE_SECONDS": "2"}
    with ThreadPoolExecutor() as pool:
        for _ in range(KILLS):
            with place.server(**settings) as server:
                accepted.look()
                sent = [pool.submit(accepted.submit, server, draw) for _ in range(SENT)]
                if draw.random() < 0.3:
                    with locked(place):
                        time.sleep(draw.uniform(0, 3))
                time.sleep(draw.choice((0.1, 1, 4, 10)) * draw.random())
                server.kill()
                for future in sent:
                    with suppress(requests.RequestException):
                        future.result()
    with place.server(**settings) as server:
        known = [row[0] for row in place.rows("SELECT id FROM requests")]  # of some the answer was lost
        assert set(accepted.ids) <= set(known) and len(known) >= KILLS
        for _ in range(ACCEPTED - len(known)):  # the kills came before others
            accepted.submit(server, draw)
        known = sorted({*known, *accepted.ids})
        running = server.submit(**LONG).json()
        requests.put(running["cancel_url"], timeout=60).raise_for_status()
        assert server.ended(running, 30), "a request that waits is cancelled at once"
        wait(lambda: not place.rows("SELECT 1 FROM requests WHERE status != 'COMPLETED'"), 3600)
        accepted.look()
        assert set(accepted.ended) >= set(known)
        wait(lambda: not place.rows("SELECT 1 FROM webhook_deliveries WHERE state = 'PENDING'"), 60)
    told: dict[str, set[str]] = {}
    for body in receiver.bodies:
        told.setdefault(body["request_id"], set()).add(body["status"])
    assert told.keys() >= set(known) and all(len(statuses) == 1 for statuses in told.values())
    print(Counter(row[3] or "succeeded" for row in accepted.ended.values()), f"of {len(known)}")
    results = {row[2] for row in accepted.ended.values() if row[2]}
    assert set(place.files("output")) <= results, "no file that a killed run left"
    owned = {name.rpartition("/")[2] for (name,) in place.rows("SELECT name FROM media_needs")}
    assert {name for name in place.files("input") if not name.startswith(".")} <= owned, "each file has an owner"
    hours_later(place)
    with place.server(LTX_A2V_EXPIRE_HOURS="0.00001", LTX_A2V_FORGET_HOURS="0.00001", **settings):
        wait(lambda: not place.files("input") + place.files("output"), 120)
        wait(lambda: not place.rows("SELECT 1 FROM requests"), 120)
    assert place.files("input") == [] and place.files("output") == [] and not place.rows("SELECT 1 FROM media_needs")
    assert [path.name for path in (place.system / "uploads").iterdir()] == []


@pytest.fixture
def receiver() -> Iterator[Any]:
    with outside() as found:
        yield found
