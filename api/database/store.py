"""The database: one SQLite file that several servers on one machine may share.

Every table of the API stands on `Base`, in the file that knows what it holds. Functions on rows take the session of one
transaction; `Store` opens it, for threads and for the event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import JSON, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

BUSY_MILLISECONDS = 10_000
THREADS = 4

T = TypeVar("T")


class Base(DeclarativeBase):
    """Of every table in the API's database."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, list[dict[str, Any]]: JSON}  # noqa: RUF012


class Store:
    """Opens the database; the file is its owner's alone. `session` for threads, `run` for the event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        path.chmod(0o600)  # SQLite gives its side files the same mode
        # What was promised to a client survives a power cut; a line of a log, the death of this process only.
        self._quick, self._durable = _sessions(path, "NORMAL"), _sessions(path, "FULL")
        self._threads = ThreadPoolExecutor(THREADS, "ltx-a2v-store")
        self.create_tables()

    def create_tables(self) -> None:
        """All tables known on `Base` by now; safe while another server does the same."""
        with self.session() as session:
            Base.metadata.create_all(session.connection())

    @contextmanager
    def session(self, *, durable: bool = False) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on an error. durable: on the disk when it is through."""
        with (self._durable if durable else self._quick).begin() as session:
            yield session

    async def run(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """`work(session, *args, **kwargs)` in one transaction, off the event loop."""
        return await self._run(False, work, *args, **kwargs)

    async def run_durably(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """`run`, and its outcome is on the disk."""
        return await self._run(True, work, *args, **kwargs)

    async def _run(self, durable: bool, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        def transaction() -> T:
            with self.session(durable=durable) as session:
                return work(session, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._threads, transaction)

    def close(self) -> None:
        self._threads.shutdown()
        for sessions in (self._quick, self._durable):
            sessions.kw["bind"].dispose()


def _sessions(path: Path, synchronous: str) -> sessionmaker[Session]:
    engine = create_engine(f"sqlite:///{path}")

    def configure(connection: Any, _: object) -> None:
        for line in (
            f"busy_timeout={BUSY_MILLISECONDS}",
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {line}")

    event.listen(engine, "connect", configure)
    return sessionmaker(engine, expire_on_commit=False)
