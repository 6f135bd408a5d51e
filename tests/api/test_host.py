"""The one file of the API that knows ComfyUI: against ComfyUI's own queue, with runs played by the test."""

from __future__ import annotations

import ast
import asyncio
import copy
import heapq
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import pytest
from a2v.api.host import Host, Outcome, Rejected

HOST = Path(os.environ.get("LTX_A2V_HOST") or Path(__file__).resolve().parents[2] / ".host" / "comfyui")
PROMPT = {"1": {"class_type": "Any", "inputs": {}}}
pytestmark = pytest.mark.skipif(not (HOST / "execution.py").is_file(), reason="no ComfyUI; `make setup` unpacks one")


def prompt_queue(server: Any) -> Any:
    """ComfyUI's queue, cut from its source: importing it would bring all of ComfyUI with it."""
    tree = ast.parse((HOST / "execution.py").read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "PromptQueue"]
    names = {"threading": threading, "heapq": heapq, "copy": copy, "NamedTuple": NamedTuple, "Literal": Literal}
    names |= {"List": list, "MAXIMUM_HISTORY_SIZE": 10000, "Any": Any, "Optional": __import__("typing").Optional}
    exec(compile(tree, "execution.py", "exec"), names)
    return names["PromptQueue"](server)


class Server:
    """A PromptServer as far as `Host` looks at one."""

    def __init__(self) -> None:
        self.sockets: dict[str, Any] = {}
        self.sockets_metadata: dict[str, Any] = {}
        self.number = 0
        self.prompt_queue = prompt_queue(self)
        self.handled: list[dict[str, Any]] = []

    def queue_updated(self) -> None:
        """ComfyUI tells its browsers."""

    def trigger_on_prompt(self, body: dict[str, Any]) -> dict[str, Any]:
        self.handled.append(body)
        return body

    async def tell(self, kind: str, data: dict[str, Any]) -> None:
        for socket in list(self.sockets.values()):
            await socket.send_json({"type": kind, "data": data})


class Comfy:
    """What goes on around `Host.run`: the validation's verdict, the interrupts, and a run step by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = Server()
        self.host = Host(self.server)
        self.verdict: tuple[bool, Any, list[str], dict[str, Any]] = (True, None, ["1"], {})
        self.interrupts = 0
        self.events: list[str] = []
        self.ids: list[str] = []

        async def validate(*_: Any) -> Any:
            return self.verdict

        def interrupt() -> None:
            self.interrupts += 1

        execution = SimpleNamespace(validate_prompt=validate, SENSITIVE_EXTRA_DATA_KEYS=("secret",))
        monkeypatch.setitem(sys.modules, "execution", execution)
        monkeypatch.setitem(sys.modules, "nodes", SimpleNamespace(interrupt_processing=interrupt))

    async def begin(self) -> asyncio.Task[Outcome]:
        """A run that has come into ComfyUI's queue."""
        task = asyncio.create_task(self.host.run(PROMPT, self.ids.append, lambda kind, data: self.events.append(kind)))
        while not self.ids and not task.done():
            await asyncio.sleep(0)
        return task

    def take(self) -> int:
        """ComfyUI begins with the next prompt."""
        _, item_id = self.server.prompt_queue.get(timeout=1)
        return item_id

    async def end(self, item_id: int, outputs: dict[str, Any], *messages: tuple[str, dict[str, Any]]) -> None:
        queue = self.server.prompt_queue
        (prompt_id,) = (item[1] for key, item in queue.currently_running.items() if key == item_id)
        queue.task_done(item_id, {"outputs": outputs}, queue.ExecutionStatus("success", True, list(messages)))
        await self.server.tell("executing", {"node": None, "prompt_id": prompt_id})


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> Comfy:
    return Comfy(monkeypatch)


def played(play: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(play(), 20))


def test_a_run_is_followed_to_its_end(comfy: Comfy) -> None:
    async def play() -> Outcome:
        task = await comfy.begin()
        item_id = comfy.take()
        await comfy.server.tell("progress", {"prompt_id": "another's", "value": 1, "max": 2})
        await comfy.server.tell("execution_start", {"prompt_id": comfy.ids[0]})
        await comfy.end(item_id, {"1": {"text": ["said"]}})
        return await task

    outcome = played(play)
    assert outcome == Outcome(outputs={"1": {"text": ["said"]}})
    assert comfy.events == ["execution_start", "executing"], "another prompt's events are nothing of ours"
    assert comfy.server.sockets == {} == comfy.server.sockets_metadata
    assert comfy.server.handled[0]["prompt"] == PROMPT and comfy.server.handled[0]["prompt"] is not PROMPT


