"""The JavaScript client's proxy convention: a header names a URL of the hosted endpoint, and our handler answers.

No connection is opened. The route of that path in this process gets the request.
"""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web
from yarl import URL

from ..settings import Settings
from .answers import problem
from .messages import PlainProblem
from .operations import Answer, Operation, RouteParameter

TARGETS = {"fal.run": "/run", "queue.fal.run": "/queue", "rest.fal.ai": "/rest", "rest.alpha.fal.ai": "/rest"}
"""Hosts that the clients name in `x-fal-target-url`. Clients send uploads straight to their URL, never through the
proxy."""

TARGET_HEADER = "x-fal-target-url"


def operations(settings: Settings, targets: Iterable[web.RouteDef]) -> list[Operation]:
    """targets: all routes that can be reached this way. Their handlers are called in this process."""
    router = web.UrlDispatcher()
    router.add_routes(targets)

    async def proxy(request: web.Request) -> web.StreamResponse:
        target = _target(request.headers.get(TARGET_HEADER, ""), settings)
        if target is None:
            return problem(403, "x-fal-target-url is no URL of this endpoint; only its own URLs are answered.")
        inner = request.clone(rel_url=target)
        match = await router.resolve(inner)
        if match.http_exception is not None:
            return problem(403, "x-fal-target-url names a path that this endpoint does not have.")
        for app in reversed(request.match_info.apps):  # their signals sign a stream's headers, too
            match.add_app(app)
        inner._match_info = match  # as aiohttp's own dispatch does
        return await match.handler(inner)

    return [
        Operation(
            name=f"proxy{method.title()}",
            method=method,
            path="/proxy",
            handler=proxy,
            summary="Does here what the hosted endpoint does at the URL in the header.",
            parameters=(RouteParameter(TARGET_HEADER, "header", {"type": "string", "format": "uri"}, required=True),),
            answers={
                200: Answer("As the target answers.", content="*/*"),
                403: Answer("The URL is not one of this endpoint.", PlainProblem),
                "default": Answer("As the target answers.", content="*/*"),
            },
            needs_key=False,  # the target's own handler checks it
        )
        for method in ("GET", "POST", "PUT")
    ]


def _target(text: str, settings: Settings) -> URL | None:
    """A URL of the hosted endpoint → the path and query here; None for any other URL."""
    try:
        url = URL(text)
        prefix = TARGETS.get(url.raw_host or "")
        plain = url.scheme == "https" and url.port == 443 and url.user is None and url.password is None
    except ValueError:
        return None
    if prefix is None or not plain:
        return None
    return URL.build(path=settings.prefix + prefix + url.raw_path, query_string=url.raw_query_string, encoded=True)
