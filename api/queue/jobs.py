"""From a submitted request to its end: its media fetched, claimed, its graph run, its log written, its result kept.

Media are fetched while a request waits, so that a slow address holds up nobody else. One request at a time runs here,
in order of priority and arrival; what ComfyUI's queue holds of other people's prompts
goes its own way in between. All that must outlive this process is in the store; a lease says who runs what.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import secrets
import shutil
import socket
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from ...ltx.errors import InputError
from ..applications.inputs import MEDIA, Invalid, Job, check, invalid_from
from ..database import store
from ..database.store import DONE, RUNNING, Request, Store
from ..files import media, uploads
from ..graph import compose as workflow
from ..host import Host, NodeError, Outcome, Rejected
from ..settings import APP, MIB, SUBFOLDER, Settings
from ..waiting import is_set_within
from ..webhooks.deliveries import Webhooks
from .snapshots import Snapshot, Snapshots

TICK_SECONDS = 1.0  # between looks at what other servers and the clock have done
FETCHES = 8  # requests whose media are fetched at once
ATTEMPTS = 3  # starts of a request whose server died under it each time
UNPROCESSABLE, MISSING_MODEL, CANCELLED, TIMED_OUT, FAILED = 422, 424, 400, 504, 500


@dataclass(frozen=True)
class Submission:
    """What beside the body a submission says."""

    base_url: str
    priority: int = 0
    webhook_url: str | None = None
    idempotency_key: str | None = None
    start_timeout: float | None = None


class ReusedKey(Exception):
    """The idempotency key belongs to another request."""


class Failure(Exception):
    """A request's end without a result: what `store.finish` is to note."""

    def __init__(self, message: str, kind: str, status: int, detail: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.values = {"error": message, "error_type": kind, "error_status": status, "error_detail": detail}


class LeaseLost(Exception):
    """Another server has the request by now: this one has no more say in it."""


def refused(error: Invalid) -> Failure:
    return Failure(str(error), "validation_error", UNPROCESSABLE, error.detail)


class Jobs:
    """All requests, and the one that this server is busy with."""

    passing = "temp"
    """ComfyUI's folder that a graph writes to what is sent but once; from another one it is taken to that."""

    def __init__(self, host: Host, database: Store, settings: Settings, webhooks: Webhooks) -> None:
        self.host, self.store, self.settings, self.webhooks = host, database, settings, webhooks
        self.server_id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._busy: asyncio.Task[None] | None = None
        self._busy_with: Request | None = None
        self._fetching: dict[str, tuple[Request, asyncio.Task[dict[str, str] | Failure]]] = {}
        self._started = False
        self._ending: Failure | None = None  # why the running one is being stopped
        self._wake = asyncio.Event()
        self._watched: dict[str, set[asyncio.Event]] = defaultdict(set)
        self.snapshots = Snapshots(database, settings.hold_seconds)
        self._pending: list[tuple[str, Callable[[Session], object]]] = []
        self._writing = asyncio.Lock()
        self._deciding = asyncio.Lock()
        self._stopped = threading.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to work; must be called on the loop that answers requests."""
        threading.Thread(target=self._heartbeat, name="ltx-a2v-lease", daemon=True).start()
        atexit.register(self._leave)
        self.webhooks.start()
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._clean())]

    async def close(self) -> None:
        self._stopped.set()
        fetches = [task for _, task in self._fetching.values()]
        for task in [*self._tasks, *fetches, *([self._busy] if self._busy else [])]:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self.webhooks.stop()
        self._leave()
        atexit.unregister(self._leave)

    def _leave(self) -> None:
        """Gives the running request back at once, where the process ends in good order."""
        self._stopped.set()
        with suppress(SQLAlchemyError), self.store.session() as session:
            store.release(session, server=self.server_id)

    def _heartbeat(self) -> None:
        """A thread of its own: a loop that is busy must not cost a lease."""
        while not self._stopped.wait(self.settings.heartbeat_seconds):
            try:
                with self.store.session() as session:
                    store.renew(session, self.server_id, time.time(), self.settings.lease_seconds)
            except SQLAlchemyError as error:
                logging.warning("LTX A2V: the lease could not be renewed: %s", error)

    # --- what routes ask for ---

    async def admit(self, body: Any) -> Job:
        """A body that can be run here. Errors: Invalid; ModelMissing."""
        job = check(body)
        if self.host.is_known:
            self._check_host(job)
        else:
            await asyncio.to_thread(self._check_host, job)
        return job

    def _check_host(self, job: Job) -> None:
        try:
            self._compose(job, job.media)  # the names are not looked at
        except workflow.ModelMissing:
            raise
        except InputError as error:
            raise invalid_from(error) from None
        try:
            if job.request.camera_lora != "none":
                self.host.check_camera(job.request.camera_lora)
        except InputError as error:
            raise invalid_from(error, "camera_lora") from None
        wanted = self.host.safety_missing()
        named = job.request.enable_safety_checker and "enable_safety_checker" in job.request.given
        if self.settings.require_safety and not job.request.enable_safety_checker:
            error = InputError("enable_safety_checker: this server requires the safety checker; leave it on.")
            raise invalid_from(error)
        if wanted and (named or self.settings.require_safety):
            raise invalid_from(
                InputError(f"enable_safety_checker: none is installed in models/safety_checker; {wanted}.")
            )

    async def submit(self, body: Any, digest: str, submission: Submission) -> tuple[Request, int]:
        """Into the queue; the request and how many wait before it. Errors: Invalid, ModelMissing, ReusedKey."""
        key = submission.idempotency_key
        if key and (found := await self.store.run(_retried, key, digest)):
            return found
        job = await self.admit(body)
        arguments, there = dict(job.arguments), {}
        for field, value in job.media.items():
            if value[:5].lower() == "data:":  # large, and wrong ones are told at once
                try:
                    there[field] = await self._localize(field, value)
                except InputError as error:
                    raise invalid_from(error, field) from None
                arguments[field] = f"{value[: value.find(',') + 1][:100]}…"
        request = Request(
            id=str(uuid.uuid4()),
            app=APP,
            arguments=arguments,
            media=there,
            ready=there.keys() == job.media.keys(),
            sync_mode=job.sync_mode,
            digest=digest,
            priority=submission.priority,
            idempotency_key=key,
            base_url=submission.base_url,
            webhook_url=submission.webhook_url,
            start_timeout=submission.start_timeout,
            created=time.time(),
        )
        try:
            position = await self.store.run_durably(_insert, request, job.notes)
        except IntegrityError:  # a retry that came in at the same moment
            found = await self.store.run(_retried, key, digest) if key else None
            if not found:
                raise
            return found
        self.snapshots.outdate()
        self._wake.set()
        return request, position

    async def _localize(self, field: str, value: str) -> str:
        return await media.localize(value, field, MEDIA[field], self.settings, self.store)

    async def look(self, request_id: str) -> Snapshot | None:
        """A request as it stands."""
        return await self.snapshots.look(request_id)

    async def find(self, request_id: str) -> Request | None:
        """A request with all of its columns."""
        return await self.store.run(store.find, request_id, whole=True)

    async def note_read(self, request_id: str) -> None:
        """The clock of a result that is kept nowhere starts when it is first read."""
        await self.store.run(_note_read, request_id)

    @contextmanager
    def watch(self, request_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever this server changes that request."""
        event = asyncio.Event()
        self._watched[request_id].add(event)
        try:
            yield event
        finally:
            self._watched[request_id].discard(event)
            if not self._watched[request_id]:
                del self._watched[request_id]

    async def wait(self, request_id: str, alive: Callable[[], bool] = lambda: True) -> Request | None:
        """The request once it has ended; None where whoever waits has gone."""
        with self.watch(request_id) as changed:
            while alive():
                changed.clear()
                snapshot = await self.look(request_id)
                if snapshot is None or snapshot.request.status == DONE:
                    return await self.find(request_id)
                await is_set_within(changed, TICK_SECONDS)
        return None

    async def cancel(self, request_id: str) -> bool | None:
        """Ends a request, waiting or running; False where it has ended, None where there is none."""
        async with self._deciding:  # nothing is claimed meanwhile
            request = await self.store.run(_ask_cancel, request_id)
            if request is None or request.status == DONE:
                return None if request is None else False
            if self._busy_with and self._busy_with.id == request_id:
                await self._stop(_cancelled())
            elif request_id in self._fetching:
                await self._stop_fetch(request_id, _cancelled())
            elif request.lease_server is None:
                await self._finish(request, _cancelled())
        return True  # where another server has it, that one sees the mark

    async def _stop(self, ending: Failure) -> None:
        if self._busy:
            self._ending = ending
            self._busy.cancel()
            with suppress(asyncio.CancelledError):
                await self._busy

    # --- the work ---

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                async with self._deciding:
                    await self._tick()
            except (SQLAlchemyError, OSError) as error:
                logging.error("LTX A2V: the request database failed: %s", error)
            await is_set_within(self._wake, TICK_SECONDS)

    async def _tick(self) -> None:
        now = time.time()
        if await self.store.run(store.release_expired, now, self.server_id):
            self.snapshots.outdate()
        for request in await self.store.run(store.overdue, now):
            await self._finish(request, _late(request))
        held = self._busy or self._fetching
        marked = await self.store.run(store.marked, self.server_id) if held else set()
        await self._tick_fetches(now, marked)
        if self._busy:
            mine = self._busy_with
            if mine and not self._started and _is_late(mine, now):
                await self._stop(_late(mine))
            elif mine and mine.id in marked:
                await self._stop(_cancelled())
            return
        request = await self.store.run(store.claim, self.server_id, now, self.settings.lease_seconds)
        if request:
            self._busy_with, self._started, self._ending = request, False, None
            self._busy = asyncio.create_task(self._run(request))

    async def _tick_fetches(self, now: float, marked: Set[str]) -> None:
        """Media that have come make their requests ready to run; others are begun with."""
        for request_id, (request, task) in list(self._fetching.items()):
            if request_id in marked:
                await self._stop_fetch(request_id, _cancelled())
            elif task.done():
                del self._fetching[request_id]
                found = task.result()
                if isinstance(found, Failure):
                    await self._finish(request, found)
                else:
                    await self.store.run(store.make_ready, request_id, self.server_id, found)
            elif _is_late(request, now):
                await self._stop_fetch(request_id, _late(request))
        lease = (self.server_id, now, self.settings.lease_seconds)
        while len(self._fetching) < FETCHES and (request := await self.store.run(store.claim, *lease, ready=False)):
            task = asyncio.create_task(self._fetch(request))
            task.add_done_callback(lambda _: self._wake.set())
            self._fetching[request.id] = (request, task)

    async def _stop_fetch(self, request_id: str, ending: Failure) -> None:
        request, task = self._fetching.pop(request_id)
        task.cancel()
        await asyncio.wait({task})
        await self._finish(request, ending)

    async def _fetch(self, request: Request) -> dict[str, str] | Failure:
        """Field → name in the input folder, of all that a request brings."""
        there = dict(request.media)
        if request.attempts > ATTEMPTS:
            return _lost()
        for field in MEDIA:
            if field in request.arguments and field not in there:
                try:
                    there[field] = await self._localize(field, request.arguments[field])
                except InputError as error:
                    return refused(invalid_from(error, field))
                except Exception as error:  # a bug must end this request, and not the queue
                    return _broken(request, error)
        return there

    async def _run(self, request: Request) -> None:
        """A claimed request, from its media to its end."""
        try:
            ending = await self._outcome(request)
            await asyncio.shield(self._finish(request, ending))
        except LeaseLost:
            await asyncio.to_thread(self._discard_files, request.token)
        finally:
            self._busy = self._busy_with = None
            self._wake.set()

    async def _outcome(self, request: Request) -> Failure | dict[str, Any]:
        """How a request ends. Errors: LeaseLost."""
        try:
            return await self._result(request)
        except Failure as failure:
            return failure
        except asyncio.CancelledError:
            if self._ending is None:  # the server ends, and the request will go on in another one
                raise
            return self._ending
        except LeaseLost:
            raise
        except Exception as error:  # a bug must end this request, and not the queue
            return _broken(request, error)

    async def _result(self, request: Request) -> dict[str, Any]:
        """What the store is to keep of a request that succeeds. Errors: Failure, LeaseLost."""
        if request.attempts > ATTEMPTS:
            raise _lost()
        await asyncio.to_thread(self._discard_files, request.token)  # of an attempt whose server died
        request.token = secrets.token_hex(16)
        prompt, seed = await self._prepare(request)
        progress = Progress(prompt, lambda line: self._log(request.id, line))

        def queued(prompt_id: str) -> None:
            request.prompt_id = prompt_id

        def happened(kind: str, data: dict[str, Any]) -> None:
            if kind == "execution_start":
                self._started = True
                values = {"prompt_id": request.prompt_id, "status": RUNNING, "started": time.time()}
                self._note(request.id, partial(self._set, request_id=request.id, values=values))
            progress(kind, data)

        try:
            outcome = await self.host.run(prompt, queued, happened)
        except Rejected as error:
            raise _rejected(error, prompt) from None
        await self._flush()
        return await self._collect(request, prompt, outcome, seed)

    async def _prepare(self, request: Request) -> tuple[workflow.Prompt, int]:
        """The graph put together and noted; the seed beside it. Errors: Failure, LeaseLost."""
        there = request.media
        try:
            job = check({**request.arguments, **there})
            await asyncio.to_thread(self._check_host, job)
            prompt = await asyncio.to_thread(self._compose, job, there, f"{SUBFOLDER}/{request.token}")
        except Invalid as error:
            raise refused(error) from None
        except workflow.ModelMissing as error:
            raise Failure(str(error), "model_missing", MISSING_MODEL) from None
        except InputError as error:
            raise refused(invalid_from(error)) from None
        missing = await asyncio.to_thread(self.host.safety_missing)
        safety = "off" if not job.request.enable_safety_checker else "not-installed" if missing else "checked"
        values = {"workflow": prompt, "safety": safety, "token": request.token}
        if not await self.store.run(self._set, request.id, values):
            raise LeaseLost
        return prompt, job.request.seed

    def _compose(self, job: Job, there: Mapping[str, str], prefix: str = SUBFOLDER) -> workflow.Prompt:
        """there: field → name in the input folder. Errors: InputError."""
        return workflow.compose(
            job.request,
            self.host.models(),
            audio=there["audio_url"],
            image=there.get("image_url"),
            end_image=there.get("end_image_url"),
            prefix=prefix,
            folder=self.passing if job.sync_mode else "output",
        )

    async def _collect(self, request: Request, prompt: workflow.Prompt, outcome: Outcome, seed: int) -> dict[str, Any]:
        """The result of a run. Errors: Failure."""
        if outcome.error:
            raise _failed(outcome.error, prompt)
        if outcome.interrupted or outcome.removed:
            raise Failure("Somebody stopped the request in ComfyUI.", "interrupted", CANCELLED)
        graph = workflow.Graph(prompt)
        saved = outcome.outputs.get(graph.find(workflow.SAVE), {})
        texts = outcome.outputs.get(graph.find("PreviewAny", workflow.FINAL_PROMPT), {}).get("text")
        if not saved.get("report") or not texts:
            raise Failure("ComfyUI ended the run without its outputs.", "internal_error", FAILED)
        facts = saved["report"][0]
        passing = request.sync_mode and self.passing == "temp"
        folder = self.settings.temp if passing else self.settings.output
        path = folder / facts["subfolder"] / facts["filename"]
        if request.sync_mode:
            path = path if passing else await asyncio.to_thread(self._to_temp, path)
            self.host.forget(request.prompt_id or "")
            if path.stat().st_size > self.settings.max_inline:
                path.unlink()
                mib = self.settings.max_inline // MIB
                said = f"sync_mode: the result is larger than {mib} MiB, too large for a data URI; leave sync_mode off."
                raise refused(invalid_from(InputError(said)))
        for line in facts["notes"]:
            self._log(request.id, line)
        return {"result": {"video": _video(facts, path), "seed": seed, "prompt": texts[0]}}

    def _to_temp(self, path: Path) -> Path:
        folder = self.settings.temp / SUBFOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(path, folder / path.name))

    async def _finish(self, request: Request, ending: Failure | dict[str, Any]) -> None:
        """Ends a request once, and tells whoever is to be told, in one transaction."""
        if isinstance(ending, Failure):
            self._log(request.id, str(ending), "ERROR")
        await self._flush()
        values = ending.values if isinstance(ending, Failure) else ending
        if not await self.store.run_durably(_end, request, values, self.webhooks, self.settings) or isinstance(
            ending, Failure
        ):
            await asyncio.to_thread(self._discard_files, request.token)
        if request.webhook_url:
            self.webhooks.wake()
        self.snapshots.outdate()
        self._notify(request.id)

    def _discard_files(self, token: str | None) -> None:
        """Removes what an attempt left that came to no result."""
        if token:
            for folder in (self.settings.output_folder, self.settings.temp / SUBFOLDER):
                for path in folder.glob(f"*{token}*"):  # half-written ones begin with a dot
                    path.unlink(missing_ok=True)

    def _set(self, session: Session, request_id: str, values: dict[str, Any]) -> bool:
        return store.change(session, request_id, self.server_id, **values)

    def _log(self, request_id: str, message: str, level: str = "INFO") -> None:
        line = partial(store.add_log, request_id=request_id, message=message, timestamp=time.time(), level=level)
        self._note(request_id, line)

    def _note(self, request_id: str, work: Callable[[Session], object]) -> None:
        """To be written soon, in this order, from where nothing can be awaited."""
        self._pending.append((request_id, work))
        if len(self._pending) == 1:
            self._flushing = asyncio.get_running_loop().create_task(self._flush())
            self._flushing.add_done_callback(_complain)

    async def _flush(self) -> None:
        """Writes what was noted; afterwards it is in the store."""
        async with self._writing:
            pending, self._pending = self._pending, []
            if pending:
                await self.store.run(_write, [work for _, work in pending])
        for request_id in {request_id for request_id, _ in pending}:
            self.snapshots.outdate(request_id)
            self._notify(request_id)

    def _notify(self, request_id: str) -> None:
        for event in self._watched.get(request_id, ()):
            event.set()

    # --- results that do not stay ---

    async def _clean(self) -> None:
        while True:
            try:
                await self.store.run(_drop_old, self.settings, time.time())
                await uploads.purge(self.settings, self.store)
            except (SQLAlchemyError, OSError) as error:
                logging.warning("LTX A2V: old results could not be removed: %s", error)
            await asyncio.sleep(60)


