"""The HTTP API while a job runs: how long a submission takes, and what fifty pollers cost the job.

A real ComfyUI server and the official Python client. The pollers ask as the official clients do: half of them as often
as Python's, half as JavaScript's with their logs, each after a request of its own, of which the first runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any
from unittest.mock import patch

import aiohttp
import requests
from a2v.api.settings import Settings
from a2v.benchmarks import files as made
from a2v.benchmarks.measure import Ratio, Table, middle, say, threads
from a2v.benchmarks.peer import Differs
from a2v.tests.host.api import APP, client_of, write_published
from a2v.tests.host.api import SMALL as REQUEST
from a2v.tests.host.comfy import Comfy

POLLERS = 50
INTERVALS = ((0.1, "0"), (0.5, "1"))
"""Seconds between questions, and whether for logs: fal-client 1.0.3, and @fal-ai/client 1.10.1 as the page has it."""
WIDE = {"layers": 4, "heads": 8, "head_dim": 64}
"""Operations of milliseconds, as the published model's are: between them the server's loop and the job take turns."""
ANSWERS = """
from aiohttp import web
async def answer(request):
    await asyncio.sleep(%s)
    return web.json_response({"status": "IN_QUEUE", "request_id": "x" * 36, "urls": ["y" * 120] * 3})
async def main():
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print("http://127.0.0.1:%d/" % site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
import asyncio
app = web.Application()
app.router.add_get("/", answer)
asyncio.run(main())
"""
"""The server that pollers ask in comparison, as late with its answers: what they cost the machine, whoever answers."""
LONG = {"video_size": {"width": 512, "height": 512}, "num_frames": 49}
TURNS = ("nobody", "another", "this", "this", "another", "nobody")
"""Whom the pollers ask: nobody, the process beside, this server. Of the steps of each turn the later half counts."""
TURN = 4
STEP = re.compile(r"First pass: step (\d+)/")
SUBMISSIONS = 30
WANTED_SHARE, WANTED_MS = 3, 50


class Pollers:
    """Ask after requests from a thread of their own. urls: for whomever may be asked, each poller's URL."""

    def __init__(self, urls: dict[str, list[str]]) -> None:
        self.urls, self.asked = urls, "nobody"
        self.answers = dict.fromkeys(urls, 0)
        self._stopped = False
        self._thread = Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Pollers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._thread.join()

    async def _run(self) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self._poll(session, n, *INTERVALS[n % len(INTERVALS)]) for n in range(POLLERS)))

    async def _poll(self, session: aiohttp.ClientSession, number: int, interval: float, logs: str) -> None:
        while not self._stopped:
            asked = self.asked
            if asked in self.urls:
                async with session.get(self.urls[asked][number], params={"logs": logs}) as response:
                    await response.json()
                    if response.status not in (200, 202):
                        raise Differs(f"a poller was answered {response.status}")
                self.answers[asked] += 1
            await asyncio.sleep(interval)


@contextmanager
def running(client: Any, arguments: dict[str, Any], others: int = 0) -> Iterator[list[Any]]:
    """A job that has begun with its steps, and requests that wait behind it; the handles. All are ended with it."""
    handles = [client.submit(APP, arguments)]
    try:
        handles += [client.submit(APP, {**arguments, "seed": 0}, priority="low") for _ in range(others)]
        yield handles
    finally:
        for handle in handles[::-1]:
            requests.put(handle.cancel_url, timeout=30)


def steps(handle: Any) -> Iterator[tuple[int, float]]:
    """A job's steps as they end: which, and when by the server's clock, in seconds."""
    url = handle.response_url + "/status/stream"
    with requests.get(url, params={"logs": "1"}, stream=True, timeout=1800) as answer:
        for line in answer.iter_lines(decode_unicode=True):
            for log in json.loads(line[6:]).get("logs") or () if line.startswith("data: ") else ():
                if step := STEP.match(log["message"]):
                    yield int(step[1]), datetime.fromisoformat(log["timestamp"].replace("Z", "+00:00")).timestamp()


def begun(handle: Any) -> None:
    """Returns as soon as the job's first step is done."""
    if next(steps(handle), None) is None:
        raise Differs("the job ended without a step")


