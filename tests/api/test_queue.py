"""The queue by itself, on a ComfyUI that runs no graph: every way in which a request may go, to one end each."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from a2v.api.applications.inputs import Invalid
from a2v.api.database import rows
from a2v.api.database.rows import DONE, QUEUED, RUNNING
from a2v.api.database.store import Store, StoreFailed
from a2v.api.graph.graph import Prompt
from a2v.api.graph.model_files import ModelMissing
from a2v.api.host import Outcome, Rejected
from a2v.api.queue import endings
from a2v.api.queue.submissions import ReusedKey
from a2v.api.settings import Settings
from a2v.tests.api.edges import make_settings, opened
from a2v.tests.api.stand_ins import BODY, PICTURE, Place, failing, working

Visit = Callable[[Place], Awaitable[Any]]


def at(settings: Settings, database: Store, visit: Visit) -> Any:
    """What comes of a visit to a queue that works."""

    async def main() -> Any:
        async with working(settings, database) as place:
            return await visit(place)

    return asyncio.run(main())


class Gate:
    """Holds runs until it is opened."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.entered = 0

    async def __call__(self, _: Prompt) -> Outcome | None:
        self.entered += 1
        await self.event.wait()
        return None


async def held(place: Place) -> tuple[Gate, str]:
    """A request that runs until its gate is opened."""
    gate = place.host.act = Gate()
    request_id = await place.submit()
    await place.until(lambda: gate.entered)
    return gate, request_id


