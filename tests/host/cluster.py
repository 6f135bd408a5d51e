"""Ray for tests: `ray start` as its user runs it, in a folder and a process group of its own.

Never `ray stop`, which ends everybody's.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RAY = (sys.executable, "-m", "ray.scripts.scripts")  # the command `ray`, of the interpreter that runs the tests
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5e" * 32}
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}
START_SECONDS = 120
SMALL = ("--num-cpus=1", "--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0")


class Node:
    """One `ray start`. address: of the cluster."""

    def __init__(self, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.address, self.process, self.log = address, process, log

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def ray_start(environment: dict[str, str], address: str | None = None) -> Iterator[Node]:
    """A head of a new cluster, or another machine of the one at that address."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets lie below it
    port = _free_port()
    head = (
        "--head",
        f"--port={port}",
        f"--temp-dir={folder}",
        "--include-dashboard=false",
    )
    where = (f"--address={address}",) if address else head
    command = [*RAY, "start", "--block", "--disable-usage-stats", *SMALL, *where]
    log = folder / "start.log"
    with log.open("wb") as out:
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Ray did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield Node(address or f"127.0.0.1:{port}", process, log)
    finally:
        if process.poll() is None:
            process.terminate()  # it ends what it has started
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in range(10000, 20000):  # Ray's own
            return port
