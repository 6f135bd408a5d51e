"""Routes of one request: its state, its result, its cancellation and its graph."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from aiohttp import web

from ..applications import Application
from ..applications.application import operation_name
from ..database.rows import DONE, QUEUED, StoredRequest
from ..database.store import StoreFailed
from ..files import results
from ..files.incoming import in_thread
from ..queue.queue import RequestQueue
from ..queue.snapshots import Snapshot
from ..settings import Settings
from ..waiting import is_set_within
from .answers import Refusal, about, about_in_pieces
from .messages import Cancelled, PlainProblem, Status, ValidationProblem
from .operations import Answer, Operation, RouteParameter
from .pollers import Told
from .urls import base_url, client_of, request_urls

PING_SECONDS = 10.0
REQUEST_ID = RouteParameter("request_id", "path", {"type": "string"})
LOGS = RouteParameter("logs", "query", {"type": "string", "enum": ["0", "1", "true", "false"]})
NO_SUCH = {
    404: Answer("There is no such request.", PlainProblem),
    503: Answer("The server's database cannot be used at the moment.", PlainProblem),
}
GRAPH = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["class_type", "inputs"],
        "properties": {
            "class_type": {"type": "string"},
            "inputs": {"type": "object"},
            "_meta": {"type": "object", "properties": {"title": {"type": "string"}}},
        },
    },
}
"""JSON schema of a graph in ComfyUI's API form."""
ENDINGS = {
    400: Answer("The request was cancelled, or has not ended yet.", PlainProblem),
    410: Answer("The result was deleted.", PlainProblem),
    422: Answer("An input was found to be wrong later.", ValidationProblem),
    424: Answer("A model file is not installed.", PlainProblem),
    500: Answer("The request failed.", PlainProblem),
    504: Answer("The request did not start in time.", PlainProblem),
}


