"""HTTP exchanges with other servers.

A URL's host is resolved once. Every address is judged, and the connection goes to a judged one: nothing asks the DNS a
second time. Each redirect is judged again. Proxies of the environment and cookies are not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ...ltx.errors import InputError
from ..settings import Settings
from ..waiting import TooSlowError, paced
from .addresses import Address, encoded_url, judge, parse

MAX_REDIRECTS = 5
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 15.0
"""How long a server may send nothing. `Settings.fetch_seconds` bounds the whole."""
LEAST_RATE, RATE_SECONDS = 4096, 10.0
"""Bytes a second that a server must send on average over so many seconds. A slower one is given up."""


class _Pinned(AbstractResolver):
    """A resolver that answers every question with the judged addresses."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in dict.fromkeys(self.addresses)
        ]

    async def close(self) -> None:
        return None


@contextlib.asynccontextmanager
async def request(
    method: str, url: URL, field: str, hosts: Collection[str], seconds: float, **options: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Makes one exchange with a parsed URL. It follows no redirects, and it checks certificates for the URL's name.

    seconds: for the name, the connection and the whole answer. options: of aiohttp's `request`. Errors: InputError if
    the address is not allowed or the exchange fails; the body of the `async with` may raise aiohttp's errors, too.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    try:
        addresses = await judge(url, field, hosts, seconds)
        connector = aiohttp.TCPConnector(resolver=_Pinned(addresses), use_dns_cache=False, force_close=True)
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(
                    total=max(0.001, deadline - loop.time()), sock_connect=CONNECT_SECONDS, sock_read=IDLE_SECONDS
                ),
            ) as session,
            session.request(method, url, allow_redirects=False, **options) as response,
        ):
            yield response
    except asyncio.TimeoutError as error:
        raise InputError(f"{field}: {url.raw_host} took too long to answer; try again, or upload the file.") from error
    except aiohttp.ClientError as error:
        raise InputError(f"{field}: {url.raw_host} could not be read ({_reason(error)}); check the URL.") from error


def _reason(error: aiohttp.ClientError) -> str:
    if isinstance(error, aiohttp.ClientResponseError):  # its text quotes the server
        return type(error).__name__
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextlib.asynccontextmanager
async def fetch(text: str, field: str, settings: Settings) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer 200 to a GET after at most `MAX_REDIRECTS` redirects. Its body is not read yet. Errors: InputError."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settings.fetch_seconds
    url = parse(text, field)
    for _ in range(MAX_REDIRECTS + 1):
        exchange = request(
            "GET",
            url,
            field,
            settings.allowed_hosts,
            deadline - loop.time(),
            headers={"Accept-Encoding": "identity", "User-Agent": "ltx-audio-to-video"},
        )
        async with exchange as response:
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                if response.status != 200:
                    raise InputError(f"{field}: {url.raw_host} answered {response.status}; check the URL.")
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise InputError(f"{field}: {url.raw_host} sends the file compressed; upload the file instead.")
                yield response
                return
            try:
                url = url.join(encoded_url(location))
            except ValueError as error:
                raise InputError(f"{field}: {url.raw_host} redirects to no valid URL; check the URL.") from error
            url = parse(url, field)
    raise InputError(f"{field}: more than {MAX_REDIRECTS} redirects; give the URL of the file itself.")


async def body_of(response: aiohttp.ClientResponse, field: str) -> AsyncIterator[bytes]:
    """Yields an answer's body. Errors: InputError if the server sends too slowly."""
    try:
        async for piece in paced(response.content.readany, IDLE_SECONDS, LEAST_RATE, RATE_SECONDS):
            yield piece
    except TooSlowError as error:
        raise InputError(
            f"{field}: {response.url.raw_host} sends too slowly ({error}); try again, or upload the file."
        ) from error
