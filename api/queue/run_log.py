"""Writes a run into a request's log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..graph.begun import Begun
from ..graph.compose import SAMPLER
from ..graph.graph import Prompt
from ..host import NODE_TEXT

MOST = 200
"""The most lines about the steps of one sampler: a film in windows has thousands of steps."""


class RunLog:
    """Turns ComfyUI's events into lines: each node as it begins, each step of a sampler, quarters of other progress."""

    def __init__(self, prompt: Prompt, say: Callable[[str], None]) -> None:
        self._prompt, self._say = prompt, say
        self._begun = Begun(prompt)
        self._last: dict[str, tuple[int, int]] = {}
        self._window: dict[str, str] = {}

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        for node in self._begun.hear(kind, data):
            self._say(self._title(node))
        if kind == "execution_start":
            self._say("Started")
        elif kind == "execution_cached" and data.get("nodes"):
            self._say(f"{len(data['nodes'])} of {len(self._prompt)} nodes are kept from the last run")
        elif kind == NODE_TEXT and data.get("window"):
            self._window[data["node"]] = data["window"]
        elif kind == "progress" and data.get("node") in self._prompt:
            self._step(data["node"], int(data["value"]), int(data["max"]))

    def _title(self, node: str) -> str:
        return self._prompt[node]["_meta"]["title"].removeprefix("LTX A2V ")

    def _step(self, node: str, done: int, total: int) -> None:
        sampler = self._prompt[node]["class_type"] == SAMPLER
        mark = done * (min(total, MOST) if sampler else 4) // max(total, 1)
        if done > 0 and total > 1 and self._last.get(node) != (mark, total) and mark > 0:
            self._last[node] = (mark, total)
            step = f"step {done}/{total}" if sampler else f"{done}/{total}"
            self._say(f"{self._title(node)}: {self._window.get(node, step)}")
