"""The routes in a worker's ComfyUI: whether it is free, and orders, which it runs as its own requests.

Only the agent that Ray runs on the machine may ask, unless LTX_A2V_API_KEY is set and given. If an order's connection
closes, its run stops. Neither files nor history of an order stay.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from ..faults import log_unexpected, public
from ..files.incoming import CHUNK, Incoming, TooLargeError
from ..graph.compose import SAVE, SAVE_PART
from ..graph.graph import Graph, Prompt
from ..host import NODE_TEXT, Host, Outcome, Rejected
from ..protocol.access import guard
from ..protocol.answers import answering
from ..protocol.bodies import read_small_json
from ..settings import SUBFOLDER, Settings
from ..waiting import wait_for

PATH = "/ltx-a2v/worker"
PROTOCOL = 3
IDENTITY = secrets.token_hex(16)
"""The id of this process. A head finds itself among its workers by it."""
LONGEST_ORDER = 2**23  # bytes of JSON, most of them the graph
BEAT_SECONDS = 1.0
ABANDONED_SECONDS = 24 * 3600.0
SILENT_SECONDS = 60.0
ENDS = ("start", "cached", "success", "error")
TOLD = ("executing", "executed", "progress", NODE_TEXT, *(f"execution_{kind}" for kind in ENDS))
FACTS = ("node", "node_id", "nodes", "value", "max", "window")
"""The events that the head hears of, and what it hears of them. It does not hear of values and paths in a graph."""
MEDIA = re.compile(rf"{SUBFOLDER}/([0-9a-f]{{32}}\.[a-z0-9]{{1,5}})")
"""The names of a request's media in the input folder; a name holds the content's hash."""

TOKEN = re.compile(r"[0-9a-f]{32}")
"""The beginning of the names of an order's results."""
ORDER, OWN_RESULT = "order-", "own-result"
"""The beginning of the name of an order's folder, and the file in it that says that the result is not in the head's
folder."""

Say = Callable[[dict[str, Any]], None]


class Undone(Exception):
    """The reason why an order has no outcome although its request is right."""


