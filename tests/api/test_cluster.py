"""The parts of a cluster that need no cluster: the door, a worker's gate, what the bridge refuses, and what stays off.

Requests that run on other machines, and a real Ray, are in tests/host/test_api_cluster.py.
"""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from a2v.api.cluster.door import Door
from a2v.api.cluster.head import PROBE, Cluster, Remote
from a2v.api.cluster.worker import PATH, PROTOCOL, Worker, _is_shared
from a2v.api.files.incoming import Incoming
from a2v.api.graph.compose import SAVE, SAVE_PART
from a2v.api.host import Host, HostLost, Outcome
from a2v.api.queue.endings import RequestFailed
from a2v.api.settings import SUBFOLDER, Settings
from a2v.tests.api.edges import make_settings, serving
from aiohttp import web

ROOT = Path(__file__).resolve().parents[2]
BRIDGE = ROOT / "api" / "cluster" / "bridge.py"
TOKEN = "0123456789abcdef" * 2
NAME = f"{TOKEN}_00001_.mp4"
BODY = bytes(range(256)) * 5000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


@pytest.fixture
def door(settings: Settings) -> Iterator[Door]:
    """Its handlers on a real socket."""
    door = Door(settings)

    def app() -> web.Application:
        app = web.Application(client_max_size=2**30)
        app.add_routes(door.routes())
        return app

    with serving(app) as port:
        door.url = f"http://127.0.0.1:{port}"
        yield door


def left(settings: Settings) -> list[str]:
    return sorted(os.listdir(settings.output_folder)) if settings.output_folder.exists() else []


# --- the door ---


def test_media_can_be_had_while_the_order_is_on(door: Door, tmp_path: Path) -> None:
    file = tmp_path / "sound.wav"
    file.write_bytes(BODY)
    with door.order({"a": file}, TOKEN) as (media, _):
        assert requests.get(media["a"], timeout=5).content == BODY
        assert len(media["a"].rpartition("/")[2]) * 4 == 256, "bits"
        assert requests.put(media["a"] + "/" + NAME, BODY, timeout=5).status_code == 404
    assert requests.get(media["a"], timeout=5).status_code == 404


def test_orders_do_not_see_each_other(door: Door, tmp_path: Path) -> None:
    with ExitStack() as stack:
        (tmp_path / "one").write_bytes(b"1")
        first, _ = stack.enter_context(door.order({"a": tmp_path / "one"}, TOKEN))
        second, _ = stack.enter_context(door.order({"a": tmp_path / "one"}, TOKEN))
        assert first["a"] != second["a"]


def test_a_result_gets_its_name_when_it_is_whole(door: Door, settings: Settings) -> None:
    with door.order({}, TOKEN) as (_, result):
        assert requests.put(f"{result}/{NAME}", BODY, timeout=5).status_code == 204
    path = settings.output_folder / NAME
    assert path.read_bytes() == BODY and stat.S_IMODE(path.stat().st_mode) == 0o644
    assert left(settings) == [NAME]


def test_one_order_leaves_one_result_once(door: Door, settings: Settings) -> None:
    """Nothing takes its place, nothing comes beside it, and nothing is taken while it arrives."""
    with door.order({}, TOKEN) as (_, result):
        meanwhile: list[int] = []

        def pieces() -> Iterator[bytes]:
            yield BODY
            meanwhile.append(requests.put(f"{result}/{NAME}", b"other", timeout=5).status_code)
            yield BODY

        assert requests.put(f"{result}/{NAME}", pieces(), timeout=5).status_code == 204
        for name in (NAME, f"{TOKEN}_00002_.mp4"):
            meanwhile.append(requests.put(f"{result}/{name}", b"other", timeout=5).status_code)
    assert meanwhile == [409] * 3
    assert left(settings) == [NAME] and (settings.output_folder / NAME).read_bytes() == 2 * BODY


