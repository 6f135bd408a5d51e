"""A file while it arrives: hidden, limited in size and hashed. It gets its name when it is whole, or vanishes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

CHUNK = 2**20
LEAST_PIECE = 2**18
"""Bytes of an arriving file that go to the thread at once: each time costs a running job up to five milliseconds."""
THREADS = ThreadPoolExecutor(4, "ltx-a2v-files")
"""Threads for files alone, so that many arriving files hold up nothing else in ComfyUI."""
ARRIVING = ThreadPoolExecutor(1, "ltx-a2v-bytes")
"""The thread that decodes, hashes and writes what arrives. Several would only take the interpreter from a running job
in turns."""

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """Runs `work(*args)` off the event loop."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, work, *args)


async def as_arriving(work: Callable[..., T], *args: Any) -> T:
    """Runs `work(*args)` on arriving bytes off the event loop, one piece after the other."""
    return await asyncio.get_running_loop().run_in_executor(ARRIVING, work, *args)


async def in_larger(pieces: AsyncIterator[bytes], least: int = LEAST_PIECE) -> AsyncIterator[bytes]:
    """Joins pieces until they have that many bytes. The first one comes as it is, so that a wrong file is refused at
    its beginning; the last ones may have fewer."""
    held, size = [], least
    async for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= least:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


class TooLargeError(ValueError):
    """The file has more bytes than its limit."""


class Incoming:
    """`async with Incoming(folder, cap) as file`: call `write`, `seal`, then `place`. A file that was not placed is
    deleted."""

    def __init__(self, folder: Path, cap: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cap = cap
        self.size = 0
        self.path = folder / f".{secrets.token_hex(16)}.part"
        self._hash = hashlib.sha256()
        self._file = os.fdopen(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _BINARY, 0o600), "wb")

    @property
    def digest(self) -> str:
        """SHA-256 of the written bytes, in hex."""
        return self._hash.hexdigest()

    def write_now(self, data: bytes) -> None:
        """Writes bytes. Errors: `TooLargeError`, before the limit is passed."""
        if self.size + len(data) > self.cap:
            raise TooLargeError(f"more than {self.cap} bytes")
        self._hash.update(data)
        self._file.write(data)
        self.size += len(data)

    async def write(self, data: bytes) -> None:
        """As `write_now`, off the event loop."""
        await as_arriving(self.write_now, data)

    async def inspect(self, look: Callable[[Path], str]) -> str:
        """Calls `look` on the file so far, off the event loop, and returns its result."""
        await in_thread(self._file.flush)
        return await in_thread(look, self.path)

    async def seal(self, mode: int = 0o600) -> None:
        """Closes the whole file and flushes it to the disk."""
        await in_thread(self._seal, mode)

    def _seal(self, mode: int) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.path.chmod(mode)

    def place(self, target: Path) -> None:
        """Gives the sealed file its name. It replaces an existing file."""
        os.replace(self.path, target)

    def discard(self) -> None:
        """Removes a file that was not placed. If the disk is full even closing a file fails."""
        try:
            self._file.close()
        except OSError:
            pass
        finally:
            self.path.unlink(missing_ok=True)

    async def __aenter__(self) -> Incoming:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
