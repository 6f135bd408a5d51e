"""The head of a cluster: it keeps the bridge running, and a lane for each worker that the bridge tells of.

A lane claims a request with a lease of its own and ends it as the server's own lane does; only the graph runs on the
worker. If a worker is lost, its request goes back into the queue, and any free machine takes it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from ..faults import public
from ..graph.graph import Prompt
from ..graph.parts import prefix_of
from ..host import Host, HostLost, NodeError, OnEvent, Outcome, Rejected
from ..queue.endings import disk_failed
from ..queue.lane import Lane
from ..queue.queue import RequestQueue
from ..settings import SUBFOLDER
from ..ticking import Ticker
from .door import Door
from .worker import ABANDONED_SECONDS, IDENTITY, MEDIA, PROTOCOL

BRIDGE = Path(__file__).with_name("bridge.py")
RETRY_SECONDS = 10.0
LOST_SECONDS = 6.0  # until a worker's state is newer than its loss
ASIDE_SECONDS = 60.0  # for which a worker that could not start a request gets none
STALE_SECONDS = 30.0
ARRIVAL_SECONDS = 15.0  # until a result in a shared folder must be visible here
LONGEST_LINE = 2**26
PROBE = ".cluster-"


class Cluster:
    """All workers of this server. Call `start` and `close` on the loop that answers requests."""

    def __init__(self, queue: RequestQueue) -> None:
        self.queue = queue
        self.door = Door(queue.settings)
        self.workers: dict[str, RemoteWorker] = {}
        self.probe = {"name": PROBE + secrets.token_hex(8), "says": secrets.token_hex(16)}
        self._orders: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._bridge: asyncio.subprocess.Process | None = None
        self._complaint = ""
        self._ticker = Ticker("the connection to Ray's cluster", self._keep, RETRY_SECONDS)

    async def start(self) -> None:
        self._ticker.start()

    async def close(self) -> None:
        await self._ticker.stop()
        for worker in self.workers.values():
            await worker.close()
        await self.door.close()
        (self.queue.settings.output_folder / self.probe["name"]).unlink(missing_ok=True)

    async def _keep(self) -> None:
        """Runs the bridge until it ends: Ray ends it if the cluster is gone for a minute."""
        try:
            await self._serve()
        except OSError as error:  # this server works on alone
            self._complain(f"the cluster cannot be used: {public(str(error))}")
        finally:
            self._bridge = None
            for worker in self.workers.values():
                worker.state = {"error": "the connection to Ray's cluster is gone"}
            for lines in self._orders.values():
                lines.put_nowait({"kind": "lost", "why": "the connection to Ray's cluster is gone"})

    async def _serve(self) -> None:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, str(BRIDGE), str(self.queue.settings.ray_address))
        # The bridge ends when its input ends. Ctrl-C must not reach it.
        bridge = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, limit=LONGEST_LINE, start_new_session=True
        )
        try:
            self._bridge = bridge
            async for line in bridge.stdout:
                await self._hear(json.loads(line))
        finally:
            if bridge.returncode is None:
                with suppress(ProcessLookupError):
                    bridge.kill()  # its agents and their orders end with it
            await bridge.wait()

    async def _hear(self, message: dict[str, Any]) -> None:
        if message["say"] == "line":
            if message["id"] in self._orders:
                self._orders[message["id"]].put_nowait(message["line"])
        elif message["say"] == "workers":
            await self._show(message["workers"])
        elif message["say"] == "joined":
            await self.door.open(message["ip"])
            await asyncio.to_thread(self.write_probe)
            logging.info("LTX A2V: head of Ray's cluster; workers get their files from %s", self.door.url)
        else:
            self._complain(message["why"])

    def _complain(self, sentence: str) -> None:
        """Logs a sentence once, however often it comes."""
        if sentence != self._complaint:
            self._complaint = sentence
            logging.error("LTX A2V: %s", sentence)

    def write_probe(self) -> None:
        """Makes sure that the file is there by which a worker recognises this server's output folder. A worker that
        shares that folder and does not know it would remove the result as one of its own. Errors: OSError."""
        folder = self.queue.settings.output_folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.probe["name"]
        if not path.is_file() or path.read_text() != self.probe["says"]:
            path.write_text(self.probe["says"])
        os.utime(path)
        for old in folder.glob(f"{PROBE}*"):  # of heads that were killed
            with suppress(OSError):  # another head has removed it
                if old.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                    old.unlink()

    async def _show(self, workers: list[dict[str, Any]]) -> None:
        told = {state["key"]: state for state in workers if state.get("identity") != IDENTITY}
        for key, worker in list(self.workers.items()):
            if key not in told:
                worker.state = {"error": "its machine has left the cluster"}
                if not worker.lane.is_busy:
                    del self.workers[key]
                    await worker.close()
                    logging.warning("LTX A2V: %s has left the cluster", worker.name)
        for key, state in told.items():
            if key not in self.workers:
                self.workers[key] = RemoteWorker(self, key, state["name"])
                self.workers[key].start()
            self.workers[key].show(state)
            if self.workers[key].is_ready:
                self._complaint = ""

    async def follow(self, worker: str, order: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Sends an order and yields its lines. It ends the order when the consumer stops reading. Errors: HostLost."""
        lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        order_id = order["id"]
        self._orders[order_id] = lines
        try:
            self._tell(do="run", id=order_id, worker=worker, order=order)
            while True:
                line = await lines.get()
                if line["kind"] == "lost":
                    raise HostLost(line["why"])
                yield line
        finally:
            del self._orders[order_id]
            with suppress(HostLost):
                self._tell(do="stop", id=order_id)

    def _tell(self, **message: Any) -> None:
        if self._bridge is None or self._bridge.stdin is None or self._bridge.stdin.is_closing():
            raise HostLost("the connection to Ray's cluster is gone")
        self._bridge.stdin.write(json.dumps(message).encode() + b"\n")


