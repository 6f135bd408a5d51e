"""The applications that take a video, by the official Python client on a real server."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import fal_client
import numpy as np
import pytest
import requests
from a2v.api.applications.from_video import FAMILY, FROM_VIDEO
from a2v.api.host import KNOWN_SECONDS
from a2v.ltx.errors import InputError
from a2v.ltx.media.audio import load_track
from a2v.ltx.models import MODELS
from a2v.tests.api.edges import data_uri
from a2v.tests.host.api import CAMERA_FILE, client_of, write_ic_lora
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.command import command_files, run_request
from a2v.tests.ltx.media.clips import write_clip
from a2v.tests.tiny import TinyFiles

from .test_api_features import check_same, download, frames_of, picture
from .test_api_js import install_client

__all__ = ["picture"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]
UNION = MODELS["union-control"].name
ASKED = {
    "prompt": "a person speaks",
    "video_size": {"width": 128, "height": 128},
    "num_inference_steps": 8,
    "enable_prompt_expansion": False,
    "seed": 7,
}
FPS, COUNT = Fraction(12), 11
"""Neither the default rate nor 8k+1 frames."""


def drawn(count: int = COUNT) -> list[np.ndarray]:
    """A square that moves over a ramp of grey."""
    pictures = []
    for number in range(count):
        picture = np.repeat(np.linspace(20, 90, 96, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
        picture[10 + number : 40 + number, 20 + 2 * number : 50 + 2 * number] = (230, 120, 40)
        pictures.append(picture)
    return pictures


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A clip with sound and one without."""
    folder = tmp_path_factory.mktemp("clips")
    tone = 0.3 * np.sin(np.arange(48_000) / 48_000 * 2 * np.pi * 300)
    kinds = {"spoken": {"sound": (tone, 0.0)}, "silent": {}}
    return {
        name: write_clip(folder / f"{name}.mp4", drawn(), kind="h264.mp4", fps=FPS, **more)
        for name, more in kinds.items()
    }


@pytest.fixture(scope="module")
def client(server: Comfy) -> Iterator[Any]:
    """With the IC-LoRA under its published name: the camera LoRA, whose metadata says that it reads half a size."""
    loras = server.base / "models" / "loras"
    write_ic_lora(loras / CAMERA_FILE, loras / UNION)
    time.sleep(KNOWN_SECONDS)  # another file's tests may have asked what there is
    try:
        with client_of(server) as fal:
            yield fal.SyncClient(key="any")
    finally:
        (loras / UNION).unlink()


def run(client: Any, name: str, clip: Path, **asked: Any) -> dict[str, Any]:
    return client.subscribe(f"{FAMILY}/{name}", {**ASKED, "video_url": fal_client.encode_file(clip), **asked})


APPS = [each.id.removeprefix(f"{FAMILY}/") for each in FROM_VIDEO]
RUN = ("distilled/reference-video-to-video",)
"""Of these, what runs in the usual suite. tests/host/test_api_graphs.py submits all, and opens the graph of each."""


@pytest.mark.parametrize("app", [pytest.param(app, marks=[pytest.mark.soak] * (app not in RUN)) for app in APPS])
def test_each_application(client: Any, clips: dict[str, Path], tmp_path: Path, app: str) -> None:
    asked = {"loras": [{"path": CAMERA_FILE, "scale": 0.5}]} if app.endswith("/lora") else {}
    asked |= {"num_frames": 25, "num_context_frames": 9} if app.startswith("extend") else {}
    result = run(client, app, clips["spoken"], **asked)
    video = result["video"]
    frames = {"extend": 27, "reference": 17}.get(app.removeprefix("distilled/").split("-")[0], COUNT)
    assert (video["width"], video["height"], video["num_frames"], video["fps"]) == (128, 128, frames, 12)
    assert (result["seed"], result["prompt"]) == (7, "a person speaks")
    path = download(result, tmp_path)
    assert frames_of(path).shape == (frames, 128, 128, 3)
    assert load_track(path).waveform.abs().max() > 0


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "another take": (
        "video-to-video",
        {"video_strength": 0.4, "audio_strength": 0.5, "video_size": "auto"},
        {"edit": {"strength": 0.4}, "audio_strength": 0.5, "video_size": "auto"},
        {"video": "spoken"},
    ),
    "longer": (
        "extend-video",
        {"num_frames": 25, "num_context_frames": 9},
        {"edit": {"extend": "forward", "context": 9}, "num_frames": 25, "match_audio_length": False},
        {"video": "spoken"},
    ),
    "earlier, with an image": (
        "extend-video",
        {
            **{"num_frames": 17, "num_context_frames": 12, "extend_direction": "backward", "generate_audio": False},
            **{"end_image_url": "picture", "end_image_strength": 0.9, "video_strength": 0.6},
        },
        {
            "edit": {"extend": "backward", "context": 12, "strength": 0.6, "renew": "picture"},
            **{"num_frames": 17, "match_audio_length": False, "image_strength": 0.9},
        },
        {"video": "spoken", "image": "picture"},
    ),
    "followed": (
        "reference-video-to-video",
        {"video_strength": 0.8, "end_image_url": "picture"},
        {"reference": {"strength": 0.8}, "num_frames": 17, "match_audio_length": False, "fps": 12},
        {"reference": "spoken", "audio": "spoken", "lora": UNION, "end-image": "picture"},
    ),
    "who a picture shows, with a voice": (
        "reference-video-to-video",
        {"video_url": "picture", "audio_url": "spoken"},
        {},
        {"reference": "picture", "audio": "spoken", "lora": UNION},
    ),
}


