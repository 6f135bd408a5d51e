"""Files from other servers, fetched while a request waits, and signed word to them. Through the Python client."""

from __future__ import annotations

import base64
import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import fal_client
import pytest
import requests
from a2v.ltx.request import PARAMETERS
from a2v.tests.api.edges import png, wav
from a2v.tests.host.api import APP, SMALL, SPEECH, Outside, client_of, outside
from a2v.tests.host.comfy import Comfy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


@pytest.fixture(scope="module")
def others() -> Iterator[Outside]:
    with outside() as found:
        found.files |= {"/speech.opus": SPEECH.read_bytes(), "/short.wav": wav(0.3), "/face.png": png(64)}
        yield found


@pytest.fixture(scope="module")
def fal(server: Comfy) -> Iterator[Any]:
    with client_of(server) as client:
        yield client.SyncClient(key="any")


@pytest.fixture
def slow(others: Outside) -> Iterator[Outside]:
    """It takes questions and does not answer before it is opened."""
    others.asked.clear()
    others.open.clear()
    yield others
    others.open.set()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.soak
def test_the_page_s_first_example_on_a_fresh_install(fal: Any, others: Outside, tmp_path: Path) -> None:
    """Prompt and audio_url alone: every other input is at its default, and no safety checker is installed."""
    handle = fal.submit(APP, {"prompt": "A woman speaks to the camera", "audio_url": others.url + "/short.wav"})
    result = handle.get()
    assert result.keys() == {"video", "seed", "prompt"} and 0 <= result["seed"] < 2**31
    video = result["video"]
    assert (video["width"], video["height"], video["fps"]) == (1024, 576, PARAMETERS["fps"].default)
    assert video["num_frames"] == 9  # match_audio_length: 0.3 s are 7 frames, and the next 8k+1 of them
    path = tmp_path / video["file_name"]
    path.write_bytes(requests.get(video["url"], timeout=20).content)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9 and container.streams.audio
    lines = [line["message"] for line in handle.status(with_logs=True).logs]
    assert "First stage: step 15/15" in lines and "Second stage: step 3/3" in lines
    assert any("the safety checker did not run" in line for line in lines)


def test_a_slow_address_holds_up_nobody(fal: Any, server: Comfy, slow: Outside) -> None:
    url = f"{slow.url}/speech.opus"
    first = fal.submit(APP, {**SMALL, "audio_url": url, "seed": 40})
    until(lambda: slow.asked)
    second = fal.submit(APP, {**SMALL, "audio_url": fal_client.encode_file(SPEECH), "seed": 41})
    assert second.get()["seed"] == 41
    assert isinstance(first.status(), fal_client.Queued)
    slow.open.set()
    assert first.get()["seed"] == 40


def test_cancelled_while_its_media_are_fetched(fal: Any, server: Comfy, slow: Outside) -> None:
    handle = fal.submit(APP, {**SMALL, "audio_url": f"{slow.url}/speech.opus", "image_url": f"{slow.url}/face.png"})
    until(lambda: slow.asked)
    handle.cancel()
    ended = handle.status()
    assert isinstance(ended, fal_client.Completed) and ended.error_type == "client_cancelled"
    assert slow.asked == ["/speech.opus"]
    assert not list((server.base / "input" / "ltx_a2v_api").glob(".*"))  # nothing half-fetched stays


def test_the_time_to_start_counts_the_fetching(fal: Any, slow: Outside) -> None:
    handle = fal.submit(APP, {**SMALL, "audio_url": f"{slow.url}/speech.opus"}, start_timeout=1.1)
    with pytest.raises(fal_client.FalClientHTTPError, match="did not start within") as late:
        handle.get()
    assert late.value.status_code == 504


def test_both_kinds_of_media_come_from_addresses(fal: Any, others: Outside) -> None:
    arguments = {**SMALL, "audio_url": f"{others.url}/short.wav", "image_url": f"{others.url}/face.png", "seed": 42}
    assert fal.subscribe(APP, {**arguments, "video_size": "auto"})["video"]["width"] == 64


@pytest.mark.parametrize(
    ("field", "url", "said"),
    [
        ("audio_url", "http://127.0.0.1:{port}/speech.opus", "private"),
        ("audio_url", "http://2130706433:{port}/speech.opus", "unusual form"),
        ("audio_url", "http://[::ffff:127.0.0.1]:{port}/speech.opus", "private"),
        ("image_url", "http://169.254.169.254/latest/meta-data", "private"),
        ("image_url", "{url}/none.png", "answered 404"),
        ("image_url", "{url}/speech.opus", "no image"),
        ("audio_url", "{url}/face.png", "audio"),
    ],
)
def test_what_cannot_be_had_ends_its_request_with_a_422(
    fal: Any, others: Outside, field: str, url: str, said: str
) -> None:
    others.asked.clear()
    given = {"audio_url": f"{others.url}/short.wav"}
    given[field] = url.format(url=others.url, port=others.server.server_port)
    handle = fal.submit(APP, {**SMALL, **given})
    with pytest.raises(fal_client.FalClientHTTPError) as refused:
        handle.get()
    assert refused.value.status_code == 422
    (problem,) = refused.value.message
    assert problem["loc"] == ["body", field] and said in problem["msg"]
    assert "{url}" in url or others.asked in ([], ["/short.wav"])


