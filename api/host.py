"""What the API needs of ComfyUI: its queue, what it says of a run, its way to stop one, and its models folders.

The only file of the API that knows ComfyUI. A prompt goes the way that POST /prompt takes it, and is followed through a
listener that ComfyUI takes for one more browser, so that nothing of it is replaced or wrapped.
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

LOOK_SECONDS = 1.0  # between looks at the queue, for what no event tells: a prompt that a person took out of it

KNOWN_SECONDS = 3.0
SAFETY = "safety"
FOLDER_MARK = "config.json"  # in every model that is a folder of its own

T = TypeVar("T")
OnEvent = Callable[[str, dict[str, Any]], None]
FindModels = Callable[[Listing, Listing], Any]


class Listener:
    """Stands among the server's websockets under an id of its own, and hands on what is sent to that id."""

    closed = False

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event

    async def send_json(self, message: dict[str, Any]) -> None:
        self._on_event(message["type"], message["data"])

    async def send_bytes(self, message: bytes) -> None:
        """Previews, which nobody here looks at."""


@dataclass(frozen=True)
class NodeError:
    """Why a run failed: the node, the exception's type, and its sentence."""

    node_id: str
    kind: str
    message: str


@dataclass(frozen=True)
class Outcome:
    """How a prompt ended. outputs: by node id, as ComfyUI's history has them; removed: somebody took it out unrun."""

    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: NodeError | None = None
    interrupted: bool = False
    removed: bool = False


class Rejected(Exception):
    """ComfyUI's validation refused the prompt: node id → sentence; without nodes, one sentence under the id ''."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("\n".join(errors.values()))
        self.errors = errors


class HostLost(Exception):
    """Why a run came to no outcome, which is not the request's fault: another ComfyUI is to take it."""


class Host:
    """A running PromptServer, seen from its own event loop."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self._known: dict[Hashable, tuple[float, Any]] = {}

    def _lately(self, key: Hashable, look: Callable[[], T]) -> T:
        """What a look into the models folders found, if it was just now: they may be large, and on a slow disk."""
        until, found = self._known.get(key, (0.0, None))
        if until < time.monotonic():
            found = look()
            self._known[key] = (time.monotonic() + KNOWN_SECONDS, found)
        return found

    def is_known(self, find: FindModels) -> bool:
        """Whether `models(find)` and `safety_missing` answer without a look."""
        soon = time.monotonic() + 0.1
        return all(self._known.get(key, (0.0, None))[0] > soon for key in (find, SAFETY))

    def models(self, find: FindModels) -> Any:
        """What an application finds in ComfyUI's listings of files and of model folders. Errors: ModelMissing."""
        from ..nodes import files  # imports ComfyUI's nodes, which are not there yet when the routes are registered

        return self._lately(find, lambda: find(files.model_files, lambda kind: files.model_folders(kind, FOLDER_MARK)))

    def check_camera(self, movement: str) -> None:
        """Whether that movement's LoRA is there. Errors: InputError, with its address."""
        from ..nodes.loaders import CameraLora

        verdict = CameraLora.validate_inputs(camera_lora=movement)
        if verdict is not True:
            raise InputError(str(verdict))

    def safety_missing(self) -> str | None:
        """What to install where no safety checker is; None where one is."""
        from ..nodes import safety

        return self._lately(SAFETY, lambda: None if safety.installed() else safety.WANTED)

    async def run(self, prompt: Prompt, on_queued: Callable[[str], None], on_event: OnEvent) -> Outcome:
        """Queues a prompt and follows it to its end. on_queued is told its id; on_event all that ComfyUI says of it.

        Errors: Rejected. Ending the task that awaits this takes the prompt out of the queue, or interrupts it.
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
        """What the server does at POST /prompt."""
        import execution

        body = {"prompt": copy.deepcopy(prompt), "prompt_id": prompt_id, "client_id": listener_id, "extra_data": {}}
        body = self.server.trigger_on_prompt(body)
        valid, error, outputs, node_errors = await execution.validate_prompt(prompt_id, body["prompt"], None)
        if not valid or node_errors:  # partly valid is not what was asked for
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
        """Takes a prompt out of the queue, or interrupts it if it is the one that runs; another one is left alone."""
        import nodes  # ComfyUI's own module of that name

        queue = self.server.prompt_queue
        if queue.delete_queue_item(lambda item: item[1] == prompt_id):
            return
        with queue.mutex:  # while it is held the run cannot be followed by the next one
            if any(item[1] == prompt_id for item in queue.currently_running.values()):
                nodes.interrupt_processing()

    def forget(self, prompt_id: str) -> None:
        """Takes a prompt out of the history."""
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