def test_a_result_that_broke_off_may_be_sent_again(door: Door, settings: Settings) -> None:
    with door.order({}, TOKEN) as (_, result):
        address = result.removeprefix("http://").partition("/")[0].rpartition(":")
        with socket.create_connection((address[0], int(address[2])), 5) as plain:
            head = f"PUT /{result.rpartition('/')[2]}/{NAME} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            plain.sendall(head.encode() + b"half")
            time.sleep(0.2)
        deadline = time.monotonic() + 10
        while (status := requests.put(f"{result}/{NAME}", BODY, timeout=5).status_code) == 409:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert status == 204 and (settings.output_folder / NAME).read_bytes() == BODY


@pytest.mark.parametrize(
    "name", [f"{'f' * 32}_00001_.mp4", f"{TOKEN}.sh", f"{TOKEN}%2f..%2f..%2fx.mp4", f"..%2f{NAME}", f".{NAME}"]
)
def test_a_result_has_a_name_of_its_order(door: Door, settings: Settings, name: str) -> None:
    with door.order({}, TOKEN) as (_, result):
        assert requests.put(f"{result}/{name}", BODY, timeout=5).status_code == 404
    assert left(settings) == []


def test_a_result_after_its_order_is_not_taken(door: Door, settings: Settings) -> None:
    with door.order({}, TOKEN) as (_, result):
        pass
    assert requests.put(f"{result}/{NAME}", BODY, timeout=5).status_code == 404
    assert left(settings) == []


def test_a_result_whose_order_ends_meanwhile_leaves_nothing(door: Door, settings: Settings) -> None:
    with door.order({}, TOKEN) as (_, result):
        order = ExitStack()
        _, other = order.enter_context(door.order({}, TOKEN))

        def pieces() -> Iterator[bytes]:
            yield BODY
            order.close()
            yield BODY

        assert requests.put(f"{other}/{NAME}", pieces(), timeout=5).status_code == 404
    assert result != other and left(settings) == []


def test_half_a_result_leaves_nothing(door: Door, settings: Settings) -> None:
    with door.order({}, TOKEN) as (_, result):
        host, port = result.split("/")[2].split(":")
        path = result.partition(f":{port}")[2]
        with socket.create_connection((host, int(port))) as connection:
            head = f"PUT {path}/{NAME} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n"
            connection.sendall(head.encode() + BODY[:1000])
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)
    until = time.monotonic() + 10  # the server notices by itself
    while left(settings) and time.monotonic() < until:
        time.sleep(0.05)
    assert left(settings) == []


# --- a worker's gate ---


def ask(settings: Settings, body: Any, **headers: str) -> requests.Response:
    worker = Worker(Host(SimpleNamespace()), settings)

    def app() -> web.Application:
        app = web.Application()
        app.add_routes(worker.routes())
        return app

    with serving(app) as port:
        return requests.post(f"http://127.0.0.1:{port}{PATH}/run", json=body, headers=headers, timeout=5)


@pytest.mark.parametrize("token", ["../../x", "", "F" * 32, 7, None, f"{TOKEN}/*"])
def test_a_token_is_a_token(settings: Settings, token: Any) -> None:
    assert ask(settings, {"protocol": PROTOCOL, "token": token}).status_code == 409


@pytest.mark.parametrize("body", [[], {}, "x", {"protocol": PROTOCOL + 1, "token": TOKEN}, {"protocol": PROTOCOL}])
def test_what_is_no_order_is_told_so(settings: Settings, body: Any) -> None:
    assert ask(settings, body).status_code == 409


def test_a_worker_with_a_key_asks_for_it(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, key="secret")
    assert ask(settings, {}).status_code == 401
    assert ask(settings, {}, Authorization="Key secret").status_code == 409


def test_a_foreign_page_cannot_order(settings: Settings) -> None:
    """A form's content type, which a browser sends unasked."""
    assert ask(settings, {}, **{"Content-Type": "text/plain"}).status_code == 415


