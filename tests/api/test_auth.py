"""The key, pages of other origins in front of ComfyUI's own check, and the proxy that opens no connection."""

from __future__ import annotations

import ast
import ipaddress
import logging
import os
import socket
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from a2v.api.protocol import operations, proxy
from a2v.api.protocol.access import guard, refusal
from a2v.api.protocol.answers import Refusal, answering
from a2v.api.protocol.bodies import read_small_json
from a2v.api.protocol.cors import install_cors
from a2v.api.protocol.uploads import Uploads
from a2v.api.protocol.urls import base_url, client_of
from a2v.api.settings import Settings
from a2v.tests.api.edges import KEY, Names, make_settings, opened, serving, wav
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

PAGE = "https://page.example"
LONGEST = 1000  # bytes of a body
HOST = Path(os.environ.get("LTX_A2V_HOST") or Path(__file__).resolve().parents[2] / ".host" / "comfyui")


@contextmanager
def place(settings: Settings) -> Iterator[str]:
    """A few handlers behind the guard, beside a route of ComfyUI's, behind something like its check of origins."""

    async def echo(request: web.Request) -> web.Response:
        seen = {
            "path": request.path,
            "query": dict(request.query),
            "method": request.method,
            "match": dict(request.match_info),
        }
        body = await read_small_json(request, LONGEST) if request.can_read_body else None
        return web.json_response({**seen, "body": body, "base": base_url(request, settings)})

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        return response

    @web.middleware
    async def same_origin_only(request: web.Request, handler: Any) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        passes = not origin or origin == "null" or "127.0.0.1" in origin  # null: so it does, too
        passes &= request.headers.get("Sec-Fetch-Site") != "cross-site"  # new versions of ComfyUI
        return await handler(request) if passes else web.Response(status=403)

    def make() -> web.Application:
        app = web.Application(middlewares=[same_origin_only])
        own = [
            web.post("/fal/run/{owner}/{app}", answering(guard(echo, settings))),
            web.post("/fal/queue/{owner}/{app}", answering(guard(echo, settings))),
            web.get("/fal/queue/{owner}/{app}/requests/{id}/stream", answering(guard(stream, settings))),
            web.put("/fal/queue/{owner}/{app}/requests/{id}/cancel", answering(guard(echo, settings))),
            *operations.routes(Uploads(settings, store).operations(), settings),
        ]
        proxied = operations.routes(proxy.operations(settings, own), settings)
        app.add_routes([*own, *proxied, web.post("/prompt", echo)])
        install_cors(app, settings)
        return app

    with opened(settings) as store, serving(make) as port:
        yield f"http://127.0.0.1:{port}"


def key(value: str = KEY) -> dict[str, str]:
    return {"Authorization": f"Key {value}"}


# the key


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Key {KEY}", 200),
        (f"key  {KEY} ", 200),
        (None, 401),
        ("", 401),
        ("Key", 401),
        ("Key ", 401),
        (KEY, 401),
        (f"Bearer {KEY}", 401),
        (f"Basic {KEY}", 401),
        (f"Key {KEY[:-1]}", 401),
        (f"Key {KEY}x", 401),
        (f"Key {KEY.upper()}", 401),
        (f"Key {KEY} {KEY}", 401),
        ("Key ключ".encode(), 401),
        (b"Key \xff\xfe", 401),
    ],
)
def test_with_a_key_set_only_that_key_passes(tmp_path: Path, header: Any, status: int) -> None:
    headers = {"Content-Type": "application/json", **({} if header is None else {"Authorization": header})}
    with place(make_settings(tmp_path, key=KEY)) as base:
        answer = requests.post(f"{base}/fal/run/a/b", data="{}", headers=headers, timeout=10)
        assert answer.status_code == status
        assert status == 200 or (answer.json()["detail"] and answer.headers["WWW-Authenticate"] == "Key")


def test_a_key_of_any_letters_works(tmp_path: Path) -> None:
    with place(make_settings(tmp_path, key="schlüssel")) as base:
        for given, status in (("schlüssel".encode(), 200), ("schlussel", 401)):
            header = b"Key " + given if isinstance(given, bytes) else f"Key {given}"
            assert (
                requests.post(f"{base}/fal/run/a/b", headers={"Authorization": header}, timeout=10).status_code
                == status
            )


