"""Routes that put requests into the queue: submit, and run while the client waits."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

from aiohttp import web

from ...ltx.errors import InputError
from ..applications import Application
from ..applications.application import operation_name
from ..applications.inputs import Invalid, problem
from ..database.rows import PRIORITIES, StoredRequest
from ..graph.model_files import ModelMissing
from ..queue.queue import RequestQueue
from ..queue.submissions import ReusedKey, Submission
from ..settings import Settings
from ..webhooks.deliveries import FIELD, Webhooks, WebhooksOff
from .answers import Handler, Refusal, about
from .bodies import Gate, read_submission
from .following import ENDINGS, result_answer
from .lifetimes import OF_REQUEST, keep_seconds
from .messages import PlainProblem, Submitted, ValidationProblem
from .operations import UNAVAILABLE, Answer, Body, Operation, RouteParameter
from .urls import base_url, request_urls

KEY_HEADERS = ("Idempotency-Key", "X-Fal-Idempotency-Key")
LONGEST_KEY = 255
WEBHOOK = RouteParameter(FIELD, "query", {"type": "string", "format": "uri"})
HEADERS = (
    RouteParameter(
        "X-Fal-Queue-Priority",
        "header",
        {"type": "string", "enum": [*PRIORITIES]},
        "Requests of low priority wait for all others.",
    ),
    RouteParameter(
        "X-Fal-Request-Timeout",
        "header",
        {"type": "number", "exclusiveMinimum": 0.1, "maximum": 1e9},
        "Seconds within which the request must start.",
    ),
    RouteParameter(
        "Idempotency-Key",
        "header",
        {"type": "string", "maxLength": LONGEST_KEY},
        "A submission with a known key is a retry of that request.",
    ),
    OF_REQUEST,
)
BAD_BODY = {
    400: Answer("The HTTP request is broken.", PlainProblem),
    408: Answer("The body came too slowly.", PlainProblem),
    413: Answer("The body is too large.", PlainProblem),
    415: Answer("The body is compressed, or not announced as JSON.", PlainProblem),
    422: Answer("An input is missing or wrong.", ValidationProblem),
    424: Answer("A model file is not installed.", PlainProblem),
    **UNAVAILABLE,
}


class Submitting:
    """The handlers of each application's own routes."""

    def __init__(self, queue: RequestQueue, settings: Settings, webhooks: Webhooks) -> None:
        self.queue, self.settings, self._webhooks = queue, settings, webhooks
        self._gate = Gate()

    def operations(self, application: Application) -> list[Operation]:
        return [
            Operation(
                name=operation_name("submit", application.id),
                method="POST",
                path=f"/queue/{application.id}",
                handler=self._for(application, self.submit),
                summary="Puts a request into the queue.",
                parameters=(*HEADERS, WEBHOOK),
                body=Body(application.inputs),
                answers={200: Answer("The request is in the queue.", Submitted), **BAD_BODY},
            ),
            Operation(
                name=operation_name("run", application.id),
                method="POST",
                path=f"/run/{application.id}",
                handler=self._for(application, self.run),
                summary="Runs a request and answers with its result.",
                parameters=HEADERS,
                body=Body(application.inputs),
                answers={200: Answer("The result.", application.output), **ENDINGS, **BAD_BODY},
            ),
        ]

    def _for(
        self, application: Application, handler: Callable[[Application, web.Request], Awaitable[web.StreamResponse]]
    ) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await handler(application, request)

        return handle

    async def submit(self, application: Application, request: web.Request) -> web.Response:
        queued, position = await self._submit(application, request, request.query.get(WEBHOOK.name))
        urls = request_urls(request, queued, self.settings)
        return about(queued, {**urls, "status": queued.status, "queue_position": position})

    async def run(self, application: Application, request: web.Request) -> web.StreamResponse:
        queued, _ = await self._submit(application, request, None)

        def alive() -> bool:
            return request.transport is not None and not request.transport.is_closing()

        ended = await self.queue.wait(queued.id, alive)
        if ended is None:  # the client has gone; a request with a key goes on for its retries
            if queued.idempotency_key is None and not self.queue.is_awaited(queued.id):
                await self.queue.cancel(queued.id)
            raise Refusal(499, "The client closed the connection.")
        return await result_answer(request, ended, self.queue, self.settings)

    async def _submit(
        self, application: Application, request: web.Request, webhook: str | None
    ) -> tuple[StoredRequest, int]:
        said = {
            "base_url": base_url(request, self.settings),
            "priority": _priority(request),
            "webhook_url": await self._webhook(webhook),
            "idempotency_key": _idempotency_key(request),
            "start_timeout": _timeout(request),
            "keep_seconds": _keep_seconds(request),
        }
        try:
            with self._gate(request):
                async with read_submission(request, application.files, self.settings) as body:
                    submission = Submission(body.value, body.digest, files=body.files, **said)
                    return await self.queue.submit(application, submission)
        except ReusedKey:
            message = "The key was used for another request; use a new key for each request."
            raise Invalid([problem("idempotency-key", message, where="header")]) from None
        except ModelMissing as error:
            raise Refusal(424, str(error), "model_missing") from None

    async def _webhook(self, url: str | None) -> str | None:
        if url is not None:
            try:
                await self._webhooks.check(url)
            except InputError as error:
                raise Invalid([problem(WEBHOOK.name, str(error), where="query")]) from None
            except WebhooksOff as error:
                raise Refusal(503, str(error), "webhooks_off") from None
        return url


def _header_problem(name: str, message: str) -> Invalid:
    return Invalid([problem(name, message, where="header")])


def _priority(request: web.Request) -> int:
    name = request.headers.get("X-Fal-Queue-Priority", "normal").lower()
    if name not in PRIORITIES:
        raise _header_problem("x-fal-queue-priority", f"Give {' or '.join(PRIORITIES)}.")
    return PRIORITIES[name]


def _timeout(request: web.Request) -> float | None:
    text = request.headers.get("X-Fal-Request-Timeout")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.1 < seconds < math.inf:
        raise _header_problem("x-fal-request-timeout", "Give more than 0.1: the seconds within which it must start.")
    return seconds


def _keep_seconds(request: web.Request) -> float | None:
    try:
        return keep_seconds(request, OF_REQUEST)
    except ValueError as error:
        raise _header_problem(OF_REQUEST.name.lower(), f"This header is broken: {error}.") from None


def _idempotency_key(request: web.Request) -> str | None:
    key = next((request.headers[name] for name in KEY_HEADERS if request.headers.get(name)), None)
    if key and (len(key) > LONGEST_KEY or not key.isprintable()):
        raise _header_problem("idempotency-key", f"Give at most {LONGEST_KEY} printable characters.")
    return key
