"""The applications that take a video, by the official Python client on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import fal_client
import numpy as np
import pytest
from a2v.api.applications.from_video import FAMILY, FROM_VIDEO
from a2v.ltx.media.audio import load_track
from a2v.ltx.models import MODELS
from a2v.tests.host.api import CAMERA_FILE, client_of
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.command import command_files, run_request
from a2v.tests.ltx.media.clips import write_clip
from a2v.tests.tiny import TinyFiles

from .test_api_features import check_same, download, frames_of, picture

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
    try:
        with client_of(server) as fal:
            yield fal.SyncClient(key="any")
    finally:
        (loras / UNION).unlink()


def write_ic_lora(source: Path, target: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(source), target, metadata={"reference_downscale_factor": "2"})


def run(client: Any, name: str, clip: Path, **asked: Any) -> dict[str, Any]:
    return client.subscribe(f"{FAMILY}/{name}", {**ASKED, "video_url": fal_client.encode_file(clip), **asked})


@pytest.mark.parametrize("app", [each.id.removeprefix(f"{FAMILY}/") for each in FROM_VIDEO])
def test_each_application(client: Any, clips: dict[str, Path], tmp_path: Path, app: str) -> None:
    asked = {"loras": [{"path": CAMERA_FILE, "scale": 0.5}]} if app.endswith("/lora") else {}
    asked |= {"num_frames": 25, "num_context_frames": 9} if app.startswith("extend") else {}
    result = run(client, app, clips["spoken"], **asked)
    video = result["video"]
    frames = {"extend": 33, "reference": 17}.get(app.removeprefix("distilled/").split("-")[0], COUNT)
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
        {"edit": {}, "num_frames": 33, "match_audio_length": False},
        {"video": "spoken"},
    ),
    "earlier, with an image": (
        "extend-video",
        {
            **{"num_frames": 17, "num_context_frames": 12, "extend_direction": "backward", "generate_audio": False},
            **{"end_image_url": "picture", "end_image_strength": 0.9, "video_strength": 0.6},
        },
        {
            "edit": {"at": 14 / 12, "start": 14 / 12, "end": 23 / 12, "strength": 0.6, "renew": "picture"},
            **{"num_frames": 25, "match_audio_length": False, "image_strength": 0.9},
        },
        {"video": "spoken", "image": "picture"},
    ),
    "followed": (
        "reference-video-to-video",
        {"video_strength": 0.8, "end_image_url": "picture"},
        {"reference": {"strength": 0.8}, "num_frames": 17, "match_audio_length": False, "fps": 12},
        {"reference": "spoken", "audio": "spoken", "lora": UNION, "end-image": "picture"},
    ),
}


@pytest.mark.parametrize(("app", "asked", "request_", "given"), CASES.values(), ids=CASES)
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
    asked = {name: fal_client.encode_file(picture) if value == "picture" else value for name, value in asked.items()}
    ours = download(run(client, app, clips["spoken"], **same, **asked), tmp_path)
    theirs = tmp_path / "command.mov"
    own = {"picture": picture, UNION: files.checkpoint.parent.parent / "loras" / UNION, **clips}
    options = {"audio": None, **{option: own[name] for option, name in given.items()}, "output": theirs}
    run_request(tmp_path, {**ASKED, **same, **request_}, {**command_files(files), **options})
    if app.startswith("reference"):  # the IC-LoRA is merged before the distilled one there, and after it here
        apart = np.abs(frames_of(ours).astype(int) - frames_of(theirs))
        assert apart.max() <= 2 and load_track(ours).waveform.equal(load_track(theirs).waveform)
    else:
        check_same(ours, theirs)
