"""Gives workers a request's media and takes its result: a server of its own beside ComfyUI's.

Every address holds 256 random bits and is valid for one file of one order, until the order ends. The door listens on
the address by which the cluster knows this machine, so ComfyUI itself can stay on loopback.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from ..files.incoming import CHUNK, Incoming, TooLargeError, in_larger, in_thread
from ..files.results import PART, RESULT
from ..settings import MIB, Settings

LARGEST_RESULT = 16 * 1024 * MIB


@dataclass
class _Result:
    """The file that an order's worker may leave. token: the beginning of its name; failure: why the disk did not take
    it."""

    token: str
    is_taken: bool = False
    failure: str = ""


class Door:
    """Listens between `open` and `close`, and makes the addresses of orders."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._files: dict[str, Path] = {}  # secret → the file that may be read
        self._results: dict[str, _Result] = {}  # secret → the result that may be left
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def open(self, address: str) -> None:
        """Listens on that address of this machine. Errors: OSError if the port is taken."""
        await self.close()
        app = web.Application(client_max_size=LARGEST_RESULT)
        app.add_routes(self.routes())
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._runner = runner
        await web.TCPSite(runner, address, self._settings.cluster_port).start()
        host = f"[{address}]" if ":" in address else address
        self.url = f"http://{host}:{runner.addresses[0][1]}"

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/{secret}", self._give), web.put("/{secret}/{name}", self._take)]

    async def close(self) -> None:
        runner, self._runner = self._runner, None
        if runner:
            await runner.cleanup()

    @contextmanager
    def order(self, names: Mapping[str, Path], token: str) -> Iterator[tuple[dict[str, str], str]]:
        """Addresses for an order: name → the address of that file, and the address for a result whose name begins with
        `token`."""
        given = {name: secrets.token_hex(32) for name in names}
        result = secrets.token_hex(32)
        self._files.update({secret: names[name] for name, secret in given.items()})
        self._results[result] = _Result(token)
        try:
            yield {name: f"{self.url}/{secret}" for name, secret in given.items()}, f"{self.url}/{result}"
        finally:
            del self._results[result]
            for secret in given.values():
                del self._files[secret]

    def failure(self, address: str) -> str:
        """Why the disk did not take the result of an order that is on, or "". address: for that result."""
        return self._results[address.rpartition("/")[2]].failure

    async def _give(self, request: web.Request) -> web.StreamResponse:
        path = self._files.get(request.match_info["secret"])
        there = path is not None and await in_thread(path.is_file)
        return web.FileResponse(path) if path and there else web.Response(status=404)

    async def _take(self, request: web.Request) -> web.Response:
        """Takes the result of an order that is still on: one file, once. It gets its name when it is whole."""
        secret, name = request.match_info["secret"], request.match_info["name"]
        result = self._results.get(secret)
        known = RESULT.fullmatch(name) or PART.fullmatch(name)
        if result is None or not known or not name.startswith(result.token):
            return web.Response(status=404)
        if result.is_taken:
            return web.Response(status=409)
        result.is_taken = True  # no other one is taken from now on
        try:
            status = await self._receive(request, secret, name)
        except BaseException:  # the worker is gone, or this server ends
            result.is_taken = False
            raise
        result.is_taken = status == 204
        return web.Response(status=status)

    async def _receive(self, request: web.Request, secret: str, name: str) -> int:
        """Receives a result. Returns the status of the answer; 204 means that the file is there."""
        folder = self._settings.output_folder
        try:
            async with Incoming(folder, LARGEST_RESULT) as file:
                async for piece in in_larger(request.content.iter_chunked(CHUNK)):
                    await file.write(piece)
                if request.content_length not in (None, file.size):
                    return 400
                await file.seal(0o644)
                if secret not in self._results:
                    return 404
                file.place(folder / name)
        except TooLargeError:
            return 413
        except ConnectionError:
            raise
        except OSError as error:
            logging.error("LTX A2V: a worker's result could not be written: %s", error.strerror)
            if secret in self._results:
                self._results[secret].failure = error.strerror or type(error).__name__
            return 507
        return 204
