"""Pages of other origins. A setting names those that may call the API from a browser."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from ..settings import Settings
from .answers import Handler

METHODS = "GET, POST, PUT, OPTIONS"
REQUEST_HEADERS = re.compile(
    r"accept|authorization|content-type|last-event-id|(if-)?range|x-fal-[a-z0-9-]+|idempotency-key"
)
EXPOSED = (
    "x-fal-request-id, x-fal-request-timeout-type, x-fal-error-type, x-ltx-safety, etag, content-length, "
    "content-range, accept-ranges, content-disposition"
)
SITE = "Sec-Fetch-Site"
"""A browser's word for where a request comes from. New versions of ComfyUI refuse all that come from other sites."""
_ORIGIN: Any = "ltx_a2v_origin"
if hasattr(web, "RequestKey"):  # new versions of aiohttp want it
    _ORIGIN = web.RequestKey(_ORIGIN, str)


def install_cors(app: web.Application, settings: Settings) -> None:
    """Lets pages of `Settings.origins` call the API. It acts before ComfyUI's own check, which would answer 403.

    It touches only requests below the API's prefix that have such an origin, and those for files whose address is all
    that is needed: a link or a player on a page asks for them without an origin.
    """
    below = settings.prefix + "/"
    files = below + "cdn/"

    @web.middleware
    async def cors(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is None and request.method in ("GET", "HEAD") and request.path.startswith(files):
            return await handler(_without(request, SITE))
        if origin not in settings.origins or not request.path.startswith(below):
            return await handler(request)
        request[_ORIGIN] = origin
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return _preflight(request)
        # ComfyUI compares Origin and Host: without an Origin it does not refuse
        return await handler(_without(request, "Origin", SITE))

    async def sign(request: web.Request, response: web.StreamResponse) -> None:
        if _ORIGIN in request:
            response.headers["Access-Control-Allow-Origin"] = request[_ORIGIN]
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
            response.headers["Vary"] = "Origin"
            response.headers.pop("Access-Control-Allow-Credentials", None)

    app.middlewares.insert(0, cors)
    app.on_response_prepare.append(sign)


def _without(request: web.Request, *names: str) -> web.Request:
    """The request without these headers."""
    headers = request.headers.copy()
    for name in names:
        headers.popall(name, None)
    return request.clone(headers=headers)


def _preflight(request: web.Request) -> web.Response:
    asked = request.headers.get("Access-Control-Request-Headers", "")
    names = [name.strip().lower() for name in asked.split(",")]
    headers = {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": ", ".join(name for name in names if REQUEST_HEADERS.fullmatch(name)),
        "Access-Control-Max-Age": "600",
    }
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)
