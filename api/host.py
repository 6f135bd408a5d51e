"""Gives the API what it needs from ComfyUI: the queue, the events of a run, a way to stop one, the models folders.

No other file of the API imports ComfyUI. A prompt takes the way of POST /prompt. The API follows it through a listener
that looks like one more browser to ComfyUI, so it replaces and wraps nothing there.
"""

from __future__ import annotations

import asyncio
import copy
import time
import uuid
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..ltx.errors import InputError
from .graph.graph import Prompt
from .graph.model_files import Listing
from .waiting import is_set_within

LOOK_SECONDS = 1.0  # between looks at the queue: no event tells that a person has deleted a prompt
STOP_SECONDS = 0.2  # between looks whether a stopped prompt is over

KNOWN_SECONDS = 3.0
SAFETY = "safety"
NODE_TEXT = "ltx_a2v_text"  # the event of nodes/progress.py that brings a node's text, and which window is sampled
FOLDER_MARK = "config.json"  # every model that is a folder has this file

T = TypeVar("T")
OnEvent = Callable[[str, dict[str, Any]], None]
FindModels = Callable[[Listing, Listing], Any]


class Listener:
    """Stands among the server's websockets under its own id and passes on the messages for that id."""

    closed = False

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event

    async def send_json(self, message: dict[str, Any]) -> None:
        self._on_event(message["type"], message["data"])

    async def send_bytes(self, message: bytes) -> None:
        """Ignores previews."""


@dataclass(frozen=True)
class NodeError:
    """Why a run failed: the node, the exception's type, and its message."""

    node_id: str
    kind: str
    message: str


@dataclass(frozen=True)
class Outcome:
    """How a prompt ended. outputs: by node id, as in ComfyUI's history; removed: somebody deleted it before it ran."""

    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: NodeError | None = None
    interrupted: bool = False
    removed: bool = False


