"""The database's file: brought to this version from any other, or one sentence; and what cannot be at the moment."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from a2v.api import clock
from a2v.api.applications import APPLICATIONS
from a2v.api.database import rows, schema
from a2v.api.database.rows import DONE, StoredRequest
from a2v.api.database.store import Base, Store, StoreFailed, StoreMisused
from a2v.api.files.owners import MediaNeed
from a2v.api.install import contract, install
from a2v.ltx.errors import InputError
from a2v.tests.api.edges import APP, before_writes
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from pydantic import create_model
from sqlalchemy import create_engine, event, select

FIRST = Path(__file__).with_name("first.sql")
"""The schema of version 0.1.0 as SQLite wrote it, and a few rows."""
OPTIONS = {"compare_type": False}
"""SQLAlchemy's versions name the same type of SQLite's DOUBLE or FLOAT."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.sqlite"


def make_first(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST.read_text())


def differences(path: Path) -> list[object]:
    """Between the file's tables and the classes that stand for them."""
    importlib.import_module("a2v.api.install")  # and with it all tables
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts=OPTIONS), Base.metadata)
    engine.dispose()
    return found


@pytest.mark.parametrize("start", ["nothing", "an empty file", "the first version"])
def test_every_start_comes_to_the_tables_of_this_version(path: Path, start: str) -> None:
    if start == "an empty file":
        path.touch()
    elif start == "the first version":
        make_first(path)
    for _ in range(2):
        schema.prepare(path)
        assert differences(path) == []


def test_what_the_first_version_kept_is_kept(path: Path) -> None:
    make_first(path)
    schema.prepare(path)
    store = Store(path)
    with store.session() as session:
        ended, waits = rows.find(session, "ended", whole=True), rows.find(session, "waits", whole=True)
        assert (ended.status, ended.result["seed"], waits.arguments["prompt"]) == (DONE, 7, "later")
        assert [log.message for log in rows.logs_of(session, ["ended"])] == ["Started"]
        assert (waits.turn, waits.start_before, waits.lease_until) == (2, None, 1764000000.0)
        needs = {(need.request_id, need.name) for need in session.scalars(select(MediaNeed))}
        assert needs == {("ended", "ltx_a2v_api/a.wav"), ("waits", "ltx_a2v_api/a.wav"), ("waits", "ltx_a2v_api/b.png")}
        assert rows.release_expired(session, clock.now(), "s") == 1, "its server is long dead"
    store.close()