class Worker:
    """The routes of a worker. host: its own ComfyUI."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self._host, self._settings = host, settings
        self._leaving: dict[asyncio.Task[None], str] = {}  # the removal of what an order left → its token

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(PATH, answering(guard(self.look, self._settings)), allow_head=False),
            web.post(f"{PATH}/run", answering(guard(self.run, self._settings))),
        ]

    async def look(self, request: web.Request) -> web.Response:
        missing = await asyncio.to_thread(self._host.safety_missing)
        waiting = self._host.server.prompt_queue.get_tasks_remaining()
        told = {"protocol": PROTOCOL, "identity": IDENTITY, "free": waiting == 0, "safety": missing is None}
        return web.json_response(told)

    async def run(self, request: web.Request) -> web.StreamResponse:
        """Runs one order and sends lines of JSON until its outcome, an empty one every second."""
        order = await read_small_json(request, LONGEST_ORDER)
        if not _is_order(order):
            return web.Response(status=409)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        work = asyncio.create_task(self._work(order, lines.put_nowait))
        work.add_done_callback(lambda _: lines.put_nowait(None))
        with suppress(ConnectionError):
            try:
                while True:
                    try:
                        line = await wait_for(lines.get(), BEAT_SECONDS)
                    except asyncio.TimeoutError:
                        await response.write(b"\n")
                        continue
                    if line is None:
                        break
                    await response.write(json.dumps(line).encode() + b"\n")
                await response.write_eof()
            finally:
                work.cancel()
                with suppress(asyncio.CancelledError):
                    await work
        return response

    async def _work(self, order: dict[str, Any], say: Say) -> None:
        token = order["token"]
        media = self._settings.input_folder / f"{ORDER}{token}"
        if earlier := [task for task, of in self._leaving.items() if of == token]:  # of this part of a film
            await asyncio.wait(earlier)
        shared = await asyncio.to_thread(_is_shared, order["probe"], self._settings)
        is_part, done = Graph(order["prompt"]).has(SAVE_PART), False
        queued: list[str] = []
        try:
            await asyncio.to_thread(self._begin, media, shared)
            prompt = await self._fetch(order, media)
            outcome = await self._run(prompt, queued.append, say)
            outputs = _wanted(prompt, outcome)
            if not shared and (name := _result_name(outputs)):
                await self._send(name, order["result"])
            error = asdict(outcome.error) if outcome.error else None
            ended = {"error": error, "interrupted": outcome.interrupted, "removed": outcome.removed}
            say({"kind": "outcome", "outputs": outputs, **ended})
            done = True
        except Rejected as error:
            say({"kind": "rejected", "errors": error.errors})
        except Undone as error:
            say({"kind": "lost", "why": str(error)})
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as error:
            reason = public(f"{type(error).__name__}: {error}")  # aiohttp names the address, which is a secret
            say({"kind": "lost", "why": f"media or result could not be transferred ({reason})"})
        except Exception as error:  # a bug must end this order and not the head's request
            log_unexpected("an order of the cluster failed", error)
            say(
                {
                    "kind": "lost",
                    "why": f"a bug ({type(error).__name__}); the worker's log has the details",
                }
            )
        finally:
            # a part's name is that of its content: in a shared folder another machine may have made it meanwhile
            own = not shared or not (done or is_part)
            leaving = asyncio.create_task(self._leave(queued, media, token if own else None))
            self._leaving[leaving] = token
            leaving.add_done_callback(lambda task: self._leaving.pop(task))

    async def _leave(self, queued: list[str], media: Path, token: str | None) -> None:
        """Removes everything that an order brought and made, once ComfyUI is done with it."""
        for prompt_id in queued:
            await self._host.over(prompt_id)
            self._host.forget(prompt_id)
        await asyncio.to_thread(self._clear, media, token)

    async def _fetch(self, order: dict[str, Any], folder: Path) -> Prompt:
        """The order's graph with the names of the media here: in a shared folder, or fetched for this order alone."""
        text = json.dumps(order["prompt"])
        for name, url in order["media"].items():
            match = MEDIA.fullmatch(name)
            if not match:
                raise Undone(f"the head named {name!r}, which is no name of media")
            if await asyncio.to_thread((self._settings.input / name).is_file):
                continue
            await self._get(url, folder / match[1])
            text = text.replace(json.dumps(name), json.dumps(f"{SUBFOLDER}/{folder.name}/{match[1]}"))
        return json.loads(text)

    async def _get(self, url: str, path: Path) -> None:
        async with (
            _session() as session,
            session.get(url, allow_redirects=False, raise_for_status=True) as response,
            Incoming(path.parent, self._settings.max_media) as file,
        ):
            try:
                async for piece in response.content.iter_chunked(CHUNK):
                    await file.write(piece)
            except TooLargeError:
                raise Undone("a file is larger than LTX_A2V_MAX_MEDIA_MB allows here") from None
            if file.digest[:32] != path.stem:
                raise Undone("a file arrived damaged")
            await file.seal(0o644)
            file.place(path)

    async def _run(self, prompt: Prompt, on_queued: Callable[[str], None], say: Say) -> Outcome:
        def on_event(kind: str, data: dict[str, Any]) -> None:
            if kind in TOLD:
                say({"kind": "event", "name": kind, "data": {key: data[key] for key in FACTS if key in data}})

        return await self._host.run(prompt, on_queued, on_event)

    async def _send(self, name: str, url: str) -> None:
        path = self._settings.output_folder / name
        with path.open("rb") as file:
            headers = {"Content-Length": str(path.stat().st_size)}
            async with _session() as session, session.put(f"{url}/{name}", data=file, headers=headers) as response:
                if response.status != 204:
                    raise Undone(f"the head did not take the result (status {response.status})")

    def _begin(self, media: Path, shared: bool) -> None:
        """Makes the order's folder, which shows what belongs to the order if this server dies, and clears old ones."""
        for old in self._settings.input_folder.glob(f"{ORDER}*"):
            token = old.name.removeprefix(ORDER)
            if TOKEN.fullmatch(token) and old.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                self._clear(old, token if (old / OWN_RESULT).exists() else None)
        media.mkdir(parents=True, exist_ok=True)
        if not shared:
            (media / OWN_RESULT).touch()

    def _clear(self, media: Path, token: str | None) -> None:
        shutil.rmtree(media, ignore_errors=True)
        if token:
            for path in self._settings.output_folder.glob(f"*{token}*"):
                path.unlink(missing_ok=True)


def _is_order(order: Any) -> bool:
    """Whether this is an order of this version's head. The rest of it is trusted."""
    known = isinstance(order, dict) and order.get("protocol") == PROTOCOL
    return known and bool(TOKEN.fullmatch(str(order.get("token"))))


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENT_SECONDS))


def _is_shared(probe: dict[str, str], settings: Settings) -> bool:
    """Whether the head's output folder is this one: the file that the head wrote there can be read here."""
    try:
        return (settings.output_folder / Path(probe["name"]).name).read_text() == probe["says"]
    except OSError:
        return False


def _wanted(prompt: Prompt, outcome: Outcome) -> dict[str, dict[str, Any]]:
    """The outputs that the head reads."""
    return {
        key: value
        for key, value in outcome.outputs.items()
        if prompt.get(key, {}).get("class_type") in (SAVE, SAVE_PART, "PreviewAny")
    }


def _result_name(outputs: dict[str, dict[str, Any]]) -> str | None:
    return next((found["report"][0]["filename"] for found in outputs.values() if found.get("report")), None)