def test_what_a_dead_worker_left_goes_a_day_later(settings: Settings) -> None:
    """Its media, and its results where no head has them; nothing of an order that may be running elsewhere."""
    worker = Worker(Host(SimpleNamespace()), settings)
    tokens = {"own": "a" * 32, "shared": "b" * 32, "young": "c" * 32}
    settings.output_folder.mkdir(parents=True)
    for name, token in tokens.items():
        folder = settings.input_folder / f"order-{token}"
        worker._begin(folder, name == "shared")
        (folder / "sound.wav").write_bytes(BODY)
        (settings.output_folder / f"{token}_00001_.mp4").write_bytes(BODY)
        if name != "young":
            os.utime(folder, (time.time() - 25 * 3600,) * 2)
    somebodys = settings.input_folder / "order-of-mine"
    somebodys.mkdir()
    os.utime(somebodys, (0, 0))
    worker._begin(settings.input_folder / f"order-{TOKEN}", True)
    kept = sorted(path.name for path in settings.input_folder.iterdir())
    assert kept == sorted([f"order-{TOKEN}", f"order-{tokens['young']}", "order-of-mine"])
    assert left(settings) == [f"{tokens[name]}_00001_.mp4" for name in ("shared", "young")]


def test_what_a_worker_says_about_a_failure_names_no_secret_address(door: Door, settings: Settings) -> None:
    nothing = SimpleNamespace(get_current_queue_volatile=lambda: ([], []))
    worker = Worker(Host(SimpleNamespace(prompt_queue=nothing)), settings)
    secret, said = "a" * 64, []
    media = {f"{SUBFOLDER}/{'b' * 32}.wav": f"{door.url}/{secret}"}
    order = {"token": TOKEN, "prompt": {}, "media": media, "result": "", "probe": {"name": "none", "says": ""}}

    async def main() -> None:
        await worker._work(order, said.append)
        await asyncio.gather(*worker._leaving)

    asyncio.run(main())
    (line,) = said
    assert line["kind"] == "lost" and "404" in line["why"] and secret not in line["why"]
    assert list(settings.input_folder.iterdir()) == []


def test_a_worker_tells_which_nodes_run_and_nothing_of_their_values(settings: Settings) -> None:
    events = [
        ("execution_start", {"prompt_id": "p"}),
        ("execution_cached", {"nodes": ["1"], "prompt_id": "p"}),
        ("executing", {"node": "2", "display_node": "2", "prompt_id": "p"}),
        ("progress", {"node": "2", "value": 1, "max": 2, "prompt_id": "p"}),
        ("progress_state", {"nodes": {"2": {}}}),
        ("executed", {"node": "2", "output": {"text": ["a word of the request's"]}}),
        ("execution_error", {"node_id": "2", "current_inputs": {"audio": ["/secret/a.wav"]}, "traceback": ["x"]}),
        ("execution_success", {"prompt_id": "p"}),
    ]

    class Runs(Host):
        async def run(self, prompt: Any, on_queued: Any, on_event: Any) -> Outcome:
            for event in events:
                on_event(*event)
            return Outcome()

    said: list[dict[str, Any]] = []
    asyncio.run(Worker(Runs(None), settings)._run({}, said.append, said.append))
    assert [(line["name"], line["data"]) for line in said] == [
        ("execution_start", {}),
        ("execution_cached", {"nodes": ["1"]}),
        ("executing", {"node": "2"}),
        ("progress", {"node": "2", "value": 1, "max": 2}),
        ("executed", {"node": "2"}),
        ("execution_error", {"node_id": "2"}),
        ("execution_success", {}),
    ]


def order_of(prompt: dict[str, Any], probe: dict[str, str]) -> dict[str, Any]:
    return {"token": TOKEN, "prompt": prompt, "media": {}, "result": "", "probe": probe}


def cluster_of(settings: Settings) -> Cluster:
    return Cluster(SimpleNamespace(settings=settings, host=SimpleNamespace(server=None)))


