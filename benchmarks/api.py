"""The HTTP API while a job runs: how long a submission takes, and what fifty pollers cost the job.

A real ComfyUI server and the official Python client. The pollers ask as the official clients do: half of them as often
as Python's, half as JavaScript's with their logs, each after a request of its own, of which the first runs.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
LONG = {"video_size": {"width": 512, "height": 512}, "num_frames": 49, "num_inference_steps": 12}
SUBMISSIONS = 30
WANTED_SHARE, WANTED_MS = 3, 50


class Pollers:
    """Asks after requests from a thread of its own, until it is stopped; counts the answers."""

    def __init__(self, urls: list[str]) -> None:
        self.urls, self.answers = urls, 0
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
            asking = [
                self._poll(session, url, *INTERVALS[number % len(INTERVALS)]) for number, url in enumerate(self.urls)
            ]
            await asyncio.gather(*asking)

    async def _poll(self, session: aiohttp.ClientSession, url: str, interval: float, logs: str) -> None:
        while not self._stopped:
            async with session.get(url, params={"logs": logs}) as response:
                await response.json()
                if response.status not in (200, 202):
                    raise Differs(f"a poller was answered {response.status}")
            self.answers += 1
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


def events(url: str) -> Iterator[str]:
    """Lines of a request's stream, as they come."""
    with requests.get(url + "/status/stream", params={"logs": "1"}, stream=True, timeout=1800) as answer:
        yield from (line for line in answer.iter_lines(decode_unicode=True) if line.startswith("data: "))


def begun(handle: Any) -> None:
    """Returns as soon as the job's first step is done."""
    if not any("First pass: step 1/" in line for line in events(handle.response_url)):
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


def one_job(client: Any, arguments: dict[str, Any], asked: str, other: str) -> tuple[float, float]:
    """Seconds that the job took by the server's clock, and questions a second that were answered meanwhile.

    asked: "nobody", "another" process at the URL `other`, or "this" server.
    """
    with running(client, arguments, POLLERS - 1) as handles:
        urls = {"nobody": [], "another": [other] * POLLERS, "this": [handle.status_url for handle in handles]}[asked]
        start = time.perf_counter()
        with Pollers(urls) as pollers:
            for _ in events(handles[0].response_url):
                pass
        return seconds_of(handles[0]), pollers.answers / (time.perf_counter() - start)


def seconds_of(handle: Any) -> float:
    """How long a request that has ended ran. Errors: Differs where it failed."""
    handle.get()
    return handle.status().metrics["inference_time"]


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


def api(folder: Path, small: bool = False, rounds: int = 5) -> Table:
    base = folder / "comfy"
    write_published(base, **(made.SMALL if small else WIDE))
    arguments = {**REQUEST, **({} if small else LONG)}
    sound = made.sound_file(folder / "sound.wav", 3)
    computing = str(max(1, threads() - 1))  # one core is the server's and the pollers', as where a GPU computes
    took: dict[str, list[float]] = {"nobody": [], "another": [], "this": []}
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
            for asked, found in took.items():
                seconds, rate = one_job(client, {**arguments, "seed": 10 + number}, asked, other)
                found.append(seconds)
                rates += [rate] if asked == "this" else []
        say("  submissions")
        for name, value in (("a URL", url), ("a data URI", fal.encode_file(sound))):
            long = {**arguments, "num_inference_steps": 50, "seed": 5}
            spent[name] = submissions(client, long, value, 5 if small else SUBMISSIONS)
    machine = 100 * (Ratio(took["another"], took["nobody"]).median - 1)
    slower = 100 * (Ratio(took["this"], took["another"]).median - 1)
    rows = [
        ("a job alone", f"{middle(took['nobody'])} s", ""),
        (f"beside {POLLERS} pollers of another process", f"{middle(took['another'])} s", ""),
        (f"beside {POLLERS} pollers of this server", f"{middle(took['this'])} s", ""),
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
        "measured with an aiohttp server in another process. Submissions come one after another through fal-client "
        "while a job runs.",
    )
    numbers = {
        "slower share": slower,
        "machine's share": machine,
        "questions a second": median(rates),
        **{f"submission with {name}": median(values) for name, values in spent.items()},
    }
    return Table("The HTTP API while a job runs", ("what", "found", "wanted"), tuple(rows), notes, numbers)
