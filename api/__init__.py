"""The hosted endpoint's protocol on ComfyUI's own server: what the official clients speak, answered locally.

`register` is the one thing the pack's root calls. Nothing here computes: a request becomes the committed workflow with
its values filled in, in ComfyUI's own queue.
"""

from __future__ import annotations

import logging
from typing import Any

_registered: list[Any] = []


def register(server: Any) -> None:
    """Puts the routes on a ComfyUI PromptServer, once; before that serves. What hinders it is logged."""
    if _registered:
        return
    try:
        from . import cluster, install  # aiohttp, pydantic and SQLAlchemy are the server's; the nodes do without

        queue = install.install(server)
        _registered.append(queue)
        cluster.install(server, queue)
    except Exception:
        logging.exception("LTX A2V: the HTTP API could not be set up, and is off; the nodes are not touched by that")
