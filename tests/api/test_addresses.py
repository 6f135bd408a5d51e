"""The address rules against real servers on loopback addresses, and names whose answers change."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from a2v.api.network import addresses, fetching
from a2v.api.network.addresses import judge, parse, public
from a2v.api.network.fetching import fetch
from a2v.api.settings import Settings
from a2v.ltx.errors import InputError
from a2v.tests.api.edges import Names, answering, make_settings
from aiohttp import connector, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NEAR, FAR = "127.0.0.1", "127.0.0.2"
"""Two addresses of this machine: the second stands for a public one by being allowed, the first for a private one."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, allowed_hosts=(FAR,), fetch_seconds=5)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


async def read(url: str, settings: Settings) -> bytes:
    async with fetch(url, "audio_url", settings) as response:
        return await response.read()


# IANA's registries of special-purpose addresses, one or more of each entry, as of 2025
PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.254",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "4000::1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.255.255",
    "169.255.0.1",
    "172.15.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "192.167.255.255",
    "192.169.0.1",
    "198.17.255.255",
    "198.20.0.1",
    "223.255.255.255",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2a00:1450::1",
    "2400:cb00::1",
    "2001:200::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_and_reserved_addresses(address: str) -> None:
    assert not public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert public(ipaddress.ip_address(address))


def test_an_address_with_a_zone_is_of_this_machines_network() -> None:
    assert not public(ipaddress.ip_address("2606:4700::1%eth0"))


@pytest.mark.parametrize("host", [address for address in PRIVATE if address != "0.1.2.3"])
def test_a_url_of_a_private_address_is_refused_before_anything_is_sent(host: str) -> None:
    url = parse(f"http://[{host}]/a.wav" if ":" in host else f"http://{host}/a.wav", "audio_url")
    with pytest.raises(InputError, match=r"^audio_url: .* private, local or reserved .*LTX_A2V_ALLOW_HOSTS"):
        asyncio.run(judge(url, "audio_url", (), 1))


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.1",
        "0X7F.0.0.1",
        "127.1",
        "127.0.1",
        "0177.0.0.1",
        "127.0.0.01",
        "127.0.0.1.",
        "1.2.3.4.5",
        "256.1.1.1",
        "example.0x7f",
        "127.0.0.0x1",
        "۱۲۷.۰.۰.1.",
    ],
)
def test_numbers_in_unusual_forms_are_refused(host: str) -> None:
    with pytest.raises(InputError, match=r"^audio_url: "):
        asyncio.run(judge(parse(f"http://{host}/", "audio_url"), "audio_url", (), 1))


@pytest.mark.parametrize("host", ["①②⑦.0.0.1", "127。0。0。1", "127.0.0.1"])
def test_digits_of_other_scripts_are_the_address_they_mean(host: str) -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1 is a private"):
        asyncio.run(judge(parse(f"http://{host}/", "audio_url"), "audio_url", (), 1))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "gopher://example.com/",
        "ftp://example.com/a.wav",
        "//example.com/a.wav",
        "/a.wav",
        "a.wav",
        "",
        "http://",
        "http:///a.wav",
        "http://exa mple.com/",
        "http://x%2fy.com/",
        "http://a..b/",
        "http://example.com\\@127.0.0.1/",
        "http://example.com:99999/",
        "http://[::1",
        "http://[fe80::1%25eth0]/",
        "http://" + "a" * 300 + ".com/",
        "javascript:alert(1)",
        "http://exam\r\nple.com/",
    ],
)
def test_what_is_no_http_url_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"^audio_url: "):
        asyncio.run(judge(parse(url, "audio_url"), "audio_url", (), 1))


def test_userinfo_does_not_hide_the_host() -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1 is a private"):
        asyncio.run(judge(parse("http://example.com@127.0.0.1/", "audio_url"), "audio_url", (), 1))


@pytest.mark.parametrize(
    "answer", [[NEAR], ["10.0.0.7"], ["::1"], ["::ffff:10.0.0.7"], ["8.8.8.8", NEAR], [FAR, "::1"]]
)
def test_a_name_with_any_private_address_is_refused(names: Names, settings: Settings, answer: list[str]) -> None:
    names.answers["media.test"] = [answer]
    with pytest.raises(InputError, match=r"media\.test is a private"):
        asyncio.run(read("http://media.test/a.wav", settings))


