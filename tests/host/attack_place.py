"""What an attack needs: a folder with servers of the pack on it, somebody's own server, pictures, and waiting."""

from __future__ import annotations

import io
import os
import random
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
from a2v.tests.api.edges import data_uri, wav
from a2v.tests.host.api import APP, SMALL, environment
from a2v.tests.host.comfy import Comfy
from PIL import Image

SOUND = data_uri(wav(0.5), "audio/wav")


class Place:
    """A folder with models, and servers of the pack on it. running: the server there that needs no settings."""

    def __init__(self, base: Path, pack: Path, running: Comfy | None = None) -> None:
        self.base, self.pack, self._running = base, pack, running

    @contextmanager
    def server(self, *args: str, **settings: str) -> Iterator[Server]:
        if self._running and not args and not settings:
            yield Server(self._running)
            return
        with environment(**{"LTX_A2V_ALLOW_HOSTS": "localhost", **settings}):
            comfy = Comfy(self.base, pack=self.pack, args=args)
        with comfy:
            yield Server(comfy)

    @property
    def system(self) -> Path:
        return self.base / "user" / "__ltx_a2v"

    @property
    def database(self) -> Path:
        return self.system / "requests.sqlite"

    def files(self, folder: str) -> list[str]:
        """Of the API's, but for the file by which a cluster's workers know it."""
        where = self.base / folder / "ltx_a2v_api"
        return sorted(path.name for path in where.iterdir()) if where.is_dir() else []

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database, timeout=30)) as connection:
            found = connection.execute(query, values).fetchall()
            connection.commit()
            return found


class Server:
    """A running one: what clients ask it, and what it takes of the machine."""

    def __init__(self, comfy: Comfy) -> None:
        self.comfy, self.fal = comfy, f"{comfy.url}/fal"

    def submit(self, query: str = "", kind: str = "queue", headers: dict[str, str] | None = None, **body: Any) -> Any:
        whole = {**SMALL, "audio_url": SOUND, **body}
        url = f"{self.fal}/{kind}/{APP}{query}"
        return requests.post(url, json=whole, headers=headers, timeout=600)

    def status(self, request: dict[str, Any], **query: str) -> dict[str, Any]:
        return requests.get(request["status_url"], params=query, timeout=600).json()

    def lines(self, request: dict[str, Any]) -> list[str]:
        return [line["message"] for line in self.status(request, logs="1").get("logs") or []]

    def ended(self, request: dict[str, Any], seconds: float = 300) -> dict[str, Any] | None:
        """Its last status; None where it does not end in that time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.status(request)
            if status["status"] == "COMPLETED":
                return status
            time.sleep(0.1)
        return None

    def time_of(self, **body: Any) -> float:
        """Seconds from a submission to its end."""
        begun = time.monotonic()
        status = self.ended(self.submit(seed=random.randrange(2**30), **body).json(), 600)
        if status is None or "error" in status:
            raise RuntimeError(f"a well-behaved request did not succeed: {status}")
        return time.monotonic() - begun

    def upload(self, data: bytes) -> str:
        announced = requests.post(f"{self.fal}/rest/storage/upload/initiate", json={}, timeout=60).json()
        requests.put(announced["upload_url"], data=data, timeout=600).raise_for_status()
        return announced["file_url"]

    @property
    def memory(self) -> int:
        """Resident MiB."""
        return self._of_status("VmRSS")

    def processor_times(self) -> dict[str, float]:
        """Seconds of processor time that each of its threads has taken, by the thread's number."""
        taken = {}
        for path in Path(f"/proc/{self.comfy.pid}/task").iterdir():
            with suppress(OSError):  # a thread that has ended meanwhile
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                taken[path.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return taken

    @contextmanager
    def peak(self) -> Iterator[Callable[[], int]]:
        """The most resident MiB above what it was before."""
        before = self.memory
        Path(f"/proc/{self.comfy.pid}/clear_refs").write_text("5")
        yield lambda: self._of_status("VmHWM") - before

    def _of_status(self, name: str) -> int:
        text = Path(f"/proc/{self.comfy.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) // 1024

    def kill(self) -> None:
        os.killpg(self.comfy.pid, signal.SIGKILL)
        self.comfy._process.wait()


class Poller:
    """Asks again and again; the longest time that an answer took."""

    def __init__(self, url: str) -> None:
        self.url, self.longest, self._over = url, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.is_set():
            begun = time.monotonic()
            with suppress(requests.RequestException):
                requests.get(self.url, timeout=300)
            self.longest = max(self.longest, time.monotonic() - begun)
            self._over.wait(0.05)

    def __enter__(self) -> Poller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Outside:
    """Somebody's server on this machine. hang: it takes questions and does not answer; drip: bytes one by one."""

    def __init__(self, what: str) -> None:
        self.asked: list[str] = []
        self.over = threading.Event()
        here = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                here.asked.append(self.path)
                if what == "drip":
                    self.send_response(200)
                    self.send_header("Content-Length", "100000")
                    self.end_headers()
                    with suppress(OSError):
                        while not here.over.wait(0.2):
                            self.wfile.write(b"R")
                            self.wfile.flush()
                    return
                here.over.wait(600)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                here.asked.append(self.path)
                if what == "hang":
                    here.over.wait(600)
                with suppress(OSError):
                    self.send_response(200)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> Outside:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


def wait(condition: Callable[[], Any], seconds: float = 120) -> float:
    """Seconds until it is true; that many where it never is."""
    begun = time.monotonic()
    while not condition() and time.monotonic() < begun + seconds:
        time.sleep(0.05)
    return min(time.monotonic() - begun, seconds)


@contextmanager
def locked(place: Place) -> Iterator[None]:
    with closing(sqlite3.connect(place.database, isolation_level=None, timeout=60)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


def noise(side: int) -> bytes:
    """A picture that cannot be compressed."""
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side)).save(file, "PNG")
    return file.getvalue()


def animation(frames: int, side: int) -> bytes:
    file = io.BytesIO()
    pictures = [Image.new("P", (side, side), number % 256) for number in range(frames)]
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], loop=0)
    return file.getvalue()


def is_ended(plain: socket.socket) -> bool:
    """Whether the server has answered or hung up."""
    plain.setblocking(False)
    try:
        plain.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