class Progress:
    """ComfyUI's events as lines of a log: each node as it begins, each step of a sampler, quarters of the others."""

    def __init__(self, prompt: workflow.Prompt, say: Callable[[str], None]) -> None:
        self._prompt, self._say = prompt, say
        self._last: dict[str, tuple[int, int]] = {}

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        if kind == "execution_start":
            self._say("Started")
        elif kind == "execution_cached" and data.get("nodes"):
            self._say(f"{len(data['nodes'])} of {len(self._prompt)} nodes are kept from the last run")
        elif kind == "executing" and data.get("node") in self._prompt:
            self._say(self._title(data["node"]))
        elif kind == "progress" and data.get("node") in self._prompt:
            self._step(data["node"], int(data["value"]), int(data["max"]))

    def _title(self, node: str) -> str:
        return self._prompt[node]["_meta"]["title"].removeprefix("LTX A2V ")

    def _step(self, node: str, done: int, total: int) -> None:
        sampler = self._prompt[node]["class_type"] == workflow.SAMPLER
        mark = done if sampler else done * 4 // max(total, 1)
        if done > 0 and total > 1 and self._last.get(node) != (mark, total) and mark > 0:
            self._last[node] = (mark, total)
            self._say(f"{self._title(node)}: {'step ' if sampler else ''}{done}/{total}")


