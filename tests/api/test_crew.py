"""Films that several machines make together, on ComfyUIs that run no graph: who makes what, and what is left of it.

The machines of a real cluster make a real film in tests/host/test_api_cluster_films.py.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from a2v.api.database.store import Store
from a2v.api.files import film_parts
from a2v.api.graph.compose import FILM_PART, SAVE, SAVE_PART, compose
from a2v.api.graph.graph import Graph, Prompt
from a2v.api.graph.parts import part_of, possible_parts
from a2v.api.host import HostLost, NodeError, Outcome
from a2v.api.queue import in_hand
from a2v.api.queue.lane import Lane
from a2v.api.settings import Settings
from a2v.api.ticking import Ticker
from a2v.ltx.diffusion.kept import ROOM
from a2v.ltx.request import parse
from a2v.tests.api.stand_ins import BODY, NODES, Place, StandIn, working

FILM = {**BODY, "timeline": "0:00 a\n0:10 [cut] b\n0:15 c\n0:20 [cut] d\n0:30 [cut] e"}
Visit = Callable[["Pair"], Awaitable[None]]


class Pair:
    """A server and a worker. lost: how the worker's runs ended."""

    def __init__(self, place: Place) -> None:
        self.place, self.worker, self.lost = place, StandIn(place.settings), []
        self.returns = False  # whether the worker is there again at once
        queue = place.queue
        self.ticker = Ticker("the worker", self.tick)
        self.lane = Lane(self.worker, place.database, place.settings, queue.journal, queue.finishing, self.ticker.wake,
                         queue.crew, name="worker", on_end=lambda *end: self.lost.append(end),
                         is_there=lambda: self.works)  # fmt: skip

    @property
    def works(self) -> bool:
        """Whether nothing was lost there: a worker is set aside then."""
        return self.returns or not any(reason for reason, _ in self.lost)

    async def tick(self) -> None:
        if self.lane.is_busy or self.works:
            await self.lane.tick()

    def parts(self) -> list[Prompt]:
        return [run for host in (self.place.host, self.worker) for run in host.runs if Graph(run).has(SAVE_PART)]

    def films(self) -> list[Prompt]:
        return [run for host in (self.place.host, self.worker) for run in host.runs if Graph(run).has(SAVE)]

    def files(self) -> list[str]:
        return [name for name in self.place.files() if name.endswith(".safetensors")]


@asynccontextmanager
async def pair(settings: Settings, database: Store) -> AsyncIterator[Pair]:
    async with working(settings, database) as place:
        found = Pair(place)
        found.lane.leases.start()
        found.ticker.start()
        try:
            yield found
        finally:
            await found.ticker.stop()
            await found.lane.close()
            await asyncio.to_thread(found.lane.leases.stop)


def at(settings: Settings, database: Store, visit: Visit) -> None:
    async def main() -> None:
        async with pair(settings, database) as found:
            await visit(found)

    asyncio.run(main())


async def slowly(_: Prompt) -> None:
    await asyncio.sleep(0.05)


def test_both_make_parts_and_the_head_joins_them(settings: Settings, database: Store) -> None:
    async def visit(pair: Pair) -> None:
        pair.place.host.act = pair.worker.act = slowly
        request_id = await pair.place.submit(FILM)
        ended = await pair.place.end_of(request_id)
        assert ended.error is None and ended.result["video"]["num_frames"] == 9
        made = [Graph(run).inputs(FILM_PART) for run in pair.parts()]
        assert sorted((each["part"], each["parts"]) for each in made) == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert pair.worker.runs and pair.films() == [pair.place.host.runs[-1]], "the head makes the film"
        joined = Graph(pair.films()[0]).inputs(FILM_PART)
        names = [Graph(run).inputs(SAVE_PART)["filename_prefix"] + "_00001_.safetensors" for run in pair.parts()]
        assert joined["part"] == 0 and sorted(joined["made"].splitlines()) == sorted(names)
        assert not Graph(ended.workflow).has(FILM_PART), "the graph that people get is the whole one"
        assert len(pair.files()) == 4 and len(pair.place.files()) == 5, "parts stay beside the result"
        lines = await pair.place.log_of(request_id)
        assert sum(line.endswith(": made") for line in lines) == 4
        assert any(line.endswith(": sent to worker") for line in lines) and "Part 1 of 4: Started" in lines
        assert ended.created <= ended.started <= ended.ended
        assert (None, True) in pair.lost

    at(settings, database, visit)


