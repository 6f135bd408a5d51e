"""A file while it arrives: under a hidden name, capped and hashed; it gets its name when it is whole, or vanishes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

CHUNK = 2**20


class TooLargeError(ValueError):
    """More bytes than the cap."""


class Incoming:
    """`async with Incoming(folder, cap) as file`: `write`, then `keep`. What was not kept is deleted."""

    def __init__(self, folder: Path, cap: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cap = cap
        self.size = 0
        self.path = folder / f".{secrets.token_hex(16)}.part"
        self._hash = hashlib.sha256()
        self._file = os.fdopen(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _BINARY, 0o600), "wb")

    @property
    def digest(self) -> str:
        """SHA-256 of what was written, in hex."""
        return self._hash.hexdigest()

    def write_now(self, data: bytes) -> None:
        """Errors: `TooLargeError` before the cap is passed."""
        if self.size + len(data) > self.cap:
            raise TooLargeError(f"more than {self.cap} bytes")
        self._hash.update(data)
        self._file.write(data)
        self.size += len(data)

    async def write(self, data: bytes) -> None:
        """As `write_now`, off the event loop."""
        await asyncio.to_thread(self.write_now, data)

    async def inspect(self, look: Callable[[Path], str]) -> str:
        """What `look` makes of the file so far, off the event loop."""
        await asyncio.to_thread(self._file.flush)
        return await asyncio.to_thread(look, self.path)

    async def keep(self, target: Path, mode: int = 0o600) -> None:
        """The whole file under its name, which replaces one that is there."""
        await asyncio.to_thread(self._keep, target, mode)

    def _keep(self, target: Path, mode: int) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.path.chmod(mode)
        os.replace(self.path, target)

    async def __aenter__(self) -> Incoming:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