def test_why_it_failed_and_who_stopped_it(comfy: Comfy) -> None:
    failed = {"node_id": "1", "exception_type": "ValueError", "exception_message": " it broke\n"}

    async def play(*messages: tuple[str, dict[str, Any]]) -> Outcome:
        comfy.ids.clear()
        task = await comfy.begin()
        await comfy.end(comfy.take(), {}, *messages)
        return await task

    error = played(lambda: play(("execution_error", failed))).error
    assert (error.node_id, error.kind, error.message) == ("1", "ValueError", "it broke")
    assert played(lambda: play(("execution_interrupted", {}))).interrupted


def test_what_comfyui_does_not_take(comfy: Comfy) -> None:
    errors = [{"message": "Value not in list", "details": "no such file"}]
    for verdict, said in (
        ((False, {"message": "bad", "details": "graph"}, [], {}), {"": "bad: graph"}),
        ((False, None, [], {"1": {"errors": errors}}), {"1": "Value not in list: no such file"}),
        ((True, None, ["1"], {"1": {"errors": errors}}), {"1": "Value not in list: no such file"}),
    ):
        comfy.verdict = verdict

        async def play() -> Outcome:
            return await (await comfy.begin())

        with pytest.raises(Rejected) as refused:
            played(play)
        assert refused.value.errors == said
    assert comfy.server.prompt_queue.get_tasks_remaining() == 0 and comfy.server.sockets == {}


def test_a_prompt_that_somebody_took_out_unrun(comfy: Comfy) -> None:
    async def play() -> Outcome:
        task = await comfy.begin()
        assert comfy.server.prompt_queue.delete_queue_item(lambda item: item[1] == comfy.ids[0])
        return await task

    assert played(play).removed


def test_a_stopped_prompt_is_over_when_comfyui_is_done_with_it(comfy: Comfy) -> None:
    async def play() -> None:
        task = await comfy.begin()
        item_id = comfy.take()
        task.cancel()
        await asyncio.wait({task})
        over = asyncio.create_task(comfy.host.over(comfy.ids[0]))
        await asyncio.sleep(0.05)
        assert not over.done()
        await comfy.end(item_id, {})
        await over
        await comfy.host.over("of another time")

    played(play)


@pytest.mark.parametrize("running", [True, False])
def test_whoever_leaves_takes_its_own_prompt_along_and_no_other(comfy: Comfy, running: bool) -> None:
    async def play() -> None:
        queue = comfy.server.prompt_queue
        queue.put((-1, "another's", {}, {}, [], {}))
        if running:
            comfy.take()
        task = await comfy.begin()
        if running:
            item_id = comfy.take()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() and comfy.interrupts == running
        running_now, waiting = queue.get_current_queue_volatile()
        assert [item[1] for item in waiting] == ([] if running else ["another's"])
        assert [item[1] for item in running_now] == (["another's", comfy.ids[0]] if running else [])
        if running:
            await comfy.end(item_id, {})

    played(play)


def test_what_is_sensitive_stays_out_of_the_prompt_s_extra_data(comfy: Comfy) -> None:
    def add(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "extra_data": {"secret": "s", "other": 1}}

    comfy.server.trigger_on_prompt = add

    async def play() -> tuple[Any, ...]:
        task = await comfy.begin()
        item = comfy.server.prompt_queue.queue[0]
        task.cancel()
        await asyncio.wait({task})
        return item

    _, prompt_id, _, extra, outputs, sensitive = played(play)
    assert sensitive == {"secret": "s"} and "secret" not in extra and extra["other"] == 1
    assert prompt_id == comfy.ids[0] and outputs == ["1"] and extra["client_id"].startswith("ltx-a2v-")


def test_history_is_forgotten(comfy: Comfy) -> None:
    async def play() -> None:
        task = await comfy.begin()
        await comfy.end(comfy.take(), {})
        await task

    played(play)
    assert comfy.ids[0] in comfy.server.prompt_queue.get_history()
    comfy.host.forget(comfy.ids[0])
    assert comfy.server.prompt_queue.get_history() == {}


def test_a_look_into_the_models_folders_is_believed_for_a_while(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("a2v.api.host.time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: 0.0))
    looks: list[str] = []
    found = comfy.host._lately("key", lambda: looks.append("a") or "first")
    assert (found, comfy.host._lately("key", lambda: looks.append("b"))) == ("first", "first")
    now[0] += 3.1
    assert comfy.host._lately("key", lambda: looks.append("c") or "second") == "second" and looks == ["a", "c"]
