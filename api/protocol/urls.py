"""This server's addresses as the client knows them. A known proxy tells the protocol and the host."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from contextlib import suppress

from aiohttp import web

from ..applications.application import owner_of
from ..database.rows import StoredRequest
from ..settings import Settings
from .answers import Refusal

HOST = re.compile(r"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")
"""Headers that proxies add to the requests that they pass on."""
PAIR = re.compile(r'\s*([A-Za-z]+)\s*=\s*("[^"]*"|[^\s;,"]*)\s*')


def is_forwarded(request: web.Request) -> bool:
    """Whether a proxy has passed on the request."""
    return any(name in request.headers for name in FORWARDED)


def is_known_proxy(request: web.Request, settings: Settings) -> bool:
    """Whether the request comes from an address that a setting names as a proxy."""
    try:
        remote = ipaddress.ip_address(request.remote or "")
    except ValueError:  # a Unix socket
        return False
    remote = getattr(remote, "ipv4_mapped", None) or remote
    for proxy in settings.proxies:
        with suppress(ValueError):  # a name
            if remote in ipaddress.ip_network(proxy, strict=False):
                return True
    return False


def base_url(request: web.Request, settings: Settings) -> str:
    """Scheme and host of this server. Errors: 400 for an invalid host."""
    scheme, host = request.scheme, request.host
    if is_known_proxy(request, settings):
        said = dict(_forwarded(request))
        scheme = said.get("proto", request.headers.get("X-Forwarded-Proto", scheme)).split(",")[0].strip().lower()
        host = said.get("host", request.headers.get("X-Forwarded-Host", host)).split(",")[0].strip()
    if not HOST.fullmatch(host) or scheme not in ("http", "https"):
        raise Refusal(400, "The Host header is no host name, or the protocol is not http or https.")
    return f"{scheme}://{host}"


def client_of(request: web.Request, settings: Settings) -> str | None:
    """The address of the client, as far as it is known. It tells clients apart; it is no proof of who they are."""
    if is_known_proxy(request, settings):
        said = dict(_forwarded(request)).get("for", request.headers.get("X-Forwarded-For", ""))
        return said.split(",")[0].strip() or request.remote
    return request.remote


def _forwarded(request: web.Request) -> Iterator[tuple[str, str]]:
    """The header Forwarded (RFC 7239) of the proxy next to this server: proto, host, for."""
    first = request.headers.get("Forwarded", "").split(",")[0]
    for part in first.split(";"):
        if pair := PAIR.fullmatch(part):
            yield pair[1].lower(), pair[2].strip('"')


def request_urls(request: web.Request, found: StoredRequest, settings: Settings) -> dict[str, str]:
    """A request's id and addresses, as answers about it tell them."""
    url = f"{base_url(request, settings)}{settings.prefix}/queue/{owner_of(found.app)}/requests/{found.id}"
    return {
        "request_id": found.id,
        "gateway_request_id": found.id,
        "response_url": url,
        "status_url": f"{url}/status",
        "cancel_url": f"{url}/cancel",
    }
