"""Runs one request on one ComfyUI: makes and stores its graph, runs that, and collects the result."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from ...ltx.diffusion.kept import limit
from ...ltx.errors import InputError
from ...ltx.request import Request
from ..applications import Application
from ..applications.inputs import Invalid
from ..database import rows
from ..database.rows import RUNNING, StoredRequest
from ..files import film_parts
from ..files.results import CONTENT_TYPES
from ..graph.compose import FINAL_PROMPT, SAVE
from ..graph.graph import Graph, Prompt
from ..graph.model_files import ModelMissing
from ..graph.parts import joined, part_of, possible_parts, save_as
from ..host import Host, HostLost, Outcome, Rejected
from ..settings import MIB, SUBFOLDER, Settings
from .crew import Crew, PartRun
from .endings import (
    FAILED,
    LeaseLost,
    RequestFailed,
    application_of,
    graph_rejected,
    missing_model,
    node_failed,
    refused,
    stopped_in_comfyui,
    without_outputs,
)
from .finishing import Finishing
from .journal import Journal
from .leases import Leases
from .preparation import Preparation
from .run_log import RunLog

PARTS = 8
"""The most parts of a film. More would balance machines better, but each costs a run. The number is the same however
many machines there are, so that a part that was made is found again."""


class Runner:
    """Runs requests on one ComfyUI, and films with hard cuts on all that are free.

    name, on_end: as for `Lane`.
    """

    def __init__(
        self,
        host: Host,
        leases: Leases,
        journal: Journal,
        finishing: Finishing,
        settings: Settings,
        crew: Crew,
        name: str | None = None,
        on_end: Callable[[str | None, bool], None] = lambda reason, started: None,
    ) -> None:
        self._host, self._leases, self._journal, self._finishing = host, leases, journal, finishing
        self._settings, self._crew, self._name, self._on_end = settings, crew, name, on_end
        self._preparation = Preparation(host, settings)
        self.started = False  # whether ComfyUI has begun to run the graph
        self._ran, self._ran_on = "", host  # the id of the last request, and the ComfyUI of its result
        self._made: list[str] = []  # the names of the files of a film's parts

    async def run(self, request: StoredRequest) -> dict[str, Any]:
        """Runs a request and returns the columns of its result. Errors: RequestFailed; LeaseLost; HostLost."""
        self.started, self._ran, self._ran_on, self._made = False, request.id, self._host, []
        await asyncio.to_thread(self._finishing.discard_files, request.token)  # of an attempt whose server died
        request.token = secrets.token_hex(16)
        application = application_of(request)
        prompt, asked = await self._prepare(request, application)
        host, parts = self._host, min(possible_parts(asked), PARTS)
        if self._crew.size > 1 and parts > 1:
            await self._make_parts(request, prompt, application, parts, asked)
            prompt = joined(prompt, [f"{SUBFOLDER}/{name}" for name in self._made])
            host = self._ran_on = self._crew.home
        log = RunLog(prompt, lambda line: self._journal.log(request.id, line))

        def queued(prompt_id: str) -> None:
            request.prompt_id = prompt_id

        def happened(kind: str, data: dict[str, Any]) -> None:
            if kind == "execution_start":
                self._note_start(request)
            log(kind, data)

        try:
            outcome = await host.run(prompt, queued, happened)
        except Rejected as error:
            raise graph_rejected(error, prompt, application) from None
        if outcome.error:
            raise node_failed(outcome.error, prompt, application)
        result = await self._collect(request, prompt, outcome, asked.seed, host)
        await self._drop_parts(request)
        return result

    async def clear(self, request: StoredRequest) -> None:
        """Removes what a request that has ended without a result left, once ComfyUI is done with it: a run that was
        stopped may have gone on and written its file. If the result was to be sent once, nothing of it stays in
        ComfyUI's history, either."""
        if request.id != self._ran:  # it ended before it was run here
            return
        prompt_id = request.prompt_id or ""
        await self._ran_on.over(prompt_id)
        await asyncio.to_thread(self._finishing.discard_files, request.token)
        if request.sync_mode:
            self._ran_on.forget(prompt_id)
        await self._drop_parts(request)

    async def _drop_parts(self, request: StoredRequest) -> None:
        """Deletes the parts of a film, unless later films may take them up."""
        if self._made and (request.sync_mode or not limit()):
            await asyncio.to_thread(film_parts.drop, self._made, self._settings)

    def _note_start(self, request: StoredRequest) -> None:
        """Notes that a ComfyUI has begun to run the request, or a part of it."""
        values = {"prompt_id": request.prompt_id}
        if not self.started:
            values |= {"status": RUNNING, "started": time.time(), **rows.ANY_START}
        self.started = True
        change = partial(rows.change, request_id=request.id, server=self._leases.holder, **values)
        self._journal.note(request.id, change)

    async def _make_parts(
        self, request: StoredRequest, prompt: Prompt, application: Application, count: int, asked: Request
    ) -> None:
        """Makes the parts of a film together with all lanes that are free. Errors: RequestFailed."""
        await asyncio.to_thread(film_parts.sweep, self._settings)
        graphs = [part_of(prompt, number, count, asked.sections) for number in range(1, count + 1)]
        there = await asyncio.to_thread(film_parts.found, [name for _, name in graphs], self._settings)
        parts = [self._part(request, application, number, graphs, there) for number in range(1, count + 1)]
        film = self._crew.open(parts)
        lost = False
        try:
            while not film.is_over:
                part = None if lost else film.take()
                if part is None:
                    await film.wait()
                    continue
                try:
                    await asyncio.create_task(film.work(part, self._host, self._name))
                except HostLost as error:
                    lost = True
                    self._on_end(str(error), part.begun)
                except asyncio.CancelledError:
                    if not film.is_over:  # it is this request that is stopped, not the work on a failed film
                        raise
        finally:
            await self._crew.close(film)
            self._made = [part.file for part in film.parts if part.file]
        film.check()

    def _part(
        self,
        request: StoredRequest,
        application: Application,
        number: int,
        graphs: list[tuple[Prompt, str]],
        there: dict[str, str],
    ) -> PartRun:
        """A part to run. graphs: of all parts, with the names that their files begin with; there: such a name → the
        part's file, if it was made before."""
        graph, name = graphs[number - 1]
        graph = save_as(graph, f"{SUBFOLDER}/{name}")
        before = f"Part {number} of {len(graphs)}"

        def say(line: str, level: str = "INFO") -> None:
            self._journal.log(request.id, f"{before}: {line}", level)

        log = RunLog(graph, say)

        def happened(kind: str, data: dict[str, Any]) -> None:
            if kind == "execution_start":
                part.begun = True
                self._note_start(request)
            log(kind, data)

        def judge(error: Exception | Outcome, graph: Prompt) -> Exception:
            if isinstance(error, Rejected):
                return graph_rejected(error, graph, application)
            return node_failed(error.error, graph, application) if isinstance(error, Outcome) else error

        part = PartRun(graph, say, happened, judge)
        part.file = there.get(name, "")
        if part.file:  # for a film that was ended, or that has the same part
            say("made before")
        return part

    async def _prepare(self, request: StoredRequest, application: Application) -> tuple[Prompt, Request]:
        """Makes and stores the graph, and returns it with what is asked for. Errors: RequestFailed, LeaseLost."""
        there = request.media
        try:
            checked = application.check({**request.arguments, **there})
            await asyncio.to_thread(self._preparation.check, application, checked)
            prompt = await asyncio.to_thread(
                self._preparation.compose, application, checked, there, f"{SUBFOLDER}/{request.token}"
            )
        except Invalid as error:
            raise refused(error) from None
        except ModelMissing as error:
            raise missing_model(error) from None
        except InputError as error:
            raise refused(application.invalid_from(error)) from None
        safety = await asyncio.to_thread(self._preparation.safety, checked)
        if not await self._leases.change(request.id, workflow=prompt, safety=safety, token=request.token):
            raise LeaseLost
        return prompt, checked.request

    async def _collect(
        self, request: StoredRequest, prompt: Prompt, outcome: Outcome, seed: int, host: Host
    ) -> dict[str, Any]:
        """The result of a run on that ComfyUI without an error. Errors: RequestFailed."""
        if outcome.interrupted or outcome.removed:
            raise stopped_in_comfyui()
        graph = Graph(prompt)
        saved = outcome.outputs.get(graph.find(SAVE), {})
        texts = outcome.outputs.get(graph.find("PreviewAny", FINAL_PROMPT), {}).get("text")
        if not saved.get("report") or not texts:
            raise without_outputs()
        facts = saved["report"][0]
        path = self._settings.output / facts["subfolder"] / facts["filename"]
        if request.sync_mode:
            path = await asyncio.to_thread(self._set_apart, path)
            host.forget(request.prompt_id or "")
            self._check_inline(path, application_of(request))
        for line in facts["notes"]:
            self._journal.log(request.id, line)
        whole = {"video": _video(facts, path), "seed": seed, "prompt": texts[0]}
        return {"result": application_of(request).result(whole)}

    def _set_apart(self, path: Path) -> Path:
        """Moves a result that is sent once to a folder that people do not see and ComfyUI does not clean. Errors:
        RequestFailed if that is on another disk, which takes nothing."""
        try:
            return Path(shutil.move(path, self._settings.passing_folder / path.name))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            message = f"sync_mode: the result cannot be moved beside the server's database ({reason})."
            raise RequestFailed(message, "disk_failed", FAILED) from None

    def _check_inline(self, path: Path, application: Application) -> None:
        """Checks that a result is small enough for a data URI, and removes it otherwise. Errors: RequestFailed."""
        if path.stat().st_size > self._settings.max_inline:
            path.unlink()
            mib = self._settings.max_inline // MIB
            said = f"sync_mode: the result is larger than {mib} MiB, too large for a data URI; leave sync_mode off."
            raise refused(application.invalid_from(InputError(said)))


def _video(facts: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The `video` of a result, with the file's name in place of its URL."""
    return {
        "content_type": CONTENT_TYPES[path.suffix[1:]],
        "file_name": path.name,
        "file_size": path.stat().st_size,
        "width": facts["width"],
        "height": facts["height"],
        "fps": float(Fraction(facts["fps"])),
        "duration": facts["duration"],
        "num_frames": facts["frames"],
    }
