"""How long a client wishes to keep files: of an upload, or of a request, in the headers of the official clients."""

from __future__ import annotations

import json

from aiohttp import web

from .operations import RouteParameter

OF_UPLOAD, OF_REQUEST = (
    RouteParameter(
        name,
        "header",
        {"type": "string"},
        'How long to keep the files, as JSON: {"expiration_duration_seconds": 3600}. Without it the server decides.',
    )
    for name in ("X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference")
)


def keep_seconds(request: web.Request, *headers: RouteParameter) -> float | None:
    """How long the client wishes to keep its files, by the first of these headers that it sends. Wishes about who may
    read them are ignored: the address is the secret. Errors: ValueError, with a sentence."""
    text = next((request.headers[each.name] for each in headers if each.name in request.headers), None)
    if text is None:
        return None
    try:
        wish = json.loads(text)
    except (ValueError, RecursionError):
        wish = None
    if not isinstance(wish, dict):
        raise ValueError('its lifecycle is no JSON object like {"expiration_duration_seconds": 3600}')
    seconds = wish.get("expiration_duration_seconds")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e12:
        raise ValueError("expiration_duration_seconds is a number of seconds above 0")
    return float(seconds)