@pytest.mark.parametrize("timeline", ["", "0:00 a\n0:10 b"])
def test_a_film_without_a_cut_is_made_by_one(settings: Settings, database: Store, timeline: str) -> None:
    async def visit(pair: Pair) -> None:
        request_id = await pair.place.submit({**FILM, "timeline": timeline, "windows": True})
        assert (await pair.place.end_of(request_id)).error is None
        assert len(pair.films()) == 1 and pair.parts() == []

    at(settings, database, visit)


def test_one_machine_makes_the_whole_at_once(settings: Settings, database: Store) -> None:
    async def main() -> None:
        async with working(settings, database) as place:
            assert (await place.end_of(await place.submit(FILM))).error is None
            assert len(place.host.runs) == 1 and not Graph(place.host.runs[0]).has(FILM_PART)

    asyncio.run(main())


def test_a_lost_worker_s_part_goes_to_another(settings: Settings, database: Store) -> None:
    async def dies(_: Prompt) -> None:
        await asyncio.sleep(0.02)
        raise HostLost("its machine is gone")

    async def visit(pair: Pair) -> None:
        pair.place.host.act, pair.worker.act = slowly, dies
        request_id = await pair.place.submit(FILM)
        ended = await pair.place.end_of(request_id)
        lines = await pair.place.log_of(request_id)
        assert any("worker did not finish it, another one will: its machine is gone" in line for line in lines)
        assert ended.error is None and sum(line.endswith(": made") for line in lines) == 4
        assert ("its machine is gone", True) in pair.lost and len(pair.files()) == 4

    at(settings, database, visit)


def test_a_part_that_ends_a_machine_again_and_again_ends_the_film(settings: Settings, database: Store) -> None:
    async def dies(_: Prompt) -> None:
        await asyncio.sleep(0.01)
        raise HostLost("its machine is gone")

    async def never(_: Prompt) -> None:
        await asyncio.Event().wait()

    async def visit(pair: Pair) -> None:
        pair.returns = True
        pair.place.host.act, pair.worker.act = never, dies
        ended = await pair.place.end_of(await pair.place.submit(FILM))
        assert ended.error_type == "server_lost" and pair.films() == []
        assert not pair.lane.is_busy and len(pair.place.host.stopped) == 1

    at(settings, database, visit)


def test_a_mistake_in_a_part_is_the_request_s(settings: Settings, database: Store) -> None:
    async def wrong(prompt: Prompt) -> Outcome | None:
        await asyncio.sleep(0.02)
        node = Graph(prompt).find("LTXA2VTimeline")
        message = "timeline: section 0:30.0 begins after the end of the film at 3.0 s; leave it out."
        return Outcome(error=NodeError(node, "a2v.ltx.errors.InputError", message))

    async def visit(pair: Pair) -> None:
        pair.place.host.act, pair.worker.act = slowly, wrong
        ended = await pair.place.end_of(await pair.place.submit(FILM))
        assert ended.error_status == 422 and ended.error_detail[0]["loc"] == ["body", "timeline"]
        assert pair.films() == [] and not pair.lane.is_busy

    at(settings, database, visit)


