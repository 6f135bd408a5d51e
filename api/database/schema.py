"""Brings the database file to the tables of this version, or says in one sentence why it cannot. It deletes nothing.

Alembic, which comes with ComfyUI, counts the versions. Its scripts are in migrations/.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DatabaseError

from ...ltx.errors import InputError
from .store import connect, make_file

MIGRATIONS = Path(__file__).with_name("migrations")
FIRST = "0001"  # the version of databases that name none
CHECKED_WHOLE = 2**26  # bytes; a database up to this size is checked as a whole at the start
BUSY_TRIES = 6  # each try waits as long as the database may be locked
WAIT = (0.2, 1.2)  # seconds between tries, drawn so that two servers do not meet again


class _InUse(Exception):
    """Another process has the database open."""


def prepare(path: Path, contract: int = 0) -> None:
    """Creates the database or upgrades an older one. Two servers that start at once do this one after the other.

    contract: stands for the requests that this version takes, from 0 to 2³¹ - 1. All servers of a database have the
    same one, because any of them may run a request that another one took. Like the tables, it changes only while no
    server has the database open.

    Errors: InputError if the file is damaged, has a newer version, must be changed while others have it open, or cannot
    be written.
    """
    folder = path.parent.name
    try:
        make_file(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path.name}: cannot be opened ({reason}); give this user the rights to it.") from None
    for attempt in range(BUSY_TRIES):
        try:
            _upgrade(path, contract)
            return
        except _InUse:
            if attempt == BUSY_TRIES - 1:
                raise InputError(
                    f"{path.name}: is of another version of this pack, and a server or another program has it open; "
                    "end that one, and restart this one. Nothing was changed."
                ) from None
            time.sleep(random.uniform(*WAIT))
        except CommandError:
            raise InputError(
                f"{path.name}: was made by a newer version of this pack; update the pack, or move it out of {folder}/ "
                "for a new one. Nothing was deleted."
            ) from None
        except DatabaseError as error:
            if "locked" not in str(error.orig):
                raise InputError(
                    f"{path.name}: is damaged or cannot be used ({error.orig}); move it out of {folder}/ for a new "
                    "one. Nothing was deleted."
                ) from None
            if attempt == BUSY_TRIES - 1:
                raise InputError(f"{path.name}: another program keeps it locked; end that, and restart.") from None
            time.sleep(random.uniform(*WAIT))


def _upgrade(path: Path, contract: int) -> None:
    """Upgrades to the newest version. Errors: those of alembic and SQLAlchemy; _InUse."""
    engine = connect(path, "FULL")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    try:
        with engine.begin() as connection:
            if path.stat().st_size <= CHECKED_WHOLE:
                found = connection.execute(text("PRAGMA quick_check(1)")).scalar()
                if found != "ok":
                    raise DatabaseError(None, None, ValueError(f"a check found: {str(found).splitlines()[0]}"))
            version = _version(connection)
            if version is not None:
                scripts.get_revision(version)  # a newer version's is not known here
            if version == scripts.get_current_head() and _contract(connection) == contract:
                return
        with _alone(engine) as connection, connection.begin():
            config.attributes["connection"] = connection
            version = _version(connection)
            if version is None and inspect(connection).has_table("requests"):
                command.stamp(config, FIRST)
            if version != scripts.get_current_head():
                command.upgrade(config, "head")
            connection.execute(text(f"PRAGMA user_version={contract:d}"))
    finally:
        engine.dispose()


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A connection beside which there is no other. A server keeps connections open as long as it runs, so this tells
    that none does. Errors: _InUse."""
    with engine.connect() as connection:
        plain = connection.connection.driver_connection
        try:
            for line in ("locking_mode=EXCLUSIVE", "journal_mode=DELETE"):  # SQLite ends its shared log only if alone
                plain.execute(f"PRAGMA {line}").fetchall()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise _InUse from None
            raise DatabaseError(None, None, error) from None
        try:
            yield connection
        finally:
            plain.execute("PRAGMA journal_mode=WAL").fetchall()


def _contract(connection: Connection) -> int:
    return connection.execute(text("PRAGMA user_version")).scalar()


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
