"""Several ComfyUI servers behind one: requests go through Ray to other machines. Off unless a setting asks for it.

The head is the server that people call. `head` takes requests from its store as one more server on that store would, a
lane for each worker; `bridge` is the process that speaks Ray; `worker` is what a worker's ComfyUI answers; `door` gives
workers the media of a request and takes its result. Nothing of this is imported where neither setting is there, and Ray
never is in ComfyUI's own process: it ends a process whose cluster is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..queue.queue import RequestQueue


def install(server: Any, queue: RequestQueue) -> None:
    """Makes a PromptServer a head, a worker, both or (as most are) neither. To be called before it starts."""
    if queue.settings.is_worker:
        from .worker import Worker

        server.app.add_routes(Worker(queue.host, queue.settings).routes())
    if queue.settings.ray_address:
        from .head import Cluster

        cluster = Cluster(queue)
        server.app.on_startup.append(lambda _: cluster.start())
        server.app.on_cleanup.append(lambda _: cluster.close())