@pytest.mark.parametrize(
    "hosts", [("media.test",), ("MEDIA.test.",), ("127.0.0.2",), ("127.0.0.0/8",), ("x", "127.0.0.2/32")]
)
def test_the_administrators_list_allows_hosts_addresses_and_networks(
    names: Names, tmp_path: Path, hosts: tuple[str, ...]
) -> None:
    names.answers["media.test"] = [[FAR]]
    with answering(lambda _: web.Response(text="ok"), host=FAR) as (port, _):
        url = f"http://media.test:{port}/a.wav"
        assert asyncio.run(read(url, make_settings(tmp_path, allowed_hosts=hosts))) == b"ok"
        for others in ((), ("media.test.evil",), ("test",), ("10.0.0.0/8",)):
            with pytest.raises(InputError, match="private"):
                asyncio.run(read(url, make_settings(tmp_path, allowed_hosts=others)))


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_judged(names: Names, settings: Settings) -> None:
    with (
        answering(lambda _: web.Response(text="far"), host=FAR) as (port, far),
        answering(lambda _: web.Response(text="near"), host=NEAR, port=port) as (_, near),
    ):
        names.answers["media.test"] = [[FAR], [NEAR]]
        assert asyncio.run(read(f"http://media.test:{port}/a.wav", settings)) == b"far"
        assert names.asked == ["media.test"] and len(far) == 1 and not near
        assert far[0].headers["Host"] == f"media.test:{port}"
        with pytest.raises(InputError, match="private"):  # the answer that comes by now
            asyncio.run(read(f"http://media.test:{port}/a.wav", settings))
        assert names.asked == ["media.test", "media.test"] and not near


def test_a_name_that_changes_its_answer_between_redirects_is_judged_anew(names: Names, settings: Settings) -> None:
    with (
        answering(lambda _: web.Response(status=302, headers={"Location": "/again"}), host=FAR) as (port, far),
        answering(lambda _: web.Response(text="near"), host=NEAR, port=port) as (_, near),
    ):
        names.answers["media.test"] = [[FAR], [NEAR]]
        with pytest.raises(InputError, match="private"):
            asyncio.run(read(f"http://media.test:{port}/a.wav", settings))
        assert len(far) == 1 and not near


def test_redirects_are_followed_and_each_is_judged(settings: Settings) -> None:
    where = {"/1": "/2", "/2": "3?x=1"}

    def answer(request: web.Request) -> web.Response:
        if request.path in where:
            return web.Response(status=307, headers={"Location": where[request.path]})
        return web.Response(text=f"{request.path_qs}")

    with answering(answer, host=FAR) as (port, got):
        assert asyncio.run(read(f"http://{FAR}:{port}/1", settings)) == b"/3?x=1"
        targets = [
            f"http://{NEAR}:{port}/",
            f"http://[::1]:{port}/",
            f"http://[::ffff:127.0.0.2]:{port}/",
            "http://169.254.169.254/latest/meta-data",
            "http://2130706434/",
            "file:///etc/passwd",
            "http://[",
        ]
        for target in targets:
            where["/1"] = target
            before = len(got)
            with pytest.raises(InputError, match=r"^audio_url: "):
                asyncio.run(read(f"http://{FAR}:{port}/1", settings))
            assert len(got) == before + 1, target


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("/a%2Fb.wav?X-Sig=a%2Fb%2B%3D&x=1:2", "/a%2Fb.wav?X-Sig=a%2Fb%2B%3D&x=1:2"),
        ("/größe 1.wav?ä=ö#part", "/gr%C3%B6%C3%9Fe%201.wav?%C3%A4=%C3%B6"),
    ],
)
def test_a_url_is_sent_as_it_was_given_where_that_is_a_url(settings: Settings, given: str, sent: str) -> None:
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split()[1].decode())
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: " + given.encode() + b"\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, FAR, 0)
        with pytest.raises(InputError, match="more than 5"):
            await read(f"http://{FAR}:{server.sockets[0].getsockname()[1]}{given}", settings)
        server.close()

    asyncio.run(main())
    assert asked == [sent] * 6


def test_five_redirects_are_followed_and_no_more(settings: Settings) -> None:
    def answer(request: web.Request) -> web.Response:
        left = int(request.path[1:])
        return web.Response(status=302, headers={"Location": f"/{left - 1}"}) if left else web.Response(text="there")

    with answering(answer, host=FAR) as (port, _):
        assert asyncio.run(read(f"http://{FAR}:{port}/5", settings)) == b"there"
        with pytest.raises(InputError, match="more than 5 redirects"):
            asyncio.run(read(f"http://{FAR}:{port}/6", settings))


@pytest.mark.parametrize("status", [201, 204, 206, 304, 401, 404, 500])
def test_only_a_200_is_a_file(settings: Settings, status: int) -> None:
    with (
        answering(lambda _: web.Response(status=status), host=FAR) as (port, _),
        pytest.raises(InputError, match=f"answered {status}"),
    ):
        asyncio.run(read(f"http://{FAR}:{port}/a.wav", settings))


def test_a_compressed_answer_is_not_unpacked(settings: Settings) -> None:
    packed = web.Response(body=b"x" * 100, headers={"Content-Encoding": "gzip"})
    with answering(lambda _: packed, host=FAR) as (port, got):
        with pytest.raises(InputError, match="compressed"):
            asyncio.run(read(f"http://{FAR}:{port}/a.wav", settings))
        assert got[0].headers["Accept-Encoding"] == "identity"


def test_no_proxy_of_the_environment_is_asked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(lambda _: web.Response(text="proxy")) as (trap, trapped):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{trap}")
        with answering(lambda _: web.Response(text="direct"), host=FAR) as (port, _):
            assert asyncio.run(read(f"http://{FAR}:{port}/a.wav", settings)) == b"direct"
        assert not trapped


