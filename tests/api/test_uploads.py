"""Uploads by the official Python client, unmodified, and by the JS client's protocol, step by step; what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from a2v.api.applications.inputs import HALF_TEXT
from a2v.api.database.store import Store
from a2v.api.files import uploads
from a2v.api.files.incoming import Incoming
from a2v.api.files.media import Inbox
from a2v.api.protocol import bodies
from a2v.api.protocol.openapi import document
from a2v.api.protocol.uploads import Uploads
from a2v.api.queue.cleaner import Cleaner
from a2v.api.settings import Settings
from a2v.tests.api.described import Described
from a2v.tests.api.edges import KEY, app_of, make_settings, opened, png, serving, wav
from aiohttp import web
from fal_client import client as fal
from PIL import Image
from sqlalchemy import update

MIB = 2**20


@dataclass
class Place:
    base: str
    settings: Settings
    store: Store
    handlers: Uploads

    def files(self) -> list[str]:
        return sorted(os.listdir(uploads.folder(self.settings)))

    def initiate(self, name: str = "a.wav", kind: str = "initiate", **more: Any) -> dict[str, str]:
        """The JS client's first step."""
        answer = requests.post(
            f"{self.base}/rest/storage/upload/{kind}?storage_type=fal-cdn-v3",
            json={"content_type": "audio/wav", "file_name": name},
            headers={"Authorization": f"Key {KEY}", **more.get("headers", {})},
            timeout=10,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def bearer(self) -> str:
        """The Python client's first step."""
        url = f"{self.base}/rest/storage/auth/token?storage_type=fal-cdn-v3"
        answer = requests.post(url, json={}, headers={"Authorization": f"Key {KEY}"}, timeout=10).json()
        assert answer["token_type"] == "Bearer" and answer["base_url"] == f"{self.base}/cdn"
        return f"Bearer {answer['token']}"


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Place]]:
    """Starts the upload routes with settings of the test's choice, and points the Python client at them."""
    open_now: list[Any] = []

    def start(**changes: Any) -> Place:
        settings = make_settings(tmp_path, **{"key": KEY, **changes})
        managers = [opened(settings)]
        store = managers[0].__enter__()
        handlers = Uploads(settings, store)

        def make() -> web.Application:
            # ComfyUI's limit must not matter to uploads
            return app_of(handlers.operations(), settings, client_max_size=1000)

        managers.append(serving(make))
        port = managers[1].__enter__()
        open_now.extend(managers)
        base = f"http://127.0.0.1:{port}/fal"
        monkeypatch.setattr(fal, "REST_URL", f"{base}/rest")
        monkeypatch.setattr(fal, "CDN_URL", f"{base}/cdn")
        return Place(base, settings, store, handlers)

    yield start
    for manager in reversed(open_now):
        manager.__exit__(None, None, None)


@pytest.fixture
def place(serve: Callable[..., Place]) -> Place:
    return serve()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def large() -> bytes:
    """101 MiB, no two parts of them alike."""
    block = bytes(range(256)) * 4096
    return b"".join(bytes([number]) + block[1:] for number in range(101))


# the official Python client


def test_python_uploads_bytes(place: Place) -> None:
    url = fal.SyncClient(key=KEY).upload(wav(), "audio/wav", "speech.wav")
    answer = requests.get(url, timeout=10)
    assert answer.content == wav() and answer.headers["Content-Type"] == "audio/wav"
    assert url.startswith(f"{place.base}/cdn/files/") and url.endswith("/speech.wav")
    assert requests.get(url, headers={"Range": "bytes=10-19"}, timeout=10).content == wav()[10:20]


def test_python_uploads_a_file_and_an_image(place: Place, tmp_path: Path) -> None:
    (tmp_path / "speech of today.wav").write_bytes(wav())
    client = fal.SyncClient(key=KEY)
    assert requests.get(client.upload_file(tmp_path / "speech of today.wav"), timeout=10).content == wav()
    image = requests.get(client.upload_image(Image.new("RGB", (8, 8)), format="png"), timeout=10)
    assert image.headers["Content-Type"] == "image/png" and image.content.startswith(b"\x89PNG")