@pytest.mark.parametrize(("kind", "stays"), [(SAVE_PART, True), (SAVE, False)])
def test_a_part_in_a_shared_folder_may_be_another_machine_s(settings: Settings, kind: str, stays: bool) -> None:
    """Its name is that of its content. A result's name is the order's own."""

    class Fails(Host):
        async def run(self, prompt: Any, on_queued: Any, on_event: Any) -> Outcome:
            (settings.output_folder / NAME).write_bytes(BODY)
            raise OSError

    head, worker = cluster_of(settings), Worker(Fails(None), settings)
    head.write_probe()

    async def main() -> None:
        prompt = {"1": {"class_type": kind, "inputs": {}}}
        await worker._work(order_of(prompt, head.probe), lambda _: None)
        await asyncio.gather(*worker._leaving)

    asyncio.run(main())
    assert (NAME in left(settings)) is stays


def test_an_order_waits_until_an_earlier_one_of_its_part_has_left(settings: Settings) -> None:
    """The film was cancelled and sent again. Both have the same folder for their media."""
    found: list[bool] = []

    class Runs(Host):
        ended = asyncio.Event()

        async def run(self, prompt: Any, on_queued: Any, on_event: Any) -> Outcome:
            on_queued("1")
            if "stopped" in prompt:
                raise OSError
            await asyncio.sleep(0.1)
            found.append((settings.input_folder / f"order-{TOKEN}").is_dir())
            return Outcome()

        async def over(self, prompt_id: str) -> None:
            await self.ended.wait()

        def forget(self, prompt_id: str) -> None:
            """There is no history."""

    async def main() -> None:
        host = Runs(None)
        host.ended = asyncio.Event()
        worker, probe = Worker(host, settings), {"name": "none", "says": ""}
        await worker._work(order_of({"stopped": {"class_type": SAVE_PART}}, probe), lambda _: None)
        asyncio.get_running_loop().call_later(0.05, host.ended.set)
        await worker._work(order_of({"again": {"class_type": SAVE_PART}}, probe), lambda _: None)
        await asyncio.gather(*worker._leaving)

    asyncio.run(main())
    assert found == [True]


