"""The protocol over HTTP, on a ComfyUI that runs no graph: who leaves, what vanishes, what is too slow or too much."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import socket
import sqlite3
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import requests
from a2v.api import install
from a2v.api.database import rows
from a2v.api.database.rows import DONE
from a2v.api.database.store import StoreFailed
from a2v.api.files.incoming import Incoming
from a2v.api.graph.graph import Prompt
from a2v.api.host import Outcome
from a2v.api.protocol import bodies, packed
from a2v.api.queue.cleaner import Cleaner
from a2v.api.settings import Settings
from a2v.ltx.errors import InputError
from a2v.tests.api.edges import APP, before_writes, data_uri, make_settings, opened, serving, wav
from a2v.tests.api.stand_ins import BODY, PICTURE, Place, failing
from aiohttp import StreamReader, web


class Served(Place):
    """A place whose routes are served."""

    base = ""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1000)
        app.add_routes(install.routes(self.queue, self.settings, self.database, self.queue._webhooks))
        app.on_startup.append(lambda _: self.queue.start())
        app.on_cleanup.append(lambda _: self.queue.close())
        return app

    def ask(self, body: dict[str, Any] = BODY, kind: str = "queue", **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(f"{self.base}/{kind}/{APP}", json=body, headers=named, timeout=30)

    def result_of(self, answer: requests.Response) -> requests.Response:
        url = answer.json()["response_url"]
        until(lambda: requests.get(url + "/status", timeout=10).status_code == 200)
        return requests.get(url, timeout=10)


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@contextmanager
def serve(settings: Settings) -> Iterator[Served]:
    with opened(settings) as store:
        made: list[Served] = []

        def make() -> web.Application:
            made.append(Served(settings, store))  # on the loop that serves
            return made[0].app()

        with serving(make) as port:
            made[0].base = f"http://127.0.0.1:{port}/fal"
            yield made[0]


@pytest.fixture
def served(settings: Settings) -> Iterator[Served]:
    with serve(settings) as place:
        yield place


class Gate:
    """Holds runs until it is opened, from another thread."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    async def __call__(self, _: Prompt) -> Outcome | None:
        self.entered.set()
        while not self.open.is_set():
            await asyncio.sleep(0.01)
        return None


