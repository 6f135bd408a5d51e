"""Access: a client needs the key; without a key this machine alone has access.

The key guards the API's own routes; ComfyUI's routes do not change. Without a key a request must come straight from
this machine and use one of its local names: a proxy passes on anybody's requests, and a web page can let its own name
lead here. Pages of other origins need the key or a token in any case.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress

from aiohttp import web
from yarl import URL

from ..settings import Settings
from .answers import Handler, Refusal
from .urls import is_forwarded

LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


def same(given: str, expected: str) -> bool:
    """Compares two secrets in a time that reveals nothing, not even the length."""
    return hmac.compare_digest(_digest(given), _digest(expected))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def credentials(request: web.Request, scheme: str) -> str | None:
    """The part of the header Authorization behind that scheme."""
    given, _, value = request.headers.get("Authorization", "").strip().partition(" ")
    return value.strip() if given.lower() == scheme.lower() and value.strip() else None


def refusal(request: web.Request, settings: Settings) -> Refusal | None:
    """Returns why a request has no access; None if it has."""
    if settings.key is not None:
        if same(credentials(request, "Key") or "", settings.key):
            return None
        sentence = "Authorization: Key … is missing or wrong; use the value of LTX_A2V_API_KEY."
        return Refusal(401, sentence, headers={"WWW-Authenticate": "Key"})
    if not _is_local(request):
        return Refusal(401, "Without LTX_A2V_API_KEY this API answers its own machine only; set a key on the server.")
    if is_forwarded(request):
        return Refusal(401, "A proxy passed this on, and LTX_A2V_API_KEY is not set; set a key on the server.")
    if not _is_local_name(request.host):
        return Refusal(
            401, "Without LTX_A2V_API_KEY this API answers to the name localhost only; use it, or set a key."
        )
    if not _is_own_origin(request):
        return Refusal(403, "Pages of other origins have no access; add the page's origin to LTX_A2V_ORIGINS.")
    return None


def _is_local(request: web.Request) -> bool:
    return request.remote is None or _is_loopback(request.remote)  # None: a Unix socket


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _is_local_name(host: str) -> bool:
    """Whether a Host header names this machine by a name that no DNS can redirect."""
    try:
        name = (URL(f"http://{host}").host or "").rstrip(".").lower()
    except ValueError:
        return False
    return name in LOCAL_NAMES or name.endswith(".localhost") or _is_loopback(name)


def _is_own_origin(request: web.Request) -> bool:
    """Whether no page of another origin sent the request. Pages of allowed origins have passed before (cors.py)."""
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    try:
        url = URL(origin)
        own = URL(f"{url.scheme}://{request.host}")
    except ValueError:
        return False
    return url.scheme in ("http", "https") and (url.host, url.port) == (own.host, own.port)


def guard(handler: Handler, settings: Settings) -> Handler:
    """Wraps a handler so that only clients with access reach it. Errors: Refusal, which `answering` answers."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        if refused := refusal(request, settings):
            raise refused
        return await handler(request)

    return guarded