class Rejected(Exception):
    """ComfyUI's validation refused the prompt. errors: node id → sentence, or one sentence under the id ''."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("\n".join(errors.values()))
        self.errors = errors


class HostLost(Exception):
    """Why a run has no outcome although the request is right. Another ComfyUI should run it."""


class Host:
    """A running PromptServer, used from its own event loop."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self._known: dict[Hashable, tuple[float, Any]] = {}

    def _lately(self, key: Hashable, look: Callable[[], T]) -> T:
        """The result of a recent look into the models folders. They may be large, and on a slow disk."""
        until, found = self._known.get(key, (0.0, None))
        if until < time.monotonic():
            found = look()
            self._known[key] = (time.monotonic() + KNOWN_SECONDS, found)
        return found

    def is_known(self, find: FindModels) -> bool:
        """Whether `models(find)` and `safety_missing` can answer from a recent look."""
        soon = time.monotonic() + 0.1
        return all(self._known.get(key, (0.0, None))[0] > soon for key in (find, SAFETY))

    def models(self, find: FindModels) -> Any:
        """Gives ComfyUI's listings of files and of model folders to `find` and returns what it finds. Errors:
        ModelMissing."""
        from ..nodes import files  # imports ComfyUI's nodes, which are not loaded yet when the routes are registered

        return self._lately(find, lambda: find(files.model_files, lambda kind: files.model_folders(kind, FOLDER_MARK)))

    def check_camera(self, movement: str) -> None:
        """Checks that the LoRA of that camera movement is installed. Errors: InputError, with its address."""
        from ..nodes.loras import CameraLora

        verdict = CameraLora.validate_inputs(camera_lora=movement)
        if verdict is not True:
            raise InputError(str(verdict))

    def safety_missing(self) -> str | None:
        """Says what to install if there is no safety checker; None if there is one."""
        from ..nodes import safety

        return self._lately(SAFETY, lambda: None if safety.installed() else safety.WANTED)

    async def run(self, prompt: Prompt, on_queued: Callable[[str], None], on_event: OnEvent) -> Outcome:
        """Queues a prompt and follows it to its end. on_queued: is called with its id; on_event: with every event of
        it.

        Errors: Rejected. If the awaiting task is cancelled, the prompt leaves the queue or is interrupted.
        """
        prompt_id, listener_id = str(uuid.uuid4()), f"ltx-a2v-{uuid.uuid4().hex}"
        ended = asyncio.Event()

        def listen(kind: str, data: dict[str, Any]) -> None:
            if data.get("prompt_id") == prompt_id:
                on_event(kind, data)
                if kind == "executing" and data.get("node") is None:
                    ended.set()

        self.server.sockets[listener_id] = Listener(listen)
        self.server.sockets_metadata[listener_id] = {"feature_flags": {}}
        try:
            await self._queue(prompt_id, prompt, listener_id)
            on_queued(prompt_id)
            return await self._wait(prompt_id, ended)
        except asyncio.CancelledError:
            self.stop(prompt_id)
            raise
        finally:
            self.server.sockets.pop(listener_id, None)
            self.server.sockets_metadata.pop(listener_id, None)

    async def _queue(self, prompt_id: str, prompt: Prompt, listener_id: str) -> None:
        """Does what the server does at POST /prompt."""
        import execution

        body = {"prompt": copy.deepcopy(prompt), "prompt_id": prompt_id, "client_id": listener_id, "extra_data": {}}
        body = self.server.trigger_on_prompt(body)
        valid, error, outputs, node_errors = await execution.validate_prompt(prompt_id, body["prompt"], None)
        if not valid or node_errors:  # ComfyUI would run only the valid part
            raise Rejected(_sentences(error, node_errors))
        extra = {**body.get("extra_data", {}), "client_id": listener_id, "create_time": int(time.time() * 1000)}
        sensitive = {key: extra.pop(key) for key in execution.SENSITIVE_EXTRA_DATA_KEYS if key in extra}
        number = self.server.number
        self.server.number += 1
        self.server.prompt_queue.put((number, prompt_id, body["prompt"], extra, outputs, sensitive))

    async def _wait(self, prompt_id: str, ended: asyncio.Event) -> Outcome:
        while True:
            if not await is_set_within(ended, LOOK_SECONDS):
                running, queued = self.server.prompt_queue.get_current_queue_volatile()
                if any(item[1] == prompt_id for item in (*running, *queued)):
                    continue
            history = self.server.prompt_queue.get_history(prompt_id=prompt_id)
            return _outcome(history[prompt_id]) if prompt_id in history else Outcome(removed=True)

    def stop(self, prompt_id: str) -> None:
        """Deletes a prompt from the queue, or interrupts it if it runs. It touches no other prompt."""
        import nodes  # ComfyUI's own module of that name

        queue = self.server.prompt_queue
        if queue.delete_queue_item(lambda item: item[1] == prompt_id):
            return
        with queue.mutex:  # the next run cannot begin while this is held
            if any(item[1] == prompt_id for item in queue.currently_running.values()):
                nodes.interrupt_processing()

    async def over(self, prompt_id: str) -> None:
        """Waits until ComfyUI is done with a prompt. One that was stopped goes on to its node's next look for that."""
        queue = self.server.prompt_queue
        while any(item[1] == prompt_id for part in queue.get_current_queue_volatile() for item in part):
            await asyncio.sleep(STOP_SECONDS)

    def forget(self, prompt_id: str) -> None:
        """Deletes a prompt from the history."""
        self.server.prompt_queue.delete_history_item(prompt_id)


def _sentences(error: dict[str, Any] | None, node_errors: dict[str, Any]) -> dict[str, str]:
    found = {
        key: "; ".join(f"{one['message']}: {one['details']}" for one in node["errors"])
        for key, node in node_errors.items()
    }
    return found or {"": f"{(error or {}).get('message')}: {(error or {}).get('details')}"}


def _outcome(history: dict[str, Any]) -> Outcome:
    messages = (history.get("status") or {}).get("messages") or []
    failed = next((data for kind, data in messages if kind == "execution_error"), None)
    return Outcome(
        outputs=history.get("outputs") or {},
        error=NodeError(failed["node_id"], failed["exception_type"], failed["exception_message"].strip())
        if failed
        else None,
        interrupted=any(kind == "execution_interrupted" for kind, _ in messages),
    )
