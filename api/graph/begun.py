"""Which nodes of a run have begun, by what ComfyUI sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .graph import Prompt, sources


class Begun:
    """Turns the events of one run into the nodes that have begun.

    ComfyUI announces a node that has lazy inputs, such as a saver, before it makes them, and only asks it which of them
    it wants. The node is announced again when these are there. So an announcement is a beginning if all nodes that the
    node takes from have begun or are kept from an earlier run. A lazy input may never be wanted, so the node that it
    links to never begins. Therefore a node has also begun when it is announced again, when it tells its progress, an
    output or an error, and at the latest when the run has succeeded.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._known: set[str] = set()  # have begun, or are kept from an earlier run
        self._asked: dict[str, None] = {}  # were announced and have not begun, in order

    def hear(self, kind: str, data: Mapping[str, Any]) -> list[str]:
        """The nodes that have begun with that event."""
        if kind == "execution_cached":
            self._known |= set(data.get("nodes", ()))
        elif kind == "execution_success":
            return self._begin(*self._asked)
        elif kind == "executing":
            return self._announced(data.get("node"))
        elif kind in ("progress", "executed", "execution_error"):
            node = data.get("node") or data.get("node_id")
            return self._begin(node) if node in self._asked else []
        return []

    def _announced(self, node: str | None) -> list[str]:
        if node not in self._prompt or node in self._known:
            return []
        if node in self._asked or sources(self._prompt, node) <= self._known:
            return self._begin(node)
        self._asked[node] = None
        return []

    def _begin(self, *nodes: str) -> list[str]:
        self._known |= set(nodes)
        for node in nodes:
            self._asked.pop(node, None)
        return list(nodes)