def test_a_cancel_stops_both_and_what_was_made_is_taken_up(settings: Settings, database: Store) -> None:
    async def visit(pair: Pair) -> None:
        gate, runs = asyncio.Event(), []

        async def one_then_wait(prompt: Prompt) -> None:
            runs.append(prompt)
            if len(runs) > 1:
                await gate.wait()

        pair.place.host.act = pair.worker.act = one_then_wait
        request_id = await pair.place.submit(FILM)
        await pair.place.until(lambda: len(runs) >= 3)
        await pair.place.queue.cancel(request_id)
        assert (await pair.place.end_of(request_id)).error_type == "client_cancelled"
        await pair.place.until(lambda: len(pair.place.host.stopped) == len(pair.worker.stopped) == 1)
        (made,) = pair.files()
        gate.set()
        again = await pair.place.submit(FILM)
        assert (await pair.place.end_of(again)).error is None
        lines = await pair.place.log_of(again)
        assert sum(line.endswith(": made before") for line in lines) == 1
        assert sum(line.endswith(": made") for line in lines) == 3
        assert f"ltx_a2v_api/{made}" in Graph(pair.films()[0]).inputs(FILM_PART)["made"] and len(pair.files()) == 4

    at(settings, database, visit)


@pytest.mark.parametrize(
    ("asked", "again"),
    [
        ({"timeline": FILM["timeline"].replace(" d", " another")}, 1),
        ({"timeline": FILM["timeline"].replace("[cut] d", "[cut, seed 5] d")}, 1),
        ({"timeline": FILM["timeline"].replace(" c", " another")}, 1),  # its stretch has two sections
        ({"timeline": FILM["timeline"].replace("0:20", "0:21")}, 4),  # parts begin elsewhere
        ({"negative_prompt": "another"}, 4),
    ],
    ids=str,
)
def test_of_a_film_with_a_change_only_what_it_touches_is_made(
    settings: Settings, database: Store, asked: dict[str, Any], again: int
) -> None:
    async def visit(pair: Pair) -> None:
        pair.place.host.act = pair.worker.act = slowly
        await pair.place.end_of(await pair.place.submit({**FILM, "seed": 3}))
        request_id = await pair.place.submit({**FILM, "seed": 3, **asked})
        assert (await pair.place.end_of(request_id)).error is None
        lines = await pair.place.log_of(request_id)
        assert sum(line.endswith(": made before") for line in lines) == 4 - again
        assert sum(line.endswith(": made") for line in lines) == again

    at(settings, database, visit)