def test_python_falls_back_to_storage(place: Place) -> None:
    url = fal.SyncClient(key=KEY).upload(wav(), "audio/wav", "a.wav", repository="fal")
    assert requests.get(url, timeout=10).content == wav()


@pytest.mark.soak  # tests/host/test_api_python.py has 110 MB
def test_python_uploads_more_than_100_mib_in_parts(place: Place, large: bytes, tmp_path: Path) -> None:
    client = fal.SyncClient(key=KEY)
    url = client.upload(large, "video/mp4", "large.mp4")
    assert md5(requests.get(url, timeout=60).content) == md5(large)
    (tmp_path / "large.mp4").write_bytes(large)
    again = client.upload_file(tmp_path / "large.mp4")
    assert again != url and md5(requests.get(again, timeout=60).content) == md5(large)
    assert len(place.files()) == 2  # and no parts


def test_python_async_uploads(place: Place, large: bytes) -> None:
    async def both() -> tuple[str, str]:
        client = fal.AsyncClient(key=KEY)
        return await client.upload(wav(), "audio/wav"), await client.upload(large, "video/mp4", "large.mp4")

    small, parts = asyncio.run(both())
    assert requests.get(small, timeout=10).content == wav()
    assert md5(requests.get(parts, timeout=60).content) == md5(large)


def test_python_with_a_wrong_key_uploads_nothing(place: Place) -> None:
    with pytest.raises(fal.httpx.HTTPStatusError, match="401"):
        fal.SyncClient(key="wrong").upload(wav(), "audio/wav", "a.wav")
    with pytest.raises(fal.FalClientHTTPError) as caught:
        fal.SyncClient(key="wrong").upload(wav(), "audio/wav", "a.wav", repository="fal")
    assert caught.value.status_code == 401 and "LTX_A2V_API_KEY" in str(caught.value)
    assert place.files() == []


def test_python_sets_how_long_a_file_lives(place: Place) -> None:
    client = fal.SyncClient(key=KEY)
    short, long = (
        client.upload(wav(), "audio/wav", "a.wav", lifecycle=fal.StorageSettings(expires_in=expires))
        for expires in (3600, "never")
    )
    clean(place)
    assert len(place.files()) == 2
    move_back(place, 3601)
    assert requests.get(short, timeout=10).status_code == 404 and requests.get(long, timeout=10).status_code == 200
    clean(place)
    assert len(place.files()) == 1 and requests.get(long, timeout=10).content == wav()


# the JS client's protocol: what dist/storage.js of 1.10.1 sends


def test_js_uploads_by_an_unauthenticated_put(place: Place) -> None:
    urls = place.initiate("mein lied.wav")
    put = requests.put(urls["upload_url"], data=wav(), headers={"Content-Type": "audio/wav"}, timeout=10)
    assert put.status_code == 200 and put.headers["Content-Type"].startswith("application/json") and put.json()
    assert requests.get(urls["file_url"], timeout=10).content == wav()
    assert requests.get(urls["upload_url"], timeout=10).content == wav()
    assert stat.S_IMODE(uploads.folder(place.settings).stat().st_mode) == 0o700
    for name in place.files():
        assert stat.S_IMODE((uploads.folder(place.settings) / name).stat().st_mode) == 0o600


def test_half_a_character_in_an_announcement_is_told(place: Place) -> None:
    answer = requests.post(
        f"{place.base}/rest/storage/upload/initiate?storage_type=fal-cdn-v3",
        json={"content_type": "audio/wav", "file_name": "face \ud83d.wav"},
        headers={"Authorization": f"Key {KEY}"},
        timeout=10,
    )
    assert answer.status_code == 400 and HALF_TEXT in answer.text and place.files() == []


def js_part(urls: dict[str, str], number: int | str, data: bytes) -> requests.Response:
    target, _, query = urls["upload_url"].partition("?")
    return requests.put(f"{target}/{number}?{query}", data=data, timeout=10)


def js_complete(urls: dict[str, str], parts: Any) -> requests.Response:
    target, _, query = urls["upload_url"].partition("?")
    headers = {"Content-Type": "application/json"}
    return requests.post(f"{target}/complete?{query}", data=json.dumps(parts), headers=headers, timeout=10)