def test_two_servers_that_start_at_once_upgrade_one_after_the_other(path: Path) -> None:
    make_first(path)
    errors: list[Exception] = []

    def start() -> None:
        try:
            schema.prepare(path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and differences(path) == []


@pytest.mark.parametrize("of", ["an older version", "the same version with other requests"])
def test_nothing_changes_beneath_a_running_server(path: Path, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    """It would write rows as its version does: it claims what others have in hand, or runs what it half understands."""
    monkeypatch.setattr(schema, "WAIT", (0.0, 0.0))
    if of == "an older version":
        make_first(path)
    else:
        schema.prepare(path, 5)

    def content() -> list[str]:
        with closing(sqlite3.connect(path)) as connection:
            return [*connection.iterdump(), connection.execute("PRAGMA user_version").fetchone()]

    before = content()
    with open_elsewhere(path), pytest.raises(InputError) as refused:
        schema.prepare(path, 6)
    assert str(refused.value) == (
        "requests.sqlite: is of another version of this pack, and a server or another program has it open; end that "
        "one, and restart this one. Nothing was changed."
    )
    assert content() == before
    schema.prepare(path, 6)  # that one has ended
    assert differences(path) == []
    with open_elsewhere(path):
        schema.prepare(path, 6)  # one of the same version


@contextmanager
def open_elsewhere(path: Path) -> Iterator[None]:
    """Another server: a process of its own that once has read the database, and waits for requests."""
    server = f"""
import sqlite3, sys
connection = sqlite3.connect({str(path)!r})
connection.execute("PRAGMA journal_mode=WAL")
print(connection.execute("SELECT count(*) FROM requests").fetchone(), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", server], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield
        process.communicate()


def test_a_store_keeps_its_database_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a server of another version, which starts, can tell that one runs."""
    monkeypatch.setattr(schema, "WAIT", (0.0, 0.0))
    schema.prepare(path)
    store = Store(path)
    asyncio.run(store.read(rows.find, "none"))
    with pytest.raises(InputError, match="another version"):
        schema.prepare(path, 1)
    store.close()
    schema.prepare(path, 1)


def test_an_input_more_is_another_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    before = contract()
    assert before == contract() and 0 < before < 2**31
    known = APPLICATIONS[APP]
    more = create_model("More", __base__=known.inputs, newest=(int, 0))
    monkeypatch.setitem(APPLICATIONS, APP, replace(known, inputs=more))
    assert contract() != before


def newer(path: Path) -> None:
    schema.prepare(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()


def torn(path: Path) -> None:
    schema.prepare(path)
    store = Store(path)
    with store.session() as session:
        for number in range(300):
            rows.add(session, StoredRequest(id=str(number), app="a", arguments={}, digest="x" * 200, created=1.0))
    store.empty_log()
    store.close()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20000] = b"\xa5" * 20000
    path.write_bytes(data)


BROKEN = {
    "of a newer version": (newer, "newer version of this pack; update the pack, or move it out of "),
    "no database": (lambda path: path.write_bytes(b"something else" * 1000), "is damaged or cannot be used"),
    "cut off": (lambda path: (make_first(path), path.write_bytes(path.read_bytes()[:5000])), "is damaged or cannot"),
    "torn in the middle": (torn, "is damaged or cannot be used"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_told_in_one_sentence_and_left_alone(path: Path, name: str) -> None:
    make, said = BROKEN[name]
    make(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"^requests\.sqlite: ") as refused:
        schema.prepare(path)
    text = str(refused.value)
    assert said in text and "Nothing was deleted." in text and "\n" not in text and "SQL:" not in text
    assert path.read_bytes() == before


def test_nothing_is_registered_on_a_database_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pack's root logs the sentence: tests/host/test_guard.py."""
    names = ("user", "input", "output")
    folders = {f"get_{name}_directory": lambda name=name: str(tmp_path / name) for name in names}
    monkeypatch.setitem(sys.modules, "folder_paths", SimpleNamespace(**folders))
    (tmp_path / "user" / "__ltx_a2v").mkdir(parents=True)
    (tmp_path / "user" / "__ltx_a2v" / "requests.sqlite").write_bytes(b"something else" * 1000)
    with pytest.raises(InputError, match=r"^requests.sqlite: is damaged .*Nothing was deleted"):
        install(SimpleNamespace())


# what cannot be at the moment


@pytest.fixture
def store(path: Path) -> Store:
    schema.prepare(path)
    made = Store(path)
    yield made
    made.close()


def add(store: Store, name: str) -> None:
    with store.session() as session:
        rows.add(session, StoredRequest(id=name, app="a", arguments={"secret": "words"}, digest="d", created=1.0))


def fail(store: Store, times: int, message: str = "database or disk is full") -> None:
    """The next statements that write fail as SQLite lets them fail."""
    left = [times]

    def refuse() -> None:
        if left[0]:
            left[0] -= 1
            raise sqlite3.OperationalError(message)

    before_writes(store, refuse)


def test_a_failure_says_neither_sql_nor_parameters(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    fail(store, 1)
    with pytest.raises(StoreFailed) as failed:
        add(store, "a")
    assert str(failed.value) == "The request database cannot be used (database or disk is full)."
    assert failed.value.__cause__ is None and "INSERT" not in caplog.text and "words" not in caplog.text


def test_a_mistake_of_ours_is_told_apart_and_says_as_little(store: Store) -> None:
    with pytest.raises(StoreMisused) as failed, store.session() as session:
        rows.add(session, StoredRequest(id="a", app="a", arguments={"secret": object()}, digest="d", created=1.0))
    assert str(failed.value) == "StatementError (TypeError)"


def test_patience_ends_when_it_works_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fail(store, 3)

    def write(session: object) -> None:
        rows.add(session, StoredRequest(id="a", app="a", arguments={}, digest="d", created=1.0))

    asyncio.run(store.run_patiently(write))
    with store.session() as session:
        assert rows.find(session, "a") is not None
    said = [record.message for record in caplog.records if "LTX A2V" in record.message]
    assert len(said) == 1, "once, however often it is tried"
    assert said[0].startswith("LTX A2V: The request database cannot be used (database or disk is full)")


def test_a_full_file_is_a_failure_and_not_an_end(store: Store) -> None:
    with closing(sqlite3.connect(store.path)) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    for engine in store.engines[1:]:
        event.listen(engine, "connect", lambda connection, _: connection.execute(f"PRAGMA max_page_count={pages}"))
        engine.dispose()
    added: list[str] = []
    with pytest.raises(StoreFailed, match="full"):
        for number in range(1000):
            add(store, str(number))
            added.append(str(number))
    with store.session() as session:
        there = session.scalars(select(StoredRequest.id).order_by(StoredRequest.number)).all()
        assert there == added and added, "what was promised is there, and nothing of the one that failed"


def test_reads_go_on_while_another_process_holds_the_file(store: Store) -> None:
    add(store, "a")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        async def read() -> None:
            waiting = asyncio.create_task(store.run(rows.add_log, "a", "it waits for its turn", 1.0))
            await asyncio.sleep(0.05)
            assert await store.read(rows.find, "a") is not None
            assert not waiting.done(), "the file is still held"
            other.execute("ROLLBACK")
            await waiting

        asyncio.run(read())


@pytest.mark.parametrize("folder", ["a%20b", "what?", "50%", "ä #1"])
def test_any_name_of_a_folder_will_do(tmp_path: Path, folder: str) -> None:
    """Not only those that are themselves in a URL."""
    place = tmp_path / folder
    place.mkdir()
    schema.prepare(place / "requests.sqlite")
    assert [path.name for path in tmp_path.iterdir()] == [folder]
    assert [path.name for path in place.iterdir()] == ["requests.sqlite"]