def asked(remote: str | None = "127.0.0.1", host: str = "127.0.0.1:8188", **headers: str) -> Any:
    """Of aiohttp's request what decides who is answered without a key."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return make_mocked_request("POST", "/fal/run/a/b", headers={"Host": host, **named}).clone(remote=remote)


def status_of(request: Any, settings: Settings) -> int:
    refused = refusal(request, settings)
    assert refused is None or str(refused).endswith(".")
    return 200 if refused is None else refused.status


def test_without_a_key_this_machine_is_answered_and_no_other(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    with place(settings) as base:
        assert requests.post(f"{base}/fal/run/a/b", timeout=10).status_code == 200
        assert requests.post(f"{base}/fal/run/a/b", headers=key("any"), timeout=10).status_code == 200
    for remote in (None, "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert status_of(asked(remote), settings) == 200, remote
    for remote in ("192.168.1.7", "10.0.0.1", "172.17.0.1", "8.8.8.8", "fe80::1%eth0", "::ffff:192.168.1.7", "", "x"):
        assert status_of(asked(remote), settings) == 401, remote


@pytest.mark.parametrize("name", ["Forwarded", "X_Forwarded_For", "X_Forwarded_Host", "X_Real_IP", "Via"])
def test_without_a_key_what_a_proxy_passes_on_is_not_answered(tmp_path: Path, name: str) -> None:
    """A proxy on this machine makes everybody come from here."""
    for proxies in ((), ("127.0.0.1",)):
        request = asked(**{name: "127.0.0.1"})
        assert status_of(request, make_settings(tmp_path, proxies=proxies)) == 401
        with_key = make_settings(tmp_path, proxies=proxies, key=KEY)
        assert status_of(asked(**{name: "8.8.8.8", "Authorization": f"Key {KEY}"}), with_key) == 200


def test_without_a_key_only_names_of_this_machine_are_answered(tmp_path: Path) -> None:
    """A page's own name may lead here, and then its origin is no foreign one."""
    settings = make_settings(tmp_path)
    for host in ("localhost", "localhost:8188", "LOCALHOST.", "x.localhost:1", "127.0.0.1", "127.1.2.3:80", "[::1]:80"):
        assert status_of(asked(host=host), settings) == 200, host
    for host in ("evil.example", "evil.example:8188", "localhost.evil.example", "127.0.0.1.nip.io", "192.168.0.7", "0"):
        assert status_of(asked(host=host), settings) == 401, host
        assert status_of(asked(host=host, Origin=f"http://{host}"), settings) == 401, host


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8188", 200),
        ("https://127.0.0.1:8188", 200),
        ("null", 403),
        ("http://127.0.0.1:3000", 403),
        ("http://localhost:8188", 403),
        ("http://127.0.0.1", 403),
        ("https://evil.example", 403),
        ("file://", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
def test_without_a_key_no_page_of_another_origin_is_answered(tmp_path: Path, origin: str, status: int) -> None:
    """Not even one in a sandboxed frame, whose origin is null and which ComfyUI's own check lets pass."""
    assert status_of(asked(Origin=origin), make_settings(tmp_path)) == status
    with_key = make_settings(tmp_path, key=KEY)
    assert status_of(asked(Origin=origin, Authorization=f"Key {KEY}"), with_key) == 200
    assert status_of(asked(Origin=origin), with_key) == 401


def test_a_page_in_a_sandboxed_frame_uploads_nothing(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    with place(settings) as base:
        url = f"{base}/fal/cdn/files/upload"
        for headers in ({"Origin": "null"}, {"Origin": "null", "Content-Type": "text/plain"}):
            assert requests.post(url, data=wav(), headers=headers, timeout=10).status_code == 403
        assert os.listdir(settings.system / "uploads") == []
        token = requests.post(f"{base}/fal/rest/storage/auth/token", json={}, timeout=10).json()["token"]
        headers = {"Origin": "null", "Authorization": f"Bearer {token}"}
        assert requests.post(url, data=wav(), headers=headers, timeout=10).status_code == 200


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({}, "http://127.0.0.1:8188"),
        ({"X_Forwarded_Proto": "https", "X_Forwarded_Host": "my.host"}, "https://my.host"),
        ({"X_Forwarded_Proto": "https, http", "X_Forwarded_Host": "my.host:444, inner"}, "https://my.host:444"),
        ({"X_Forwarded_Proto": "HTTPS"}, "https://127.0.0.1:8188"),
        ({"Forwarded": 'for=8.8.8.8;proto=https;host="my.host:444", for=10.0.0.1;proto=http'}, "https://my.host:444"),
        ({"Forwarded": "proto=https", "X_Forwarded_Host": "my.host"}, "https://my.host"),
    ],
)
def test_a_known_proxy_is_believed(tmp_path: Path, headers: dict[str, str], base: str) -> None:
    for proxies in (("127.0.0.1",), ("10.0.0.0/8", "127.0.0.0/24"), ("localhost", "127.0.0.1")):
        assert base_url(asked(**headers), make_settings(tmp_path, proxies=proxies)) == base
    for proxies in ((), ("10.0.0.0/8",), ("no network",)):
        assert base_url(asked(**headers), make_settings(tmp_path, proxies=proxies)) == "http://127.0.0.1:8188"


