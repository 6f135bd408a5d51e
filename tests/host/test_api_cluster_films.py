"""Films with hard cuts, made by a head and its workers together, through a real Ray cluster, by the Python client."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fal_client
import pytest
from a2v.tests.host.api import APP, SPEECH, client_of, environment, write_published
from a2v.tests.host.cluster import TOKEN, ray_start
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.command import command_files, run_request
from a2v.tests.tiny import TinyFiles

from .test_api_cluster import HEAD_SETTINGS, LOST, Pair, leftovers, wait
from .test_api_features import check_same, download

TIMELINE = "0:00 a man walks\n0:01.2 [cut] chorus: she dances\n0:02 rain\n0:03 [cut, seed 9] snow\n0:04 [cut] chorus:"
FILM: dict[str, Any] = {
    "prompt": "a woman speaks",
    "video_size": {"width": 64, "height": 64},
    "seed": 2**33 + 3,
    "num_inference_steps": 8,
    "enable_prompt_expansion": False,
    "enable_safety_checker": False,
    "video_output_type": "PRORES4444 (.mov)",
    "timeline": TIMELINE,
    "windows": {"frames": 33, "overlap": 2, "drift": 0.2, "seeds": {"3": 5}},
}
"""A film of 137 frames in four stretches between hard cuts, one of them with two sections."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, Path], TinyFiles]:
    bases = tmp_path_factory.mktemp("head"), tmp_path_factory.mktemp("worker")
    write_published(bases[1])
    return bases, write_published(bases[0])


@pytest.fixture(scope="module")
def pair(places: tuple[tuple[Path, Path], TinyFiles]) -> Iterator[Pair]:
    (here, there), _ = places
    with environment(LTX_A2V_WORKER="1"):
        worker = Comfy(there)
    with worker, ray_start({**TOKEN, "LTX_A2V_COMFYUI": str(worker.port)}) as node:
        with environment(**HEAD_SETTINGS, LTX_A2V_RAY_ADDRESS=node.address):
            head = Comfy(here)
        with head, client_of(head) as fal:
            wait(lambda: "is ready" in head.log)
            yield Pair(head, worker, node, fal)


@pytest.fixture(scope="module")
def sound() -> str:
    return fal_client.encode_file(SPEECH)


def parts(base: Path) -> list[str]:
    return [path.name for path in (base / "output" / "ltx_a2v_api").glob("*.safetensors")]


@pytest.mark.parametrize("strength", [1.0, pytest.param(0.5, marks=pytest.mark.soak)], ids=["sound", "renewed sound"])
def test_a_film_of_two_machines_is_the_command_s_bit_for_bit(
    pair: Pair, places: tuple[Any, TinyFiles], sound: str, tmp_path: Path, strength: float
) -> None:
    asked = {**FILM, "audio_strength": strength}
    handle = pair.client.submit(APP, {**asked, "audio_url": sound})
    result = handle.get()
    ours, theirs = download(result, tmp_path), tmp_path / "command.mov"
    run_request(tmp_path, asked, {**command_files(places[1]), "output": theirs})
    assert result["video"]["num_frames"] == 137
    check_same(ours, theirs)
    lines = pair.logs(handle.request_id)
    sent = [line for line in lines if line.startswith("Part ") and "sent to" in line]
    made = [line for line in lines if line.startswith("Part ") and line.endswith(": made")]
    assert len(made) == 4 and 1 <= len(sent) <= 3, "both worked on it"
    there = sent[0].partition(":")[0]
    assert any(line.startswith(f"{there}: First stage: window ") and ", step 8/8" in line for line in lines), lines
    assert any(line == f"{there}: Save Film Part" for line in lines)
    assert lines.count("Decode and Save") == 1 and any("were made in parts" in line for line in lines)
    assert not parts(pair.head.base)
    wait(lambda: not leftovers(pair.worker.base), 10)
    for server in (pair.head, pair.worker):
        assert not list((server.base / "output" / "ltx_a2v_windows").glob("*.safetensors")), "what is done is not kept"


def test_a_cancel_reaches_all_machines_and_what_was_made_stays(pair: Pair, sound: str) -> None:
    asked = {**FILM, "audio_url": sound, "seed": 5, "video_size": {"width": 128, "height": 128}}
    handle = pair.client.submit(APP, {**asked, "num_inference_steps": 30})
    wait(lambda: len([line for line in pair.logs(handle.request_id) if line.endswith(": made")]) >= 1, 180)
    handle.cancel()
    with pytest.raises(fal_client.FalClientHTTPError, match="cancelled"):
        handle.get()
    wait(lambda: not any(server.get("/queue")["queue_running"] for server in (pair.head, pair.worker)), 30)
    kept = len(parts(pair.head.base))
    assert kept >= 1
    again = pair.client.submit(APP, {**asked, "num_inference_steps": 30})
    assert again.get()["video"]["num_frames"] == 137
    lines = pair.logs(again.request_id)
    assert sum(line.endswith(": made before") for line in lines) == kept and not parts(pair.head.base)


def test_a_mistake_in_a_part_ends_the_film_in_the_request_s_words(pair: Pair, sound: str) -> None:
    """The section is within the limits of a request, but behind the end of its sound."""
    handle = pair.client.submit(APP, {**FILM, "audio_url": sound, "timeline": f"{TIMELINE}\n1:00 [cut] late"})
    with pytest.raises(fal_client.FalClientHTTPError) as failed:
        handle.get()
    (problem,) = failed.value.message
    assert problem["loc"] == ["body", "timeline"] and "begins after the end of the film" in problem["msg"]
    wait(lambda: not leftovers(pair.worker.base), 10)


def test_a_killed_worker_s_part_goes_to_another(
    pair: Pair, places: tuple[Any, TinyFiles], sound: str, tmp_path: Path
) -> None:
    """Last: the worker is gone after it."""
    asked = {**FILM, "seed": 6}
    handle = pair.client.submit(APP, {**asked, "audio_url": sound})
    wait(lambda: any("sent to" in line for line in pair.logs(handle.request_id)))
    there = next(line.partition(":")[0] for line in pair.logs(handle.request_id) if "sent to" in line)
    wait(lambda: any(line.startswith(f"{there}: First stage: window") for line in pair.logs(handle.request_id)))
    os.killpg(pair.worker.pid, signal.SIGKILL)
    ours, theirs = download(handle.get(), tmp_path), tmp_path / "command.mov"
    run_request(tmp_path, asked, {**command_files(places[1]), "output": theirs})
    check_same(ours, theirs)
    lines = pair.logs(handle.request_id)
    assert any(LOST in line for line in lines) and len([line for line in lines if line.endswith(": made")]) == 4
    assert not parts(pair.head.base)