def test_js_uploads_parts_whose_answers_name_their_etag(place: Place) -> None:
    urls = place.initiate("large.wav", "initiate-multipart")
    data = [b"a" * MIB, b"b" * MIB, b"c" * 17]
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda number: js_part(urls, number, data[number - 1]), (3, 1, 2)))
    parts = [answer.json() for answer in answers]
    assert [part["partNumber"] for part in parts] == [3, 1, 2]
    assert all(answer.headers["ETag"].strip('"') == answer.json()["etag"] for answer in answers)
    assert requests.get(urls["file_url"], timeout=10).status_code == 404  # not whole yet
    for _ in range(2):  # the answer to the first may be lost
        assert js_complete(urls, {"parts": parts}).status_code == 200
    assert requests.get(urls["file_url"], timeout=10).content == b"".join(data)
    assert len(place.files()) == 1
    assert js_part(urls, 1, b"other").status_code == 410


def test_a_part_sent_again_replaces_the_first(place: Place) -> None:
    urls = place.initiate(kind="initiate-multipart")
    first, second = js_part(urls, 1, b"first").json(), js_part(urls, 1, b"second").json()
    assert js_complete(urls, {"parts": [first]}).status_code == 422
    assert js_complete(urls, {"parts": [second]}).status_code == 200
    assert requests.get(urls["file_url"], timeout=10).content == b"second"
    assert len(place.files()) == 1


def test_what_uploads_answer_is_what_the_document_says(place: Place) -> None:
    """Each route, its success and its refusals. tests/host/test_api_features.py has the other routes."""
    operations = place.handlers.operations()
    described = Described(document(operations, place.settings))
    storage, files = f"{place.base}/rest/storage", f"{place.base}/cdn/files"
    with requests.Session() as session:
        session.hooks["response"].append(described.check)
        key = {"Authorization": f"Key {KEY}"}
        session.post(f"{storage}/upload/initiate", json={})  # 401
        session.post(f"{storage}/upload/initiate", json={"file_name": 1}, headers=key)  # 422
        session.post(f"{storage}/upload/initiate", data="{", headers={**key, "Content-Type": "application/json"})  # 400
        session.post(f"{storage}/upload/initiate", data="{}", headers=key)  # 415
        urls = session.post(f"{storage}/upload/initiate", json={"file_name": None}, headers=key).json()
        session.get(urls["file_url"])  # 404
        session.put(urls["upload_url"], data=wav())
        session.put(urls["upload_url"], data=b"others")  # 410
        etag = session.get(urls["file_url"]).headers["ETag"]
        session.head(urls["file_url"])
        for header in ({"Range": "bytes=0-1"}, {"Range": "bytes=-0"}, {"Range": "bytes=999999-"}):
            session.get(urls["file_url"], headers=header)
        session.get(urls["file_url"], headers={"If-None-Match": etag})
        session.get(urls["file_url"], headers={"If-Match": '"other"'})
        urls = session.post(f"{storage}/upload/initiate-multipart", json={}, headers=key).json()
        target, _, query = urls["upload_url"].partition("?")
        session.put(urls["file_url"] + "?" + query, data=b"")  # 409
        part = session.put(f"{target}/1?{query}", data=b"part").json()
        session.put(f"{target}/0?{query}", data=b"part")  # 422
        session.post(f"{target}/complete?{query}", json={"parts": [part, part | {"partNumber": 2}]})  # 422
        session.post(f"{target}/complete?{query}", json={"parts": [part]})
        permit = session.post(f"{storage}/auth/token", json={}, headers=key).json()
        bearer = {"Authorization": f"Bearer {permit['token']}", "X-Fal-File-Name": "a.wav", "Content-Type": "audio/wav"}
        session.post(f"{files}/upload", data=wav(), headers=bearer)
        begun = session.post(f"{files}/upload/multipart", headers=bearer).json()
        target = f"{begun['access_url']}/multipart/{begun['uploadId']}"
        session.put(f"{target}/1", data=b"part", headers=bearer)
        session.put(f"{target}/1", data=b"part")  # 401
    succeeded = {(method, path) for method, path, status in described.called if status == 200}
    everything = {(one.method.lower(), place.settings.prefix + one.plain_path) for one in operations}
    assert succeeded == everything and {status for *_, status in described.called} == {
        *(200, 206, 304, 400, 401, 404, 409, 410, 412, 415, 416, 422)
    }


