"""Who may ask: the key, pages of other origins, and the JS client's proxy convention.

The key guards the API's own routes only; ComfyUI's stay as they are. Without a key the API is open to this machine and
to nobody else.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web
from yarl import URL

from ..settings import Settings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HOST = re.compile(r"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
METHODS = "GET, POST, PUT, OPTIONS"
REQUEST_HEADERS = re.compile(r"accept|authorization|content-type|last-event-id|range|x-fal-[a-z0-9-]+|idempotency-key")
EXPOSED = (
    "x-fal-request-id, x-fal-request-timeout-type, x-fal-error-type, x-ltx-safety, etag, content-length, "
    "content-range, accept-ranges, content-disposition"
)
TARGETS = {"fal.run": "/run", "queue.fal.run": "/queue", "rest.fal.ai": "/rest", "rest.alpha.fal.ai": "/rest"}
"""Hosts that the clients name in `x-fal-target-url`. Uploads go to the URL they are given, never through the proxy."""
_ORIGIN: Any = "ltx_a2v_origin"
if hasattr(web, "RequestKey"):  # what new versions of aiohttp ask for
    _ORIGIN = web.RequestKey(_ORIGIN, str)


def problem(status: int, sentence: str, **headers: str) -> web.Response:
    """An error as both clients read it."""
    return web.json_response({"detail": sentence}, status=status, headers=headers)


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
        return _local(request)
    return same(credentials(request, "Key") or "", settings.key)


def _local(request: web.Request) -> bool:
    if request.remote is None:  # a Unix socket
        return True
    try:
        address = ipaddress.ip_address(request.remote)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def refused(settings: Settings) -> web.Response:
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
        return await handler(request) if has_key(request, settings) else refused(settings)

    return guarded


def base_url(request: web.Request) -> str:
    """Scheme and host of this server, as this client knows it. Errors: 400 for a Host header that is none."""
    if not HOST.fullmatch(request.host):
        raise web.HTTPBadRequest(
            text=json.dumps({"detail": "The Host header is broken."}), content_type="application/json"
        )
    return f"{request.scheme}://{request.host}"


async def read_body(request: web.Request, settings: Settings) -> bytes:
    """The body of a JSON route. Errors: 415 for another type, which a foreign page could send unasked; 413."""
    if request.content_type != "application/json":
        raise _refusal(web.HTTPUnsupportedMediaType, "Send Content-Type: application/json.")
    body = bytearray()
    async for piece in request.content.iter_any():  # ComfyUI's own limit on bodies may be smaller, or none
        body += piece
        if len(body) > settings.max_body:
            raise _refusal(
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
        raise _refusal(web.HTTPBadRequest, f"The body is no JSON: {error}"[:200]) from error


def _refusal(kind: type[web.HTTPException], sentence: str, **arguments: Any) -> web.HTTPException:
    return kind(text=json.dumps({"detail": sentence}), content_type="application/json", **arguments)


def install_cors(app: web.Application, settings: Settings) -> None:
    """Lets pages of `Settings.origins` call the API; in front of ComfyUI's own check, which would answer them 403.

    It touches requests below the API's prefix that carry such an origin, and no others.
    """
    below = settings.prefix + "/"

    @web.middleware
    async def cors(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin not in settings.origins or not request.path.startswith(below):
            return await handler(request)
        request[_ORIGIN] = origin
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return _preflight(request)
        # ComfyUI compares Origin and Host; what it is not shown it cannot mind
        headers = request.headers.copy()
        del headers["Origin"]
        return await handler(request.clone(headers=headers))

    async def sign(request: web.Request, response: web.StreamResponse) -> None:
        if _ORIGIN in request:
            response.headers["Access-Control-Allow-Origin"] = request[_ORIGIN]
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
            response.headers["Vary"] = "Origin"
            response.headers.pop("Access-Control-Allow-Credentials", None)

    app.middlewares.insert(0, cors)
    app.on_response_prepare.append(sign)


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


def proxy_routes(settings: Settings, targets: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    """The JS client's proxy convention: the header names a URL of the hosted endpoint, a handler of ours answers.

    targets: all that can be reached this way; the handlers are called in this process, and no connection is opened.
    """
    router = web.UrlDispatcher()
    router.add_routes(targets)

    async def proxy(request: web.Request) -> web.StreamResponse:
        target = _target(request.headers.get("x-fal-target-url", ""), settings)
        if target is None:
            return problem(403, "x-fal-target-url names nothing of this endpoint; only its own URLs are answered.")
        inner = request.clone(rel_url=target)
        match = await router.resolve(inner)
        if match.http_exception is not None:
            return problem(403, "x-fal-target-url names a path that this endpoint does not have.")
        inner._match_info = match  # what aiohttp's own dispatch does
        return await match.handler(inner)

    return [web.route(method, settings.prefix + "/proxy", proxy) for method in ("GET", "POST", "PUT")]


def _target(text: str, settings: Settings) -> URL | None:
    """A URL of the hosted endpoint → the path and query here; None for anything else."""
    try:
        url = URL(text)
        prefix = TARGETS.get(url.raw_host or "")
        plain = url.scheme == "https" and url.port == 443 and url.user is None and url.password is None
    except ValueError:
        return None
    if prefix is None or not plain:
        return None
    return URL.build(path=settings.prefix + prefix + url.raw_path, query_string=url.raw_query_string, encoded=True)
