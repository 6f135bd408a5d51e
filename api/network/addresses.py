"""Decides which addresses the API may call for a user: public ones, and private ones that a setting allows."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from yarl import URL

from ...ltx.errors import InputError
from ..waiting import wait_for

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# IANA's special-purpose registries; Python's own `is_global` differs between its versions
NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host, as its machines see it
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",  # Teredo and similar ones
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
"""The IPv6 addresses that are assigned. Mapped (::ffff:…) and NAT64 (64:ff9b::) ones lie outside."""

LOOKUPS = ThreadPoolExecutor(128, "ltx-a2v-names")
"""Threads for the DNS alone, more than one server's files and webhooks take at once. A name that gets no answer holds
its thread for many seconds, even if nobody waits for it any more; nothing else in ComfyUI may wait for that."""

LEGAL = re.compile(r"([A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
"""A valid URL (RFC 3986). It is sent unchanged: a signature in it may cover its very letters."""
NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)


def public(address: Address) -> bool:
    """Whether an address is one of the public internet."""
    if address.version == 6 and (address not in GLOBAL_IPV6 or address.scope_id):
        return False
    return not any(address in network for network in NOT_PUBLIC if network.version == address.version)


def parse(text: str | URL, field: str) -> URL:
    """Parses an absolute http(s) URL. Errors: InputError for another scheme, no host, or an address in a disguised
    form."""
    try:
        url = text if isinstance(text, URL) else encoded_url(text.strip())
        port = url.port
    except ValueError as error:
        raise InputError(f"{field}: that is no URL ({error}); give http://… or https://….") from error
    if url.scheme not in ("http", "https") or not url.raw_host or not port:
        raise InputError(f"{field}: only http:// and https:// URLs are fetched; give one of these.")
    host = url.raw_host
    if _literal(host) is None:
        if not NAME.fullmatch(host) or len(host) > 253:
            raise InputError(f"{field}: {host!r} is no host name; give http://host/path or https://host/path.")
        if NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):  # the system would read 127.1, 0177.0.0.1, 0x7f000001
            raise InputError(f"{field}: {host!r} is an address in an unusual form; write it as a.b.c.d.")
    return url


def encoded_url(text: str) -> URL:
    """A valid URL unchanged; otherwise the URL with its forbidden letters quoted. Errors: ValueError."""
    return URL(text, encoded=LEGAL.fullmatch(text) is not None)


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def allowed(host: str, address: Address, hosts: Collection[str]) -> bool:
    """Whether an administrator's list has that host, that address or a network around it."""
    for entry in hosts:
        if entry.lower().rstrip(".") == host.lower().rstrip("."):
            return True
        with contextlib.suppress(ValueError):  # a host name
            if address in ipaddress.ip_network(entry, strict=False):
                return True
    return False


class NotAllowedError(InputError):
    """The address is none that this server may call."""


async def judge(url: URL, field: str, hosts: Collection[str], seconds: float) -> list[Address]:
    """The addresses of a parsed URL's host, all of which the API may connect to. Errors: UnresolvedError if there is
    none; NotAllowedError if it may not connect to one of them."""
    host = url.raw_host or ""
    literal = _literal(host)
    addresses = [literal] if literal else await _resolve(host, url.port or 0, field, seconds)
    if any(not public(address) and not allowed(host, address, hosts) for address in addresses):
        raise NotAllowedError(
            f"{field}: {host} is a private, local or reserved address, which this server does not call; give a public "
            "one, or let the administrator add the host to LTX_A2V_ALLOW_HOSTS."
        )
    return addresses


class UnresolvedError(InputError):
    """The DNS has no answer at the moment."""


async def _resolve(host: str, port: int, field: str, seconds: float) -> list[Address]:
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    lookup = asyncio.get_running_loop().run_in_executor(LOOKUPS, look_up)
    try:
        found = await wait_for(lookup, max(0.0, seconds))
        addresses = [ipaddress.ip_address(answer[4][0]) for answer in found]
    except (OSError, UnicodeError, ValueError, asyncio.TimeoutError) as error:
        raise UnresolvedError(f"{field}: the host {host} cannot be resolved; check the URL.") from error
    if not addresses:
        raise UnresolvedError(f"{field}: the host {host} has no address; check the URL.")
    return addresses
