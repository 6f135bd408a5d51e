"""Requests as rows: order, leases, one end for each, what is forgotten, and what the file is readable by."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from a2v.api.clock import Moment
from a2v.api.database import rows
from a2v.api.database.rows import DONE, QUEUED, RUNNING, StoredRequest
from a2v.api.database.store import Store, StoreConflict
from sqlalchemy import event
from sqlalchemy.orm import Session


def at(seconds: float, boot: str = "this") -> Moment:
    """A moment of this start of the machine; both clocks say the same."""
    return Moment(seconds, seconds, boot)


def put(database: Store, name: str, **values: Any) -> None:
    known = {"id": name, "app": "app", "arguments": {"prompt": name}, "digest": "d", "created": 100.0, "boot": "this"}
    if timeout := values.get("start_timeout"):
        known["start_before"] = 100.0 + timeout
    with database.session() as session:
        rows.add(session, StoredRequest(**{**known, **values}))


def look(database: Store, name: str) -> StoredRequest:
    with database.session() as session:
        found = rows.find(session, name, whole=True)
        assert found is not None
        return found


def claim(database: Store, server: str, now: float = 200.0, seconds: float = 30.0, **which: Any) -> Any:
    with database.session() as session:
        return rows.claim(session, server, at(now), seconds, **which)


def order(database: Store) -> list[str]:
    """All that wait, as they would be claimed."""
    found = []
    while request := claim(database, "order"):
        found.append(request.id)
    with database.session() as session:
        rows.release(session, "order")
    return found


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
    assert (claimed.lease_from, claimed.lease_boot) == (200.0, "this")


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


# leases


def test_only_expired_leases_are_given_up(database: Store) -> None:
    for name in ("dead", "alive"):
        put(database, name)
    claim(database, "dies", 200.0, 30.0)
    claim(database, "lives", 200.0, 30.0)
    with database.session() as session:
        assert rows.change(session, "dead", "dies", status=RUNNING, started=201.0)
        assert not rows.change(session, "dead", "lives", status=RUNNING)
        rows.renew(session, "lives", ["alive"], at(225.0), 30.0)
    with database.session() as session:
        assert rows.release_expired(session, at(231.0), "lives") == 1
    dead, alive = look(database, "dead"), look(database, "alive")
    assert (dead.status, dead.lease_server, dead.started) == (QUEUED, None, None)
    assert (alive.lease_server, alive.lease_until) == ("lives", 255.0)
    again = claim(database, "lives", 232.0)
    assert (again.id, again.attempts) == ("dead", 2)
    with database.session() as session:  # the one that was taken for dead wakes up
        assert not rows.change(session, "dead", "dies", result={})
        rows.renew(session, "dies", ["dead"], at(232.0), 30.0)
    assert look(database, "dead").lease_server == "lives"


def test_a_server_that_slept_keeps_what_nobody_took(database: Store) -> None:
    put(database, "a")
    claim(database, "sleeps", 200.0, 30.0)
    with database.session() as session:
        assert rows.release_expired(session, at(500.0), "sleeps") == 0
        rows.renew(session, "sleeps", ["a"], at(500.0), 30.0)
    assert look(database, "a").lease_until == 530.0


def test_only_what_is_in_hand_is_renewed(database: Store) -> None:
    for name in ("in hand", "lost"):
        put(database, name)
        claim(database, "s", 200.0)
    with database.session() as session:
        rows.renew(session, "s", ["in hand"], at(220.0), 30.0)
    assert [look(database, name).lease_until for name in ("in hand", "lost")] == [250.0, 230.0]
    with database.session() as session:
        assert rows.release(session, "s", but=["in hand"]) == 1
    lost = look(database, "lost")
    assert (lost.lease_server, lost.status, lost.attempts) == (None, QUEUED, 0), "and that was no attempt"
    assert look(database, "in hand").lease_server == "s"


LEASE = {"lease_boot": "this", "lease_from": 100.0, "lease_until": 130.0}
LEASES = {
    "holds": (LEASE, at(129.0), 0),
    "is over": (LEASE, at(130.0), 1),
    "the wall clock was set back": (LEASE, Moment(131.0, -3500.0, "this"), 1),
    "the wall clock was set forward": (LEASE, Moment(129.0, 3700.0, "this"), 0),
    "the machine was started anew": (LEASE, at(110.0, "another"), 1),
    "it was, and says nothing of it": ({**LEASE, "lease_boot": ""}, at(50.0, ""), 1),
    "of an older version": ({"lease_until": 1.7e9}, at(129.0), 1),
}


@pytest.mark.parametrize("name", LEASES)
def test_a_lease_is_of_one_start_of_the_machine(database: Store, name: str) -> None:
    lease, now, released = LEASES[name]
    put(database, "a", lease_server="dead", **lease)
    with database.session() as session:
        assert rows.release_expired(session, now, "s") == released


def test_what_a_server_died_under_goes_to_the_end_of_its_priority(database: Store) -> None:
    for name, priority in (("killer", 0), ("second", 0), ("third", 0), ("low", 1)):
        put(database, name, priority=priority)
    assert claim(database, "dies").id == "killer"
    with database.session() as session:
        rows.release_expired(session, at(231.0), "s")
    put(database, "fourth")
    assert order(database) == ["second", "third", "killer", "fourth", "low"]
    with database.session() as session:
        waiting = [rows.position(session, rows.find(session, name)) for name in ("second", "killer", "fourth", "low")]
        assert waiting == [0, 2, 3, 4] == list(rows.positions(session, ["second", "killer", "fourth", "low"]).values())
    assert look(database, "killer").attempts == 1


def test_a_worker_that_dies_counts_where_it_had_begun(database: Store) -> None:
    for name in ("begun", "not begun", "third"):
        put(database, name)
    claim(database, "s")
    claim(database, "s")
    with database.session() as session:
        assert rows.release_one(session, "begun", "s", counts=True)
        assert rows.release_one(session, "not begun", "s", counts=False)
        assert not rows.release_one(session, "third", "s", counts=True)
    assert [look(database, name).attempts for name in ("begun", "not begun")] == [1, 0]
    assert order(database) == ["not begun", "third", "begun"]


def test_a_server_that_leaves_gives_back_its_own_to_their_places(database: Store) -> None:
    for name in ("a", "b", "c"):
        put(database, name)
    claim(database, "one")
    claim(database, "two")
    with database.session() as session:
        assert rows.release(session, "one") == 1
    assert look(database, "a").lease_server is None and look(database, "b").lease_server == "two"
    assert order(database) == ["a", "c"]


def test_files_are_fetched_of_hosts_that_are_not_busy(database: Store) -> None:
    for name, origin in (("slow", "slow:80"), ("own", None), ("other", "other:80")):
        put(database, name, ready=False, origin=origin)
    put(database, "ready")
    wanted = {
        ("own", "other"): rows.unfetched(True, True, ["slow:80"]),
        ("own",): rows.unfetched(True, False),
        ("slow", "other"): rows.unfetched(False, True),
        (): rows.unfetched(False, False),
    }
    for names, which in wanted.items():
        found = []
        while request := claim(database, "s", which=which):
            found.append(request.id)
        assert tuple(found) == names
        with database.session() as session:
            rows.release(session, "s")
    assert claim(database, "s").id == "ready"


# ends


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
        assert rows.release_expired(session, at(1e9), "other") == 0 and rows.release(session, "s") == 0
    assert mine.id == "a" and claim(database, "s") is None


def test_whoever_is_to_end_is_not_claimed_and_is_known(database: Store) -> None:
    put(database, "waits", cancel=True)
    put(database, "runs")
    claim(database, "s")
    assert claim(database, "s") is None
    with database.session() as session:
        assert [request.id for request in rows.cancelled(session)] == ["waits"]
        rows.find(session, "runs").cancel = True
    with database.session() as session:
        assert rows.marked(session, "s") == {"runs"} and rows.marked(session, "other") == set()


def test_who_has_waited_too_long(database: Store) -> None:
    put(database, "patient")
    put(database, "late", start_timeout=50.0)
    put(database, "in time", start_timeout=150.0)
    put(database, "claimed", start_timeout=50.0, priority=-1)
    claim(database, "s")
    for now, names in (
        (at(200.0), ["late"]),
        (Moment(200.0, -3000.0, "this"), ["late"]),  # the wall clock was set back
        (Moment(120.0, 3600.0, "this"), []),  # or forward
        (at(200.0, "another"), ["late"]),  # the machine was started anew: the wall clock must do
        (Moment(5.0, 120.0, "another"), []),
    ):
        with database.session() as session:
            assert [request.id for request in rows.overdue(session, now)] == names
            for name in ("patient", "late", "in time"):
                assert rows.is_late(rows.find(session, name), now) == (name in names)


def test_one_key_one_request(database: Store) -> None:
    put(database, "a", idempotency_key="k")
    put(database, "b")
    put(database, "c")
    put(database, "other app", app="other", idempotency_key="k")
    with pytest.raises(StoreConflict, match=r"^IntegrityError \(IntegrityError\)$"):  # and no SQL
        put(database, "d", idempotency_key="k")
    with database.session() as session:
        assert rows.find_retried(session, "app", "k").id == "a"


# what stays, and what does not


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


def test_ended_requests_are_forgotten_with_their_logs_some_at_a_time(database: Store) -> None:
    for number in range(5):
        put(database, str(number), status=DONE, ended=float(number), gone=number != 1)
        with database.session() as session:
            rows.add_log(session, str(number), "line", 1.0)
    put(database, "waits")
    with database.session() as session:
        assert rows.forget(session, 3.0, 2) == ["0", "2"]
    with database.session() as session:
        assert rows.forget(session, 3.0, 2) == ["3"] and rows.forget(session, 3.0, 2) == []
        assert [rows.find(session, name) is None for name in "01234"] == [True, False, True, True, False]
        assert [log.request_id for log in rows.logs_of(session, list("01234"))] == ["1", "4"]
        assert [request.id for request in rows.with_files(session, 9.0, rows.FIRST_ENDED, 9)] == ["1"]


def test_old_requests_are_gone_through_in_the_order_of_their_ends(database: Store) -> None:
    for name, ended in (("c", 2.0), ("a", 1.0), ("b", 1.0), ("d", 3.0)):
        put(database, name, status=DONE, ended=ended)
    found, after = [], rows.FIRST_ENDED
    with database.session() as session:
        while step := rows.with_files(session, 2.0, after, 1):
            found.append(step[0].id)
            after = (step[0].ended, step[0].number)
    assert found == ["a", "b", "c"]


def test_a_result_that_is_sent_but_once_is_over_some_time_after_it_was_read_or_ended(database: Store) -> None:
    ended = {"status": DONE, "ended": 1000.0, "sync_mode": True}
    put(database, "unread", **ended)
    put(database, "read", **ended, read=1100.0)
    put(database, "kept", **{**ended, "sync_mode": False})
    with database.session() as session:
        assert [found.id for found in rows.inline(session, 999.0, 1099.0, 9)] == []
        assert [found.id for found in rows.inline(session, 999.0, 1100.0, 9)] == ["read"]
        assert [found.id for found in rows.inline(session, 1000.0, 1099.0, 9)] == ["unread"]


def plans_of(database: Store, work: Callable[[Session], object]) -> list[str]:
    """How SQLite would run each statement of that work."""
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if not statement.startswith(("EXPLAIN", "BEGIN")):
            rows_of_plan = connection.connection.driver_connection.execute(
                f"EXPLAIN QUERY PLAN {statement}", parameters
            )
            plans.append(", ".join(row[3] for row in rows_of_plan))

    for engine in database.engines:
        event.listen(engine, "before_cursor_execute", explain)
    with database.session() as session:
        work(session)
    return plans


def test_old_requests_are_found_by_an_index_and_not_by_a_walk_through_all(database: Store) -> None:
    def work(session: Session) -> None:
        rows.with_files(session, 1.0, rows.FIRST_ENDED, 9)
        rows.inline(session, 1.0, 1.0, 9)
        rows.forget(session, 1.0, 9)

    with_files, inline, forget = plans = plans_of(database, work)
    assert with_files.startswith("SEARCH requests USING INDEX requests_with_files (ended>? AND ended<?)")
    assert "USING INDEX requests_sent_once" in inline
    assert "INDEX requests_without_files (ended>? AND ended<?)" in forget
    assert not any("B-TREE" in plan for plan in plans), "none is sorted"


def test_what_the_queue_asks_each_second_reads_no_request_that_has_ended(database: Store) -> None:
    """With 200,000 of them each of the first three took a second, within a transaction that writes."""

    now = at(200.0)

    def work(session: Session) -> None:
        rows.release_expired(session, now, "a")
        rows.release(session, "a", but=["b"])
        rows.marked(session, "a")
        rows.renew(session, "a", ["b"], now, 1.0)
        rows.change(session, "b", "a", ready=True)
        rows.overdue(session, now)
        rows.cancelled(session)
        rows.claim(session, "a", now, 1.0)
        rows.claim(session, "a", now, 1.0, rows.unfetched(True, True, ["c"]))
        rows.positions(session, ["b"])

    plans = plans_of(database, work)
    assert len(plans) == 10
    for plan in plans:
        first = plan.partition(", SCALAR SUBQUERY")[0]  # behind it: the last place, which only a release asks for
        assert "SEARCH requests USING" in first and "SCAN requests" not in first, plan


def test_of_a_request_whose_words_are_forgotten_none_is_in_the_files(database: Store) -> None:
    secret = "these very words"
    values = {"arguments": {"prompt": secret}, "workflow": {"1": secret}, "result": {"prompt": secret}}
    put(database, "a", status=DONE, ended=1.0, **values)
    with database.session() as session:
        rows.add_log(session, "a", secret, 1.0)
    with database.session() as session:
        rows.forget_words(session, ["a"])
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM requests").fetchone()
        for engine in database.engines:  # SQLite waits for the reader so long
            event.listen(engine, "checkout", lambda raw, *_: raw.execute("PRAGMA busy_timeout=100"))
        assert not database.empty_log(), "somebody reads"
        other.execute("ROLLBACK")
    assert database.empty_log()
    forgotten = look(database, "a")
    assert (forgotten.arguments, forgotten.workflow, forgotten.result, forgotten.gone) == ({}, None, None, True)
    for file in database.path.parent.glob("requests.sqlite*"):
        assert secret.encode() not in file.read_bytes(), file.name


def test_an_error_leaves_nothing_half_done(database: Store) -> None:
    put(database, "a")
    with pytest.raises(RuntimeError), database.session() as session:
        rows.find(session, "a").error = "half"
        session.flush()
        raise RuntimeError
    assert look(database, "a").error is None