def test_a_slow_folder_holds_up_no_beat(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def read(*_: Any) -> str:
        threads.append(threading.current_thread())
        return ""

    monkeypatch.setattr(Path, "read_text", read)
    worker = Worker(Host(SimpleNamespace()), settings)
    asyncio.run(worker._work(order_of({}, {"name": "none", "says": ""}), lambda _: None))
    assert len(threads) == 1 and threads[0] is not threading.main_thread()


# --- the head ---


def test_heads_of_one_folder_are_recognised_each(settings: Settings) -> None:
    """A worker that does not recognise the folder takes the result for one of its own, and removes it."""
    heads = [cluster_of(settings) for _ in range(2)]
    old = settings.output_folder / f"{PROBE}old"
    for head in heads:
        head.write_probe()
    assert all(_is_shared(head.probe, settings) for head in heads)
    for path in settings.output_folder.glob(f"{PROBE}*"):  # somebody tidies up
        path.unlink()
    old.write_text("of a head that was killed")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    heads[0].write_probe()  # with its next order
    assert _is_shared(heads[0].probe, settings) and left(settings) == [heads[0].probe["name"]]


def test_a_full_disk_of_the_head_ends_the_request_at_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of the worker, and another one would make the video in vain."""
    head = cluster_of(settings)

    async def seal(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def follow(worker: str, order: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        monkeypatch.setattr(Incoming, "seal", seal)
        answer = await asyncio.to_thread(requests.put, f"{order['result']}/{NAME}", BODY, timeout=5)
        yield {"kind": "event", "name": "executed", "data": {}}
        raise HostLost(f"the head did not take the result (status {answer.status_code})")

    def app() -> web.Application:
        app = web.Application(client_max_size=2**30)
        app.add_routes(head.door.routes())
        return app

    monkeypatch.setattr(head, "follow", follow)
    prompt = {"1": {"class_type": SAVE, "inputs": {"filename_prefix": f"{SUBFOLDER}/{TOKEN}"}}}
    with serving(app) as port:
        head.door.url = f"http://127.0.0.1:{port}"
        with pytest.raises(RequestFailed) as failed:
            asyncio.run(Remote(head, "w").run(prompt, lambda _: None, lambda *_: None))
    assert failed.value.values["error_type"] == "disk_failed" and "No space left" in str(failed.value)
    assert left(settings) == [head.probe["name"]]


# --- what is refused before Ray is asked, and what stays off ---


def bridge(address: str, *before: str, **environment: str) -> list[dict[str, Any]]:
    """All that the bridge says until it ends."""
    code = "; ".join(("import runpy, sys", *before, f"sys.argv = ['', {address!r}]"))
    command = [sys.executable, "-c", f"{code}; runpy.run_path({str(BRIDGE)!r}, run_name='__main__')"]
    env = {**{name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}, **environment}
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("environment", [{}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "a" * 64}])
def test_no_cluster_beyond_this_machine_without_a_token(environment: dict[str, str]) -> None:
    (said,) = bridge("192.0.2.77:6379", "sys.modules['ray'] = None", **environment)  # Ray is not even asked
    assert said["say"] == "refused" and "RAY_AUTH_MODE=token" in said["why"]
    assert said["why"].count(". ") == 0, "one sentence"


def test_without_ray_the_sentence_says_how_to_get_it() -> None:
    (said,) = bridge("127.0.0.1:6379", "sys.modules['ray'] = None")
    assert said["say"] == "refused" and "pip install 'ray>=2.52'" in said["why"]


def test_a_ray_without_tokens_is_too_old() -> None:
    old = "import types; sys.modules['ray'] = types.SimpleNamespace(__version__='2.51.9')"
    (said,) = bridge("127.0.0.1:6379", old)
    assert said["say"] == "refused" and "2.51.9 is too old" in said["why"]


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("auto", True),
        ("127.0.0.1:6379", True),
        ("[::1]:6379", True),
        ("localhost:6379", True),
        ("192.0.2.77:6379", False),
        ("0.0.0.0:6379", False),
        ("[2001:db8::1]:6379", False),
        ("ray://127.0.0.1:10001", False),
        ("no-such-host.invalid:6379", False),
    ],
)
def test_what_is_this_machine(address: str, near: bool) -> None:
    from a2v.api.cluster.bridge import _is_loopback_address

    assert _is_loopback_address(address) is near


def test_a_bug_in_the_bridge_gives_its_order_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from a2v.api.cluster.bridge import Bridge

    class RayError(Exception):
        """Ray's own."""

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(exceptions=SimpleNamespace(RayError=RayError)))
    out = io.StringIO()
    bridge = Bridge("auto", out)
    bridge.workers["w"] = {"url": "http://127.0.0.1:1"}
    bridge._agents["w"] = None  # it has no method `run`
    for worker in ("w", "gone"):
        asyncio.run(bridge._run(worker, worker, {}))
    bug, gone = (json.loads(line) for line in out.getvalue().splitlines())
    assert bug["line"]["kind"] == gone["line"]["kind"] == "lost"
    assert "bug (AttributeError)" in bug["line"]["why"] and gone["line"]["why"] == "it has left the cluster"
    assert "AttributeError" in capsys.readouterr().err, "the log has where it was"


@pytest.mark.soak
def test_embedded_mode_imports_nothing_of_it() -> None:
    code = f"""
import sys, types
alias = types.ModuleType("a2v"); alias.__path__ = [{str(ROOT)!r}]; sys.modules["a2v"] = alias
from a2v.api import cluster, install
from types import SimpleNamespace
cluster.install(None, SimpleNamespace(settings=SimpleNamespace(is_worker=False, ray_address=None)))
print([name for name in sys.modules if name == "ray" or name.startswith("a2v.api.cluster.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
