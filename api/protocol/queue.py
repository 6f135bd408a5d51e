"""The protocol over HTTP: submit, run, status, stream, result, cancel, as the official clients speak it.

Each handler reads a request, asks `Jobs`, and writes an answer; the table `operations` is what is registered and what
the OpenAPI document describes. Uploads, result files and the proxy bring their own routes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ...ltx.errors import InputError
from ..applications import inputs as schema
from ..applications.inputs import Invalid, problem
from ..database.store import DONE, PRIORITIES, QUEUED, Request, Store
from ..files import media, uploads
from ..graph.compose import ModelMissing
from ..host import Host
from ..queue.jobs import Jobs, ReusedKey, Submission, result_file, with_url
from ..queue.snapshots import Snapshot, Told
from ..settings import APP, Settings, read_settings
from ..waiting import is_set_within
from ..webhooks.deliveries import Webhooks
from ..webhooks.deliveries import check as check_webhook
from . import access as auth
from . import openapi

OWNER = "/".join(APP.split("/")[:2])  # the clients leave the rest out once they have a request
PING_SECONDS = 10.0
LARGE_BODY = 2**20  # bytes, of which the event loop reads no JSON itself; a thread costs milliseconds while a job runs
KEY_HEADERS = ("Idempotency-Key", "X-Fal-Idempotency-Key")
LONGEST_KEY = 255

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def install(server: Any) -> Jobs:
    """Registers everything on a PromptServer's app; work begins when that starts."""
    import folder_paths

    settings = read_settings(folder_paths)
    settings.prepare()
    database = Store(settings.database)
    webhooks = Webhooks(settings, database)
    jobs = Jobs(Host(server), database, settings, webhooks)
    endpoint = Endpoint(jobs, settings)
    own = [*endpoint.routes(), *uploads.routes(settings, database)]
    proxied = auth.proxy_routes(settings, [*own, endpoint.other_applications()])
    server.app.add_routes([*own, *media.routes(settings), *webhooks.routes(), *proxied])
    server.app.add_routes(endpoint.rest())
    auth.install_cors(server.app, settings)
    server.app.on_startup.append(lambda _: jobs.start())
    server.app.on_cleanup.append(lambda _: jobs.close())
    return jobs


@dataclass(frozen=True)
class Operation:
    """A documented route. path is below the prefix; open: asks for no key."""

    method: str
    path: str
    handler: Handler
    summary: str
    open: bool = False


