"""A ComfyUI that runs no graph, for tests of the queue: it says what ComfyUI says, and writes the file asked for."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from a2v.api.applications import APPLICATIONS
from a2v.api.database import rows
from a2v.api.database.rows import StoredRequest
from a2v.api.database.store import Store
from a2v.api.files.incoming import Incoming
from a2v.api.graph.compose import FINAL_PROMPT, SAVE, SAVE_PART
from a2v.api.graph.graph import Graph, Prompt
from a2v.api.graph.model_files import ModelNames
from a2v.api.host import Host, NodeError, Outcome
from a2v.api.protocol.json_reader import JsonReader
from a2v.api.queue.queue import RequestQueue
from a2v.api.queue.submissions import Submission
from a2v.api.settings import Settings
from a2v.api.webhooks.deliveries import Webhooks
from a2v.tests.api.edges import APP, data_uri, wav

NODES = ModelNames("dev.safetensors", "upscaler.safetensors", "distilled.safetensors", "gemma")
PICTURE = b"a video" * 100
SOUND = data_uri(wav(), "audio/wav")
BODY: dict[str, Any] = {"prompt": "a person speaks", "audio_url": SOUND, "seed": 7}


class StandIn(Host):
    """runs: the graphs that were queued. act: what happens while one runs; its Outcome, if any, is the run's.

    going_on: whether a run goes on that was stopped. safety: what is missing of the safety checker. models_error: what
    a look for the models raises.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(None)
        self.settings = settings
        self.runs: list[Prompt] = []
        self.forgotten: list[str] = []
        self.stopped: list[str] = []
        self.going_on = False
        self.act: Callable[[Prompt], Awaitable[Outcome | None]] = _nothing
        self.safety: str | None = None
        self.models_error: Exception | None = None

    def is_known(self, find: Any) -> bool:
        return True

    def models(self, find: Any) -> ModelNames:
        if self.models_error:
            raise self.models_error
        return NODES

    def check_camera(self, movement: str) -> None:
        """Every movement is there."""

    def safety_missing(self) -> str | None:
        return self.safety

    async def run(self, prompt: Prompt, on_queued: Callable[[str], None], on_event: Callable[..., None]) -> Outcome:
        prompt_id = str(uuid.uuid4())
        self.runs.append(prompt)
        on_queued(prompt_id)
        try:
            on_event("execution_start", {"prompt_id": prompt_id})
            graph = Graph(prompt)
            sampler = graph.find("LTXA2VSampler", "First stage")
            for step in (1, 2):
                on_event("progress", {"node": sampler, "value": step, "max": 2})
            found = await self.act(prompt)
        except asyncio.CancelledError:
            self.stopped.append(prompt_id)
            raise
        return found or Outcome(outputs=self.outputs(prompt))

    def outputs(self, prompt: Prompt) -> dict[str, dict[str, Any]]:
        """What the saver wrote, and the final prompt."""
        graph = Graph(prompt)
        kind, ending = (SAVE, ".mp4") if graph.has(SAVE) else (SAVE_PART, ".safetensors")
        folder, name = Path(graph.inputs(kind)["filename_prefix"]).parts
        path = self.settings.output / folder / f"{name}_00001_{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)
        if kind == SAVE_PART:
            return {graph.find(kind): {"report": [{"filename": path.name, "subfolder": folder, "notes": []}]}}
        facts = {"filename": path.name, "subfolder": folder, "width": 64, "height": 64, "frames": 9}
        facts |= {"fps": "24", "duration": 0.375, "notes": ["a note"]}
        return {graph.find(SAVE): {"report": [facts]}, graph.find("PreviewAny", FINAL_PROMPT): {"text": ["spoken"]}}

    async def over(self, prompt_id: str) -> None:
        while self.going_on:
            await asyncio.sleep(0.01)

    def forget(self, prompt_id: str) -> None:
        self.forgotten.append(prompt_id)


async def _nothing(_: Prompt) -> Outcome | None:
    return None


def failing(kind: str, message: str) -> Callable[[Prompt], Awaitable[Outcome]]:
    """An `act` in which the sampler raises."""

    async def act(prompt: Prompt) -> Outcome:
        return Outcome(error=NodeError(Graph(prompt).find("LTXA2VSampler", "First stage"), kind, message))

    return act


class Place:
    """A queue on a stand-in, and questions to it. `seconds`: how long anything may take. app: what `submit` asks."""

    seconds = 30.0
    app = APP

    def __init__(self, settings: Settings, database: Store) -> None:
        self.settings, self.database = settings, database
        self.host = StandIn(settings)
        self.queue = RequestQueue(self.host, database, settings, Webhooks(settings, database))

    async def submit(self, body: dict[str, Any] = BODY, digest: str = "d", **submission: Any) -> str:
        """A body as it comes over HTTP: its data URIs are files by then."""
        reader = JsonReader(APPLICATIONS[self.app].files, lambda: Incoming(self.settings.input_folder, 2**20))
        try:
            reader.feed(json.dumps(body).encode())
            value = json.loads(reader.text)
            asked = Submission(value, digest, files=reader.files, **{"base_url": "http://host", **submission})
            request, _ = await self.queue.submit(APPLICATIONS[self.app], asked)
        finally:
            reader.discard()
        return request.id

    async def end_of(self, request_id: str) -> StoredRequest:
        return await asyncio.wait_for(self.queue.wait(request_id), self.seconds)

    async def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + self.seconds
        while not condition():
            assert time.monotonic() < deadline, "it never came to that"
            await asyncio.sleep(0.01)

    async def log_of(self, request_id: str) -> list[str]:
        await self.queue.journal.flush()
        snapshot = await self.queue.look(request_id)
        return [line["message"] for _, line in snapshot.logs]

    def request(self, request_id: str) -> StoredRequest:
        with self.database.session() as session:
            return rows.find(session, request_id, whole=True)

    def files(self, folder: str = "output") -> list[str]:
        where = getattr(self.settings, folder) / "ltx_a2v_api"
        return sorted(path.name for path in where.iterdir()) if where.is_dir() else []


@asynccontextmanager
async def working(settings: Settings, database: Store) -> AsyncIterator[Place]:
    """A queue that works, until it is closed."""
    place = Place(settings, database)
    await place.queue.start()
    try:
        yield place
    finally:
        await place.queue.close()
