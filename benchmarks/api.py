"""The HTTP API while a job runs: how long a submission takes, and how much fifty pollers slow the job down.

It uses a real ComfyUI server and the official Python client. The pollers ask as the official clients do: half of them
as often as the Python client, half as the JavaScript client, which also asks for logs. Each polls its own request; the
first request runs.
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
"""Seconds between questions, and whether they ask for logs: as fal-client 1.0.3 and as @fal-ai/client 1.10.1."""
WIDE = {"layers": 4, "heads": 8, "head_dim": 64}
"""With these sizes an operation takes milliseconds, as in the published model. Between operations the server's loop and
the job take turns."""
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
"""Another server for comparison, which answers as late. It shows how much the pollers slow the machine itself down."""
LONG = {"video_size": {"width": 512, "height": 512}, "num_frames": 49}
TURNS = ("nobody", "another", "this", "this", "another", "nobody")
"""The server that the pollers ask in each turn: none, the other process, this server. Only the second half of the steps
of a turn counts."""
TURN = 4
STEP = re.compile(r"First stage: step (\d+)/")
SUBMISSIONS = 30
WANTED_SHARE, WANTED_MS = 3, 50


class Pollers:
    """Pollers that ask for the status of requests, in their own thread. urls: for each server, the URL of each
    poller."""

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
                        raise Differs(f"a poller got the status {response.status}")
                self.answers[asked] += 1
            await asyncio.sleep(interval)


@contextmanager
def running(client: Any, arguments: dict[str, Any], others: int = 0) -> Iterator[list[Any]]:
    """Submits a job and further requests that wait after it, and yields the handles. All are cancelled at the end."""
    handles = [client.submit(APP, arguments)]
    try:
        handles += [client.submit(APP, {**arguments, "seed": 0}, priority="low") for _ in range(others)]
        yield handles
    finally:
        for handle in handles[::-1]:
            requests.put(handle.cancel_url, timeout=30)


def steps(handle: Any) -> Iterator[tuple[int, float]]:
    """Yields each step of a job when it ends: its number, and its time by the server's clock in seconds."""
    url = handle.response_url + "/status/stream"
    with requests.get(url, params={"logs": "1"}, stream=True, timeout=1800) as answer:
        for line in answer.iter_lines(decode_unicode=True):
            for log in json.loads(line[6:]).get("logs") or () if line.startswith("data: ") else ():
                if step := STEP.match(log["message"]):
                    yield int(step[1]), datetime.fromisoformat(log["timestamp"].replace("Z", "+00:00")).timestamp()


def begun(handle: Any) -> None:
    """Waits until the job's first step is done."""
    if next(steps(handle), None) is None:
        raise Differs("the job ended without a step")


@contextmanager
def elsewhere() -> Iterator[str]:
    """Starts another process and yields its URL. It answers as fast as aiohttp can, with answers of the same length."""
    with subprocess.Popen(
        [sys.executable, "-c", ANSWERS.replace("%s", str(Settings.hold_seconds))], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


class Worker:
    """The thread of a process that computes, which is the busiest one."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._before = self._spent()
        self._thread = ""

    def _spent(self) -> dict[str, float]:
        """Seconds that each thread ran on a core."""
        return {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in self._tasks.iterdir()}

    def spent(self) -> float:
        """Seconds that the thread ran on a core. The first call finds out which thread it is."""
        now = self._spent()
        self._thread = self._thread or max(now, key=lambda each: now[each] - self._before.get(each, 0.0))
        return now[self._thread]


def one_job(
    client: Any, arguments: dict[str, Any], other: str, server: int
) -> tuple[list[dict[str, float]], list[dict[str, float]], float]:
    """Runs one job and returns, for each round and each polled server, the mean time of a step in seconds and the share
    of it in which the job computed instead of waiting for the interpreter or a core. The last value is the number of
    answers of this server per second.

    other: the URL of the other process. server: the process id of this server. There are many rounds, because the speed
    of the machine changes from minute to minute.
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
                # Step 1 belongs to no turn, because its start is not known.
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
    """Milliseconds of each submission while a job runs. All of them are cancelled at the end."""
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
    computing = str(max(1, threads() - 1))  # one core is left for the server and the pollers, as with a GPU
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
        client.subscribe(APP, {**arguments, "num_inference_steps": 8})  # this loads the models and makes the conditions
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
        "nobody": "a step without pollers",
        "another": f"a step while {POLLERS} pollers ask another process",
        "this": f"a step while {POLLERS} pollers ask this server",
    }
    rows = [
        *(
            (what, f"{middle(took[asked])} s, {middle(busy[asked], 1, 100)} % computing", "")
            for asked, what in who.items()
        ),
        ("the pollers slow the machine down by", f"{machine:.1f} %", ""),
        ("answering them slows the step down by", f"{slower:.1f} %", f"< {WANTED_SHARE} %"),
        ("answers per second", middle(rates, 0), ""),
        *(
            (f"a submission with {name}", f"{middle(values, 1)} ms", f"< {WANTED_MS} ms")
            for name, values in spent.items()
        ),
    ]
    notes = (
        f"This is a real ComfyUI with a model of few but wide blocks; the job computes with {computing} of {threads()} "
        f"threads. Half of the pollers ask every {INTERVALS[0][0]} s as fal-client does, and half ask every "
        f"{INTERVALS[1][0]} s, for logs, too, as @fal-ai/client does; each polls another request. The pollers run on "
        "this machine, so the cost of the pollers themselves is measured with an aiohttp server in another process. "
        f"The pollers ask no server, the other process and this server in turns of {TURN} steps, and the second half "
        f"of a turn counts; a share is the median over {len(took['this'])} rounds. The slowdown is the share of its "
        "time that the job's thread loses by waiting for the interpreter or a core. Seconds alone are not enough on a "
        "machine with changing speed. Submissions follow one another through fal-client while a job runs.",
    )
    numbers = {
        "slower share": slower,
        "machine's share": machine,
        "questions a second": median(rates),
        **{f"submission with {name}": median(values) for name, values in spent.items()},
    }
    table = Table("The HTTP API while a job runs", ("what", "found", "wanted"), tuple(rows), notes, numbers)
    return table.judged([(slower,), *((median(values),) for values in spent.values())])
