"""The hosted endpoint's protocol on ComfyUI's own server, which answers the official clients locally.

The pack's root calls `register` and nothing else. Nothing here computes: the API fills a request's values into the
committed workflow and puts that into ComfyUI's own queue.
"""

from __future__ import annotations

import logging
from typing import Any

from ..ltx.errors import InputError

_registered: list[Any] = []


def register(server: Any) -> None:
    """Adds the routes to a ComfyUI PromptServer, once. Call it before the server starts. It logs what goes wrong."""
    if _registered:
        return
    try:
        from . import cluster, install  # these need aiohttp, pydantic and SQLAlchemy, and the nodes do not

        queue = install.install(server)
        _registered.append(queue)
        cluster.install(server, queue)
    except InputError as error:
        logging.error("LTX A2V: the HTTP API is off, and the nodes are not touched by that: %s", error)
    except Exception:
        logging.exception("LTX A2V: the HTTP API could not be set up, and is off; the nodes are not touched by that")