@pytest.mark.parametrize(
    "body",
    [
        {"parts": []},
        {"parts": [{"partNumber": 2, "etag": "0" * 32}]},
        {"parts": [{"partNumber": 1, "etag": "0" * 32}]},
        {"parts": [{"partNumber": 1, "etag": "../../../etc/passwd"}]},
        {"parts": [{"partNumber": "x", "etag": ""}]},
        {"parts": [{"partNumber": 1e400, "etag": ""}]},
        {"parts": [{}]},
        {"parts": {}},
        {"parts": [1]},
        {},
        [],
        None,
        "parts",
    ],
)
def test_a_completion_that_fits_no_parts_is_refused(place: Place, body: Any) -> None:
    urls = place.initiate(kind="initiate-multipart")
    js_part(urls, 1, b"data")
    assert js_complete(urls, body).status_code in (400, 422)
    assert requests.get(urls["file_url"], timeout=10).status_code == 404


# who may


def move_back(place: Place, seconds: float) -> None:
    """As if that time had passed since everything so far."""

    def change(session: Any) -> None:
        for column in (uploads.Upload.created, uploads.Upload.until, uploads.UploadToken.until):
            session.execute(update(column.class_).values({column.key: column - seconds}))

    asyncio.run(place.store.run(change))


def test_a_put_needs_the_token_of_that_very_file(place: Place) -> None:
    mine, other = place.initiate(), place.initiate()
    token = other["upload_url"].partition("?")[2]
    for target in (
        mine["file_url"],
        f"{mine['file_url']}?{token}",
        f"{mine['file_url']}?token=",
        f"{mine['file_url']}?token=x",
    ):
        assert requests.put(target, data=b"evil", timeout=10).status_code == 401
    parts = place.initiate(kind="initiate-multipart")
    target = parts["upload_url"].partition("?")[0]
    for query in ("", "?" + token):
        assert requests.put(f"{target}/1{query}", data=b"evil", timeout=10).status_code == 401
        assert requests.post(f"{target}/complete{query}", json={"parts": []}, timeout=10).status_code == 401
    wrong = parts["upload_url"].replace("/multipart/", "/multipart/" + "0" * 32 + "/").replace("?", "/1?")
    assert requests.put(wrong, data=b"evil", timeout=10).status_code in (401, 404)
    assert place.files() == []


def test_tokens_end_after_an_hour(place: Place) -> None:
    urls, bearer = place.initiate(), place.bearer()
    parts = place.initiate(kind="initiate-multipart")
    move_back(place, 3599)
    assert requests.put(urls["upload_url"], data=b"in time", timeout=10).status_code == 200
    headers = {"Authorization": bearer}
    assert requests.post(f"{place.base}/cdn/files/upload", data=b"x", headers=headers, timeout=10).status_code == 200
    move_back(place, 2)
    late = place.files()
    assert requests.put(urls["upload_url"], data=b"in time", timeout=10).status_code == 401
    assert js_part(parts, 1, b"late").status_code == 401
    for path in ("upload", "upload/multipart"):
        answer = requests.post(f"{place.base}/cdn/files/{path}", data=b"x", headers=headers, timeout=10)
        assert answer.status_code == 401
    assert place.files() == late


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer x", "Key wrong", "Basic " + KEY, KEY, "Bearer " + KEY])
def test_without_key_or_token_nothing_is_taken(place: Place, header: str | None) -> None:
    headers = {"Authorization": header} if header else {}
    for path in ("rest/storage/upload/initiate", "rest/storage/upload/initiate-multipart", "rest/storage/auth/token"):
        answer = requests.post(f"{place.base}/{path}", json={}, headers=headers, timeout=10)
        assert answer.status_code == 401 and answer.json()["detail"]
    for path in ("cdn/files/upload", "cdn/files/upload/multipart"):
        assert requests.post(f"{place.base}/{path}", data=b"x", headers=headers, timeout=10).status_code == 401
    assert place.files() == []


