"""The graph that is being queued, for nodes that check several of their values together.

ComfyUI tells `validate_inputs` the values that it names as arguments, and repeats its error for each of them. A node
that names one argument, and reads the others here, is refused once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from .server import running_server

_graph: ContextVar[Mapping[str, Any]] = ContextVar("ltx_a2v_queued")


def watch() -> None:
    """From now on each graph is kept, within the request that queues it. Without a server it does nothing."""
    server = running_server()
    if server is not None:
        server.add_on_prompt_handler(keep)


def keep(body: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's hook on what is sent to POST /prompt. Returns it as it is."""
    graph = body.get("prompt") if isinstance(body, Mapping) else None
    _graph.set(graph if isinstance(graph, Mapping) else {})
    return body


def values(node_id: str) -> dict[str, Any]:
    """The inputs of a node in that graph by name; None for those that are linked. Empty if no graph is being queued."""
    node = _graph.get({}).get(node_id)
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    given = inputs if isinstance(inputs, Mapping) else {}
    return {name: None if isinstance(value, list) else value for name, value in given.items()}
