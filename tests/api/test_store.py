"""The database by itself: order, leases, one end for each request, and what the file is readable by."""

from __future__ import annotations

import stat
import threading
from typing import Any

import pytest
from a2v.api.database import rows
from a2v.api.database.rows import DONE, QUEUED, RUNNING, StoredRequest
from a2v.api.database.store import Store
from sqlalchemy.exc import IntegrityError


def put(database: Store, name: str, **values: Any) -> None:
    known = {"id": name, "app": "app", "arguments": {"prompt": name}, "digest": "d", "created": 100.0}
    with database.session() as session:
        session.add(StoredRequest(**{**known, **values}))


def look(database: Store, name: str) -> StoredRequest:
    with database.session() as session:
        found = rows.find(session, name, whole=True)
        assert found is not None
        return found


def claim(database: Store, server: str, now: float = 200.0, seconds: float = 30.0) -> StoredRequest | None:
    with database.session() as session:
        return rows.claim(session, server, now, seconds)


def test_only_the_owner_reads_it(database: Store) -> None:
    put(database, "a")
    files = list(database.path.parent.glob("requests.sqlite*"))
    assert len(files) >= 2
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_order_is_by_priority_and_arrival(database: Store) -> None:
    for name, priority in (("low", 1), ("first", 0), ("second", 0)):
        put(database, name, priority=priority)
    with database.session() as session:
        positions = {name: rows.position(session, rows.find(session, name)) for name in ("low", "first", "second")}
        assert rows.positions(session, [*positions, "none"]) == positions
        assert rows.positions(session, []) == {}
    assert positions == {"first": 0, "second": 1, "low": 2}
    assert [claim(database, "s").id for _ in range(3)] == ["first", "second", "low"]
    assert claim(database, "s") is None


def test_what_is_claimed_comes_whole(database: Store) -> None:
    put(database, "a")
    claimed = claim(database, "s", 200.0, 30.0)
    assert (claimed.arguments, claimed.lease_until, claimed.attempts) == ({"prompt": "a"}, 230.0, 1)


def test_many_servers_claim_each_request_once(database: Store) -> None:
    for number in range(40):
        put(database, str(number))
    taken: list[str] = []

    def work(server: str) -> None:
        own = Store(database.path)  # as another process has it
        while found := claim(own, server):
            taken.append(found.id)
        own.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken, key=int) == [str(number) for number in range(40)]


def test_only_expired_leases_are_given_up(database: Store) -> None:
    for name in ("dead", "alive"):
        put(database, name)
    claim(database, "dies", 200.0, 30.0)
    claim(database, "lives", 200.0, 30.0)
    with database.session() as session:
        assert rows.change(session, "dead", "dies", status=RUNNING, started=201.0)
        assert not rows.change(session, "dead", "lives", status=RUNNING)
        rows.renew(session, "lives", 225.0, 30.0)
    with database.session() as session:
        assert rows.release_expired(session, 231.0, "lives") == 1
    dead, alive = look(database, "dead"), look(database, "alive")
    assert (dead.status, dead.lease_server, dead.started) == (QUEUED, None, None)
    assert (alive.lease_server, alive.lease_until) == ("lives", 255.0)
    again = claim(database, "lives", 232.0)
    assert (again.id, again.attempts) == ("dead", 2)
    with database.session() as session:  # the one that was taken for dead wakes up
        assert not rows.change(session, "dead", "dies", result={})
        rows.renew(session, "dies", 232.0, 30.0)
    assert look(database, "dead").lease_server == "lives"


def test_a_server_that_slept_keeps_what_nobody_took(database: Store) -> None:
    put(database, "a")
    claim(database, "sleeps", 200.0, 30.0)
    with database.session() as session:
        assert rows.release_expired(session, 500.0, "sleeps") == 0
        rows.renew(session, "sleeps", 500.0, 30.0)
    assert look(database, "a").lease_until == 530.0


def test_a_request_ends_once(database: Store) -> None:
    put(database, "a")
    mine = claim(database, "s")
    with database.session() as session:
        assert rows.finish(session, rows.find(session, "a"), 210.0, result={"seed": 1})
    with database.session() as session:
        assert not rows.finish(session, rows.find(session, "a"), 220.0, result={"seed": 2})
    ended = look(database, "a")
    assert (ended.status, ended.result, ended.ended, ended.lease_server) == (DONE, {"seed": 1}, 210.0, None)
    with database.session() as session:
        assert rows.release_expired(session, 1e9, "other") == 0 and rows.release(session, server="s") == 0
    assert mine.id == "a" and claim(database, "s") is None


def test_a_server_that_leaves_gives_back_its_own(database: Store) -> None:
    for name in ("a", "b"):
        put(database, name)
    claim(database, "one")
    claim(database, "two")
    with database.session() as session:
        assert rows.release(session, server="one") == 1
    assert look(database, "a").lease_server is None and look(database, "b").lease_server == "two"


def test_who_has_waited_too_long(database: Store) -> None:
    put(database, "patient")
    put(database, "late", start_timeout=50.0)
    put(database, "in time", start_timeout=150.0)
    put(database, "claimed", start_timeout=50.0, priority=-1)
    claim(database, "s")
    with database.session() as session:
        assert [request.id for request in rows.overdue(session, 200.0)] == ["late"]


def test_one_key_one_request(database: Store) -> None:
    put(database, "a", idempotency_key="k")
    put(database, "b")
    put(database, "c")
    put(database, "other app", app="other", idempotency_key="k")
    with pytest.raises(IntegrityError):
        put(database, "d", idempotency_key="k")
    with database.session() as session:
        assert rows.find_retried(session, "app", "k").id == "a"


def test_logs_come_in_order(database: Store) -> None:
    for name in "ab":
        put(database, name)
    with database.session() as session:
        for number in range(3):
            rows.add_log(session, "ab"[number % 2], str(number), 1.0)
    with database.session() as session:
        lines = rows.logs_of(session, ["a"])
        assert [line.message for line in lines] == ["0", "2"]
        both = rows.logs_of(session, ["a", "b", "c"])
        assert [(line.request_id, line.message) for line in both] == [("a", "0"), ("b", "1"), ("a", "2")]
        assert rows.logs_of(session, []) == []


def test_media_that_another_request_needs_are_kept(database: Store) -> None:
    put(database, "a", media={"audio_url": "x", "image_url": "shared"}, gone=True, status=DONE)
    put(database, "b", media={"audio_url": "shared"})
    with database.session() as session:
        assert rows.unused_media(session) == {"x"}


def test_an_error_leaves_nothing_half_done(database: Store) -> None:
    put(database, "a")
    with pytest.raises(RuntimeError), database.session() as session:
        rows.find(session, "a").error = "half"
        session.flush()
        raise RuntimeError
    assert look(database, "a").error is None
