"""Puts the API's parts together on a ComfyUI server."""

from __future__ import annotations

import zlib
from typing import Any

from aiohttp import web

from . import cluster
from .applications import APPLICATIONS
from .database import schema
from .database.store import Store
from .host import Host
from .protocol import files, operations, proxy, signing_key
from .protocol.answers import problem
from .protocol.cors import install_cors
from .protocol.following import Following
from .protocol.openapi import document
from .protocol.operations import Answer, Operation
from .protocol.packed import unpacked
from .protocol.submitting import Submitting
from .protocol.uploads import Uploads
from .queue.queue import RequestQueue
from .settings import Settings, read_settings
from .webhooks.deliveries import Webhooks

LIVE = ("stream", "realtime")
"""What the clients add to an application's name for results while they are made."""
NOT_LIVE = (
    "This server has no streams of results and no realtime connections; submit the request and follow its status."
)


def install(server: Any) -> None:
    """Registers everything on a PromptServer's app. Call it before the server starts; work begins when that app starts.

    Errors: InputError for a wrong setting, or a database or folder that cannot be used. The pack's root logs them.
    """
    import folder_paths

    settings = read_settings(folder_paths)
    settings.prepare()
    schema.prepare(settings.database, contract())
    database = Store(settings.database)
    webhooks = Webhooks(settings, database)
    queue = RequestQueue(Host(server), database, settings, webhooks)
    server.app.add_routes(routes(queue, settings, database, webhooks))
    install_cors(server.app, settings)
    server.app.on_startup.append(lambda _: queue.start())
    server.app.on_cleanup.append(lambda _: queue.close())
    cluster.install(server, queue)


def contract() -> int:
    """A number for the requests that this version takes: its applications and their inputs.

    A server of another version would run a request without the inputs that it does not know. What such a version lets
    an input be needs no place in it: the server that runs a request checks it again.
    """
    inputs = (f"{name}: {', '.join(sorted(one.inputs.model_fields))}" for name, one in sorted(APPLICATIONS.items()))
    return zlib.crc32("\n".join(inputs).encode()) & 0x7FFFFFFF


def routes(queue: RequestQueue, settings: Settings, database: Store, webhooks: Webhooks) -> list[web.RouteDef]:
    """All routes in the order in which aiohttp tries them. The last ones answer that there is no such address."""
    described = all_operations(queue, settings, database, webhooks)
    return [*operations.routes(described, settings), other_applications(settings), anything_else(settings)]


def all_operations(queue: RequestQueue, settings: Settings, database: Store, webhooks: Webhooks) -> list[Operation]:
    """All operations that are served and described."""
    submitting, following = Submitting(queue, settings, webhooks), Following(queue, settings)
    own = [operation for application in APPLICATIONS.values() for operation in submitting.operations(application)]
    for owner in dict.fromkeys(application.owner for application in APPLICATIONS.values()):
        own += following.operations(owner, [each for each in APPLICATIONS.values() if each.owner == owner])
    own.append(_description(lambda: found, settings))
    own += Uploads(settings, database).operations()
    targets = [*operations.routes(own, settings), other_applications(settings)]
    found = [*own, *files.operations(settings), *signing_key.operations(webhooks), *proxy.operations(settings, targets)]
    return found


def _description(described: Any, settings: Settings) -> Operation:
    async def describe(_: web.Request) -> web.Response:
        return web.json_response(document(described(), settings))

    return Operation(
        name="describe",
        method="GET",
        path="/openapi.json",
        handler=describe,
        summary="Returns this document.",
        answers={200: Answer("An OpenAPI document.", schema={"type": "object", "required": ["openapi", "paths"]})},
        needs_key=False,
    )


def other_applications(settings: Settings) -> web.RouteDef:
    """Answers calls of unknown applications. Register it after the known ones."""

    async def unknown(request: web.Request) -> web.Response:
        name = request.match_info["path"].split("/requests/")[0]
        if name in APPLICATIONS or name in {application.owner for application in APPLICATIONS.values()}:
            return no_such_path(request)
        known, _, last = name.rpartition("/")
        if known in APPLICATIONS and last in LIVE:
            return problem(404, NOT_LIVE)
        return problem(404, f"Application {name[:200]!r} not found; this server has {', '.join(APPLICATIONS)}.")

    return web.route("*", settings.prefix + "/{kind:run|queue}/{path:[^/]+/[^/]+[\\s\\S]*}", unpacked(unknown))


def anything_else(settings: Settings) -> web.RouteDef:
    """Answers every other address. Register it last."""

    async def unknown(request: web.Request) -> web.Response:
        if request.match_info["path"].startswith("rest/tokens"):  # for such a connection
            return problem(404, NOT_LIVE)
        return no_such_path(request)

    return web.route("*", f"{settings.prefix}/{{path:[\\s\\S]*}}", unpacked(unknown))


def no_such_path(request: web.Request) -> web.Response:
    return problem(404, f"{request.method} {request.path[:200]!r} is no route of this API; openapi.json lists them.")
