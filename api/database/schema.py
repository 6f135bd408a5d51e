"""Brings the database file to the tables of this version, or says in one sentence why it cannot. It deletes nothing.

Alembic, which comes with ComfyUI, counts the versions. Its scripts are in migrations/.
"""

from __future__ import annotations

import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DatabaseError

from ...ltx.errors import InputError
from .store import connect, make_file

MIGRATIONS = Path(__file__).with_name("migrations")
FIRST = "0001"  # the version of databases that name none
CHECKED_WHOLE = 2**26  # bytes; a database up to this size is checked as a whole at the start
BUSY_TRIES = 6  # each try waits as long as the database may be locked


def prepare(path: Path) -> None:
    """Creates the database or upgrades an older one. Two servers that start at once do this one after the other.

    Errors: InputError if the file is damaged, has a newer version, or cannot be written.
    """
    folder = path.parent.name
    try:
        make_file(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path.name}: cannot be opened ({reason}); give this user the rights to it.") from None
    for attempt in range(BUSY_TRIES):
        try:
            _upgrade(path)
            return
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
            time.sleep(1)


def _upgrade(path: Path) -> None:
    """Upgrades to the newest version. Errors: those of alembic and SQLAlchemy."""
    engine = connect(path, "FULL")
    try:
        with engine.begin() as connection:
            if path.stat().st_size <= CHECKED_WHOLE:
                found = connection.execute(text("PRAGMA quick_check(1)")).scalar()
                if found != "ok":
                    raise DatabaseError(None, None, ValueError(f"a check found: {str(found).splitlines()[0]}"))
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            version = _version(connection)
            if version is None and inspect(connection).has_table("requests"):
                command.stamp(config, FIRST)
            if version != ScriptDirectory.from_config(config).get_current_head():
                command.upgrade(config, "head")
    finally:
        engine.dispose()


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