class Remote(Host):
    """A worker's ComfyUI. Questions about models and installations are answered by this server's own ComfyUI."""

    def __init__(self, cluster: Cluster, key: str) -> None:
        super().__init__(cluster.queue.host.server)
        self._cluster, self._key = cluster, key

    async def run(self, prompt: Prompt, on_queued: Callable[[str], None], on_event: OnEvent) -> Outcome:
        """Runs a prompt there. Errors: Rejected; HostLost; RequestFailed if this server's disk does not take the
        result. If the awaiting task is cancelled, the run stops there."""
        try:
            await asyncio.to_thread(self._cluster.write_probe)
        except OSError as error:
            raise HostLost(f"the head cannot write its results ({error.strerror})") from None
        settings = self._cluster.queue.settings
        names = {text for text in _strings(prompt) if MEDIA.fullmatch(text)}
        token = prefix_of(prompt).removeprefix(f"{SUBFOLDER}/")
        order_id = str(uuid.uuid4())
        on_queued(order_id)
        with self._cluster.door.order({name: settings.input / name for name in names}, token) as (media, result):
            order = {
                "protocol": PROTOCOL,
                "id": order_id,
                "prompt": prompt,
                "media": media,
                "token": token,
                "result": result,
                "probe": self._cluster.probe,
            }
            try:
                return await self._follow(prompt, order, on_event)
            except HostLost:
                if reason := self._cluster.door.failure(result):
                    raise disk_failed(reason) from None
                raise

    async def _follow(self, prompt: Prompt, order: dict[str, Any], on_event: OnEvent) -> Outcome:
        async with aclosing(self._cluster.follow(self._key, order)) as lines:
            async for line in lines:
                if line["kind"] == "event":
                    on_event(line["name"], line["data"])
                elif line["kind"] == "rejected":
                    await self._judge(prompt, line["errors"])
                else:
                    return await self._outcome(line)
        raise HostLost("it sent no outcome")

    async def _judge(self, prompt: Prompt, errors: dict[str, str]) -> None:
        """Decides about a rejected graph. Errors: Rejected if this server rejects it, too; else HostLost: the worker is
        set up differently."""
        import execution

        self.server.trigger_on_prompt({"prompt": prompt})  # as when it is queued: nodes read it there
        valid, _, _, node_errors = await execution.validate_prompt(str(uuid.uuid4()), prompt, None)
        if not valid or node_errors:
            raise Rejected(errors)
        raise HostLost(f"it rejected a graph that this server accepts: {'; '.join(errors.values())}")

    async def _outcome(self, line: dict[str, Any]) -> Outcome:
        error = NodeError(**line["error"]) if line["error"] else None
        outcome = Outcome(line["outputs"], error, line["interrupted"], line["removed"])
        facts = next((found["report"][0] for found in outcome.outputs.values() if found.get("report")), None)
        if facts and not error and not outcome.interrupted:
            path = self._cluster.queue.settings.output_folder / Path(facts["filename"]).name
            until = time.monotonic() + ARRIVAL_SECONDS
            while not await asyncio.to_thread(path.is_file):
                if time.monotonic() > until:
                    raise HostLost("its result did not arrive")
                await asyncio.sleep(0.5)
        return outcome

    async def over(self, prompt_id: str) -> None:
        """Does nothing, for a worker leaves nothing of a run that was stopped."""

    def forget(self, prompt_id: str) -> None:
        """Does nothing, for a worker keeps nothing."""