def test_a_host_that_does_not_resolve_or_answer_is_named(names: Names, settings: Settings) -> None:
    names.answers["media.test"] = [[]]
    with pytest.raises(addresses.UnresolvedError, match=r"media\.test cannot be resolved"):
        asyncio.run(read("http://media.test/a.wav", settings))
    with pytest.raises(InputError, match=r"127\.0\.0\.2 could not be read"):
        asyncio.run(read(f"http://{FAR}:9/a.wav", settings))


# servers that speak HTTP badly: raw bytes, then silence or an end


async def raw(settings: Settings, *pieces: bytes, pause: float = 0.0, end: bool = True) -> bytes:
    over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            if not end:
                await over.wait()
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(answer, FAR, 0)
    try:
        return await read(f"http://{FAR}:{server.sockets[0].getsockname()[1]}/a.wav", settings)
    finally:
        over.set()
        server.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"


def test_a_body_shorter_than_announced_is_no_file(settings: Settings) -> None:
    with pytest.raises(InputError, match="could not be read"):
        asyncio.run(raw(settings, HEAD, b"x" * 99))


def test_a_body_longer_than_announced_ends_where_it_should(settings: Settings) -> None:
    assert asyncio.run(raw(settings, HEAD + b"x" * 100, b"y" * 50, pause=0.2)) == b"x" * 100
    with pytest.raises(InputError, match="could not be read"):  # what comes in the same breath is seen, and refused
        asyncio.run(raw(settings, HEAD + b"x" * 150))


def test_a_server_that_falls_silent_is_given_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "IDLE_SECONDS", 0.2)
    for pieces in ([], [HEAD[:20]], [HEAD, b"x" * 50]):
        with pytest.raises(InputError, match="took too long"):
            asyncio.run(raw(settings, *pieces, end=False))


def test_a_server_that_drips_is_given_up(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, allowed_hosts=(FAR,), fetch_seconds=0.5)
    with pytest.raises(InputError, match="took too long"):
        asyncio.run(raw(settings, HEAD, *[b"x"] * 90, pause=0.05))


def test_a_file_that_comes_steadily_and_not_in_time_is_not_told_as_silence(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, allowed_hosts=(FAR,), fetch_seconds=0.5)

    async def steady(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with suppress(ConnectionError):
            while True:
                await response.write(b"x" * 2**16)
                await asyncio.sleep(0.02)
        return response

    async def all_of(url: str) -> None:
        async with fetch(url, "audio_url", settings) as response:
            async for _ in fetching.body_of(response, "audio_url"):
                pass

    with (
        answering(steady, host=FAR) as (port, _),
        pytest.raises(InputError, match=f"^audio_url: {FAR} took too long to answer"),
    ):
        asyncio.run(all_of(f"http://{FAR}:{port}/a.wav"))


@pytest.mark.parametrize("bad", [b"no http at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", b""])
def test_what_is_no_http_is_refused(settings: Settings, bad: bytes) -> None:
    with pytest.raises(InputError, match="could not be read"):
        asyncio.run(raw(settings, bad))


# TLS: a certificate authority of this test's own, trusted for its duration


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[tuple[x509.Certificate, ec.EllipticCurvePrivateKey]]:
    key = ec.generate_private_key(ec.SECP256R1())
    yield certificate("authority.test", key, None, key), key


def certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        # From 3.13 on, Python wants what RFC 5280 wants of a certificate.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(True, *[False] * 4, issuer is None, *[False] * 3), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def server_context(
    folder: Path, name: str, authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey]
) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = certificate(name, key, *authority).public_bytes(serialization.Encoding.PEM)
    pem += key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


def test_certificate_and_sni_are_of_the_name_though_the_address_is_pinned(
    names: Names,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
) -> None:
    trusting = ssl.create_default_context(cadata=authority[0].public_bytes(serialization.Encoding.PEM).decode())
    names.answers["media.test"] = names.answers["other.test"] = [[FAR]]
    context, asked = server_context(tmp_path, "media.test", authority), []
    lock = threading.Lock()

    def seen(_: object, name: str, __: object) -> None:
        with lock:
            asked.append(name)

    context.sni_callback = seen
    with answering(lambda _: web.Response(text="ok"), host=FAR, tls=context) as (port, _):
        with pytest.raises(InputError, match=r"could not be read .*[cC]ertificate"):
            asyncio.run(read(f"https://media.test:{port}/a.wav", settings))
        monkeypatch.setattr(connector, "_SSL_CONTEXT_VERIFIED", trusting)  # what aiohttp makes of the system's own
        assert asyncio.run(read(f"https://media.test:{port}/a.wav", settings)) == b"ok"
        with pytest.raises(InputError, match=r"could not be read .*other\.test"):
            asyncio.run(read(f"https://other.test:{port}/a.wav", settings))
    assert asked == ["media.test", "media.test", "other.test"]
