"""What tests of the API's edges share: settings in a temporary folder, servers in threads, names without a DNS."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import ssl
import threading
import wave
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from a2v.api.applications.audio_to_video import AUDIO_TO_VIDEO
from a2v.api.database import schema
from a2v.api.database.store import Store
from a2v.api.files.incoming import Incoming
from a2v.api.files.looks import Kind
from a2v.api.files.media import Inbox
from a2v.api.protocol import operations
from a2v.api.protocol.operations import Operation
from a2v.api.settings import Settings
from aiohttp import web
from PIL import Image
from sqlalchemy import event

KEY = "a-key-of-these-tests"
APP = AUDIO_TO_VIDEO.id


def make_settings(folder: Path, **changes: Any) -> Settings:
    folders = {name: folder / name for name in ("system", "input", "output")}
    for path in folders.values():
        path.mkdir(exist_ok=True)
    return Settings(**{**folders, **changes})


@contextmanager
def opened(settings: Settings) -> Iterator[Store]:
    settings.prepare()
    schema.prepare(settings.database)
    store = Store(settings.database)
    try:
        yield store
    finally:
        store.close()


def before_writes(store: Store, act: Callable[[], None]) -> Callable[[], None]:
    """Calls `act` before each statement that writes, where the driver would; what it raises is the driver's error.
    Returns what ends that."""

    def look(cursor: Any, statement: str, parameters: Any, context: Any) -> None:
        if not statement.startswith(("BEGIN", "SELECT", "PRAGMA")):
            act()

    places = [(engine, name) for engine in store.engines[1:] for name in ("do_execute", "do_executemany")]
    for engine, name in places:
        event.listen(engine, name, look)

    def end() -> None:
        for engine, name in places:
            event.remove(engine, name, look)

    return end


def arrive(data: bytes, kind: Kind, settings: Settings, store: Store, name: str = "") -> str:
    """A file that came with a request, kept in the input folder → its name there."""

    async def main() -> str:
        async with Incoming(settings.input_folder, settings.max_media) as file:
            await file.write(data)
            return await Inbox(settings, store).keep(file, name, "", f"{kind}_url", kind, "a request")

    return asyncio.run(main())


def app_of(described: Iterable[Operation], settings: Settings, **options: Any) -> web.Application:
    """An app with these routes and nothing else. options: of aiohttp's Application."""
    app = web.Application(**options)
    app.add_routes(operations.routes(described, settings))
    return app


@contextmanager
def serving(
    make: Callable[[], web.Application], host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """The app on a real socket, in a thread with an event loop of its own; yields its port."""
    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(make(), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
        return runner

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield runner.addresses[0][1]
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextmanager
def answering(answer: Callable[[web.Request], Any], **where: Any) -> Iterator[tuple[int, list[web.Request]]]:
    """A server with one handler for every path; yields its port and the requests it got."""
    got: list[web.Request] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        got.append(request)
        response = answer(request)
        return await response if asyncio.iscoroutine(response) else response

    def make() -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:(?s:.*)}", handle)
        return app

    with serving(make, **where) as port:
        yield port, got


class Names:
    """A DNS of the test's own, where the system would ask one; each name's answers come in turn, the last for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []
        system = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *arguments: Any, **named: Any) -> list[Any]:
            name = host.decode() if isinstance(host, bytes) else host
            if name not in self.answers:
                return system(host, port, *arguments, **named)
            self.asked.append(name)
            turns = self.answers[name]
            found = turns.pop(0) if len(turns) > 1 else turns[0]
            if not found:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in found]
            return [
                (family, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)[: 4 if family == socket.AF_INET6 else 2])
                for family, address in zip(families, found, strict=True)
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def wav(seconds: float = 0.1, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(bytes(range(256)) * (round(seconds * rate) * 2 // 256))
    return file.getvalue()


def png(side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 90)).save(file, "PNG")
    return file.getvalue()


def data_uri(data: bytes, content_type: str) -> str:
    return f"data:{content_type};base64,{base64.b64encode(data).decode()}"