class Following:
    """The handlers of the routes of one request."""

    def __init__(self, queue: RequestQueue, settings: Settings) -> None:
        self.queue, self.settings, self.told = queue, settings, Told()

    def operations(self, owner: str, applications: list[Application]) -> list[Operation]:
        """owner: the part of an id that the clients use in these addresses. The full ids work, too. applications: all
        of that owner; their results have one form."""
        (output,) = {application.output for application in applications}

        def one(
            name: str, method: str, rest: str, summary: str, answers: Any, *parameters: RouteParameter
        ) -> Operation:
            prefixes = (owner, *(application.id for application in applications))
            paths = [f"/queue/{prefix}/requests/{{request_id}}{rest}" for prefix in prefixes]
            return Operation(
                name=operation_name(name, owner),
                method=method,
                path=paths[0],
                also=tuple(paths[1:]),
                handler=getattr(self, name),
                summary=summary,
                parameters=(REQUEST_ID, *parameters),
                answers=answers,
            )

        standing = {200: Answer("The request has ended.", Status), 202: Answer("It waits or runs.", Status), **NO_SUCH}
        events = {"type": "string", "description": "Server-sent events. The data of each is a Status."}
        streamed = {200: Answer("Each event is a Status.", None, "text/event-stream", events), **NO_SUCH}
        ended = {200: Answer("The result.", output), **ENDINGS, **NO_SUCH}
        ending = {
            202: Answer("The request will end soon.", Cancelled),
            400: Answer("The request had already ended.", Cancelled),
            404: Answer("There is no such request.", Cancelled),
            503: NO_SUCH[503],
        }
        graph = {200: Answer("Nodes by their ids.", schema=GRAPH), **NO_SUCH}
        return [
            one("status", "GET", "/status", "Returns a request's state.", standing, LOGS),
            one("stream", "GET", "/status/stream", "Streams a request's state until its end.", streamed, LOGS),
            one("result", "GET", "", "Returns the result of a request that has ended.", ended),
            one("cancel", "PUT", "/cancel", "Cancels a request that waits or runs.", ending),
            one("workflow", "GET", "/workflow", "Returns a request's graph, in ComfyUI's API form.", graph),
        ]

    async def _snapshot(self, request: web.Request) -> Snapshot:
        snapshot = await self.queue.look(request.match_info["request_id"])
        if snapshot is None:
            raise Refusal(404, "Request not found.")
        return snapshot

    def _status(self, request: web.Request, snapshot: Snapshot, after: int = 0) -> dict[str, Any]:
        found = snapshot.request
        body: dict[str, Any] = {"status": found.status, **request_urls(request, found, self.settings)}
        if found.status == QUEUED:
            return {**body, "queue_position": snapshot.position}
        wanted = request.query.get("logs", "").lower() in ("1", "true", "yes")
        body["logs"] = [line for number, line in snapshot.logs if number > after] if wanted else []
        if found.status == DONE:
            body["metrics"] = {"inference_time": max(0.0, found.ended - found.started)} if found.started else {}
            if found.error:
                body |= {"error": found.error, "error_type": found.error_type}
        return body

    async def status(self, request: web.Request) -> web.Response:
        """Answers at once, except for a poller that got the same answer within the last second: it waits a little for
        news."""
        snapshot = await self._snapshot(request)
        body = self._status(request, snapshot)
        # not the connection: clients use one for several pollers
        poller = (client_of(request, self.settings), request.headers.get("User-Agent"), snapshot.request.id)
        if snapshot.request.status != DONE and self.told.knows(poller, body):
            with self.queue.watch(snapshot.request.id) as changed:
                heard = await is_set_within(changed, self.settings.hold_seconds)
            if heard:
                snapshot = await self._snapshot(request)
                body = self._status(request, snapshot)
        self.told.note(poller, body)
        return about(snapshot.request, body, 200 if snapshot.request.status == DONE else 202)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Sends server-sent events: the status whenever it changes, and each line of the log once."""
        base_url(request, self.settings)  # an answer that has begun cannot become a refusal any more
        snapshot = await self._snapshot(request)
        request_id = snapshot.request.id
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Fal-Request-Id": request_id}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        last: dict[str, Any] = {}
        sent, quiet = 0, 0.0
        with suppress(ConnectionError), self.queue.watch(request_id) as changed:
            while True:
                changed.clear()
                body = self._status(request, snapshot, sent)
                same = {**body, "logs": None} == last and not body.get("logs")
                if not same:
                    last = {**body, "logs": None}
                    if body["status"] != QUEUED and snapshot.logs:
                        sent = snapshot.logs[-1][0]
                    await response.write(f"data: {json.dumps(body)}\n\n".encode())
                    quiet = 0.0
                elif quiet >= PING_SECONDS:  # so neither side takes the connection for dead
                    await response.write(b": still here\n\n")
                    quiet = 0.0
                if snapshot.request.status == DONE:
                    break
                if not await is_set_within(changed, 1.0):
                    quiet += 1.0
                with suppress(StoreFailed):  # there is no news for the moment
                    if (found := await self.queue.look(request_id)) is None:
                        break  # the request was forgotten
                    snapshot = found
            await response.write_eof()
        return response

    # --- its end ---

    async def _find(self, request: web.Request) -> StoredRequest:
        found = await self.queue.find(request.match_info["request_id"])
        if found is None:
            raise Refusal(404, "Request not found.")
        return found

    async def result(self, request: web.Request) -> web.Response:
        return await result_answer(request, await self._find(request), self.queue, self.settings)

    async def cancel(self, request: web.Request) -> web.Response:
        done = await self.queue.cancel(request.match_info["request_id"])
        if done is None:
            return web.json_response({"status": "NOT_FOUND"}, status=404)
        if not done:
            return web.json_response({"status": "ALREADY_COMPLETED"}, status=400)
        return web.json_response({"status": "CANCELLATION_REQUESTED"}, status=202)

    async def workflow(self, request: web.Request) -> web.Response:
        found = await self._find(request)
        if found.workflow is None:
            return about(found, {"detail": "The request has no graph yet: it has not been started."}, 404)
        name = f'attachment; filename="{found.id}.json"'
        return about(found, found.workflow, headers={"Content-Disposition": name})


async def result_answer(
    request: web.Request, found: StoredRequest, queue: RequestQueue, settings: Settings
) -> web.Response:
    """The answer to a client that asks for a request's result."""
    if found.status != DONE:
        return about(found, {"detail": "Request is still in progress"}, 400)
    if found.error is not None:
        body = {"detail": found.error_detail or found.error, "error_type": found.error_type}
        headers = {"X-Fal-Error-Type": found.error_type or ""}
        if found.error_status == 504:
            headers["X-Fal-Request-Timeout-Type"] = "user"  # clients do not retry this one
        return about(found, body, found.error_status or 500, headers)
    gone = results.GONE if found.sync_mode else "The result's file was deleted."
    no_more = about(found, {"detail": gone, "error_type": "result_gone"}, 410)
    now, ended = time.time(), found.ended or 0
    over = found.sync_mode and results.inline_gone(ended, found.read, now, settings)
    over |= found.keep_seconds is not None and now >= ended + found.keep_seconds
    if over or found.gone or found.result is None:
        return no_more
    path = results.result_file(found, settings)
    try:
        if found.sync_mode:
            with suppress(StoreFailed):  # it stays for an hour then; a 503 to `run` would have the client send it again
                await queue.note_read(found.id)
            return _inline(found, await in_thread(results.InlineResult.opened, path))
        await in_thread(path.stat)
    except FileNotFoundError:  # perhaps deleted just now
        return no_more
    url = results.result_url(path.name, base_url(request, settings), settings)
    return about(found, results.with_url(found.result, url))


def _inline(found: StoredRequest, video: results.InlineResult) -> web.Response:
    """The answer with the video in it, which is made as the client reads it."""
    place = secrets.token_hex(16)
    before, after = json.dumps(results.with_url(found.result or {}, place)).encode().split(place.encode())

    async def pieces() -> AsyncIterator[bytes]:
        yield before
        async for piece in video.pieces():
            yield piece
        yield after

    return about_in_pieces(found, pieces(), len(before) + len(video) + len(after))