def test_without_a_key_set_this_machine_may(serve: Callable[..., Place]) -> None:
    serve(key=None)
    assert requests.get(fal.SyncClient(key="anything").upload(wav(), "audio/wav"), timeout=10).content == wav()


def test_a_finished_upload_cannot_be_changed(place: Place) -> None:
    urls = place.initiate()
    for _ in range(2):  # a retry
        assert requests.put(urls["upload_url"], data=b"first", timeout=10).status_code == 200
    assert requests.put(urls["upload_url"], data=b"second", timeout=10).status_code == 410
    assert requests.get(urls["file_url"], timeout=10).content == b"first"
    assert len(place.files()) == 1


# how much


def test_the_cap_holds_with_and_without_an_announced_length(serve: Callable[..., Place]) -> None:
    place = serve(max_upload=1000)
    bearer = {"Authorization": place.bearer()}

    def chunks(size: int) -> Iterator[bytes]:
        yield from (b"x" * 100 for _ in range(size // 100))

    for size, status in ((1000, 200), (1100, 413)):
        for body in (b"x" * size, chunks(size)):
            put = requests.put(place.initiate()["upload_url"], data=body, timeout=10)
            assert put.status_code == status
        post = requests.post(f"{place.base}/cdn/files/upload", data=b"x" * size, headers=bearer, timeout=10)
        assert post.status_code == status
    assert len(place.files()) == 3


def test_the_cap_holds_over_all_parts(serve: Callable[..., Place]) -> None:
    place = serve(max_upload=1000)
    urls = place.initiate(kind="initiate-multipart")
    parts = [js_part(urls, number, b"x" * 400).json() for number in (1, 2)]
    assert js_part(urls, 3, b"x" * 201).status_code == 413
    assert js_part(urls, 1, b"y" * 100).status_code == 200  # less than it was: 500 of 1000 now
    assert js_part(urls, 3, b"x" * 500).status_code == 200
    assert js_part(urls, 4, b"x").status_code == 413
    assert js_complete(urls, {"parts": parts}).status_code == 422  # the first one is another by now
    for number in ("0", "10001", "99999"):
        assert js_part(urls, number, b"").status_code == 422
    assert js_part(urls, "-1", b"").status_code in (401, 404, 405)


def test_an_upload_that_breaks_off_leaves_nothing(place: Place) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 1000
        raise ZeroDivisionError

    for url in (
        place.initiate()["upload_url"],
        place.initiate(kind="initiate-multipart")["upload_url"].replace("?", "/1?"),
    ):
        with pytest.raises(ZeroDivisionError):
            requests.put(url, data=broken(), timeout=10)
    for _ in range(600):  # half a minute, for a machine with much else to do
        if place.files() == []:
            break
        time.sleep(0.05)
    assert place.files() == []


# names and types


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\evil.wav", "evil.wav"),
        ("/absolute/a.wav", "a.wav"),
        ("..", "file"),
        ("", "file"),
        (".hidden.wav", "hidden.wav"),
        ("a b\r\nX: y.wav", "a_b_X_y.wav"),
        ('a"; filename="b.html', "a_filename_b.html"),
        ("größe?.wav#x", "gr_e_.wav_x"),
        ("a%2f..%2fb.wav", "a_2f.._2fb.wav"),
        ("nul\x00.wav", "nul_.wav"),
        ("x" * 500 + ".wav", "x" * 80 + ".wav"),
        ("日本.wav", "_.wav"),
    ],
)
def test_a_files_name_is_an_ornament(place: Place, name: str, kept: str) -> None:
    urls = place.initiate(name)
    assert urls["file_url"].rpartition("/")[2] == kept
    assert requests.put(urls["upload_url"], data=wav(), timeout=10).status_code == 200
    answer = requests.get(urls["file_url"], timeout=10)
    assert answer.content == wav() and answer.headers["Content-Disposition"] == f'inline; filename="{kept}"'
    assert len(place.files()) == 1 and uploads.ID.fullmatch(place.files()[0])