def test_a_webhook_is_signed_by_the_published_key(fal: Any, server: Comfy, others: Outside) -> None:
    """Checked as the hosted endpoint's documentation tells its users to, with the key from the JWKS address."""
    others.posts.clear()
    handle = fal.submit(
        APP, {**SMALL, "audio_url": f"{others.url}/speech.opus", "seed": 43}, webhook_url=f"{others.url}/hook"
    )
    result = handle.get()
    until(lambda: others.posts)
    ((headers, body),) = others.posts
    names = ("Request-Id", "User-Id", "Timestamp", "Signature")
    request_id, user, timestamp, signature = (headers[f"X-Fal-Webhook-{name}"] for name in names)
    (key,) = server.get("/fal/rest/.well-known/jwks.json")["keys"]
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
    message = "\n".join((request_id, user, timestamp, hashlib.sha256(body).hexdigest()))
    public.verify(bytes.fromhex(signature), message.encode())  # raises where it is another one's
    assert request_id == handle.request_id and abs(time.time() - int(timestamp)) < 300
    (said,) = others.bodies
    assert (said["request_id"], said["status"], said["error"]) == (handle.request_id, "OK", None)
    assert said["payload"] == result


SECRETS = ["requests.sqlite", "webhook_key.pem"]
PLACES = [
    "/fal/cdn/results/..%2f..%2fuser%2f__ltx_a2v%2f{name}",
    "/fal/cdn/results/../../../user/__ltx_a2v/{name}",
    "/fal/cdn/files/%2e%2e/{name}",
    "/fal/cdn/files/00000000000000000000000000000000/..%2f..%2f{name}",
    "/userdata/..%2f__ltx_a2v%2f{name}",
    "/userdata/%2e%2e%2f__ltx_a2v%2f{name}",
    "/view?filename={name}&subfolder=..%2fuser%2f__ltx_a2v&type=output",
    "/view?filename=..%2fuser%2f__ltx_a2v%2f{name}&type=temp",
]


@pytest.mark.parametrize("name", SECRETS)
def test_no_path_of_this_server_leads_to_the_database_or_the_key(server: Comfy, name: str) -> None:
    secret = server.base / "user" / "__ltx_a2v" / name
    assert secret.is_file() and secret.stat().st_mode & 0o777 == 0o600
    with requests.Session() as session:
        for place in PLACES:
            request = requests.Request("GET", server.url).prepare()
            request.url = server.url + place.format(name=name)  # as it stands, with its dots
            for headers in ({}, {"comfy-user": "__ltx_a2v"}):
                request.headers.update(headers)
                answer = session.send(request, timeout=20)
                assert answer.status_code in (400, 403, 404) and secret.read_bytes()[:16] not in answer.content, place


@pytest.mark.parametrize(
    "lines",
    [
        "X-Fal-Queue-Priority: low\0",
        "Idempotency-Key: a\x07b",
        "Idempotency-Key: a\r b",
        "X-Fal-Request-Timeout: nan",
        "X-Fal-Request-Timeout: 1e999",
        "Content-Length: 2\r\nContent-Length: 4",
        "Transfer-Encoding: chunked\r\nContent-Length: 2",
    ],
)
def test_broken_headers_are_refused(server: Comfy, lines: str) -> None:
    length = "" if "Content-Length" in lines else "Content-Length: 2\r\n"
    text = (
        f"POST /fal/queue/{APP} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), 20) as plain:
        plain.sendall(f"{text}{length}{lines}\r\n\r\n{{}}".encode())
        assert plain.makefile("rb").readline().split()[1] in (b"400", b"422")


def test_an_address_that_brings_its_own_header_is_refused(fal: Any, others: Outside) -> None:
    others.posts.clear()
    arguments = {**SMALL, "audio_url": f"{others.url}/short.wav"}
    with pytest.raises(fal_client.FalClientHTTPError) as refused:
        fal.submit(APP, arguments, webhook_url="http://localhost:1\r\nX-Evil: 1\r\n/")
    assert refused.value.status_code == 422 and refused.value.message[0]["loc"] == ["query", "fal_webhook"]
    others.asked.clear()
    with pytest.raises(fal_client.FalClientHTTPError) as refused:
        fal.submit(APP, {**arguments, "audio_url": f"{others.url}/x HTTP/1.1\r\nX-Evil: 1\r\n\r\n"}).get()
    assert refused.value.status_code == 422
    (path,) = others.asked  # one question, all of it in the path
    assert path.startswith("/x%20HTTP/1.1") and "X-Evil:%201" in path