@pytest.mark.parametrize(
    "headers", [{"X_Forwarded_Proto": "javascript"}, {"X_Forwarded_Host": "a b"}, {"Forwarded": 'host="evil/x"'}]
)
def test_what_a_known_proxy_says_must_be_a_host(tmp_path: Path, headers: dict[str, str]) -> None:
    with pytest.raises(Refusal, match="no host name") as refused:
        base_url(asked(**headers), make_settings(tmp_path, proxies=("127.0.0.1",)))
    assert refused.value.status == 400


def test_clients_behind_a_known_proxy_are_told_apart(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, proxies=("127.0.0.1",))
    assert client_of(asked(X_Forwarded_For="8.8.8.8, 10.0.0.1"), settings) == "8.8.8.8"
    assert client_of(asked(Forwarded='for="[2001:db8::1]:99"'), settings) == "[2001:db8::1]:99"
    assert client_of(asked("9.9.9.9", X_Forwarded_For="8.8.8.8"), settings) == "9.9.9.9"


# bodies


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 200),
        ("application/json; charset=utf-8", b"{}", 200),
        ("text/plain", b"{}", 415),
        ("application/x-www-form-urlencoded", b"a=b", 415),
        ("multipart/form-data; boundary=x", b"--x--", 415),
        ("application/json", b'{"a":', 400),
        ("application/json", b"\xff", 400),
        ("application/json; charset=no-such", b"{}", 200),
        ("application/json", b'"' + b"x" * 2000 + b'"', 413),
        ("application/json", b"[" * 200_000, 413),
    ],
)
def test_json_routes_take_json_and_nothing_else(tmp_path: Path, content_type: str, body: bytes, status: int) -> None:
    with place(make_settings(tmp_path)) as base:
        headers = {"Content-Type": content_type}
        answer = requests.post(f"{base}/fal/run/a/b", data=body, headers=headers, timeout=10)
        assert answer.status_code == status
        assert status == 200 or answer.json()["detail"]


def test_json_of_any_depth_is_refused_and_not_crashed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.LONGEST", 10**6)
    with place(make_settings(tmp_path)) as base:
        headers = {"Content-Type": "application/json"}
        answer = requests.post(f"{base}/fal/run/a/b", data=b"[" * 200_000, headers=headers, timeout=10)
        assert answer.status_code == 400 and answer.json()["detail"]


@pytest.mark.parametrize("host", ["evil.com/x", "a b", "evil.com:port", "[::1", "a@b", "x:123456", "<script>", ""])
def test_a_broken_host_header_gets_no_urls(tmp_path: Path, host: str) -> None:
    with place(make_settings(tmp_path, key=KEY)) as base:
        port = int(base.rpartition(":")[2])
        head = f"POST /fal/run/a/b HTTP/1.1\r\nHost: {host}\r\nAuthorization: Key {KEY}\r\nConnection: close\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), 10) as plain:
            plain.sendall(head.encode())
            assert plain.makefile("rb").readline().split()[1] == b"400"