@pytest.mark.parametrize("how", ["sent once", "no room"])
def test_parts_that_may_not_stay_go(
    settings: Settings, database: Store, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def visit(pair: Pair) -> None:
        pair.place.host.act = pair.worker.act = slowly
        await pair.place.end_of(await pair.place.submit({**FILM, "sync_mode": how == "sent once"}))
        assert len(pair.parts()) == 4 and pair.files() == []

    if how == "no room":
        monkeypatch.setenv(ROOM, "0")
    at(settings, database, visit)


def test_parts_stay_as_long_as_windows_and_take_as_much_room(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = settings.output_folder
    folder.mkdir(parents=True, exist_ok=True)
    ages = {f"{letter * 32}_00001_.safetensors": days for letter, days in (("a", 31), ("b", 29), ("c", 2), ("d", 0))}
    ages["x.safetensors"] = 100  # somebody's
    for name, days in ages.items():
        (folder / name).write_bytes(bytes(1000))
        os.utime(folder / name, (time.time() - days * film_parts.DAY,) * 2)

    def left() -> str:
        film_parts.sweep(settings)
        return "".join(sorted(path.name[0] for path in folder.iterdir()))

    assert left() == "bcdx"
    monkeypatch.setenv(ROOM, "0.0000025")
    assert left() == "cdx"
    assert film_parts.found(["b" * 32, "c" * 32], settings) == {"c" * 32: "c" * 32 + "_00001_.safetensors"}
    monkeypatch.setenv(ROOM, "0.0000015")
    assert left() == "cx", "what is used counts as new"
    film_parts.sweep(replace(settings, expire_hours=1e-9))
    assert [path.name for path in folder.iterdir()] == ["x.safetensors"], "and no longer than results"


def test_parts_are_looked_for_once_and_off_the_event_loop(
    settings: Settings, database: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of 100,000 results each look took a third of a second, in which ComfyUI's page stood still."""
    looks: list[threading.Thread] = []
    look = film_parts.found

    def note(*asked: Any) -> Any:
        looks.append(threading.current_thread())
        return look(*asked)

    monkeypatch.setattr(film_parts, "found", note)

    async def visit(pair: Pair) -> None:
        assert (await pair.place.end_of(await pair.place.submit(FILM))).error is None
        assert len(looks) == 1 and looks[0] is not threading.current_thread()

    at(settings, database, visit)


def test_a_part_that_cannot_be_deleted_now_does_not_fail_the_film(settings: Settings) -> None:
    """Somebody may have it open, and Windows deletes no such file. It is swept later."""
    folder = settings.output_folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stuck").mkdir()  # no file, so that unlink fails
    (folder / "free").touch()
    film_parts.drop(["stuck", "gone", "free"], settings)
    assert [path.name for path in folder.iterdir()] == ["stuck"]


def test_a_part_is_known_by_all_that_goes_into_it() -> None:
    """Its name is its content's; the name of the film is no part of that."""
    asked = {"prompt": "x", "timeline": FILM["timeline"], "seed": 3}

    def made(prefix: str = "p", **changes: Any) -> Prompt:
        return compose(parse({**asked, **changes}), NODES, audio="a.wav", prefix=prefix)

    def named(number: int = 2, count: int = 4, prefix: str = "p", **changes: Any) -> tuple[Prompt, str]:
        return part_of(made(prefix, **changes), number, count, parse({**asked, **changes}).sections)

    graph, name = named()
    assert named(prefix="other")[1] == named(prompt="y")[1] == name
    others = [named(3), named(count=3), named(seed=4), named(scheduler="ltx2")]
    assert name not in {other for _, other in others}
    # a prompt that two sections share by its name is each one's own
    named_alike = "0:00 verse: a\n0:10 [cut] b\n0:20 [cut] verse:"
    before, after = (
        [named(number, 3, timeline=text)[1] for number in (1, 2, 3)]
        for text in (named_alike, named_alike.replace(": a", ": z"))
    )
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, False]
    # nobody knows which cuts end the parts where there are more of them
    assert named(2, 3)[1] != named(2, 3, timeline=FILM["timeline"].replace(" e", " z"))[1]
    kinds = {node["class_type"] for node in graph.values()}
    assert {"LTXA2VSampler", SAVE_PART, FILM_PART} <= kinds and not {SAVE, "LTXA2VReport", "PreviewAny"} & kinds
    assert possible_parts(parse(asked)) == 4


@pytest.mark.parametrize("end", ["fails", "cancelled"])
def test_of_a_film_that_is_sent_once_no_part_stays_however_it_ends(
    settings: Settings, database: Store, end: str
) -> None:
    async def visit(pair: Pair) -> None:
        async def second_breaks(prompt: Prompt) -> Outcome | None:
            if Graph(prompt).has(FILM_PART) and Graph(prompt).inputs(FILM_PART)["part"] < 3:
                return None
            await pair.place.until(lambda: len(pair.files()) == 2)
            if end == "fails":
                return Outcome(error=NodeError(Graph(prompt).find(SAVE_PART), "RuntimeError", "it broke"))
            await asyncio.sleep(60)
            return None

        pair.place.host.act = pair.worker.act = second_breaks
        request_id = await pair.place.submit({**FILM, "sync_mode": True})
        if end == "cancelled":
            await pair.place.until(lambda: len(pair.files()) == 2)
            await pair.place.until(lambda: len(pair.parts()) == 4)
            assert await pair.place.queue.cancel(request_id)
        assert (await pair.place.end_of(request_id)).error is not None
        await pair.place.until(lambda: pair.files() == [])

    at(settings, database, visit)


def test_a_request_that_is_given_up_unrun_costs_an_earlier_film_no_part(
    settings: Settings, database: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def visit(pair: Pair) -> None:
        assert (await pair.place.end_of(await pair.place.submit(FILM))).error is None
        made = pair.files()
        monkeypatch.setattr(in_hand, "ATTEMPTS", 0)
        ended = await pair.place.end_of(await pair.place.submit({**BODY, "sync_mode": True}))
        assert ended.error_type == "server_lost"
        await pair.place.until(lambda: not pair.place.queue._lane.is_busy and not pair.lane.is_busy)
        assert len(made) == 4 and pair.files() == made

    at(settings, database, visit)