class RemoteWorker:
    """A worker's last known state, and its lane, which takes a request whenever the worker is ready.

    The head's own queue fetches media and removes old results.
    """

    def __init__(self, cluster: Cluster, key: str, name: str) -> None:
        queue = cluster.queue
        self.name = name
        self.state: dict[str, Any] = {}
        self._host = Remote(cluster, key)
        self._ticker = Ticker(f"the work of {name}", self._tick)
        self.lane = Lane(
            self._host,
            queue.store,
            queue.settings,
            queue.journal,
            queue.finishing,
            self._ticker.wake,
            queue.crew,
            name=name,
            on_end=self._on_end,
            is_there=lambda: self.is_there,
        )
        self._seen = self._fit = float("-inf")  # when it was last seen, and last seen fit to run requests
        self._aside = 0.0
        self._problem: str | None = ""

    def start(self) -> None:
        self.lane.leases.start()
        self._ticker.start()

    async def close(self) -> None:
        await self._ticker.stop()
        await self.lane.close()
        await asyncio.to_thread(self.lane.leases.stop)

    def show(self, state: dict[str, Any]) -> None:
        """Takes a worker's new state, and logs once what keeps it from working."""
        self.state, self._seen = state, time.monotonic()
        problem = self._unfit()
        self._fit = self._fit if problem else self._seen
        if problem != self._problem:
            self._problem = problem
            if problem:
                logging.warning("LTX A2V: worker %s gets no requests: %s", self.name, problem)
            else:
                logging.info("LTX A2V: worker %s is ready", self.name)
        if self.is_ready:
            self._ticker.wake()

    def _unfit(self) -> str | None:
        if "error" in self.state:
            return self.state["error"]
        if self.state.get("protocol") != PROTOCOL:
            return "it has another version of this pack"
        if not self.state["safety"] and self._host.safety_missing() is None:
            return "it has no safety checker, and this server has one"
        return None

    @property
    def is_there(self) -> bool:
        """Whether it can run requests now or soon. It also is there for a moment after a run that was stopped."""
        now = time.monotonic()
        return now < self._fit + STALE_SECONDS and now >= self._aside

    @property
    def is_ready(self) -> bool:
        now = time.monotonic()
        fresh = now < self._seen + STALE_SECONDS and now >= self._aside
        return fresh and self._unfit() is None and bool(self.state["free"])

    async def _tick(self) -> None:
        await self.lane.leases.sweep()
        if self.lane.is_busy or self.is_ready:
            await self.lane.tick()

    def _on_end(self, lost: str | None, started: bool) -> None:
        """Notes that a run has ended, or the reason why its worker was lost."""
        if lost is None:
            self.state = {**self.state, "free": True}
        else:
            self.state = {"error": lost}
            self._aside = time.monotonic() + (LOST_SECONDS if started else ASIDE_SECONDS)


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in _strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in _strings(part)]
    return [value] if isinstance(value, str) else []
