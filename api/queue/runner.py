"""Runs one request on one ComfyUI: makes and stores its graph, runs that, and collects the result."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from ...ltx.errors import InputError
from ..applications import Application
from ..applications.inputs import Invalid
from ..database import rows
from ..database.rows import RUNNING, StoredRequest
from ..files.results import CONTENT_TYPES
from ..graph.compose import FINAL_PROMPT, SAVE
from ..graph.graph import Graph, Prompt
from ..graph.model_files import ModelMissing
from ..host import Host, Outcome, Rejected
from ..settings import MIB, SUBFOLDER, Settings
from .endings import (
    LeaseLost,
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


class Runner:
    """Runs requests on one ComfyUI."""

    def __init__(self, host: Host, leases: Leases, journal: Journal, finishing: Finishing, settings: Settings) -> None:
        self._host, self._leases, self._journal, self._finishing = host, leases, journal, finishing
        self._settings = settings
        self._preparation = Preparation(host, settings)
        self.started = False  # whether ComfyUI has begun to run the graph

    async def run(self, request: StoredRequest) -> dict[str, Any]:
        """Runs a request and returns the columns of its result. Errors: RequestFailed; LeaseLost; HostLost."""
        self.started = False
        await asyncio.to_thread(self._finishing.discard_files, request.token)  # of an attempt whose server died
        request.token = secrets.token_hex(16)
        application = application_of(request)
        prompt, seed = await self._prepare(request, application)
        log = RunLog(prompt, lambda line: self._journal.log(request.id, line))

        def queued(prompt_id: str) -> None:
            request.prompt_id = prompt_id

        def happened(kind: str, data: dict[str, Any]) -> None:
            if kind == "execution_start":
                self.started = True
                values = {"prompt_id": request.prompt_id, "status": RUNNING, "started": time.time()}
                change = partial(rows.change, request_id=request.id, server=self._leases.holder, **values)
                self._journal.note(request.id, change)
            log(kind, data)

        try:
            outcome = await self._host.run(prompt, queued, happened)
        except Rejected as error:
            raise graph_rejected(error, prompt, application) from None
        if outcome.error:
            raise node_failed(outcome.error, prompt, application)
        return await self._collect(request, prompt, outcome, seed)

    async def _prepare(self, request: StoredRequest, application: Application) -> tuple[Prompt, int]:
        """Makes and stores the graph, and returns it with the seed. Errors: RequestFailed, LeaseLost."""
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
        return prompt, checked.request.seed

    async def _collect(self, request: StoredRequest, prompt: Prompt, outcome: Outcome, seed: int) -> dict[str, Any]:
        """The result of a run without an error. Errors: RequestFailed."""
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
            self._host.forget(request.prompt_id or "")
            self._check_inline(path, application_of(request))
        for line in facts["notes"]:
            self._journal.log(request.id, line)
        whole = {"video": _video(facts, path), "seed": seed, "prompt": texts[0]}
        return {"result": application_of(request).result(whole)}

    def _set_apart(self, path: Path) -> Path:
        """Moves a result that is sent once to a folder that people do not see and ComfyUI does not clean."""
        return Path(shutil.move(path, self._settings.passing_folder / path.name))

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
