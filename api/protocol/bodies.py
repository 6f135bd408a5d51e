"""The bodies of JSON routes, read within limits."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from ..settings import Settings
from .answers import http_error


async def read_body(request: web.Request, settings: Settings) -> bytes:
    """The body of a JSON route. Errors: 415 for another type, which a foreign page could send unasked; 413."""
    if request.content_type != "application/json":
        raise http_error(web.HTTPUnsupportedMediaType, "Send Content-Type: application/json.")
    body = bytearray()
    async for piece in request.content.iter_any():  # ComfyUI's own limit on bodies may be smaller, or none
        body += piece
        if len(body) > settings.max_body:
            raise http_error(
                web.HTTPRequestEntityTooLarge,
                "The body is too large; upload the media and send their URLs.",
                max_size=settings.max_body,
                actual_size=len(body),
            )
    return bytes(body)


async def read_json(request: web.Request, settings: Settings) -> Any:
    """What is in the body of a JSON route. Errors: 415, 413, 400."""
    body = await read_body(request, settings)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise http_error(web.HTTPBadRequest, f"The body is no JSON: {error}"[:200]) from error
