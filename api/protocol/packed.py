"""Refuses compressed bodies. No client of the hosted endpoint sends any.

aiohttp unpacks a body on the event loop as it is read, and after an early answer what nobody has read, too: 40 bodies
of 400 KB held up ComfyUI's page for half a minute.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from aiohttp import web

from ..waiting import wait_for
from .answers import Handler, problem

SENTENCE = "The body has a Content-Encoding, and this server unpacks none; send it as it is."
ARRIVE_SECONDS = 0.5
"""How long the answer waits for the rest of a small body. A client that still sends might lose it."""


def unpacked(handler: Handler) -> Handler:
    """Wraps a handler so that only bodies that are not compressed reach it. Others get a 415."""

    async def checked(request: web.Request) -> web.StreamResponse:
        codings = (coding.strip().lower() for coding in request.headers.getall("Content-Encoding", ()))
        if not request.body_exists or all(coding in ("", "identity") for coding in codings):
            return await handler(request)
        return await _refuse(request)

    return checked


async def _refuse(request: web.Request) -> web.StreamResponse:
    """Answers, and closes the connection of a body that has not come whole, without reading the rest of it."""
    with suppress(asyncio.TimeoutError, web.RequestPayloadError):
        await wait_for(request.content.wait_eof(), ARRIVE_SECONDS)
    answer = problem(415, SENTENCE, **{"Accept-Encoding": "identity"})
    if not request.content.is_eof():
        answer.force_close()
        await answer.prepare(request)
        await answer.write_eof()
        request.protocol.force_close()
    return answer