@pytest.mark.parametrize("host", ["localhost:8188", "my.host", "[::1]:8188", "10.0.0.7", "a_b"])
def test_urls_are_of_the_host_that_was_asked(tmp_path: Path, host: str) -> None:
    with place(make_settings(tmp_path, key=KEY)) as base:
        answer = requests.post(f"{base}/fal/run/a/b", headers={"Host": host, **key()}, timeout=10)
        assert answer.json()["base"] == f"http://{host}"


# pages of other origins


def preflight(url: str, origin: str, headers: str = "authorization,content-type,x-fal-target-url") -> requests.Response:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": headers}
    return requests.options(url, headers={**asked, "Access-Control-Request-Private-Network": "true"}, timeout=10)


def test_a_configured_page_may_call_the_api(tmp_path: Path) -> None:
    with place(make_settings(tmp_path, key=KEY, origins=(PAGE,))) as base:
        answer = preflight(
            f"{base}/fal/queue/a/b", PAGE, "Authorization, content-type, x-fal-queue-priority, if-range, x-evil, cookie"
        )
        assert answer.status_code == 204 and not answer.content
        headers = answer.headers
        assert headers["Access-Control-Allow-Origin"] == PAGE and headers["Vary"] == "Origin"
        assert headers["Access-Control-Allow-Headers"] == "authorization, content-type, x-fal-queue-priority, if-range"
        assert {"GET", "POST", "PUT"} <= set(headers["Access-Control-Allow-Methods"].split(", "))
        assert headers["Access-Control-Allow-Private-Network"] == "true"
        assert "Access-Control-Allow-Credentials" not in headers
        answer = requests.post(f"{base}/fal/queue/a/b", json={"a": 1}, headers={**key(), "Origin": PAGE}, timeout=10)
        assert answer.status_code == 200 and answer.json()["body"] == {"a": 1}
        assert answer.json()["match"] == {"owner": "a", "app": "b"}
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert "x-fal-request-id" in answer.headers["Access-Control-Expose-Headers"]


def test_refusals_streams_and_uploads_can_be_read_by_the_page_too(tmp_path: Path) -> None:
    with place(make_settings(tmp_path, key=KEY, origins=(PAGE,))) as base:
        refused = requests.post(f"{base}/fal/queue/a/b", json={}, headers={"Origin": PAGE}, timeout=10)
        assert refused.status_code == 401 and refused.headers["Access-Control-Allow-Origin"] == PAGE
        headers = {**key(), "Origin": PAGE}
        stream = requests.get(f"{base}/fal/queue/a/b/requests/1/stream", headers=headers, timeout=10)
        assert stream.text == "data: 1\n\n" and stream.headers["Access-Control-Allow-Origin"] == PAGE
        missing = requests.get(f"{base}/fal/nothing", headers=headers, timeout=10)
        assert missing.status_code == 404
        url = f"{base}/fal/rest/storage/upload/initiate"
        urls = requests.post(
            url, json={"file_name": "a.wav", "content_type": "audio/wav"}, headers=headers, timeout=10
        ).json()
        put = requests.put(urls["upload_url"], data=wav(), headers={"Origin": PAGE}, timeout=10)
        assert put.status_code == 200 and put.headers["Access-Control-Allow-Origin"] == PAGE
        got = requests.get(urls["file_url"], headers={"Origin": PAGE}, timeout=10)
        assert got.content == wav() and got.headers["Access-Control-Allow-Origin"] == PAGE


@pytest.mark.parametrize(
    "origin",
    ["https://other.example", "https://page.example.evil", "http://page.example", PAGE + ":8443", "null", PAGE + "/"],
)
def test_other_pages_are_left_to_comfyuis_own_check(tmp_path: Path, origin: str) -> None:
    with place(make_settings(tmp_path, origins=(PAGE,))) as base:
        assert (
            requests.post(f"{base}/fal/queue/a/b", json={}, headers={"Origin": origin}, timeout=10).status_code == 403
        )
        answer = preflight(f"{base}/fal/queue/a/b", origin)
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    "path", ["/prompt", "/fal", "/falx/queue/a/b", "/fal/../prompt", "/fal/%2e%2e/prompt", "//fal/x"]
)
def test_a_configured_page_may_call_nothing_of_comfyui(tmp_path: Path, path: str) -> None:
    with place(make_settings(tmp_path, origins=(PAGE,))) as base, requests.Session() as session:
        request = requests.Request("POST", base, json={}, headers={"Origin": PAGE}).prepare()
        request.url = base + path
        answer = session.send(request, timeout=10)
        assert answer.status_code in (403, 404)
        assert answer.status_code == 404 or "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.skipif(not (HOST / "server.py").is_file(), reason="no ComfyUI; `make setup` unpacks one")
