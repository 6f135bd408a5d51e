"""The database: one SQLite file that several servers on one machine may share.

Every table of the API derives from `Base`, in the file that knows its meaning. Functions on rows take the session of
one transaction; `Store` opens it, for threads and for the event loop. If SQLite cannot work at the moment (the disk is
full, another process holds the file), that is a `StoreFailed`: a sentence without SQL, parameters and paths. The same
call may work later.
"""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import JSON, URL, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from .. import clock
from ..faults import Complaints

BUSY_SECONDS = 10.0
LONG_SECONDS = 1.0  # that a transaction waits for its turn only if another process holds the file
READERS = 4
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds between tries of a write that must succeed. Each wait is twice the last."""

T = TypeVar("T")


class Base(DeclarativeBase):
    """The base of all tables in the API's database."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, list[dict[str, Any]]: JSON}  # noqa: RUF012


class StoreFailed(Exception):
    """The database cannot be read or written at the moment. The transaction did not happen."""


class StoreMisused(Exception):
    """A bug of this program: it asked something impossible of the database."""


class StoreConflict(StoreMisused):
    """Another row has a value that must be unique, or the row to which this one belongs was deleted."""


class Store:
    """Opens the database, which `schema.prepare` has made.

    Threads use `session`; the event loop uses `read`, `run`, `run_durably` and `run_patiently`. Only one transaction
    writes at a time, from its first line on; reads go on beside it. Work that compares times with those of other
    servers must read the clock itself: a time that was read before may be older than theirs. Errors: StoreFailed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # A promise to a client survives a power cut; a line of a log survives the death of this process.
        self._reading = sessions(connect(path, "NORMAL", "BEGIN"))
        self._writing = {durable: sessions(connect(path, "FULL" if durable else "NORMAL")) for durable in (False, True)}
        self._readers = ThreadPoolExecutor(READERS, "ltx-a2v-reads")
        self._writer = ThreadPoolExecutor(1, "ltx-a2v-writes")
        self._complaints = Complaints()
        self.troubled = -math.inf  # when a transaction last failed or waited long, by the clock that only goes forward

    @contextmanager
    def session(self, *, durable: bool = False) -> Iterator[Session]:
        """One writing transaction: committed at the end, rolled back on an error. durable: the disk has it
        afterwards."""
        with self._transaction(self._writing[durable]) as session:
            yield session

    @contextmanager
    def _transaction(self, factory: sessionmaker[Session]) -> Iterator[Session]:
        try:
            with factory.begin() as session:
                # The session would begin with its first statement. A writer waits for its turn here, so that a clock
                # that its work reads is not older than what others wrote meanwhile.
                begun = clock.now().steady
                session.connection()
                if (now := clock.now().steady) > begun + LONG_SECONDS:
                    self.troubled = now
                yield session
        except SQLAlchemyError as error:
            failure = _plain(error)
            if isinstance(failure, StoreFailed):
                self.troubled = clock.now().steady
                self._complaints.note(str(failure))
            raise failure from None

    async def read(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs `work(session, *args, **kwargs)` in one transaction that changes nothing, off the event loop."""
        return await self._in(self._readers, self._reading, work, *args, **kwargs)

    async def run(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs `work(session, *args, **kwargs)` in one transaction, off the event loop."""
        return await self._in(self._writer, self._writing[False], work, *args, **kwargs)

    async def run_durably(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """As `run`, and the disk has the outcome afterwards."""
        return await self._in(self._writer, self._writing[True], work, *args, **kwargs)

    async def run_patiently(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """As `run_durably`, and repeats it until it succeeds."""
        return await patiently(lambda: self.run_durably(work, *args, **kwargs))

    async def _in(
        self,
        threads: ThreadPoolExecutor,
        factory: sessionmaker[Session],
        work: Callable[..., T],
        *args: Any,
        **kwargs: Any,
    ) -> T:
        def transaction() -> T:
            with self._transaction(factory) as session:
                return work(session, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(threads, transaction)

    def empty_log(self) -> bool:
        """Writes SQLite's shared log into the file and empties it, so that deleted words are in neither.

        Returns whether that succeeded; it cannot while another transaction reads or writes.
        """
        connection = self.engines[0].raw_connection()
        try:
            is_busy, _, _ = connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError:
            return False
        finally:
            connection.close()
        return not is_busy

    @property
    def engines(self) -> list[Engine]:
        return [factory.kw["bind"] for factory in (self._reading, *self._writing.values())]

    def close(self) -> None:
        for threads in (self._readers, self._writer):
            threads.shutdown()
        for engine in self.engines:
            engine.dispose()


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Awaits `work()`, and repeats that as long as it raises StoreFailed. The store has logged why."""
    wait = FIRST_WAIT
    while True:
        try:
            return await work()
        except StoreFailed:
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)


def _plain(error: SQLAlchemyError) -> Exception:
    """A database error without the SQL, parameters and paths of SQLAlchemy's own text."""
    original = getattr(error, "orig", None)
    if isinstance(error, DatabaseError) and not isinstance(error, (IntegrityError, DataError, ProgrammingError)):
        return StoreFailed(f"The request database cannot be used ({original}).")
    kind = StoreConflict if isinstance(error, IntegrityError) else StoreMisused
    return kind(f"{type(error).__name__} ({type(original).__name__})")


def connect(path: Path, synchronous: str, begin: str = "BEGIN IMMEDIATE") -> Engine:
    """An engine whose transactions begin with that statement. With BEGIN IMMEDIATE a writer waits for its turn at the
    start."""
    engine = create_engine(URL.create("sqlite", database=str(path)), hide_parameters=True)

    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # otherwise the driver begins transactions itself, and later
        for line in (
            f"busy_timeout={round(BUSY_SECONDS * 1000)}",
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            "foreign_keys=ON",
            "secure_delete=ON",  # deleted rows are overwritten in the file
        ):
            connection.execute(f"PRAGMA {line}")

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def sessions(engine: Engine) -> sessionmaker[Session]:
    return sessionmaker(engine, expire_on_commit=False)


def make_file(path: Path) -> None:
    """Creates an empty file for its owner alone, if there is none. SQLite gives its side files the same mode."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    path.chmod(0o600)