class Endpoint:
    """The handlers of the one application."""

    def __init__(self, jobs: Jobs, settings: Settings) -> None:
        self.jobs, self.settings, self.told = jobs, settings, Told()
        one = f"/queue/{OWNER}/requests/{{request_id}}"
        self.operations = (
            Operation("POST", f"/queue/{APP}", self.submit, "Puts a request into the queue."),
            Operation("POST", f"/run/{APP}", self.run, "Runs a request and answers with its result."),
            Operation("GET", f"{one}/status", self.status, "Tells where a request stands."),
            Operation("GET", f"{one}/status/stream", self.stream, "Tells it anew whenever it changes, until the end."),
            Operation("GET", one, self.result, "The result of a request that has ended."),
            Operation("PUT", f"{one}/cancel", self.cancel, "Ends a request that waits or runs."),
            Operation("GET", f"{one}/workflow", self.workflow, "The request's graph, in ComfyUI's API form."),
            Operation("GET", "/openapi.json", self.describe, "This document.", open=True),
        )

    def routes(self) -> list[web.RouteDef]:
        """All operations; those of one request also under the application's whole name."""
        found = []
        for operation in self.operations:
            handler = _answering(operation.handler)
            if not operation.open:
                handler = auth.guard(handler, self.settings)
            for path in dict.fromkeys((operation.path, operation.path.replace(f"{OWNER}/requests", f"{APP}/requests"))):
                options = {"allow_head": False} if operation.method == "GET" else {}
                found.append(web.RouteDef(operation.method, self.settings.prefix + path, handler, options))
        return found

    def other_applications(self) -> web.RouteDef:
        """Whatever looks like a call of an application. To be registered after `routes`, which have those of ours."""
        return web.route("*", self.settings.prefix + "/{kind:run|queue}/{path:[^/]+/[^/]+[\\s\\S]*}", self.unknown)

    def rest(self) -> list[web.RouteDef]:
        """What there is none of. To be registered after everything else."""
        everything = web.route("*", f"{self.settings.prefix}/{{path:[\\s\\S]*}}", self.unknown)
        return [self.other_applications(), everything]

    async def unknown(self, request: web.Request) -> web.Response:
        app = request.match_info["path"].split("/requests/")[0]
        if "kind" in request.match_info and app not in (APP, OWNER):
            return auth.problem(404, f"Application {app[:200]!r} not found; this server has {APP}.")
        return auth.problem(404, f"{request.method} {request.path[:200]!r} is nothing of this API; see openapi.json.")

    # --- into the queue ---

    async def _submit(self, request: web.Request, webhook: str | None) -> tuple[Request, int]:
        submission = Submission(
            base_url=auth.base_url(request),
            priority=_priority(request),
            webhook_url=await self._webhook(webhook),
            idempotency_key=_idempotency_key(request),
            start_timeout=_timeout(request),
        )
        body = await auth.read_body(request, self.settings)
        value, digest = await asyncio.to_thread(_parsed, body) if len(body) > LARGE_BODY else _parsed(body)
        try:
            return await self.jobs.submit(value, digest, submission)
        except ReusedKey:
            message = "The key was used for another request; take a new one for each."
            raise Invalid([problem("idempotency-key", message, where="header")]) from None
        except ModelMissing as error:
            raise Refused(424, str(error), "model_missing") from None

    async def _webhook(self, url: str | None) -> str | None:
        if url is not None:
            try:
                await check_webhook(url, self.settings)
            except InputError as error:
                raise Invalid([problem("fal_webhook", str(error), where="query")]) from None
        return url

    async def submit(self, request: web.Request) -> web.Response:
        queued, position = await self._submit(request, request.query.get("fal_webhook"))
        body = {**self._urls(request, queued), "status": queued.status, "queue_position": position}
        return _json(queued, body)

    async def run(self, request: web.Request) -> web.StreamResponse:
        queued, _ = await self._submit(request, None)

        def alive() -> bool:
            return request.transport is not None and not request.transport.is_closing()

        ended = await self.jobs.wait(queued.id, alive)
        if ended is None:  # nobody is there to get it
            await self.jobs.cancel(queued.id)
            raise Refused(499, "The client closed the connection.")
        return await self._result(request, ended)

    # --- where a request stands ---

    async def _snapshot(self, request: web.Request) -> Snapshot:
        snapshot = await self.jobs.look(request.match_info["request_id"])
        if snapshot is None:
            raise Refused(404, "Request not found.")
        return snapshot

    def _urls(self, request: web.Request, found: Request) -> dict[str, str]:
        url = f"{auth.base_url(request)}{self.settings.prefix}/queue/{OWNER}/requests/{found.id}"
        return {
            "request_id": found.id,
            "gateway_request_id": found.id,
            "response_url": url,
            "status_url": f"{url}/status",
            "cancel_url": f"{url}/cancel",
        }

    def _status(self, request: web.Request, snapshot: Snapshot, after: int = 0) -> dict[str, Any]:
        found = snapshot.request
        body: dict[str, Any] = {"status": found.status, **self._urls(request, found)}
        if found.status == QUEUED:
            return {**body, "queue_position": snapshot.position}
        wanted = request.query.get("logs", "").lower() in ("1", "true", "yes")
        body["logs"] = [line for number, line in snapshot.logs if number > after] if wanted else []
        if found.status == DONE:
            body["metrics"] = {"inference_time": found.ended - found.started} if found.started else {}
            if found.error:
                body |= {"error": found.error, "error_type": found.error_type}
        return body

    async def status(self, request: web.Request) -> web.Response:
        """Answers at once, but a poller that was told the same within the last second waits for news a little."""
        snapshot = await self._snapshot(request)
        body = self._status(request, snapshot)
        poller = (request.remote, request.headers.get("User-Agent"), snapshot.request.id)  # connections are pooled
        if snapshot.request.status != DONE and self.told.knows(poller, body):
            with self.jobs.watch(snapshot.request.id) as changed:
                heard = await is_set_within(changed, self.settings.hold_seconds)
            if heard:
                snapshot = await self._snapshot(request)
                body = self._status(request, snapshot)
        self.told.note(poller, body)
        return _json(snapshot.request, body, 200 if snapshot.request.status == DONE else 202)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: the status whenever it differs, each line of the log once."""
        snapshot = await self._snapshot(request)
        request_id = snapshot.request.id
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Fal-Request-Id": request_id}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        last: dict[str, Any] = {}
        sent, quiet = 0, 0.0
        with suppress(ConnectionError), self.jobs.watch(request_id) as changed:
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
                elif quiet >= PING_SECONDS:  # so that neither side takes the connection for dead
                    await response.write(b": still here\n\n")
                    quiet = 0.0
                if snapshot.request.status == DONE:
                    break
                if not await is_set_within(changed, 1.0):
                    quiet += 1.0
                snapshot = await self._snapshot(request)
            await response.write_eof()
        return response

    # --- its end ---

    async def _find(self, request: web.Request) -> Request:
        found = await self.jobs.find(request.match_info["request_id"])
        if found is None:
            raise Refused(404, "Request not found.")
        return found

    async def result(self, request: web.Request) -> web.Response:
        return await self._result(request, await self._find(request))

    async def _result(self, request: web.Request, found: Request) -> web.Response:
        if found.status != DONE:
            return _json(found, {"detail": "Request is still in progress"}, 400)
        if found.error is not None:
            body = {"detail": found.error_detail or found.error, "error_type": found.error_type}
            headers = {"X-Fal-Error-Type": found.error_type or ""}
            if found.error_status == 504:
                headers["X-Fal-Request-Timeout-Type"] = "user"  # the clients do not retry this one
            return _json(found, body, found.error_status or 500, headers)
        path = result_file(found, self.settings)
        over = found.sync_mode and media.inline_gone(found.ended or 0, found.read, time.time(), self.settings)
        if over or found.gone or not await asyncio.to_thread(path.is_file):
            gone = media.GONE if found.sync_mode else "The result's file was deleted."
            return _json(found, {"detail": gone, "error_type": "result_gone"}, 410)
        if found.sync_mode:
            await self.jobs.note_read(found.id)
            url = await media.data_uri(path, self.settings)
        else:
            url = media.result_url(path.name, auth.base_url(request), self.settings)
        return _json(found, with_url(found.result or {}, url))

    async def cancel(self, request: web.Request) -> web.Response:
        done = await self.jobs.cancel(request.match_info["request_id"])
        if done is None:
            return web.json_response({"status": "NOT_FOUND"}, status=404)
        if not done:
            return web.json_response({"status": "ALREADY_COMPLETED"}, status=400)
        return web.json_response({"status": "CANCELLATION_REQUESTED"}, status=202)

    async def workflow(self, request: web.Request) -> web.Response:
        found = await self._find(request)
        if found.workflow is None:
            return _json(found, {"detail": "The request has no graph yet: it has not been started."}, 404)
        name = f'attachment; filename="{found.id}.json"'
        return _json(found, found.workflow, headers={"Content-Disposition": name})

    async def describe(self, request: web.Request) -> web.Response:
        return web.json_response(openapi.document(self.operations, self.settings))


class Refused(Exception):
    """An answer that is no result."""

    def __init__(self, status: int, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def _answering(handler: Handler) -> Handler:
    """The handler, its exceptions turned into answers that both clients read."""

    async def answered(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Invalid as error:
            return web.json_response({"detail": error.detail}, status=422)
        except Refused as error:
            body = {"detail": str(error), **({"error_type": error.kind} if error.kind else {})}
            return web.json_response(body, status=error.status)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:
            logging.exception("LTX A2V: %s %s failed", request.method, request.path)
            return auth.problem(500, "The server failed at this; its log says how.")

    return answered


def _json(found: Request, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    known = {"X-Fal-Request-Id": found.id, **({"X-Ltx-Safety": found.safety} if found.safety else {})}
    return web.json_response(body, status=status, headers={**known, **(headers or {})})


def _parsed(body: bytes) -> tuple[Any, str]:
    value = schema.read_json(body)
    return value, schema.digest(value)


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
        raise _header_problem("x-fal-request-timeout", "Give the seconds within which it is to start, above 0.1.")
    return seconds


def _idempotency_key(request: web.Request) -> str | None:
    key = next((request.headers[name] for name in KEY_HEADERS if request.headers.get(name)), None)
    if key and (len(key) > LONGEST_KEY or not key.isprintable()):
        raise _header_problem("idempotency-key", f"Give at most {LONGEST_KEY} printable characters.")
    return key
