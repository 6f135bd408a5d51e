"""Who is answered: whoever has the key; without one, this machine and nobody else.

The key guards the API's own routes only; ComfyUI's stay as they are.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress

from aiohttp import web

from ..settings import Settings
from .answers import Handler, problem


def same(given: str, expected: str) -> bool:
    """Compared in a time that tells nothing, not even the length."""
    return hmac.compare_digest(_digest(given), _digest(expected))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def credentials(request: web.Request, scheme: str) -> str | None:
    """What follows that scheme in the header Authorization."""
    given, _, value = request.headers.get("Authorization", "").strip().partition(" ")
    return value.strip() if given.lower() == scheme.lower() and value.strip() else None


def has_key(request: web.Request, settings: Settings) -> bool:
    """With a key set: whether it was given. Without one: whether the request comes from this machine."""
    if settings.key is None:
        return _is_local(request)
    return same(credentials(request, "Key") or "", settings.key)


def _is_local(request: web.Request) -> bool:
    if request.remote is None:  # a Unix socket
        return True
    try:
        address = ipaddress.ip_address(request.remote)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def unanswered(settings: Settings) -> web.Response:
    """The 401 that says what is missing."""
    if settings.key is None:
        return problem(401, "Without LTX_A2V_API_KEY this API answers its own machine only; set a key on the server.")
    return problem(
        401,
        "Authorization: Key … is missing or wrong; use the value of LTX_A2V_API_KEY.",
        **{"WWW-Authenticate": "Key"},
    )


def guard(handler: Handler, settings: Settings) -> Handler:
    """The handler, for those who have the key."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        return await handler(request) if has_key(request, settings) else unanswered(settings)

    return guarded