def _video(facts: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The `video` of a result, with the file's name where its URL goes."""
    return {
        "content_type": media.CONTENT_TYPES[path.suffix[1:]],
        "file_name": path.name,
        "file_size": path.stat().st_size,
        "width": facts["width"],
        "height": facts["height"],
        "fps": float(Fraction(facts["fps"])),
        "duration": facts["duration"],
        "num_frames": facts["frames"],
    }


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception():
        logging.error("LTX A2V: a request's log could not be written", exc_info=task.exception())


def _cancelled() -> Failure:
    return Failure("The request was cancelled.", "client_cancelled", CANCELLED)


def _lost() -> Failure:
    return Failure(f"The server died {ATTEMPTS} times while it had this request in hand.", "server_lost", FAILED)


def _broken(request: Request, error: Exception) -> Failure:
    logging.error("LTX A2V: request %s failed", request.id, exc_info=error)
    return Failure(f"{type(error).__name__}: {error}", "internal_error", FAILED)


def _is_late(request: Request, now: float) -> bool:
    return request.start_timeout is not None and request.created + request.start_timeout < now


def _late(request: Request) -> Failure:
    return Failure(f"The request did not start within {request.start_timeout:g} s.", "request_timeout", TIMED_OUT)


def _failed(error: NodeError, prompt: workflow.Prompt) -> Failure:
    message = workflow.in_request_words(prompt, error.message)
    if error.kind.endswith((".InputError", ".FlaggedError")):
        return refused(invalid_from(InputError(message), workflow.field_of(prompt, error.node_id)))
    node = prompt.get(error.node_id, {}).get("_meta", {}).get("title", error.node_id)
    memory = "OutOfMemory" in error.kind or "out of memory" in message.lower()
    return Failure(f"{node}: {message}", "out_of_memory" if memory else "node_error", FAILED)


def _rejected(error: Rejected, prompt: workflow.Prompt) -> Failure:
    node, message = next(iter(error.errors.items()))
    field = workflow.field_of(prompt, node)
    if field:
        return refused(invalid_from(InputError(workflow.in_request_words(prompt, message)), field))
    return Failure(workflow.in_request_words(prompt, str(error)), "graph_rejected", FAILED)


def _insert(session: Session, request: Request, notes: tuple[str, ...]) -> int:
    session.add(request)
    session.flush()
    for line in notes:
        store.add_log(session, request.id, line, request.created, "WARN")
    return store.position(session, request)


def _retried(session: Session, key: str, digest: str) -> tuple[Request, int] | None:
    found = store.find_retried(session, APP, key)
    if found and found.digest != digest:
        raise ReusedKey(key)
    return (found, store.position(session, found)) if found else None


def _ask_cancel(session: Session, request_id: str) -> Request | None:
    request = store.find(session, request_id)
    if request and request.status != DONE:
        request.cancel = True
    return request


def _note_read(session: Session, request_id: str) -> None:
    request = store.find(session, request_id)
    if request and request.read is None:
        request.read = time.time()


def _write(session: Session, works: list[Callable[[Session], object]]) -> None:
    for work in works:
        work(session)


def _end(session: Session, request: Request, values: dict[str, Any], webhooks: Webhooks, settings: Settings) -> bool:
    current = store.find(session, request.id)
    if current is None or current.lease_server != request.lease_server:
        return False
    ended = store.finish(session, current, time.time(), **values)
    if ended and current.webhook_url:
        webhooks.enqueue_in(session, current.id, current.webhook_url, webhook_body(current, settings))
    return ended


def webhook_body(request: Request, settings: Settings) -> dict[str, Any]:
    """What a webhook is told of an ended request. A result that is kept nowhere does not go into its queue, either."""
    body: dict[str, Any] = {"request_id": request.id, "gateway_request_id": request.id}
    if not request.result:
        payload = {"detail": request.error_detail or request.error}
        return {**body, "status": "ERROR", "error": request.error, "payload": payload}
    body |= {"status": "OK", "error": None}
    if request.sync_mode:
        reason = "sync_mode: the result is a data URI, which webhooks are not sent; read it at the response URL."
        return {**body, "payload": None, "payload_error": reason}
    url = media.result_url(request.result["video"]["file_name"], request.base_url, settings)
    return {**body, "payload": with_url(request.result, url)}


def with_url(result: Mapping[str, Any], url: str) -> dict[str, Any]:
    """A result as it leaves the server."""
    return {**result, "video": {"url": url, **result["video"]}}


def result_file(request: Request, settings: Settings) -> Path:
    """Where the result's file lies."""
    folder = settings.temp / SUBFOLDER if request.sync_mode else settings.output_folder
    return folder / (request.result or {})["video"]["file_name"]


def _drop_old(session: Session, settings: Settings, now: float) -> None:
    """Deletes the files of results whose time is over, and what they were made from; only what the API put there."""
    for request in store.with_files(session):
        inline = request.sync_mode and media.inline_gone(request.ended or now, request.read, now, settings)
        old = settings.expire_hours and now >= (request.ended or now) + settings.expire_hours * 3600
        if inline or old:
            result_file(request, settings).unlink(missing_ok=True)
            request.gone = True
    if settings.expire_hours:
        session.flush()
        for name in store.unused_media(session):
            path = settings.input / name
            if path.parent == settings.input_folder:
                path.unlink(missing_ok=True)