def test_the_check_of_the_real_comfyui_lets_a_configured_page_pass(tmp_path: Path) -> None:
    """ComfyUI's own functions, cut from its source: importing its server would bring all of ComfyUI with it."""
    wanted = {"is_loopback", "create_origin_only_middleware"}
    tree = ast.parse((HOST / "server.py").read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    host: dict[str, Any] = {"web": web, "socket": socket, "ipaddress": ipaddress, "logging": logging, "urllib": urllib}
    exec(compile(tree, "server.py", "exec"), host)

    async def ok(_: web.Request) -> web.Response:
        return web.json_response({})

    def make() -> web.Application:
        app = web.Application(middlewares=[host["create_origin_only_middleware"]()])
        app.add_routes([web.post(path, ok) for path in ("/fal/queue/a/b", "/prompt")])
        install_cors(app, make_settings(tmp_path, origins=(PAGE,)))
        return app

    with serving(make) as port:
        found = {}
        for path in ("/fal/queue/a/b", "/prompt"):
            for origin in (PAGE, "https://other.example"):
                url = f"http://127.0.0.1:{port}{path}"
                answer = requests.post(url, json={}, headers={"Origin": origin}, timeout=10)
                found[path, origin] = answer.status_code, answer.headers.get("Access-Control-Allow-Origin")
    assert found == {
        ("/fal/queue/a/b", PAGE): (200, PAGE),
        ("/fal/queue/a/b", "https://other.example"): (403, None),
        ("/prompt", PAGE): (403, None),
        ("/prompt", "https://other.example"): (403, None),
    }


def test_a_browsers_word_that_a_page_is_of_another_site_costs_a_configured_page_nothing(tmp_path: Path) -> None:
    site = {"Sec-Fetch-Site": "cross-site"}
    with place(make_settings(tmp_path, key=KEY, origins=(PAGE,))) as base:
        from_page = {**key(), **site, "Origin": PAGE}
        url = f"{base}/fal/queue/a/b"
        assert requests.post(url, json={}, headers=from_page, timeout=10).status_code == 200
        assert (
            requests.post(url, json={}, headers={**from_page, "Origin": "https://x.y"}, timeout=10).status_code == 403
        )
        assert requests.post(url, json={}, headers={**key(), **site}, timeout=10).status_code == 403
        assert requests.post(f"{base}/prompt", json={}, headers=from_page, timeout=10).status_code == 403


def test_a_player_or_a_link_on_any_page_leads_to_a_file(tmp_path: Path) -> None:
    """They send no origin, and the file's address is all that it needs."""
    site = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "video"}
    with place(make_settings(tmp_path, key=KEY)) as base:
        url = f"{base}/fal/rest/storage/upload/initiate"
        urls = requests.post(url, json={"file_name": "a.wav"}, headers=key(), timeout=10).json()
        assert requests.put(urls["upload_url"], data=wav(), headers=site, timeout=10).status_code == 403
        assert requests.put(urls["upload_url"], data=wav(), timeout=10).status_code == 200
        assert requests.get(urls["file_url"], headers=site, timeout=10).content == wav()
        got = requests.get(f"{base}/fal/queue/a/b/requests/1/stream", headers={**key(), **site}, timeout=10)
        assert got.status_code == 403


def test_a_stream_through_the_clients_proxy_can_be_read_by_the_page(tmp_path: Path) -> None:
    with place(make_settings(tmp_path, key=KEY, origins=(PAGE,))) as base:
        target = "https://queue.fal.run/a/b/requests/1/stream"
        stream = through(base, target, "GET", headers={"Origin": PAGE})
        assert stream.text == "data: 1\n\n" and stream.headers["Access-Control-Allow-Origin"] == PAGE


# the JS client's proxy


def through(base: str, target: str, method: str = "POST", **options: Any) -> requests.Response:
    headers = {**key(), "x-fal-target-url": target, **options.pop("headers", {})}
    return requests.request(method, f"{base}/fal/proxy", headers=headers, timeout=10, **options)