def test_a_request_from_its_submission_to_its_result(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> None:
        request_id = await place.submit()
        ended = await place.end_of(request_id)
        assert ended.status == DONE and ended.error is None and ended.lease_server is None
        assert ended.result["seed"] == 7 and ended.result["prompt"] == "spoken"
        video = ended.result["video"]
        assert (video["file_size"], video["num_frames"], video["fps"]) == (len(PICTURE), 9, 24.0)
        assert place.files() == [video["file_name"]] and video["file_name"].startswith(ended.token)
        assert ended.created <= ended.started <= ended.ended and ended.safety == "checked"
        assert await place.log_of(request_id) == ["Started", "First stage: step 1/2", "First stage: step 2/2", "a note"]
        assert ended.workflow == place.host.runs[0]
        assert ended.arguments["audio_url"] == "data:audio/wav;base64,…"
        assert place.files("input") == [ended.media["audio_url"].rpartition("/")[2]]

    at(settings, database, visit)


def test_requests_run_one_after_another_by_priority_and_arrival(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> list[int]:
        gate = place.host.act = Gate()
        ids = []
        for seed, priority in ((1, 0), (2, 1), (3, 0)):
            ids.append(await place.submit({**BODY, "seed": seed}, priority=priority))
            if seed == 1:
                await place.until(lambda: gate.entered)
        assert [(await place.queue.look(each)).position for each in ids] == [0, 1, 0]
        gate.event.set()
        for each in ids:
            await place.end_of(each)
        return [graph[key]["inputs"]["value"] for graph in place.host.runs for key in graph if is_seed(graph[key])]

    assert at(settings, database, visit) == [1, 3, 2]


def is_seed(node: dict[str, Any]) -> bool:
    return node["class_type"] == "PrimitiveInt"


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_a_cancelled_request_ends_and_leaves_nothing(settings: Settings, database: Store, when: str) -> None:
    async def visit(place: Place) -> None:
        gate, first = await held(place)
        which = first if when == "running" else await place.submit()
        assert await place.queue.cancel(which) is True
        ended = await place.end_of(which)
        assert (ended.error_type, ended.error_status) == ("client_cancelled", 400) and ended.result is None
        assert len(place.host.stopped) == (when == "running")
        assert await place.queue.cancel(which) is False and await place.queue.cancel("none") is None
        gate.event.set()
        assert (await place.end_of(first)).error is None or when == "running"
        after = await place.submit()
        assert (await place.end_of(after)).error is None, "and the next one is not touched by that"

    at(settings, database, visit)


def test_a_request_that_may_not_wait_ends_where_it_waits(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> None:
        gate, first = await held(place)
        late = await place.end_of(await place.submit(start_timeout=0.2))
        assert (late.error_type, late.error_status) == ("request_timeout", 504)
        gate.event.set()
        assert (await place.end_of(first)).error is None

    at(settings, database, visit)


FAILURES = {
    "a mistake that a node finds": ("a2v.ltx.errors.InputError", "audio_url: no sound.", "validation_error", 422),
    "a model that the client did not choose": ("ltx_a2v.InputError", "x.safetensors: is damaged.", "node_error", 500),
    "no room for a tile": ("ltx_a2v.InputError", "decode: there is not enough memory", "out_of_memory", 500),
    "a flagged result": ("a2v.ltx.errors.FlaggedError", "flagged.", "validation_error", 422),
    "out of memory": ("torch.OutOfMemoryError", "CUDA out of memory.", "out_of_memory", 500),
    "anything else": ("RuntimeError", "it broke", "node_error", 500),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_a_node_raises_ends_its_request(settings: Settings, database: Store, name: str) -> None:
    kind, message, error_type, status = FAILURES[name]

    async def visit(place: Place) -> None:
        place.host.act = failing(kind, message)
        ended = await place.end_of(await place.submit())
        assert (ended.error_type, ended.error_status) == (error_type, status) and message in ended.error
        assert place.files() == []

    at(settings, database, visit)


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (Outcome(interrupted=True), "interrupted"),
        (Outcome(removed=True), "interrupted"),
        (Outcome(outputs={}), "internal_error"),
    ],
)
def test_a_run_without_a_result(settings: Settings, database: Store, outcome: Outcome, kind: str) -> None:
    async def visit(place: Place) -> str:
        async def act(_: Prompt) -> Outcome:
            return outcome

        place.host.act = act
        return (await place.end_of(await place.submit())).error_type

    assert at(settings, database, visit) == kind


def test_a_graph_that_comfyui_does_not_take(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> None:
        async def act(prompt: Prompt) -> Outcome:
            (camera,) = (key for key, node in prompt.items() if node["class_type"] == "LTXA2VCameraLora")
            raise Rejected({camera: "it is not in models/loras."})

        place.host.act = act
        ended = await place.end_of(await place.submit({**BODY, "camera_lora": "dolly_in"}))
        assert ended.error_status == 422 and ended.error_detail[0]["loc"] == ["body", "camera_lora"]

        async def rejects(_: Prompt) -> Outcome:
            raise Rejected({"": "nothing fits."})

        place.host.act = rejects
        assert (await place.end_of(await place.submit())).error_type == "graph_rejected"

    at(settings, database, visit)


def test_a_bug_ends_its_request_and_not_the_queue(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> None:
        async def act(_: Prompt) -> Outcome:
            raise ZeroDivisionError

        place.host.act = act
        assert (await place.end_of(await place.submit())).error_type == "internal_error"
        place.host.act = failing("RuntimeError", "another")
        assert (await place.end_of(await place.submit())).error_type == "node_error"

    at(settings, database, visit)


def test_what_is_wrong_is_told_at_the_submission(tmp_path: Any, database: Store) -> None:
    settings = make_settings(tmp_path, require_safety=True)

    async def visit(place: Place) -> None:
        for body, field in (
            ({"prompt": "x"}, "audio_url"),
            ({**BODY, "audio_url": "data:audio/wav;base64,AAAA"}, "audio_url"),
            ({**BODY, "enable_safety_checker": False}, "enable_safety_checker"),
        ):
            with pytest.raises(Invalid) as refused:
                await place.submit(body)
            assert refused.value.detail[0]["loc"] == ["body", field]
        place.host.safety = "put one there"
        with pytest.raises(Invalid, match="none is installed in models/safety_checker; put one there"):
            await place.submit()
        place.host.models_error = ModelMissing("dev.safetensors is not in ComfyUI's models/checkpoints: get it.")
        with pytest.raises(ModelMissing):
            await place.submit()

    at(settings, database, visit)


def test_a_model_that_goes_while_a_request_waits_ends_it(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> None:
        gate, first = await held(place)
        second = await place.submit()
        place.host.models_error = ModelMissing("dev.safetensors is not in ComfyUI's models/checkpoints: get it.")
        gate.event.set()
        await place.end_of(first)
        ended = await place.end_of(second)
        assert (ended.error_type, ended.error_status) == ("model_missing", 424)

    at(settings, database, visit)


def test_one_key_is_one_request(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> None:
        first = await place.submit(idempotency_key="k")
        assert await place.submit(idempotency_key="k") == first
        with pytest.raises(ReusedKey):
            await place.submit(idempotency_key="k", digest="another")
        both = await asyncio.gather(*(place.submit(idempotency_key="at once") for _ in range(5)))
        assert len(set(both)) == 1
        for each in (first, both[0]):
            await place.end_of(each)
        assert len(place.host.runs) == 2

    at(settings, database, visit)


def test_a_result_that_is_sent_but_once_is_not_among_the_outputs(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> None:
        ended = await place.end_of(await place.submit({**BODY, "sync_mode": True}))
        assert ended.error is None and place.files() == [] and place.host.forgotten == [ended.prompt_id]

    at(settings, database, visit)


@pytest.mark.parametrize("room", [0, -1])
def test_a_result_too_large_to_be_sent_is_an_error(tmp_path: Any, database: Store, room: int) -> None:
    async def visit(place: Place) -> None:
        ended = await place.end_of(await place.submit({**BODY, "sync_mode": True}))
        kept = [path.read_bytes() for path in place.settings.passing_folder.iterdir()]
        if room < 0:
            assert ended.error_status == 422 and ended.error_detail[0]["loc"] == ["body", "sync_mode"]
            assert ended.error.startswith("sync_mode: the result is larger than")
        else:
            assert ended.error is None
        assert place.files() == [] and kept == ([] if room < 0 else [PICTURE])

    at(make_settings(tmp_path, max_inline=len(PICTURE) + room), database, visit)


def test_a_server_that_ends_gives_its_request_back_and_another_one_runs_it(settings: Settings, database: Store) -> None:
    async def leave(place: Place) -> str:
        _, request_id = await held(place)
        await place.until(lambda: place.request(request_id).status == RUNNING)
        return request_id

    request_id = at(settings, database, leave)
    with opened(settings) as again:
        left = Place(settings, again).request(request_id)
        assert (left.status, left.lease_server, left.started) == (QUEUED, None, None)

        async def visit(place: Place) -> None:
            assert (await place.end_of(request_id)).error is None

        at(settings, again, visit)


def test_a_request_is_given_up_after_three_servers_died_under_it(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> None:
        gate, first = await held(place)
        second = await place.submit()
        with database.session() as session:
            rows.find(session, second).attempts = endings.ATTEMPTS
        gate.event.set()
        await place.end_of(first)
        assert (await place.end_of(second)).error_type == "server_lost"

    at(settings, database, visit)


def test_who_waits_for_a_request_may_leave(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> None:
        gate, request_id = await held(place)
        assert await place.queue.wait(request_id, lambda: False) is None
        assert await place.queue.wait("none") is None
        gate.event.set()
        await place.end_of(request_id)
        assert not place.queue.journal.is_watched(request_id)

    at(settings, database, visit)


def test_two_queues_on_one_database_share_the_work(settings: Settings, database: Store) -> None:
    async def main() -> list[int]:
        with opened(settings) as second:
            async with working(settings, database) as one, working(settings, second) as two:
                gate = one.host.act = two.host.act = Gate()
                ids = [await one.submit({**BODY, "seed": seed}) for seed in range(2)]
                await one.until(lambda: gate.entered == 2)
                gate.event.set()
                for each in ids:
                    assert (await one.end_of(each)).error is None
                return [len(one.host.runs), len(two.host.runs)]

    assert asyncio.run(main()) == [1, 1]


def test_a_request_that_had_started_in_time_starts_again_after_its_server_ended(
    settings: Settings, database: Store
) -> None:
    async def visit(place: Place) -> None:
        gate = place.host.act = Gate()
        request_id = await place.submit(start_timeout=0.5)
        await place.until(lambda: gate.entered)
        await place.queue.journal.flush()
        await asyncio.sleep(0.6)
        ids.append(request_id)

    ids: list[str] = []
    at(settings, database, visit)
    ended = at(settings, database, lambda place: place.end_of(ids[0]))
    assert ended.error is None and ended.attempts == 1


@pytest.mark.parametrize("sync_mode", [False, True])
def test_what_a_stopped_run_writes_after_its_requests_end_is_removed(
    settings: Settings, database: Store, sync_mode: bool
) -> None:
    """ComfyUI stops at the node's next look, and a file may be whole before that."""

    async def visit(place: Place) -> None:
        gate = place.host.act = Gate()
        request_id = await place.submit({**BODY, "sync_mode": sync_mode})
        await place.until(lambda: gate.entered)
        place.host.going_on = True
        assert await place.queue.cancel(request_id)
        assert (await place.end_of(request_id)).error_type == "client_cancelled", "nobody waits for that"
        place.host.outputs(place.host.runs[0])
        assert len(place.files()) == 1
        place.host.going_on = False
        await place.until(lambda: place.files() == [])
        place.host.act = nothing
        assert (await place.end_of(await place.submit())).error is None
        assert (place.request(request_id).prompt_id in place.host.forgotten) == sync_mode

    at(settings, database, visit)


async def nothing(_: Prompt) -> None:
    return None


def test_of_a_failed_request_with_sync_mode_nothing_stays_in_the_history(settings: Settings, database: Store) -> None:
    async def visit(place: Place) -> None:
        place.host.act = failing("RuntimeError", "it broke")
        request_id = await place.submit({**BODY, "sync_mode": True})
        prompt_id = (await place.end_of(request_id)).prompt_id
        await place.until(lambda: prompt_id in place.host.forgotten)

    at(settings, database, visit)


def test_who_waits_goes_on_waiting_while_the_database_cannot_be_read(
    settings: Settings, database: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer 503 to `run` would make the client send the request again, beside the one that runs."""

    async def visit(place: Place) -> None:
        gate, request_id = await held(place)
        waiting = asyncio.create_task(place.queue.wait(request_id))
        await asyncio.sleep(0.1)
        with monkeypatch.context() as broken:
            broken.setattr(database, "read", fails)
            place.queue.journal.changed(request_id)
            await asyncio.sleep(0.5)
        gate.event.set()
        assert (await asyncio.wait_for(waiting, place.seconds)).error is None

    async def fails(*_: Any, **__: Any) -> None:
        raise StoreFailed("the disk is away")

    at(settings, database, visit)


def test_a_result_that_the_other_disk_does_not_take_is_no_bug(
    settings: Settings, database: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output folder may lie on another disk than the one that the result is moved to."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def visit(place: Place) -> None:
        request_id = await place.submit({**BODY, "sync_mode": True})
        ended = await place.end_of(request_id)
        assert (ended.error_type, ended.error_status) == ("disk_failed", 500)
        assert "No space left on device" in (ended.error or "") and place.files() == []

    monkeypatch.setattr(shutil, "move", full)
    at(settings, database, visit)