@pytest.mark.parametrize(
    "content_type",
    [
        "text/html",
        "image/svg+xml",
        "application/xhtml+xml",
        "x",
        "a/b\x7f",
        "text/xml; a=b",
        "image/a+xml",
        "video/xml",
    ],
)
def test_what_a_browser_would_run_is_only_saved(place: Place, content_type: str) -> None:
    url = f"{place.base}/rest/storage/upload/initiate"
    body = {"content_type": content_type, "file_name": "a.html"}
    urls = requests.post(url, json=body, headers={"Authorization": f"Key {KEY}"}, timeout=10).json()
    requests.put(
        urls["upload_url"],
        data=b"<script>alert(1)</script>",
        headers={"Content-Type": content_type.strip("\x7f")},
        timeout=10,
    )
    headers = requests.get(urls["file_url"], timeout=10).headers
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Disposition"].startswith("attachment") and headers["X-Content-Type-Options"] == "nosniff"


def test_no_path_leads_out_of_the_folder(place: Place) -> None:
    (place.settings.system / ("a" * 32)).write_bytes(b"secret")
    place.initiate()
    with requests.Session() as session:
        for path in (
            "../" + "a" * 32,
            "..%2f" + "a" * 32,
            "a" * 32 + "/x",
            "%2e%2e/requests.sqlite",
            ".",
            "a" * 31 + "/x",
        ):
            request = requests.Request("GET", place.base).prepare()
            request.url = f"{place.base}/cdn/files/{path}"
            assert session.send(request, timeout=10).status_code in (404, 405), path


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "text/plain"}, b"{}", 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"{}", 415),
        ({}, b"{}", 415),
        ({"Content-Type": "application/json"}, b"{", 400),
        ({"Content-Type": "application/json"}, b"\xff\xfe\xfa", 400),
        ({"Content-Type": "application/json"}, b"[" * 50_000, 400),
        ({"Content-Type": "application/json"}, b"[" * 100_000, 413),
        ({"Content-Type": "application/json"}, b"[]", 422),
        ({"Content-Type": "application/json"}, b"null", 422),
        ({"Content-Type": "application/json"}, b'{"file_name": 7}', 422),
        ({"Content-Type": "application/json"}, b'{"content_type": []}', 422),
        ({"Content-Type": "application/json", "X-Fal-Object-Lifecycle": "{"}, b"{}", 422),
        ({"Content-Type": "application/json", "X-Fal-Object-Lifecycle": "7"}, b"{}", 422),
        (
            {"Content-Type": "application/json", "X-Fal-Object-Lifecycle": '{"expiration_duration_seconds": 0}'},
            b"{}",
            422,
        ),
        ({"Content-Type": "application/json", "X-Fal-Object-Lifecycle": '{"initial_acl": {}}'}, b"{}", 200),
    ],
)
def test_a_broken_announcement_is_refused(place: Place, headers: dict[str, str], body: bytes, status: int) -> None:
    url = f"{place.base}/rest/storage/upload/initiate"
    answer = requests.post(url, data=body, headers={"Authorization": f"Key {KEY}", **headers}, timeout=10)
    assert answer.status_code == status
    assert answer.json()["detail" if status != 200 else "file_url"]


# what becomes of them


def test_an_upload_is_found_by_its_url_whatever_the_host(place: Place) -> None:
    url = fal.SyncClient(key=KEY).upload(png(), "image/png", "a.png")
    path = url.partition("/fal/")[2]
    for value in (url, f"https://my.proxy/fal/{path}", f"http://localhost/api/fal/{path}?x=1"):
        name = asyncio.run(Inbox(place.settings, place.store).localize(value, "image_url", "image", "a request"))
        assert (place.settings.input / name).read_bytes() == png()


def clean(place: Place) -> None:
    asyncio.run(Cleaner(place.store, place.settings).clean())


def test_what_is_of_no_use_is_deleted_and_nothing_else(place: Place) -> None:
    whole, parts, fresh = place.initiate(), place.initiate(kind="initiate-multipart"), None
    requests.put(whole["upload_url"], data=wav(), timeout=10)
    js_part(parts, 1, b"never completed")
    place.bearer()
    killed = uploads.folder(place.settings) / ".0123.part"
    killed.write_bytes(b"half")
    move_back(place, 7201)
    os.utime(killed, (0, 0))
    fresh = place.initiate(kind="initiate-multipart")
    js_part(fresh, 1, b"on its way")
    clean(place)
    ids = {url["file_url"].split("/")[-2] for url in (whole, fresh)}
    assert {name.split(".")[0] for name in place.files()} == ids
    with place.store.session() as session:
        assert session.query(uploads.UploadToken).count() == 0 and session.query(uploads.Upload).count() == 2


