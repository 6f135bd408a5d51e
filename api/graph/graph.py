"""A ComfyUI graph in its API form (node id → class, inputs and title), while it is put together.

Nodes are found by class and title, never by number. So a workflow can be redrawn without a change of this code.
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

Prompt = dict[str, dict[str, Any]]

FOLDER = Path(__file__).resolve().parents[2] / "workflows" / "api"


@lru_cache
def read(name: str) -> Prompt:
    """Reads a committed workflow. Do not change the result."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


class Graph:
    """A prompt that is being put together."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = copy.deepcopy(prompt)

    def all(self, kind: str) -> list[str]:
        return [key for key, node in self.prompt.items() if node["class_type"] == kind]

    def find(self, kind: str, title: str | None = None) -> str:
        """The id of the only node of that class and title. Errors: LookupError: the committed workflow is not the
        expected one."""
        found = [key for key in self.all(kind) if title in (None, self.title(key))]
        if len(found) != 1:
            raise LookupError(f"{len(found)} nodes are {kind}{f' ({title})' if title else ''}, and one is expected")
        return found[0]

    def has(self, kind: str) -> bool:
        return bool(self.all(kind))

    def title(self, key: str) -> str:
        return self.prompt[key].get("_meta", {}).get("title", "")

    def inputs(self, kind: str, title: str | None = None) -> dict[str, Any]:
        return self.prompt[self.find(kind, title)]["inputs"]

    def add(self, kind: str, title: str, **inputs: Any) -> str:
        key = str(max(int(part) for key in self.prompt for part in key.split(":")) + 1)
        self.prompt[key] = {"inputs": inputs, "class_type": kind, "_meta": {"title": title}}
        return key

    def remove(self, key: str) -> None:
        """Removes a node and every link from it."""
        del self.prompt[key]
        for node in self.prompt.values():
            node["inputs"] = {name: value for name, value in node["inputs"].items() if not is_link_from(value, key)}

    def linked_to(self, output: list[Any]) -> list[tuple[dict[str, Any], str]]:
        """The nodes and names of their inputs that take that output."""
        return [
            (node, name) for node in self.prompt.values() for name, value in node["inputs"].items() if value == output
        ]

    def graft(self, donor: Graph, kind: str, title: str | None = None) -> str:
        """Copies a node of another graph and links it to this graph's nodes of the same class and title."""
        node = donor.prompt[donor.find(kind, title)]
        inputs = {
            name: [self.find(donor.prompt[value[0]]["class_type"], donor.title(value[0])), value[1]]
            if isinstance(value, list)
            else value
            for name, value in node["inputs"].items()
        }
        return self.add(kind, node["_meta"]["title"], **inputs)


def sources(prompt: Prompt, key: str) -> set[str]:
    """The ids of the nodes that a node's inputs link to."""
    return {other for value in prompt[key]["inputs"].values() for other in prompt if is_link_from(value, other)}


def is_link_from(value: Any, key: str) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] == key
