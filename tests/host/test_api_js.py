"""The official JavaScript client, unmodified, against a real server with the pack and the tiny models."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from a2v.tests.host.api import APP, LONG, SMALL, SPEECH, Outside, outside
from a2v.tests.host.comfy import Comfy

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).parent / "js"
INSTALLED = ROOT / ".host" / "js"

Call = Callable[..., dict[str, Any]]


def install_client() -> tuple[str, Path]:
    """Node, and the folder whose node_modules has the pinned client: .host/js."""
    found = shutil.which("node")
    if not found:
        pytest.skip("no node on this machine")
    lock = (SOURCES / "package-lock.json").read_bytes()
    done = INSTALLED / "node_modules" / "@fal-ai" / "client"
    if not done.is_dir() or (INSTALLED / "package-lock.json").read_bytes() != lock:
        INSTALLED.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCES / name, INSTALLED / name)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=INSTALLED, check=True, capture_output=True)
    return found, INSTALLED


@pytest.fixture(scope="module")
def node() -> str:
    return install_client()[0]


@pytest.fixture(scope="module")
def others() -> Iterator[Outside]:
    with outside() as found:
        yield found


def caller(server: Comfy, node: str, way: str) -> Call:
    """The client on that server, whose address it gets as `proxy` or by its `middleware`."""

    def run(what: str, **arguments: Any) -> dict[str, Any]:
        text = json.dumps({"app": APP, **arguments})
        command = [node, str(SOURCES / "client.mjs"), server.url, way, what, text]
        done = subprocess.run(command, cwd=INSTALLED, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module", params=["proxy", pytest.param("middleware", marks=pytest.mark.soak)])
def call(request: pytest.FixtureRequest, server: Comfy, node: str) -> Call:
    return caller(server, node, request.param)


@pytest.fixture(scope="module")
def sound() -> str:
    return base64.b64encode(SPEECH.read_bytes()).decode()


@pytest.fixture(scope="module")
def small(sound: str) -> dict[str, Any]:
    return {**SMALL, "audio_url": f"data:audio/ogg;base64,{sound}"}


@pytest.mark.parametrize("mode", ["poll", "stream"])
def test_subscribe(call: Call, small: dict[str, Any], mode: str) -> None:
    done = call(mode, input=small)
    value, updates = done["value"], done["updates"]
    assert value["data"]["seed"] == 7 and value["data"]["video"]["num_frames"] == 9
    assert len(value["requestId"]) == 36
    assert updates[-1]["status"] == "COMPLETED" and updates[-1]["logs"] > 10
    assert [update["logs"] for update in updates] == sorted(update["logs"] for update in updates)
    answer = requests.get(value["data"]["video"]["url"], headers={"Range": "bytes=4-7"}, timeout=10)
    assert (answer.status_code, answer.content) == (206, b"ftyp")


def test_run(call: Call, small: dict[str, Any]) -> None:
    value = call("run", input=small)["value"]
    assert value["data"]["seed"] == 7 and len(value["requestId"]) == 36


def test_every_option_of_a_request(server: Comfy, call: Call, small: dict[str, Any]) -> None:
    """Those that ask for something have it: the files are gone when their time is over."""
    done = call("options", input=small, seconds=3600)
    which = done["value"]["requestId"]
    assert done["updates"][0]["status"] == which
    with closing(sqlite3.connect(server.base / "user" / "__ltx_a2v" / "requests.sqlite")) as database, database:
        database.execute("UPDATE requests SET ended = ended - 3600 WHERE id = ?", (which,))
    later = call("result", requestId=which)
    assert (later["status"], later["body"]["error_type"]) == (410, "result_gone")


def test_events_of_a_request(call: Call, small: dict[str, Any]) -> None:
    done = call("events", input=small)
    assert done["value"]["status"] == done["updates"][-1]["status"] == "COMPLETED"
    assert sum(update["logs"] for update in done["updates"]) > 10


def test_an_aborted_run_is_cancelled_here(server: Comfy, call: Call, small: dict[str, Any]) -> None:
    assert call("aborted", input={**LONG, "audio_url": small["audio_url"]}, seconds=1)["value"] == "TimeoutError"
    deadline = time.monotonic() + 20
    while server.get("/queue")["queue_running"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_by_its_middleware(server: Comfy, node: str, small: dict[str, Any]) -> None:
    """One call of the other way, of which the soak tests have all."""
    value = caller(server, node, "middleware")("poll", input=small)["value"]
    assert value["data"]["seed"] == 7 and value["data"]["video"]["num_frames"] == 9


def test_submit_status_cancel_result(call: Call, small: dict[str, Any]) -> None:
    queued = call("submit", input={**LONG, "audio_url": small["audio_url"]})["value"]
    assert queued["status"] == "IN_QUEUE" and queued["request_id"] == queued["gateway_request_id"]
    which = queued["request_id"]
    assert call("status", requestId=which)["value"]["status"] in ("IN_QUEUE", "IN_PROGRESS")
    early = call("result", requestId=which)
    assert (early["error"], early["status"], early["requestId"]) == ("ApiError", 400, which)
    assert call("cancel", requestId=which)["value"] is None
    assert call("status", requestId=which)["value"]["error_type"] == "client_cancelled"
    ended = call("result", requestId=which)
    assert (ended["status"], ended["body"]["error_type"]) == (400, "client_cancelled")


def test_what_is_wrong_is_the_client_s_own_validation_error(call: Call) -> None:
    done = call("poll", input={"prompt": "x", "fps": 0})
    assert (done["error"], done["status"]) == ("ValidationError", 422)
    assert [field["loc"] for field in done["fields"]] == [["body", "audio_url"], ["body", "fps"]]


def test_a_request_that_may_not_wait(call: Call, small: dict[str, Any]) -> None:
    first = call("submit", input={**LONG, "audio_url": small["audio_url"]})["value"]["request_id"]
    done = call("impatient", input=small, seconds=1.1)
    assert (done["status"], done["userTimeout"]) == (504, True)
    call("cancel", requestId=first)


def test_a_file_in_the_input_is_uploaded_here(server: Comfy, call: Call, sound: str) -> None:
    url = call("upload", bytes=sound)["value"]
    assert url.startswith(server.url) and requests.get(url, timeout=10).content == SPEECH.read_bytes()
    assert call("file", input=SMALL, bytes=sound)["value"]["data"]["video"]["num_frames"] == 9


@pytest.mark.parametrize("size", [10**6, 10**8])
def test_uploads_whole_and_in_parts(server: Comfy, call: Call, size: int) -> None:
    """100 MB are above the client's 90 MiB, from which on it sends parts."""
    url = call("large", size=size)["value"]
    with requests.get(url, stream=True, timeout=60) as answer:
        found = hashlib.sha256()
        for piece in answer.iter_content(2**20):
            found.update(piece)
    assert url.startswith(server.url) and found.digest() == hashlib.sha256(b"audio" * (size // 5)).digest()


def test_a_webhook_is_told(server: Comfy, call: Call, small: dict[str, Any], others: Outside) -> None:
    """Its signature is checked in test_api_media.py."""
    others.posts.clear()
    queued = call("submit", input=small, webhookUrl=f"{others.url}/hook")["value"]
    deadline = time.monotonic() + 60
    while not others.posts:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (said,) = others.bodies
    assert (said["request_id"], said["status"]) == (queued["request_id"], "OK")
    assert said["payload"]["video"]["url"].startswith(f"{server.url}/fal/cdn/results/")