def test_files_that_no_row_tells_of_are_swept(place: Place) -> None:
    whole, parts = place.initiate(), place.initiate(kind="initiate-multipart")
    requests.put(whole["upload_url"], data=wav(), timeout=10)
    etag = js_part(parts, 1, b"a part").json()["etag"]
    folder = uploads.folder(place.settings)
    ids = [url["file_url"].split("/")[-2] for url in (whole, parts)]
    orphans = ["f" * 32, f"{ids[0]}.1.{'e' * 32}", f"{ids[1]}.1.{'e' * 32}", f"{ids[1]}.2.{etag}"]
    others = ["note.txt", "F" * 32]
    for name in (*orphans, *others, *place.files()):
        (folder / name).touch()
        os.utime(folder / name, (0, 0))
    clean(place)
    assert place.files() == sorted([ids[0], f"{ids[1]}.1.{etag}", *others])


def test_uploads_expire_with_results(serve: Callable[..., Place]) -> None:
    place = serve(expire_hours=5)
    url = place.initiate()
    requests.put(url["upload_url"], data=wav(), timeout=10)
    move_back(place, 5 * 3600)
    clean(place)
    assert requests.get(url["file_url"], timeout=10).status_code == 200, "its own hour comes first"
    move_back(place, 3600)
    clean(place)
    assert place.files() == [] and requests.get(url["file_url"], timeout=10).status_code == 404


# parts that come again, late, or never


def test_a_part_sent_again_leaves_one_file_and_counts_once(serve: Callable[..., Place]) -> None:
    place = serve(max_upload=1000)
    urls = place.initiate(kind="initiate-multipart")
    for number in range(20):
        data = f"{number:03}".encode() * 133 + b"x"
        answer = js_part(urls, 1, data)
        assert answer.status_code == 200 and len(place.files()) == 1
    assert js_part(urls, 2, b"y" * 600).status_code == 200
    assert js_part(urls, 1, data).status_code == 200, "a resend of what there is, under the cap"
    assert js_part(urls, 1, b"z" * 401).status_code == 413
    parts = [answer.json(), js_part(urls, 2, b"y" * 600).json()]
    assert js_complete(urls, {"parts": parts}).status_code == 200
    assert requests.get(urls["file_url"], timeout=10).content == data + b"y" * 600


