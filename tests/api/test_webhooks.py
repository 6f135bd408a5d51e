"""Webhooks received by real servers, and checked as the hosted endpoint's documentation tells receivers to do it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from a2v.api.database.store import Store
from a2v.api.protocol import signing_key
from a2v.api.settings import Settings
from a2v.api.webhooks import deliveries as webhooks
from a2v.api.webhooks.deliveries import DELIVERED, FAILED, PENDING, Delivery, Webhooks, WebhooksOff
from a2v.api.webhooks.signing import Signer
from a2v.ltx import versions
from a2v.ltx.errors import InputError
from a2v.tests.api.edges import Names, answering, app_of, make_settings, opened, serving
from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

HERE, OTHER = "127.0.0.1", "127.0.0.2"
BODY = {"request_id": "r-1", "gateway_request_id": "r-1", "status": "OK", "error": None, "payload": {"größe": [1, 2.5]}}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, allowed_hosts=(HERE,))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits a thousandth as long, so that ten tries fit into a test."""
    monkeypatch.setattr(webhooks, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(webhooks, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr(webhooks, "IDLE_SECONDS", 0.02)


def row(store: Store, request_id: str = "r-1") -> Delivery:
    with store.session() as session:
        return session.get_one(Delivery, request_id)


def add(hooks: Webhooks, url: str, request_id: str = "r-1", body: dict[str, Any] = BODY) -> None:
    with hooks.store.session() as session:
        hooks.enqueue_in(session, request_id, url, body)
    hooks.wake()


def drive(settings: Settings, store: Store, *steps: Callable[[Webhooks], Any], until: Callable[[], bool]) -> None:
    """The deliveries on an event loop of their own, until something is true; then stopped, as a server stops them."""

    async def main() -> None:
        hooks = Webhooks(settings, store)
        hooks.start()
        try:
            for step in steps:
                done = step(hooks)
                if isinstance(done, Awaitable):
                    await done
            end = time.monotonic() + 30
            while not until():
                assert time.monotonic() < end, "it never came to that"
                await asyncio.sleep(0.02)
        finally:
            await hooks.stop()

    asyncio.run(main())


def check_signature(jwks: dict[str, Any], headers: Any, body: bytes) -> None:
    """As a receiver does: the four headers, the body's hash, any of the published keys."""
    message = "\n".join(
        (
            headers["X-Fal-Webhook-Request-Id"],
            headers["X-Fal-Webhook-User-Id"],
            headers["X-Fal-Webhook-Timestamp"],
            hashlib.sha256(body).hexdigest(),
        )
    )
    (key,) = jwks["keys"]
    assert key["kty"] == "OKP" and key["crv"] == "Ed25519" and "d" not in key
    public = base64.urlsafe_b64decode(key["x"] + "=" * (-len(key["x"]) % 4))
    Ed25519PublicKey.from_public_bytes(public).verify(
        bytes.fromhex(headers["X-Fal-Webhook-Signature"]), message.encode()
    )


def test_a_webhook_arrives_once_signed_by_the_published_key(settings: Settings) -> None:
    bodies: list[bytes] = []

    async def receive(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response(status=204)

    with opened(settings) as store, answering(receive) as (port, got):
        url = f"http://{HERE}:{port}/hook?a=1&b=%2F"
        drive(settings, store, lambda hooks: add(hooks, url), until=lambda: row(store).state == DELIVERED)
        drive(settings, store, lambda hooks: add(hooks, url), lambda _: asyncio.sleep(0.3), until=lambda: True)

        with serving(lambda: app_of(signing_key.operations(Webhooks(settings, store)), settings)) as jwks_port:
            jwks = requests.get(f"http://{HERE}:{jwks_port}/fal/rest/.well-known/jwks.json", timeout=10).json()
    assert len(got) == 1 and got[0].method == "POST" and got[0].path_qs == "/hook?a=1&b=%2F"
    assert got[0].content_type == "application/json" and json.loads(bodies[0]) == BODY
    headers = got[0].headers
    assert headers["X-Fal-Webhook-Request-Id"] == "r-1"
    assert abs(int(headers["X-Fal-Webhook-Timestamp"]) - time.time()) < 300
    check_signature(jwks, headers, bodies[0])
    for changed in (
        {"X-Fal-Webhook-Request-Id": "r-2"},
        {"X-Fal-Webhook-Timestamp": "1"},
        {"X-Fal-Webhook-User-Id": "x"},
    ):
        with pytest.raises(InvalidSignature):
            check_signature(jwks, {**headers, **changed}, bodies[0])
    with pytest.raises(InvalidSignature):
        check_signature(jwks, headers, bodies[0] + b" ")


def test_the_key_is_made_once_for_its_owner_alone(settings: Settings) -> None:
    first = Signer(settings)
    (path,) = settings.system.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    again = Signer(settings)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and again.jwks == first.jwks
    assert b"PRIVATE" not in json.dumps(first.jwks).encode()
    private = serialization.load_pem_private_key(path.read_bytes(), None)
    public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    assert base64.urlsafe_b64decode(first.jwks["keys"][0]["x"] + "=") == public


def test_two_servers_that_start_at_once_share_one_key(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    link, others = os.link, []

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        others.append(Signer(settings))  # the other server's, between our look and our write
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert Signer(settings).jwks == others[0].jwks
    assert len(list(settings.system.iterdir())) == 1


def test_the_known_answer_of_rfc_8032(settings: Settings) -> None:
    """Its third test vector: the key file of that seed signs what the vector signs."""
    seed = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
    der = bytes.fromhex("302e020100300506032b657004220420") + seed  # RFC 8410
    pem = b"-----BEGIN PRIVATE KEY-----\n" + base64.b64encode(der) + b"\n-----END PRIVATE KEY-----\n"
    (settings.system / "webhook_key.pem").write_bytes(pem)
    x = Signer(settings).jwks["keys"][0]["x"]
    assert base64.urlsafe_b64decode(x + "=").hex() == "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"


def test_a_failed_try_is_repeated_and_the_signature_renewed(settings: Settings, fast: None) -> None:
    answers = [500, 302, 404, 200]

    def answer(_: web.Request) -> web.Response:
        return web.Response(status=answers.pop(0), headers={"Location": "/elsewhere"})

    with opened(settings) as store, answering(answer) as (port, got):
        url = f"http://{HERE}:{port}/hook"
        drive(settings, store, lambda hooks: add(hooks, url), until=lambda: row(store).state == DELIVERED)
        assert row(store).tries == 4 and row(store).last_error is None
    assert [request.path for request in got] == ["/hook"] * 4  # the redirect was not followed


def test_it_is_given_up_after_the_last_try(settings: Settings, fast: None) -> None:
    with opened(settings) as store, answering(lambda _: web.Response(status=503)) as (port, got):
        url = f"http://{HERE}:{port}/hook"
        drive(settings, store, lambda hooks: add(hooks, url), until=lambda: row(store).state == FAILED)
        assert len(got) == webhooks.TRIES == row(store).tries and "503" in row(store).last_error


def test_the_waits_grow_to_within_two_hours(settings: Settings) -> None:
    waits = []
    with opened(settings) as store:
        hooks = Webhooks(settings, store)
        add(hooks, "http://10.0.0.1/")
        for tries in range(webhooks.TRIES - 1):
            asyncio.run(hooks._try("r-1", "http://10.0.0.1/", BODY, tries))
            waits.append(row(store).due - time.time())
    assert [round(wait) for wait in waits] == [15, 30, 60, 120, 240, 480, 960, 1800, 1800]


def test_deliveries_go_on_after_a_restart(settings: Settings, fast: None) -> None:
    with opened(settings) as store, answering(lambda _: web.Response(status=500)) as (port, got):
        url = f"http://{HERE}:{port}/hook"
        drive(settings, store, lambda hooks: add(hooks, url), until=lambda: len(got) >= 2)
    assert row_of_a_closed(settings).state == PENDING
    with opened(settings) as store, answering(lambda _: web.Response(), port=port) as (_, again):
        with store.session() as session:  # a try that was cut off is another's after a minute
            session.get_one(Delivery, "r-1").due = time.time()
        drive(settings, store, until=lambda: row(store).state == DELIVERED)
        assert len(again) == 1


def row_of_a_closed(settings: Settings) -> Delivery:
    with opened(settings) as store:
        return row(store)


def test_two_servers_on_one_database_send_it_once(settings: Settings, fast: None) -> None:
    with opened(settings) as one, opened(settings) as two, answering(lambda _: web.Response()) as (port, got):

        async def main() -> None:
            servers = [Webhooks(settings, one), Webhooks(settings, two)]
            for number in range(20):
                add(servers[0], f"http://{HERE}:{port}/{number}", f"r-{number}")
            for server in servers:
                server.start()
            end = time.monotonic() + 30
            while time.monotonic() < end and any(row(one, f"r-{n}").state != DELIVERED for n in range(20)):
                await asyncio.sleep(0.05)
            for server in servers:
                await server.stop()

        asyncio.run(main())
    assert sorted(request.path for request in got) == sorted(f"/{number}" for number in range(20))


def test_a_slow_receiver_holds_up_nobody(tmp_path: Path, fast: None) -> None:
    settings = make_settings(tmp_path, allowed_hosts=(HERE,), webhook_seconds=1)

    async def sleep(request: web.Request) -> web.Response:
        if request.path == "/slow":
            await asyncio.sleep(60)
        return web.Response()

    with opened(settings) as store, answering(sleep) as (port, _):
        drive(
            settings,
            store,
            lambda hooks: add(hooks, f"http://{HERE}:{port}/slow", "slow"),
            lambda hooks: add(hooks, f"http://{HERE}:{port}/quick", "quick"),
            until=lambda: row(store, "quick").state == DELIVERED and row(store, "slow").tries >= 2,
        )
        assert "took too long" in row(store, "slow").last_error


def test_receivers_that_hang_hold_up_no_other(tmp_path: Path, fast: None) -> None:
    """Forty of one server, forty of as many servers, and one that answers."""
    settings = make_settings(tmp_path, allowed_hosts=(HERE,), webhook_seconds=20)
    over = threading.Event()

    async def hang(request: web.Request) -> web.Response:
        while not over.is_set() and request.path != "/quick":
            await asyncio.sleep(0.05)
        return web.Response()

    with opened(settings) as store, ExitStack() as stack:
        ports = [stack.enter_context(answering(hang))[0] for _ in range(41)]
        urls = [f"http://{HERE}:{ports[0]}/{number}" for number in range(40)]
        urls += [f"http://{HERE}:{port}/" for port in ports[1:]]

        async def main() -> float:
            hooks = Webhooks(settings, store)
            for number, url in enumerate(urls):
                add(hooks, url, f"hangs {number}")
            hooks.start()
            try:
                await until(lambda: len(hooks._trying) == 80)
                begun = time.monotonic()
                add(hooks, f"http://{HERE}:{ports[0]}/quick", "quick")
                await until(lambda: row(store, "quick").state == DELIVERED)
                return time.monotonic() - begun
            finally:
                over.set()
                await hooks.stop()

        assert asyncio.run(main()) < 10, "before any of them is given up"


async def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        await asyncio.sleep(0.02)


def test_one_receiver_has_so_many_tries_at_a_time(
    settings: Settings, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "OF_A_HOST", 3)
    over, now, most = threading.Event(), [0], [0]

    async def hang(_: web.Request) -> web.Response:
        now[0] += 1
        most[0] = max(most[0], now[0])
        while not over.is_set():
            await asyncio.sleep(0.02)
        now[0] -= 1
        return web.Response()

    with opened(settings) as store, answering(hang) as (port, got), answering(lambda _: web.Response()) as (other, _):

        async def main() -> None:
            hooks = Webhooks(settings, store)
            for number in range(8):
                add(hooks, f"http://{HERE}:{port}/{number}", f"r-{number}")
            hooks.start()
            await until(lambda: now[0] == 3)
            add(hooks, f"http://{HERE}:{other}/", "other")
            await until(lambda: row(store, "other").state == DELIVERED)
            assert most[0] == 3
            over.set()
            await until(lambda: all(row(store, f"r-{number}").state == DELIVERED for number in range(8)))
            await hooks.stop()

        asyncio.run(main())
        assert len(got) == 8 and {row(store, f"r-{number}").tries for number in range(8)} == {1}


def test_a_clock_that_is_set_back_costs_no_hour(settings: Settings, fast: None) -> None:
    with opened(settings) as store, answering(lambda _: web.Response()) as (port, _):
        add(Webhooks(settings, store), f"http://{HERE}:{port}/hook")
        with store.session() as session:
            session.get_one(Delivery, "r-1").due = time.time() + 3600
        drive(settings, store, until=lambda: row(store).state == DELIVERED)


@pytest.mark.parametrize("tries", range(webhooks.TRIES))
def test_after_any_try_a_clock_that_is_set_back_costs_no_hour(settings: Settings, tries: int) -> None:
    """By the waits of a server: those of a test are so short that any hour was too far ahead."""
    longest = min(webhooks.FIRST_WAIT * 2 ** (tries - 1), webhooks.LONGEST_WAIT)  # as `_try` sets it
    for waits, claimed in ((longest - 1, 0), (longest + 3600, 1)):
        with opened(settings) as store:
            with store.session() as session:
                values = {"request_id": f"r-{waits}", "url": "http://a/", "body": BODY, "tries": tries}
                session.add(Delivery(due=time.time() + waits, **values))
            with store.session() as session:
                assert len(webhooks._claim(session, 9, [])) == claimed


def test_nothing_of_a_delivered_or_given_up_body_is_kept(settings: Settings, fast: None) -> None:
    def answer(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.path == "/" else 500)

    with opened(settings) as store, answering(answer) as (port, _):
        for name, path in (("r-1", "/"), ("r-2", "/never")):
            add(Webhooks(settings, store), f"http://{HERE}:{port}{path}", name)
        drive(settings, store, until=lambda: row(store, "r-2").state == FAILED)
        assert [row(store, name).body for name in ("r-1", "r-2")] == [{}, {}]


# the key's file


BROKEN_KEYS = {
    "empty": b"",
    "no key": b"something else",
    "cut off": b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\n",
    "of another kind": ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ),
    "locked": ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    ),
}


@pytest.mark.parametrize("name", BROKEN_KEYS)
def test_a_key_that_is_none_is_told_once_and_stops_webhooks_alone(
    settings: Settings, fast: None, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = settings.system / "webhook_key.pem"
    path.write_bytes(BROKEN_KEYS[name])
    with opened(settings) as store, answering(lambda _: web.Response()) as (port, got):

        def refuses(hooks: Webhooks) -> None:
            with pytest.raises(WebhooksOff, match=r"webhook_key\.pem: is .* delete the file"):
                hooks.signer()

        steps = (lambda hooks: add(hooks, f"http://{HERE}:{port}/"), refuses, refuses, lambda _: asyncio.sleep(0.5))
        drive(settings, store, *steps, until=lambda: True)
        assert path.read_bytes() == BROKEN_KEYS[name] and got == [] and row(store).tries == 0
        said = [record for record in caplog.records if "no webhooks are sent" in record.message]
        assert len(said) == 1 and said[0].exc_info is None and str(settings.system) not in said[0].message
        path.unlink()  # as the sentence says
        drive(settings, store, until=lambda: row(store).state == DELIVERED)


def test_without_the_package_that_signs_only_webhooks_are_missing(
    settings: Settings, database: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(WebhooksOff, match=r'webhooks: the package cryptography cannot be imported; run "[^/]*" -m pip'):
        Webhooks(settings, database).signer()
    old = versions.Package("cryptography", ">=3.1", "3.0")
    monkeypatch.setattr(versions, "installed", lambda: iter([old]))
    with pytest.raises(WebhooksOff, match=r"webhooks: cryptography 3.0 \(needed: >=3.1\); run "):
        Webhooks(settings, database).signer()


# addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.2:9/hook",
        "http://10.1.2.3/hook",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/hook",
        "http://[::ffff:10.0.0.1]/hook",
        "http://2130706433/hook",
        "http://0x7f.1/hook",
        "http://intern.test/hook",
        "ftp://example.com/hook",
        "/hook",
        "",
    ],
)
def test_a_private_address_is_refused_when_submitted_and_when_sent(
    settings: Settings, fast: None, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    Names(monkeypatch).answers["intern.test"] = [["192.168.7.7"]]
    with pytest.raises(InputError, match=r"^fal_webhook: "):
        asyncio.run(Webhooks(settings, None).check(url))
    with opened(settings) as store:
        drive(settings, store, lambda hooks: add(hooks, url), until=lambda: row(store).state == FAILED)
        assert row(store).last_error.startswith("fal_webhook: ")


def test_a_name_without_an_answer_may_get_one_later(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch).answers["soon.test"] = [[]]
    asyncio.run(Webhooks(settings, None).check("http://soon.test/hook"))


def test_a_name_that_turns_private_is_refused_at_the_next_try(
    settings: Settings, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch)
    with opened(settings) as store, answering(lambda _: web.Response(status=500)) as (port, got):
        names.answers["hook.test"] = [[HERE], [HERE], [OTHER]]
        with answering(lambda _: web.Response(), host=OTHER, port=port) as (_, private):
            asyncio.run(Webhooks(settings, None).check(f"http://hook.test:{port}/"))
            url = f"http://hook.test:{port}/"
            drive(settings, store, lambda hooks: add(hooks, url), until=lambda: row(store).state == FAILED)
            assert len(got) == 1 and not private
            assert len(names.asked) == 1 + webhooks.TRIES  # once each time