LONGER = ("another take", "longer", "earlier, with an image")  # of `make soak`: test_video_in.py has them as graphs


@pytest.mark.parametrize(
    ("app", "asked", "request_", "given"),
    [pytest.param(*case, id=name, marks=[pytest.mark.soak] * (name in LONGER)) for name, case in CASES.items()],
)
def test_a_request_is_the_command_s_film(
    client: Any,
    files: TinyFiles,
    clips: dict[str, Path],
    picture: Path,
    tmp_path: Path,
    app: str,
    asked: dict[str, Any],
    request_: dict[str, Any],
    given: dict[str, str],
) -> None:
    same = {"video_output_type": "PRORES4444 (.mov)", "enable_safety_checker": False}
    media = {"picture": picture, **clips}
    asked = {name: fal_client.encode_file(media[value]) if value in media else value for name, value in asked.items()}
    ours = download(run(client, app, clips["spoken"], **same, **asked), tmp_path)
    theirs = tmp_path / "command.mov"
    own = {UNION: files.checkpoint.parent.parent / "loras" / UNION, **media}
    options = {"audio": None, **{option: own[name] for option, name in given.items()}, "output": theirs}
    run_request(tmp_path, {**ASKED, **same, **request_}, {**command_files(files), **options})
    check_same(ours, theirs)


@pytest.mark.soak
def test_who_a_picture_shows_gets_a_voice(client: Any, picture: Path, tmp_path: Path) -> None:
    asked = {"num_frames": 25, "match_video_length": False}
    path = download(run(client, "reference-video-to-video", picture, **asked), tmp_path)
    assert len(frames_of(path)) == 25 and load_track(path).waveform.abs().max() > 0


@pytest.mark.soak
def test_a_clip_without_sound_gets_some_or_none(client: Any, clips: dict[str, Path], tmp_path: Path) -> None:
    made = download(run(client, "video-to-video", clips["silent"]), tmp_path)
    assert load_track(made).waveform.abs().max() > 0
    kept = download(run(client, "video-to-video", clips["silent"], generate_audio=False), tmp_path)
    with pytest.raises(InputError, match="no audio"):
        load_track(kept)


def test_without_new_sound_the_clip_s_own_is_kept(client: Any, clips: dict[str, Path], tmp_path: Path) -> None:
    asked = {"generate_audio": False, "video_output_type": "PRORES4444 (.mov)"}
    kept = load_track(download(run(client, "video-to-video", clips["spoken"], **asked), tmp_path))
    own = load_track(clips["spoken"])
    samples = min(kept.waveform.shape[1], own.waveform.shape[1])
    assert kept.rate == own.rate and samples > 40_000
    assert (kept.waveform[0, :samples] - own.waveform[0, :samples]).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("direction", "own"),
    [("forward", slice(0, COUNT)), pytest.param("backward", slice(-COUNT, None), marks=pytest.mark.soak)],
)
def test_a_video_that_is_made_longer_comes_back_whole(
    client: Any, clips: dict[str, Path], tmp_path: Path, direction: str, own: slice
) -> None:
    """Every one of its frames, up to the join."""
    asked = {"num_frames": 25, "num_context_frames": 9, "video_output_type": "PRORES4444 (.mov)"}
    asked |= {"extend_direction": direction, "use_multiscale": False, "video_size": {"width": 96, "height": 64}}
    found = frames_of(download(run(client, "extend-video", clips["spoken"], **asked), tmp_path))
    given, new = frames_of(clips["spoken"]), np.delete(found, own, 0)
    assert found.shape[1:] == (64, 96, 3) and len(new) == (16 if direction == "forward" else 17)
    assert np.abs(found[own].astype(int) - given).mean((1, 2, 3)).max() < 2, "but for the encoding"
    beside = given[-1] if direction == "forward" else given[0]
    assert np.abs(new.astype(int) - beside).mean() > 10


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_of_a_long_clip_the_model_sees_the_context_alone(client: Any, tmp_path: Path) -> None:
    """488 frames, more than it could make at once."""
    clip = write_clip(tmp_path / "long.mp4", drawn(1) * 488, kind="h264.mp4", fps=Fraction(50))
    asked = {"num_frames": 33, "num_context_frames": 9, "use_multiscale": False}
    result = run(client, "extend-video", clip, **asked, video_size={"width": 96, "height": 64})
    assert result["video"]["num_frames"] == 512 and frames_of(download(result, tmp_path)).shape == (512, 64, 96, 3)