class Slowly:
    """A body that is sent up to its middle, and goes on when it may."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces, self.sent, self.go_on = pieces, threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield self.pieces[0]
        self.sent.set()
        self.go_on.wait(30)
        yield from self.pieces[1:]


def put_slowly(place: Place, urls: dict[str, str], number: int, pool: ThreadPoolExecutor) -> tuple[Slowly, Any]:
    """A part of 100 kB that has arrived, and does not end."""
    body = Slowly(b"slow " * 20000, b"end")
    known = place.handlers._parts._parts
    target, _, query = urls["upload_url"].partition("?")
    sent = pool.submit(requests.put, f"{target}/{number}?{query}", data=iter(body), timeout=40)
    assert body.sent.wait(30)
    deadline = time.monotonic() + 30
    while (parts := known.get(urls["file_url"].split("/")[-2])) is None or parts.size < 100_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return body, sent


def test_a_part_in_flight_while_the_upload_completes_is_refused_and_leaves_nothing(place: Place) -> None:
    urls = place.initiate(kind="initiate-multipart")
    part = js_part(urls, 1, b"data").json()
    with ThreadPoolExecutor() as pool:
        body, sent = put_slowly(place, urls, 2, pool)
        assert js_complete(urls, {"parts": [part]}).status_code == 200
        body.go_on.set()
        assert sent.result().status_code == 410
    assert requests.get(urls["file_url"], timeout=10).content == b"data" and len(place.files()) == 1
    assert js_complete(urls, {"parts": [part]}).status_code == 200


def test_a_part_sent_anew_does_not_wait_for_the_first_try(serve: Callable[..., Place]) -> None:
    place = serve(max_upload=150_000)
    urls = place.initiate(kind="initiate-multipart")
    with ThreadPoolExecutor() as pool:
        body, sent = put_slowly(place, urls, 1, pool)  # 100 kB have come, and no more for now
        again = js_part(urls, 1, b"whole" * 20000)
        assert again.status_code == 200, "both together are above the cap, but one of them counts"
        body.go_on.set()
        assert sent.result().status_code == 409
    assert js_complete(urls, {"parts": [again.json()]}).status_code == 200 and len(place.files()) == 1


def test_the_cap_counts_parts_on_their_way(serve: Callable[..., Place]) -> None:
    place = serve(max_upload=150_000)
    urls = place.initiate(kind="initiate-multipart")
    with ThreadPoolExecutor() as pool:
        body, sent = put_slowly(place, urls, 1, pool)
        assert js_part(urls, 2, b"x" * 60_000).status_code == 413
        assert js_part(urls, 2, b"x" * 40_000).status_code == 200
        body.go_on.set()
        assert sent.result().status_code == 200


@pytest.mark.parametrize("where", ["whole", "part"])
def test_an_upload_that_stalls_is_ended(place: Place, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(bodies, "IDLE_SECONDS", 0.3)
    urls = place.initiate(kind="initiate" if where == "whole" else "initiate-multipart")
    target = urls["upload_url"] if where == "whole" else urls["upload_url"].replace("?", "/1?")
    address = urlsplit(target)
    with socket.create_connection((address.hostname, address.port), 20) as plain:
        head = f"PUT {address.path}?{address.query} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 100\r\n\r\n"
        plain.sendall(head.encode() + b"half")
        assert plain.makefile("rb").readline().split()[1] == b"408"
    assert place.files() == []


def test_an_upload_that_drips_is_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "RATE_SECONDS", 0.5)

    def drips() -> Iterator[bytes]:
        for _ in range(30):  # a second and a half
            yield b"x"
            time.sleep(0.05)

    with contextlib.suppress(requests.ConnectionError):  # the server hangs up before all is sent
        assert requests.put(place.initiate()["upload_url"], data=drips(), timeout=20).status_code == 408
    assert place.files() == []


def test_too_many_uploads_at_once_are_told_to_come_again(place: Place) -> None:
    urls = [place.initiate(kind="initiate-multipart") for _ in range(3)]
    place.handlers._gate._most = 2
    with ThreadPoolExecutor() as pool:
        slow = [put_slowly(place, each, 1, pool) for each in urls[:2]]
        refused = js_part(urls[2], 1, b"data")
        assert refused.status_code == 503 and refused.headers["Retry-After"]
        for body, sent in slow:
            body.go_on.set()
            assert sent.result().status_code == 200
    assert js_part(urls[2], 1, b"data").status_code == 200


def test_parts_outlive_an_end_that_cannot_be_written(place: Place) -> None:
    """Their client may send the completion again, when the database works again."""
    urls = place.initiate(kind="initiate-multipart")
    parts = [js_part(urls, number, bytes([number]) * 10).json() for number in (1, 2)]
    upload_id = urls["file_url"].split("/")[-2]
    folder = uploads.folder(place.settings)

    async def break_off() -> None:
        async with Incoming(folder, MIB) as file:
            await file.write(b"whole")
            await file.seal()
            with pytest.raises(RuntimeError):
                await place.store.run(unwritten, uploads.finish, upload_id, file, folder)
        async with Incoming(folder, MIB) as file:
            await file.write(b"newer")
            await file.seal()
            with pytest.raises(RuntimeError):
                await place.store.run(unwritten, uploads.finish_part, upload_id, 1, file, folder)

    def unwritten(session: Any, work: Callable[..., Any], *args: Any) -> None:
        work(session, *args)
        session.flush()
        raise RuntimeError("the disk is full")

    asyncio.run(break_off())
    assert js_complete(urls, {"parts": parts}).status_code == 200
    assert requests.get(urls["file_url"], timeout=10).content == b"\1" * 10 + b"\2" * 10
