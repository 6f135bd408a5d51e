"""Several ComfyUI servers behind one: requests go through Ray to other machines. A setting switches it on.

People call the head. `head` claims requests from its store as another server on that store would, with a lane for each
worker; `bridge` is the process that speaks Ray; `worker` is the part in a worker's ComfyUI; `door` gives workers the
media of a request and takes its result. Without these settings nothing of this is imported. Ray is never imported into
ComfyUI's own process, because it ends a process whose cluster is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..queue.queue import RequestQueue


def install(server: Any, queue: RequestQueue) -> None:
    """Makes a PromptServer a head, a worker, both, or (as usual) neither. Call it before the server starts."""
    if queue.settings.is_worker:
        from .worker import Worker

        server.app.add_routes(Worker(queue.host, queue.settings).routes())
    if queue.settings.ray_address:
        from .head import Cluster

        cluster = Cluster(queue)
        server.app.on_startup.append(lambda _: cluster.start())
        server.app.on_cleanup.append(lambda _: cluster.close())
