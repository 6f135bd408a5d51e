"""Films in windows over HTTP, by the official Python client on a real server: the command's frames, logs, a cancel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fal_client
import pytest
from a2v.tests.host.api import APP, SMALL, client_of
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.command import command_files, run_request
from a2v.tests.tiny import TinyFiles

from .test_api_features import check_same, download, picture, refusal

__all__ = ["picture"]  # a fixture
WINDOWS = {"frames": 33, "overlap": 2}
TIMELINE = "0:00.6 a man walks\n0:01.3 [cut, seed 9] chorus: she dances\n0:02 chorus:"
FILM = {**SMALL, "windows": WINDOWS, "num_frames": 65}


@pytest.fixture(scope="module")
def client(server: Comfy) -> Iterator[Any]:
    with client_of(server) as fal:
        yield fal.SyncClient(key="any")


def kept_by(server: Comfy) -> list[Path]:
    return list((server.base / "output" / "ltx_a2v_windows").glob("*.safetensors"))


@pytest.fixture
def unkept(server: Comfy) -> None:
    for file in kept_by(server):
        file.unlink()


def logged(handle: Any) -> list[str]:
    return [line["message"] for line in getattr(handle.status(with_logs=True), "logs", [])]


@pytest.mark.soak  # the graph of a film: test_films.py
@pytest.mark.parametrize(
    "asked",
    [
        {"timeline": TIMELINE, "windows": {**WINDOWS, "drift": 0.2, "seeds": {"3": -4}}, "image_url": True},
        {"windows": WINDOWS, "audio_strength": 0.6},
    ],
    ids=["a timeline", "renewed sound"],
)
def test_a_film_is_the_command_s_bit_for_bit(
    client: Any, files: TinyFiles, sound: str, picture: Path, tmp_path: Path, unkept: None, asked: dict[str, Any]
) -> None:
    """As long as its sound, with all that the endpoint adds: a written prompt, restart, a levelled sound."""
    images = {"image_url": fal_client.encode_file(picture)} if asked.pop("image_url", False) else {}
    request = {
        "prompt": "a woman speaks",
        "video_size": {"width": 64, "height": 64},
        "seed": 2**33 + 3,
        "num_inference_steps": 8,
        "enable_safety_checker": False,
        "video_output_type": "PRORES4444 (.mov)",
        **asked,
    }
    result = client.subscribe(APP, {**request, "audio_url": sound, **images})
    assert result["video"]["num_frames"] == 137
    ours, theirs = download(result, tmp_path), tmp_path / "command.mov"
    run_request(tmp_path, request, {**command_files(files), "image": picture if images else None, "output": theirs})
    check_same(ours, theirs)


def test_a_cancelled_film_goes_on(client: Any, server: Comfy, sound: str, unkept: None) -> None:
    """The same request again takes the windows that were finished."""
    asked = {**FILM, "audio_url": sound, "video_size": {"width": 128, "height": 128}}
    handle = client.submit(APP, asked)
    deadline = time.monotonic() + 120
    while not any(line.startswith("Second stage: window 2 of 3, step 1/") for line in logged(handle)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    handle.cancel()
    ended = list(handle.iter_events(interval=0.05))[-1]
    assert ended.error_type == "client_cancelled"
    while server.get("/queue")["queue_running"]:  # it goes on to its next look whether it was stopped
        assert time.monotonic() < deadline
        time.sleep(0.02)
    finished = len(kept_by(server)) - 3  # of the second stage; ComfyUI has the result of the first one
    assert finished in (1, 2)
    again = client.submit(APP, asked)
    assert again.get()["video"]["num_frames"] == 65
    lines = logged(again)
    assert any(f"{finished} windows of an earlier run were used again" in line for line in lines), lines
    assert any("3 windows of up to 33 frames that share 2 latents" in line for line in lines)
    assert not any(line.startswith("First stage: window") for line in lines), "ComfyUI or the folder has all of it"
    assert "Second stage: window 3 of 3, step 3/3" in lines


def test_without_windows_the_endpoint_s_cut_stays(client: Any, sound: str) -> None:
    asked = {**SMALL, "match_audio_length": True, "fps": 60, "windows": False, "timeline": "", "seed": 3}
    asked |= {"audio_url": sound, "use_multiscale": False}
    assert client.subscribe(APP, asked)["video"]["num_frames"] == 337  # 5.5 s: not cut, and made at once


BAD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "windows": ({"windows": {"frames": 17, "overlap": 2}}, ["body", "windows"], "leaves nothing new"),
    "windows of words": ({"windows": "yes, please"}, ["body", "windows"], "boolean"),
    "a share": ({"windows": {"anchor": 2}}, ["body", "windows", "anchor"], "less than or equal to 1"),
    "too long a window": ({"windows": {"frames": 489}}, ["body", "windows", "frames"], "less than or equal to 481"),
    "an unknown setting": ({"windows": {"size": 3}}, ["body", "windows", "size"], "not permitted"),
    "order": ({"timeline": "0:02 a\n0:01 b"}, ["body", "timeline"], "does not begin after the section before it"),
    "no time": ({"timeline": "a tree"}, ["body", "timeline"], "begins before any section"),
    "images": ({"timeline": "0:00 [image face.png] a"}, ["body", "timeline"], "over HTTP only image_url"),
    "without windows": ({"timeline": "0:00 a", "windows": False}, ["body", "timeline"], "needs windows"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_refused_before_it_waits(name: str, client: Any, sound: str) -> None:
    asked, place, sentence = BAD[name]
    problem = refusal(client, audio_url=sound, **asked)
    assert problem["loc"] == place and sentence in problem["msg"], problem


def test_a_section_behind_the_sound_is_told_as_the_timeline_s(client: Any, sound: str) -> None:
    handle = client.submit(APP, {**FILM, "audio_url": sound, "timeline": "0:00 a\n1:00 b"})
    with pytest.raises(fal_client.FalClientHTTPError) as failed:
        handle.get()
    (problem,) = failed.value.message
    assert problem["loc"] == ["body", "timeline"] and "begins after the end of the film" in problem["msg"]