@pytest.mark.soak
def test_edges_and_the_whole_picture_are_not_the_same(client: Any, clips: dict[str, Path], tmp_path: Path) -> None:
    name = "reference-video-to-video"
    asked = {"seed": 8, "enable_safety_checker": False}
    whole, edges, alone = (
        frames_of(download(run(client, name, clips["spoken"], **asked, **more), tmp_path))
        for more in ({}, {"preprocessor": "canny", "ic_lora_type": "match_preprocessor"}, {"video_strength": 0})
    )
    assert len({each.tobytes() for each in (whole, edges, alone)}) == 3


def refusal(client: Any, name: str, clip: Path | bytes, **asked: Any) -> tuple[int, Any]:
    data = fal_client.encode_file(clip) if isinstance(clip, Path) else data_uri(clip, "video/mp4")
    with pytest.raises(fal_client.FalClientHTTPError) as refused:
        client.subscribe(f"{FAMILY}/{name}", {**ASKED, "video_url": data, **asked})
    return refused.value.status_code, refused.value.message


def test_what_is_refused(client: Any, clips: dict[str, Path]) -> None:
    spoken, sound = clips["spoken"], (ROOT / "assets" / "speech.opus").read_bytes()
    status, said = refusal(client, "video-to-video", sound)
    assert (status, said[0]["loc"]) == (422, ["body", "video_url"]) and "no picture that moves" in said[0]["msg"]
    status, said = refusal(client, "extend-video", spoken, num_frames=9, num_context_frames=9)
    assert (status, said[0]["loc"]) == (422, ["body", "num_frames"])
    status, said = refusal(client, "reference-video-to-video", spoken, preprocessor="depth")
    assert (status, said[0]["loc"]) == (422, ["body", "preprocessor"])
    status, said = refusal(client, "reference-video-to-video", spoken, ic_lora_type="detailer")
    assert status == 424 and "ltx-2-19b-ic-lora-detailer.safetensors is not in" in said
    status, said = refusal(client, "video-to-video/lora", spoken, loras=[{"path": UNION}])
    assert (status, said[0]["loc"]) == (422, ["body", "loras"]) and "is an IC-LoRA" in said[0]["msg"]


def test_an_unknown_sibling_is_told_the_known_ones(server: Comfy, client: Any, clips: dict[str, Path]) -> None:
    status, said = refusal(client, "distilled/extend-video", clips["spoken"])
    assert status == 404 and f"{FAMILY}/extend-video" in said


@pytest.mark.soak  # the client itself: test_api_js.py
@pytest.mark.parametrize("name", ["extend-video", "video-to-video", "reference-video-to-video"])
def test_the_javascript_client(client: Any, server: Comfy, clips: dict[str, Path], name: str) -> None:
    node, folder = install_client()
    data = fal_client.encode_file(clips["spoken"])
    asked = {**ASKED, "video_url": data, **({"num_frames": 17} if name == "extend-video" else {})}
    text = json.dumps({"app": f"{FAMILY}/{name}", "input": {**asked, "num_context_frames": 9}})
    command = [node, str(Path(__file__).parent / "js" / "client.mjs"), server.url, "proxy", "poll", text]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["value"]["data"]["seed"] == 7 and said["updates"][-1]["status"] == "COMPLETED"
    assert requests.get(said["value"]["data"]["video"]["url"], timeout=10).status_code == 200