@contextmanager
def elsewhere() -> Iterator[str]:
    """The URL of another process that answers as fast as aiohttp can, with as much to say."""
    with subprocess.Popen(
        [sys.executable, "-c", ANSWERS.replace("%s", str(Settings.hold_seconds))], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


class Worker:
    """The thread of a process that computes: the busiest one."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._before = self._spent()
        self._thread = ""

    def _spent(self) -> dict[str, float]:
        """Seconds that each thread ran on a core."""
        return {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in self._tasks.iterdir()}

    def spent(self) -> float:
        """Seconds that it ran on a core; which it is, the first call finds out."""
        now = self._spent()
        self._thread = self._thread or max(now, key=lambda each: now[each] - self._before.get(each, 0.0))
        return now[self._thread]


def one_job(
    client: Any, arguments: dict[str, Any], other: str, server: int
) -> tuple[list[dict[str, float]], list[dict[str, float]], float]:
    """Of each round of turns, beside pollers of each: the mean step in seconds, and the share of it that the job
    computed, neither waiting for the interpreter nor for a core. And the answers of this server a second.

    other: the URL of the process beside. server: this one's process. Round after round: the machine is faster one
    minute than the next.
    """
    count = arguments["num_inference_steps"]
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    with running(client, arguments, POLLERS - 1) as handles:
        urls = {"another": [other] * POLLERS, "this": [handle.status_url for handle in handles]}
        worker = Worker(server)
        with Pollers(urls) as pollers:
            before, spent, this = 0.0, 0.0, 0.0
            for number, now in steps(handles[0]):
                used = worker.spent()
                # Step 1 is a turn of nobody's: it has no beginning.
                turn, step = divmod(number - 2, TURN)
                if number > 1:
                    this += (now - before) * (pollers.asked == "this")
                    if (turn % len(TURNS), step) == (0, 0):
                        rounds.append((dict.fromkeys(TURNS, 0.0), dict.fromkeys(TURNS, 0.0)))
                    if step >= TURN // 2:
                        rounds[-1][0][pollers.asked] += now - before
                        rounds[-1][1][pollers.asked] += used - spent
                before, spent = now, used
                pollers.asked = TURNS[(number - 1) // TURN % len(TURNS)]
                if number == count:
                    break
            each = {asked: TURNS.count(asked) * (TURN - TURN // 2) for asked in TURNS}
            took = [{asked: one[asked] / each[asked] for asked in TURNS} for one, _ in rounds]
            busy = [{asked: computed[asked] / one[asked] for asked in TURNS} for one, computed in rounds]
            return took, busy, pollers.answers["this"] / this


def submissions(client: Any, arguments: dict[str, Any], url: str, count: int) -> list[float]:
    """Milliseconds of each submission while a job runs; they are all cancelled with it."""
    with running(client, arguments) as handles:
        begun(handles[0])
        spent = []
        for seed in range(count):
            start = time.perf_counter()
            handles.append(client.submit(APP, {**arguments, "audio_url": url, "seed": seed}, priority="low"))
            spent.append(1000 * (time.perf_counter() - start))
            time.sleep(0.2)
        if handles[0].status().__class__.__name__ != "InProgress":
            raise Differs("the job ended before the last submission")
    return spent


def api(folder: Path, small: bool = False, rounds: int = 8) -> Table:
    base = folder / "comfy"
    write_published(base, **(made.SMALL if small else WIDE))
    arguments = {**REQUEST, **({} if small else LONG)}
    sound = made.sound_file(folder / "sound.wav", 3)
    computing = str(max(1, threads() - 1))  # one core is the server's and the pollers', as where a GPU computes
    took: dict[str, list[float]] = {asked: [] for asked in TURNS}
    busy: dict[str, list[float]] = {asked: [] for asked in TURNS}
    turns = TURN * len(TURNS) * (1 if small else 2)
    rates: list[float] = []
    spent: dict[str, list[float]] = {}
    with (
        patch.dict(os.environ, {"OMP_NUM_THREADS": computing, "MKL_NUM_THREADS": computing}),
        Comfy(base) as server,
        client_of(server) as fal,
        elsewhere() as other,
    ):
        client = fal.SyncClient(key="any")
        url = client.upload_file(sound)
        arguments["audio_url"] = url
        client.subscribe(APP, {**arguments, "num_inference_steps": 8})  # models and conditions are there from here on
        for number in range(1 if small else rounds):
            say(f"  round {number + 1}")
            found = one_job(
                client, {**arguments, "num_inference_steps": 1 + turns, "seed": 10 + number}, other, server.pid
            )
            for asked in took:
                took[asked] += [one[asked] for one in found[0]]
                busy[asked] += [one[asked] for one in found[1]]
            rates.append(found[2])
        say("  submissions")
        for name, value in (("a URL", url), ("a data URI", fal.encode_file(sound))):
            long = {**arguments, "num_inference_steps": 50, "seed": 5}
            spent[name] = submissions(client, long, value, 5 if small else SUBMISSIONS)
    machine = 100 * (Ratio(busy["nobody"], busy["another"]).median - 1)
    slower = 100 * (Ratio(busy["another"], busy["this"]).median - 1)
    who = {
        "nobody": "a step alone",
        "another": f"beside {POLLERS} pollers of another process",
        "this": f"beside {POLLERS} pollers of this server",
    }
    rows = [
        *(
            (what, f"{middle(took[asked])} s, {middle(busy[asked], 1, 100)} % computing", "")
            for asked, what in who.items()
        ),
        ("slower by what the pollers take of the machine", f"{machine:.1f} %", ""),
        ("slower by answering them", f"{slower:.1f} %", f"< {WANTED_SHARE} %"),
        ("questions answered a second", middle(rates, 0), ""),
        *(
            (f"a submission with {name}", f"{middle(values, 1)} ms", f"< {WANTED_MS} ms")
            for name, values in spent.items()
        ),
    ]
    notes = (
        f"A real ComfyUI and a model of few but wide blocks; the job computes with {computing} of {threads()} threads. "
        f"Half of the pollers ask every {INTERVALS[0][0]} s as fal-client does, half every {INTERVALS[1][0]} s, for "
        "logs too, as @fal-ai/client does, each after another request. They run on this machine, so they are "
        "measured with an aiohttp server in another process. Nobody, that one and this one are asked in turns of "
        f"{TURN} steps, of which the later half counts; a share is the median over {len(took['this'])} rounds. "
        "Slower: by how much less of its time the job's thread computes, instead of waiting for the interpreter or a "
        "core; on a machine whose speed changes from one minute to the next, the seconds alone tell too little. "
        "Submissions come one after another through fal-client while a job runs.",
    )
    numbers = {
        "slower share": slower,
        "machine's share": machine,
        "questions a second": median(rates),
        **{f"submission with {name}": median(values) for name, values in spent.items()},
    }
    return Table("The HTTP API while a job runs", ("what", "found", "wanted"), tuple(rows), notes, numbers)