@pytest.mark.parametrize(
    ("method", "target", "path", "query"),
    [
        ("POST", "https://fal.run/a/b", "/run/a/b", {}),
        (
            "POST",
            "https://queue.fal.run/a/b?fal_webhook=https%3A%2F%2Fx.y%2Fz%3Fa%3D1%26b&c=%C3%A4",
            "/queue/a/b",
            {"fal_webhook": "https://x.y/z?a=1&b", "c": "ä"},
        ),
        ("POST", "https://QUEUE.fal.run:443/a/b", "/queue/a/b", {}),
        ("PUT", "https://queue.fal.run/a/b/requests/7/cancel", "/queue/a/b/requests/7/cancel", {}),
    ],
)
def test_the_proxy_answers_by_the_local_handler(
    tmp_path: Path, method: str, target: str, path: str, query: dict[str, str]
) -> None:
    with place(make_settings(tmp_path, key=KEY)) as base:
        answer = through(base, target, method, json={"a": 1})
        assert answer.status_code == 200
        seen = answer.json()
        assert (seen["path"], seen["query"], seen["method"]) == ("/fal" + path, query, method)
        assert seen["body"] == {"a": 1} and seen["base"] == base and seen["match"]["owner"] == "a"
        assert through(base, target, method, json={}, headers={"Authorization": "Key wrong"}).status_code == 401


def test_the_proxy_passes_streams_and_uploads(tmp_path: Path) -> None:
    with place(make_settings(tmp_path, key=KEY)) as base:
        assert through(base, "https://queue.fal.run/a/b/requests/1/stream?logs=1", "GET").text == "data: 1\n\n"
        for host in ("rest.fal.ai", "rest.alpha.fal.ai"):
            target = f"https://{host}/storage/upload/initiate?storage_type=fal-cdn-v3"
            urls = through(base, target, json={"file_name": "a.wav", "content_type": "audio/wav"}).json()
            assert urls["upload_url"].startswith(f"{base}/fal/cdn/files/")
            assert requests.put(urls["upload_url"], data=wav(), timeout=10).status_code == 200
            assert requests.get(urls["file_url"], timeout=10).content == wav()


@pytest.mark.parametrize(
    "target",
    [
        "",
        "x",
        "http://fal.run/a/b",
        "https://fal.run",
        "https://fal.run/",
        "https://fal.run/a",
        "https://fal.run:8443/a/b",
        "https://user@fal.run/a/b",
        "https://user:password@fal.run/a/b",
        "https://fal.run.evil.com/a/b",
        "https://evil.com/fal.run/a/b",
        "https://evil.fal.run/a/b",
        "https://evil.com#@fal.run/a/b",
        "https://fal.run@evil.com/a/b",
        "https://fal.run\\@evil.com/a/b",
        "https://127.0.0.1/a/b",
        "https://169.254.169.254/latest/meta-data",
        "https://v3.fal.media/files/a/b",
        "https://rest.fal.ai/storage/auth/../../../prompt",
        "https://fal.run/../prompt",
        "https://fal.run/%2e%2e/%2e%2e/prompt",
        "https://fal.run/..%2f..%2fprompt/x/y",
        "https://fal.run/../proxy",
        "https://queue.fal.run/../run/a/b",
        "https://rest.fal.ai/users/me",
        "https://[::1]/a/b",
        "https://[/a/b",
        "https://fal.run:99999/a/b",
        "file:///etc/passwd",
        "//fal.run/a/b",
        "https:fal.run/a/b",
    ],
)
def test_the_proxy_answers_nothing_else_and_opens_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    names = Names(monkeypatch)
    for name in (
        "fal.run",
        "queue.fal.run",
        "rest.fal.ai",
        "evil.com",
        "evil.fal.run",
        "fal.run.evil.com",
        "v3.fal.media",
    ):
        names.answers[name] = [["127.0.0.1"]]
    with place(make_settings(tmp_path, key=KEY)) as base:
        answer = through(base, target, json={})
        assert answer.status_code == 403 and answer.json()["detail"]
        assert requests.post(f"{base}/fal/proxy", json={}, headers=key(), timeout=10).status_code == 403
    assert names.asked == []