def test_a_failed_request_s_answers_are_those_of_the_document(served: Served) -> None:
    """By the document's models, with no field beside theirs. And nobody learns where this server's files lie."""
    document = requests.get(f"{served.base}/openapi.json", timeout=10).json()

    def check(answer: requests.Response, path: str, status: int) -> None:
        described = document["paths"][path]["post" if "/run/" in path else "get"]["responses"][str(status)]
        model = described["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert answer.status_code == status
        assert answer.json().keys() <= document["components"]["schemas"][model]["properties"].keys()
        assert "/srv" not in answer.text and "x.safetensors: is damaged" in answer.text

    damaged = "/srv/comfyui/models/checkpoints/x.safetensors: is damaged"
    for kind, message, status in (
        ("ltx_a2v.InputError", f"prompt: {damaged}", 422),
        ("ltx_a2v.InputError", damaged, 500),  # it is about no input: nothing that the client sends mends it
        ("RuntimeError", damaged, 500),
    ):
        served.host.act = failing(kind, message)
        waiting = served.ask()
        check(served.result_of(waiting), "/fal/queue/fal-ai/ltx-2.3-22b/requests/{request_id}", status)
        told = requests.get(waiting.json()["status_url"] + "?logs=1", timeout=10)
        check(told, "/fal/queue/fal-ai/ltx-2.3-22b/requests/{request_id}/status", 200)
        check(served.ask(kind="run"), f"/fal/run/{APP}", status)


def test_a_model_that_is_found_damaged_at_once_is_told_without_its_path(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_camera(_: str) -> None:
        raise InputError("/srv/comfyui/models/loras/x.safetensors: is damaged")

    monkeypatch.setattr(served.host, "check_camera", check_camera)
    answer = served.ask({**BODY, "camera_lora": "static"})
    (found,) = answer.json()["detail"]
    assert (answer.status_code, found["loc"]) == (422, ["body", "camera_lora"])
    assert found["msg"] == "x.safetensors: is damaged"


# who leaves


def leave(served: Served, gate: Gate, **headers: str) -> None:
    """A client that runs a request, and hangs up as soon as it is run."""
    body = json.dumps(BODY)
    lines = [f"POST /fal/run/{APP} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [
        f"Content-Length: {len(body)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    with socket.create_connection(("127.0.0.1", int(served.base.split(":")[2].split("/")[0])), 20) as plain:
        plain.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
        assert gate.entered.wait(30)


def test_a_run_whose_only_client_leaves_is_cancelled(served: Served) -> None:
    gate = served.host.act = Gate()
    leave(served, gate)
    until(lambda: served.host.stopped)
    with served.database.session() as session:
        (request,) = session.query(rows.StoredRequest).all()
    until(lambda: served.request(request.id).status == DONE)
    assert served.request(request.id).error_type == "client_cancelled"


def test_a_keyed_run_goes_on_for_everybody_else_and_for_every_retry(served: Served) -> None:
    gate = served.host.act = Gate()
    with ThreadPoolExecutor() as pool:
        leave(served, gate, Idempotency_Key="k")
        waits = pool.submit(served.ask, kind="run", Idempotency_Key="k")
        time.sleep(1.5)  # longer than a look whether the client is still there
        assert served.host.stopped == []
        gate.open.set()
        assert waits.result().json()["seed"] == 7
    again = served.ask(kind="run", Idempotency_Key="k")
    assert again.status_code == 200 and again.json()["seed"] == 7 and len(served.host.runs) == 1


def test_a_keyed_run_that_nobody_waits_for_ends_all_the_same(served: Served) -> None:
    gate = served.host.act = Gate()
    leave(served, gate, Idempotency_Key="k")
    gate.open.set()
    answer = served.ask(kind="run", Idempotency_Key="k")
    assert answer.status_code == 200 and len(served.host.runs) == 1


def test_a_run_that_somebody_follows_is_not_cancelled_by_who_leaves(served: Served) -> None:
    gate = served.host.act = Gate()
    events: list[str] = []

    def follow() -> None:
        with served.database.session() as session:
            (request,) = session.query(rows.StoredRequest).all()
        url = f"{served.base}/queue/{APP}/requests/{request.id}/status/stream"
        with requests.get(url, stream=True, timeout=30) as answer:
            events.extend(json.loads(line[6:])["status"] for line in answer.iter_lines() if line.startswith(b"data: "))

    class AtOnce(Gate):
        async def __call__(self, prompt: Prompt) -> Outcome | None:
            threading.Thread(target=follow).start()
            await asyncio.sleep(0.5)
            return await super().__call__(prompt)

    gate = served.host.act = AtOnce()
    leave(served, gate)
    time.sleep(1.5)
    gate.open.set()
    until(lambda: events[-1:] == ["COMPLETED"])
    assert served.host.stopped == []


# what vanishes


def test_a_result_that_vanishes_is_gone_even_while_it_is_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = served.ask()
    assert served.result_of(kept).status_code == 200
    (served.settings.output_folder / served.files()[0]).unlink()
    gone = served.result_of(kept)
    assert gone.status_code == 410 and gone.json()["error_type"] == "result_gone"

    once = served.ask({**BODY, "sync_mode": True})
    read = Path.open

    def vanish(path: Path, *mode: str) -> BinaryIO:
        path.unlink()
        return read(path, *mode)

    until(lambda: requests.get(once.json()["status_url"], timeout=10).status_code == 200)
    monkeypatch.setattr(Path, "open", vanish)
    gone = requests.get(once.json()["response_url"], timeout=10)
    assert gone.status_code == 410 and "sync_mode" in gone.json()["detail"]


def test_many_readers_of_results_that_are_sent_but_once_take_no_memory(served: Served) -> None:
    """Whoever reads slowly, or not at all, has the video read and encoded for him piece by piece."""
    once = served.ask({**BODY, "sync_mode": True})
    served.result_of(once).raise_for_status()
    (name,), film = os.listdir(served.settings.passing_folder), os.urandom(8 * 2**20 + 1)
    (served.settings.passing_folder / name).write_bytes(film)
    url = once.json()["response_url"]
    tracemalloc.start()
    try:
        with ExitStack() as readers:
            for _ in range(8):
                answer = readers.enter_context(requests.get(url, timeout=30, stream=True))
                assert answer.raw.read(100)
            most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < len(film), f"{most / 2**20:.0f} MiB"
    whole = requests.get(url, timeout=30)
    assert whole.json()["video"]["url"] == data_uri(film, "video/mp4")
    assert int(whole.headers["Content-Length"]) == len(whole.content) and "json" in whole.headers["Content-Type"]
    assert whole.headers["X-Fal-Request-Id"] == once.json()["request_id"]


def test_a_result_that_is_sent_but_once_lies_where_comfyui_does_not_clean_up(served: Served) -> None:
    answer = served.result_of(served.ask({**BODY, "sync_mode": True})).json()
    kind, _, data = answer["video"]["url"].partition(",")
    assert kind == "data:video/mp4;base64" and base64.b64decode(data) == PICTURE
    assert served.files() == []
    assert os.listdir(served.settings.passing_folder) == [answer["video"]["file_name"]]


def test_of_a_result_that_is_sent_but_once_nothing_stays(tmp_path: Path) -> None:
    """Neither its file nor its sound, and no word of it in the database's files."""
    words = "a prompt that nobody else has"
    settings = make_settings(tmp_path, inline_read_seconds=0.0, inline_unread_seconds=3600)
    with serve(settings) as served:
        answer = served.ask({**BODY, "prompt": words, "sync_mode": True})
        url = answer.json()["response_url"]
        assert served.result_of(answer).status_code == 200
        assert served.files("input") != [] and words in json.dumps(requests.get(url + "/workflow", timeout=10).json())
        asyncio.run(Cleaner(served.database, settings).clean())
        gone = requests.get(url, timeout=10)
        assert gone.status_code == 410 and "gone" in gone.json()["detail"]
        assert requests.get(url + "/workflow", timeout=10).status_code == 404
        until(lambda: requests.get(url + "/status?logs=1", timeout=10).json()["logs"] == [])
        assert served.files("input") == [] and os.listdir(settings.passing_folder) == []
        for file in settings.system.glob("requests.sqlite*"):
            assert words.encode() not in file.read_bytes(), file.name


def test_a_stream_ends_where_its_request_is_forgotten(served: Served) -> None:
    gate = served.host.act = Gate()
    answer = served.ask().json()
    assert gate.entered.wait(30)
    with requests.get(answer["status_url"] + "/stream", stream=True, timeout=30) as events:
        next(events.iter_lines())
        with served.database.session() as session:
            session.delete(rows.find(session, answer["request_id"]))
        assert not any(b"COMPLETED" in line for line in events.iter_lines()), "and it ends"
    gate.open.set()


def test_a_stream_under_a_host_that_is_no_name_is_refused_with_one_answer(served: Served) -> None:
    """An answer had begun before, so a second one stood on the same connection."""
    url = served.ask().json()["status_url"]
    port, path = int(served.base.split(":")[2].split("/")[0]), url.partition("/fal")[2]
    with socket.create_connection(("127.0.0.1", port), 20) as plain:
        plain.sendall(f"GET /fal{path}/stream HTTP/1.1\r\nHost: a@localhost\r\nConnection: close\r\n\r\n".encode())
        said = plain.makefile("rb").read()
    assert said.startswith(b"HTTP/1.1 400 ") and said.count(b"HTTP/1.1") == 1 and b"Host header" in said


def test_bodies_take_turns_on_one_thread_in_large_pieces(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads, and many small pieces, left a running job an eighth of the interpreter."""
    writes: list[tuple[str, int]] = []
    write = Incoming.write_now

    def note(file: Incoming, data: bytes) -> None:
        writes.append((threading.current_thread().name, len(data)))
        write(file, data)

    monkeypatch.setattr(Incoming, "write_now", note)
    sound = bytes(4_000_000)
    token = requests.post(f"{served.base}/rest/storage/auth/token", json={}, timeout=20).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    with ThreadPoolExecutor() as pool:
        upload = f"{served.base}/cdn/files/upload"
        sent = [pool.submit(requests.post, upload, data=sound, headers=headers, timeout=60) for _ in range(2)]
        sent += [pool.submit(served.ask, {**BODY, "audio_url": data_uri(sound, "audio/wav")}) for _ in range(2)]
        assert sorted(each.result().status_code for each in sent) == [200, 200, 422, 422], "zeros are no sound"
    assert {thread for thread, _ in writes} == {"ltx-a2v-bytes_0"}
    assert sum(size for _, size in writes) == 16_000_000 and len(writes) < 16_000_000 / 2**17


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity, gzip"])
def test_a_compressed_body_is_refused_with_the_reason(
    served: Served, coding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right, broken or large, on every route, and whether or not the route exists."""
    monkeypatch.setattr(packed, "ARRIVE_SECONDS", 0.05)
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    paths = (f"queue/{APP}", f"run/{APP}", "rest/storage/upload/initiate", "cdn/files/upload", "proxy", "none/such")
    for path in paths:
        for body in (gzip.compress(json.dumps(BODY).encode()), b"abcde", os.urandom(2**20)):
            answer = requests.post(f"{served.base}/{path}", data=body, headers=headers, timeout=20)
            assert answer.status_code == 415 and "Content-Encoding" in answer.json()["detail"], answer.text
    plain = {**headers, "Content-Encoding": "identity"}
    assert requests.post(f"{served.base}/queue/{APP}", json=BODY, headers=plain, timeout=20).status_code == 200


def test_what_a_refused_body_unpacks_to_is_never_unpacked(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp reads what nobody has read after an answer, and unpacked all of it on the event loop."""
    came = 0
    feed = StreamReader.feed_data

    def count(reader: StreamReader, data: bytes, *others: Any) -> Any:
        nonlocal came
        came += len(data)
        return feed(reader, data, *others)

    monkeypatch.setattr(StreamReader, "feed_data", count)
    bomb = gzip.compress(bytes(2**27), 1)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "Connection": "close"}
    for path in (f"queue/{APP}", "none/such"):
        answer = requests.post(f"{served.base}/{path}", data=bomb, headers=headers, timeout=20)
        assert answer.status_code == 415
    assert came < 2**25, f"{came >> 20} of 256 MiB were unpacked"


# what stays how long


def ends(served: Served) -> dict[str, str]:
    """Ids of requests that ended in every way, each with a sound of its own."""
    found = {}
    for number, how in enumerate(("succeeds", "fails", "is cancelled", "its file is missing")):
        sound = data_uri(wav(0.1 + number / 100), "audio/wav")
        body = {**BODY, "audio_url": sound, "seed": number}
        served.host.act = Gate() if how == "is cancelled" else fail if how == "fails" else nothing
        if how == "its file is missing":
            body["image_url"] = "http://127.0.0.1:9/none.png"
        found[how] = served.ask(body).json()["request_id"]
        if how == "is cancelled":
            assert served.host.act.entered.wait(30)
            url = f"{served.base}/queue/{APP}/requests/{found[how]}/cancel"
            assert requests.put(url, timeout=10).status_code == 202
        until(lambda request_id=found[how]: served.request(request_id).status == DONE)
    return found


async def nothing(_: Prompt) -> Outcome | None:
    return None


async def fail(_: Prompt) -> Outcome:
    raise RuntimeError


def move_back(served: Served, seconds: float) -> None:
    with served.database.session() as session:
        for request in session.query(rows.StoredRequest).all():
            request.ended -= seconds


def test_of_requests_without_a_graph_no_file_stays(served: Served) -> None:
    found = ends(served)
    assert [served.request(found[how]).workflow is None for how in found] == [False, False, False, True]
    names = {served.request(found[how]).media["audio_url"].rpartition("/")[2] for how in list(found)[:3]}
    assert set(served.files("input")) == names
    with pytest.raises(requests.HTTPError):
        served.ask({**BODY, "audio_url": data_uri(wav(0.5), "audio/wav"), "fps": 0}).raise_for_status()
    assert set(served.files("input")) == names, "of a refused one, either"


def test_files_expire_and_then_the_requests_whatever_their_end(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, expire_hours=1.0)
    with serve(settings) as served:
        found = ends(served)
        clean(served)
        assert len(served.files("input")) == 3 and len(served.files()) == 1
        move_back(served, 3600)
        live = data_uri(wav(0.1), "audio/wav")  # the sound of the one that succeeded
        gate = served.host.act = Gate()
        running = served.ask({**BODY, "audio_url": live}).json()["request_id"]
        assert gate.entered.wait(30)
        clean(served)
        assert served.files() == [] and served.files("input") == [served.request(running).media["audio_url"][12:]]
        assert all(served.request(each).gone for each in found.values())
        url = f"{served.base}/queue/{APP}/requests/{found['succeeds']}"
        assert requests.get(url, timeout=10).status_code == 410
        move_back_ended(served, 3600)
        clean(served)
        with served.database.session() as session:
            assert [request.id for request in session.query(rows.StoredRequest).all()] == [running]
            assert rows.logs_of(session, list(found.values())) == []
        assert requests.get(url, timeout=10).status_code == 404
        gate.open.set()


def test_a_client_says_how_long_its_files_are_kept(served: Served) -> None:
    """As `storageSettings` of the JavaScript client does. What it says of one request touches no other."""
    wish = {"X_Fal_Object_Lifecycle_Preference": json.dumps({"expiration_duration_seconds": 3600, "initial_acl": {}})}
    short, long = (served.ask(**headers) for headers in (wish, {}))
    for answer in (short, long):
        assert served.result_of(answer).status_code == 200
    clean(served)
    assert len(served.files()) == 2
    move_back_ended(served, 3601)
    assert served.result_of(short).status_code == 410 and served.result_of(short).json()["error_type"] == "result_gone"
    clean(served)
    assert len(served.files()) == 1 and served.result_of(long).status_code == 200
    assert served.request(short.json()["request_id"]).gone and not served.request(long.json()["request_id"]).gone
    for broken in ("soon", '{"expiration_duration_seconds": 0}', '{"expiration_duration_seconds": "1h"}'):
        refused = served.ask(X_Fal_Object_Lifecycle_Preference=broken)
        assert refused.status_code == 422
        assert refused.json()["detail"][0]["loc"] == ["header", "x-fal-object-lifecycle-preference"]


def move_back_ended(served: Served, seconds: float) -> None:
    with served.database.session() as session:
        for request in session.query(rows.StoredRequest).filter(rows.StoredRequest.ended.is_not(None)):
            request.ended -= seconds


def clean(served: Served) -> None:
    asyncio.run(Cleaner(served.database, served.settings).clean())


def test_requests_are_forgotten_by_a_setting_of_their_own(tmp_path: Path) -> None:
    with serve(make_settings(tmp_path, forget_hours=1.0)) as served:
        ends(served)
        move_back(served, 3600)
        clean(served)
        assert served.files() == [] == served.files("input"), "no file without an owner"
        clean(served)
        with served.database.session() as session:
            assert session.query(rows.StoredRequest).count() == session.query(rows.Log).count() == 0


@pytest.mark.parametrize(
    ("expire", "forget", "files", "whole"), [(0, 0, 0, 0), (2, 0, 2, 4), (0, 3, 3, 3), (2, 3, 2, 3), (5, 3, 3, 3)]
)
def test_what_expires_when(tmp_path: Path, expire: float, forget: float, files: float, whole: float) -> None:
    settings = make_settings(tmp_path, expire_hours=expire, forget_hours=forget)
    assert (settings.expire_seconds, settings.forget_seconds) == (3600 * files, 3600 * whole)


# what comes too slowly, or too much


def head(served: Served, length: int, path: str = f"/fal/queue/{APP}") -> tuple[socket.socket, bytes]:
    port = int(served.base.split(":")[2].split("/")[0])
    lines = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    return socket.create_connection(("127.0.0.1", port), 30), lines.encode()


def test_a_body_that_stalls_is_ended_and_leaves_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "IDLE_SECONDS", 0.5)
    plain, lines = head(served, 10**6)
    with plain:
        plain.sendall(lines + b'{"audio_url": "data:audio/wav;base64,' + b"AAAA" * 1000)
        until(lambda: len(served.files("input")) == 1)
        assert plain.makefile("rb").readline().split()[1] == b"408"
    until(lambda: served.files("input") == [])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"prompt": "' + b"x" * 300_000 + b'"}', 413),
        (b'{"other": "data:,' + b"x" * 300_000 + b'"}', 413),
        (b"[" * 1000, 413),
        (b'{"audio_url": "data:audio/wav;base64,' + b"A" * 3_000_000 + b'"}', 413),
        (b'{"prompt": "x", "audio_url": "data:audio/wav;base64,' + b"A" * 1_500_000 + b'"}', 422),
    ],
)
def test_bodies_are_bounded_beside_and_with_their_files(tmp_path: Path, body: bytes, status: int) -> None:
    settings = make_settings(tmp_path, max_body=2_000_000, max_media=1_000_000)
    with serve(settings) as served:
        headers = {"Content-Type": "application/json"}
        answer = requests.post(f"{served.base}/queue/{APP}", data=body, headers=headers, timeout=20)
        assert answer.status_code == status and answer.json()["detail"]
        assert served.files("input") == []


def test_too_many_bodies_at_once_are_told_to_come_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies.Gate, "__init__", lambda gate: gate.__dict__.update(_most=0, _arriving={}))
    with serve(make_settings(served.settings.system.parent, key=None)) as busy:
        answer = busy.ask()
        assert answer.status_code == 503 and answer.headers["Retry-After"]
    assert served.ask().status_code == 200


def test_the_slowest_body_gives_its_place_to_a_new_one(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(bodies.Gate, "__init__", lambda gate: gate.__dict__.update(_most=2, _arriving={}))
    with serve(make_settings(served.settings.system.parent, key=None)) as busy, ExitStack() as stack:
        stalled = []
        for size in (200_000, 1000):
            plain, lines = head(busy, 10**6)
            stack.enter_context(plain).sendall(lines + b'{"audio_url": "data:audio/wav;base64,' + b"A" * size)
            stalled.append(plain)
        until(lambda: len(busy.files("input")) == 2)
        monkeypatch.setattr(bodies, "SLOW_RATE", 1)
        assert busy.ask().status_code == 503, "none of them is slow"
        monkeypatch.setattr(bodies, "SLOW_RATE", 10**9)
        assert busy.ask().status_code == 200
        assert stalled[1].makefile("rb").readline().split()[1] == b"503"
        until(lambda: sum(name.startswith(".") for name in busy.files("input")) == 1)  # the faster one goes on


def test_announcements_are_small(served: Served) -> None:
    url = f"{served.base}/rest/storage/upload/initiate"
    large = {"file_name": "x" * 100_000}
    assert requests.post(url, json=large, timeout=20).status_code == 413
    urls = requests.post(url + "-multipart", json={}, timeout=20).json()
    where = urls["upload_url"].replace("?", "/complete?")
    assert requests.post(where, json={"parts": "x" * 3_000_000}, timeout=20).status_code == 413
    parts = [{"partNumber": number, "etag": "0" * 32} for number in range(1, 10_001)]
    assert requests.post(where, json={"parts": parts}, timeout=20).status_code == 422


def test_a_store_that_fails_is_told_as_a_reason_to_come_again(served: Served) -> None:
    def refuse() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    end = before_writes(served.database, refuse)
    try:
        answer = served.ask()
        assert answer.status_code == 503 and answer.headers["Retry-After"] and "INSERT" not in answer.text
        assert served.files("input") == []
    finally:
        end()
    assert served.result_of(served.ask()).status_code == 200


def test_a_result_is_given_though_its_reading_cannot_be_noted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer 503 to `run` would make the client send the request again, when its video is made."""
    run = served.database.run

    async def fails(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if work.__name__ == "_note_read":
            raise StoreFailed("the disk is full")
        return await run(work, *args, **kwargs)

    monkeypatch.setattr(served.database, "run", fails)
    answer = served.ask({**BODY, "sync_mode": True}, "run")
    assert answer.status_code == 200 and answer.json()["video"]["url"] == data_uri(PICTURE, "video/mp4")


def test_a_disk_that_is_full_is_told_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/secret/place")

    monkeypatch.setattr(Incoming, "write_now", full)
    answer = served.ask()
    assert answer.status_code == 507 and "secret" not in answer.text and served.files("input") == []
