"""Where workers get a request's media and leave its result: a server of its own, beside ComfyUI's, for nothing else.

Every address holds 256 random bits, is good for one file and one order, and ends with that. The door listens on the
address that the cluster knows this machine by, so ComfyUI itself can stay on loopback.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

from ..files.incoming import CHUNK, Incoming, TooLargeError
from ..files.results import RESULT
from ..settings import MIB, Settings

LARGEST_RESULT = 16 * 1024 * MIB
ABANDONED_SECONDS = 3600


class Door:
    """Open between `open` and `close`. Gives out addresses for the time of an order."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._files: dict[str, Path] = {}  # secret → what may be read
        self._results: dict[str, str] = {}  # secret → how the name of what may be left begins
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def open(self, address: str) -> None:
        """Listens on that address of this machine. Errors: OSError, the port is taken."""
        await self.close()
        self._sweep()
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
        """name → file: the address of each, and the one to leave a result at whose name begins with `token`."""
        given = {name: secrets.token_hex(32) for name in names}
        result = secrets.token_hex(32)
        self._files.update({secret: names[name] for name, secret in given.items()})
        self._results[result] = token
        try:
            yield {name: f"{self.url}/{secret}" for name, secret in given.items()}, f"{self.url}/{result}"
        finally:
            del self._results[result]
            for secret in given.values():
                del self._files[secret]

    async def _give(self, request: web.Request) -> web.StreamResponse:
        path = self._files.get(request.match_info["secret"])
        return web.FileResponse(path) if path and path.is_file() else web.Response(status=404)

    async def _take(self, request: web.Request) -> web.Response:
        """A result, which stands under its name once it is whole, if its order is still on."""
        secret, name = request.match_info["secret"], request.match_info["name"]
        token = self._results.get(secret)
        if token is None or not RESULT.fullmatch(name) or not name.startswith(token):
            return web.Response(status=404)
        folder = self._settings.output_folder
        try:
            async with Incoming(folder, LARGEST_RESULT) as file:
                async for piece in request.content.iter_chunked(CHUNK):
                    await file.write(piece)
                if request.content_length not in (None, file.size):
                    return web.Response(status=400)
                if secret not in self._results:
                    return web.Response(status=404)
                await file.keep(folder / name, 0o644)
        except TooLargeError:
            return web.Response(status=413)
        except ConnectionError:  # the worker is gone
            raise
        except OSError as error:
            logging.error("LTX A2V: a worker's result could not be written: %s", error)
            return web.Response(status=507)
        return web.Response(status=204)

    def _sweep(self) -> None:
        """What an earlier server was receiving when it died."""
        for path in self._settings.output_folder.glob(".*.part"):
            if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
