"""Who needs which file of the input folder: no live request loses one, and none stays that nobody needs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from a2v.api.database.store import Store
from a2v.api.files import owners
from a2v.api.files.owners import MediaNeed
from a2v.api.settings import SUBFOLDER, Settings
from sqlalchemy import select

NAME = f"{SUBFOLDER}/{'a' * 32}.wav"


def place(settings: Settings, name: str = NAME) -> Path:
    path = settings.input / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"sound")
    return path


def need(database: Store, request_id: str, name: str = NAME, now: float = 0.0, *, kept: bool = True) -> None:
    with database.session() as session:
        owners.reserve(session, name, request_id, now)
        if kept:
            owners.keep(session, request_id)


def give_up(database: Store, settings: Settings, *request_ids: str) -> None:
    with database.session() as session:
        owners.give_up(session, request_ids, settings)


def test_a_file_stays_until_its_last_request_gives_it_up(settings: Settings, database: Store) -> None:
    path = place(settings)
    need(database, "one")
    need(database, "two")
    need(database, "two")  # in two of its fields
    give_up(database, settings, "one")
    assert path.is_file()
    give_up(database, settings, "two", "none")
    assert not path.exists()


def test_a_file_waits_an_hour_for_its_request(settings: Settings, database: Store) -> None:
    path, other = place(settings), place(settings, f"{SUBFOLDER}/{'b' * 32}.wav")
    need(database, "never submitted", now=1000.0, kept=False)
    need(database, "submitted", f"{SUBFOLDER}/{other.name}", now=1000.0)
    with database.session() as session:
        assert owners.give_up_reserved(session, 1000.0 + 3599, 9, settings) == 0
        assert owners.give_up_reserved(session, 1000.0 + 3600, 9, settings) == 1
        assert owners.give_up_reserved(session, 1e12, 9, settings) == 0
    assert not path.exists() and other.is_file()


def test_a_file_that_is_fetched_anew_is_reserved_anew(settings: Settings, database: Store) -> None:
    """Its first server died; and what is kept stays kept, whoever reserves it."""
    path = place(settings)
    need(database, "one", now=0.0, kept=False)
    need(database, "one", now=3000.0, kept=False)
    with database.session() as session:
        assert owners.give_up_reserved(session, 4000.0, 9, settings) == 0
        owners.keep(session, "one")
        owners.reserve(session, NAME, "one", 5000.0)
        assert owners.give_up_reserved(session, 1e12, 9, settings) == 0
    assert path.is_file()


@pytest.mark.parametrize("name", ["own.wav", "../outside.wav", f"{SUBFOLDER}/../own.wav", f"{SUBFOLDER}/below/own.wav"])
def test_nothing_is_deleted_outside_the_api_s_folder(settings: Settings, database: Store, name: str) -> None:
    path = settings.input / name
    (settings.input_folder / "below").mkdir(parents=True)
    path.write_bytes(b"somebody's")
    need(database, "one", name)
    give_up(database, settings, "one")
    assert path.is_file()


def test_what_cannot_be_deleted_hinders_nothing_and_is_tried_again(
    settings: Settings, database: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{SUBFOLDER}/{letter * 32}.wav" for letter in "abc"]
    paths = [place(settings, name) for name in names]
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == paths[0]:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    for name in names:
        need(database, "one", name)
    give_up(database, settings, "one")
    assert [path.exists() for path in paths] == [True, False, False]
    assert "Permission denied" in caplog.text and "a" * 32 not in caplog.text
    monkeypatch.undo()
    with database.session() as session:
        assert owners.give_up_reserved(session, time.time() + 3599, 9, settings) == 0
        assert owners.give_up_reserved(session, time.time() + 3601, 9, settings) == 1
        assert session.scalars(select(MediaNeed)).all() == []
    assert not paths[0].exists()


def test_a_request_that_comes_as_another_goes_has_its_file(settings: Settings, database: Store) -> None:
    """One thread expires a request again and again, another one submits its like: the file is there afterwards."""
    path = settings.input / NAME
    path.parent.mkdir()
    lost: list[int] = []
    over = threading.Event()

    def expire() -> None:
        number = 0
        while not over.is_set():
            need(database, f"old {number}")
            give_up(database, settings, f"old {number}")
            number += 1

    thread = threading.Thread(target=expire)
    thread.start()
    for number in range(150):
        with database.session() as session:
            owners.reserve(session, NAME, f"new {number}", 0.0)
        path.with_suffix(".part").write_bytes(b"sound")
        path.with_suffix(".part").replace(path)
        with database.session() as session:
            owners.keep(session, f"new {number}")
        if not path.is_file():
            lost.append(number)
        give_up(database, settings, f"new {number}")
    over.set()
    thread.join()
    assert lost == [] and not path.exists()
