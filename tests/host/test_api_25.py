"""LTX-2.5 over HTTP, on a real server that has no other model: the hosted applications, and ours.

The official Python client takes the results. Frames are those of the command for the parameters that an application's
inputs stand for.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import fal_client
import numpy as np
import pytest
import requests
from a2v.ltx.models import MODELS
from a2v.tests.api.edges import data_uri, wav
from a2v.tests.host.api import APP, SMALL, client_of, environment, write_published_25
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.command import REQUEST, run_command
from a2v.tests.tiny_chat import write_chat_gemma
from PIL import Image

SIDE = 64
FAST, PRO = (f"lightricks/ltx-2.5/audio-to-video/{name}" for name in ("fast", "pro"))
OURS = "local/ltx-2.5-22b/audio-to-video"
SOUND = data_uri(wav(2.0), "audio/wav")
FRAMES = 49  # the fewest 8k+1 for two seconds at 24 a second


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny LTX-2.5 in a server's model folders, under the published names."""
    return write_published_25(tmp_path_factory.mktemp("api25"), tmp_path_factory.mktemp("tiny25"))


@pytest.fixture(scope="module")
def server(files: dict[str, Path]) -> Iterator[Comfy]:
    with environment(LTX_A2V_SHORT_SIDE=str(SIDE)):
        comfy = Comfy(files["dev-2.5"].parents[2])
    with comfy:
        yield comfy


@pytest.fixture(scope="module")
def client(server: Comfy) -> Iterator[Any]:
    with client_of(server) as fal:
        yield fal.SyncClient(key="any")


def frames_of(url: str, folder: Path) -> np.ndarray:
    path = folder / url.rpartition("/")[2]
    path.write_bytes(requests.get(url, timeout=20).content)
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def graph_of(handle: Any) -> dict[str, dict[str, Any]]:
    """The inputs of the graph's nodes, by class; of two nodes of a class the first."""
    graph = requests.get(handle.response_url + "/workflow", timeout=10).json()
    return {node["class_type"]: node["inputs"] for node in reversed(graph.values())}


def check_hosted(result: dict[str, Any]) -> str:
    """The hosted service's form of result → the video's URL."""
    assert result.keys() == {"video"} and result["video"].keys() == {"url", "content_type", "file_name"}
    assert result["video"]["content_type"] == "video/mp4"
    return result["video"]["url"]


def test_fast_is_the_command_bit_for_bit(client: Any, server: Comfy, files: dict[str, Path], tmp_path: Path) -> None:
    """The distilled transformer at `full`, without guidance. The frames are taken from the graph, before encoding."""
    handle = client.submit(FAST, {"prompt": REQUEST["prompt"], "audio_url": SOUND, "guidance_scale": 50, "seed": 3})
    url = check_hosted(handle.get())
    assert frames_of(url, tmp_path).shape == (FRAMES, 64, 128, 3)
    lines = [line["message"] for line in handle.status(with_logs=True).logs]
    assert "guidance_scale does nothing here, because the distilled model has no guidance" in lines
    assert any("8 steps of euler_ancestral, 1 passes each, with LTX-2.5" in line for line in lines)
    nodes = graph_of(handle)
    assert nodes["LTXA2VModelLoader"]["checkpoint"] == files["distilled-2.5"].name
    assert nodes["LTXA2VModelLoader"]["video_vae"] == files["video-vae-2.5"].name
    request = {
        "seed": 3,
        "match_audio_length": True,
        "video_size": {"width": 128, "height": 64},
        "acceleration": "full",
        "preprocess_audio": True,
    }
    (tmp_path / "speech.wav").write_bytes(wav(2.0))
    given = {
        "checkpoint": files["distilled-2.5"],
        "text-encoder": files["text-encoder-2.5"],
        "video-vae": files["video-vae-2.5"],
        "audio-vae": files["audio-vae-2.5"],
        "upscaler": files["upscaler-2.5"],
        "audio": tmp_path / "speech.wav",
    }
    _, theirs = run_command(tmp_path, request, given)
    with av.open(str(theirs)) as container:
        expected = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.array_equal(frames_of(url, tmp_path), expected)


@pytest.mark.soak
def test_pro_makes_a_picture_speak(client: Any, files: dict[str, Path], tmp_path: Path) -> None:
    """A first frame without a prompt; it is upright, and so is the video."""
    Image.new("RGB", (90, 120), (200, 30, 90)).save(tmp_path / "face.png")
    image = fal_client.encode_file(tmp_path / "face.png")
    handle = client.submit(PRO, {"audio_url": SOUND, "image_url": image})
    assert frames_of(check_hosted(handle.get()), tmp_path).shape == (FRAMES, 128, 64, 3)
    nodes = graph_of(handle)
    assert nodes["LTXA2VGuidance"]["cfg"] == 9 and nodes["LTXA2VScheduler"]["steps"] == 30
    loaded = nodes["LTXA2VModelLoader"]
    assert (loaded["checkpoint"], loaded["video_vae"]) == (files["dev-2.5"].name, files["diffusion-vae-2.5"].name)


def test_ours_has_every_parameter(client: Any, tmp_path: Path) -> None:
    result = client.subscribe(OURS, {**SMALL, "audio_url": SOUND, "fps": 12.5, "video_output_type": "VP9 (.webm)"})
    assert (result["seed"], result["prompt"]) == (SMALL["seed"], SMALL["prompt"])
    video = result["video"]
    assert (video["width"], video["num_frames"], video["fps"], video["content_type"]) == (64, 9, 12.5, "video/webm")
    assert frames_of(video["url"], tmp_path).shape == (9, 64, 64, 3)


def test_what_is_wrong_is_told_before_anything_runs(server: Comfy, client: Any) -> None:
    """Of a sound by data URI at the door; of one that must be fetched, when it has come."""
    short, long = data_uri(wav(1.5), "audio/wav"), wav(10.5)
    for app, arguments, words in (
        (FAST, {"audio_url": SOUND}, "prompt: missing; say what the video shows"),
        (FAST, {"audio_url": short, "prompt": "x"}, "audio_url: the sound lasts 1.50 s; give one of 2 to 20 s."),
        (PRO, {"audio_url": SOUND, "prompt": "x", "guidance_scale": 51}, "less than or equal to 50"),
    ):
        with pytest.raises(fal_client.FalClientHTTPError, match=words) as refused:
            client.submit(app, arguments)
        assert refused.value.status_code == 422
        assert refused.value.message[0]["loc"][0] == "body"
    handle = client.submit(PRO, {"audio_url": client.upload(long, "audio/wav"), "prompt": "x"})
    with pytest.raises(fal_client.FalClientHTTPError, match="the sound is longer than 10 s") as refused:
        handle.get()
    assert refused.value.status_code == 422 and refused.value.message[0]["loc"] == ["body", "audio_url"]
    assert requests.get(handle.response_url + "/workflow", timeout=10).status_code == 404


@pytest.mark.soak
def test_the_other_version_s_application_says_what_is_missing(client: Any) -> None:
    with pytest.raises(fal_client.FalClientHTTPError, match=r"ltx-2\.3-22b-dev\.safetensors is not in") as missing:
        client.submit(APP, {**SMALL, "audio_url": SOUND})
    assert (missing.value.status_code, missing.value.error_type) == (424, "model_missing")
    assert "python -m ltx download dev --yes" in str(missing.value)


@pytest.mark.soak
def test_an_expander_that_is_installed_writes_the_prompt(server: Comfy, client: Any) -> None:
    handle = client.submit(FAST, {"prompt": "a person speaks", "audio_url": SOUND})
    handle.get()
    (said,) = prompts_of(handle)
    assert said == "prompt: a person speaks"
    expander = write_chat_gemma(server.base / "models" / MODELS["expander"].folder / MODELS["expander"].name)
    try:
        time.sleep(3.1)  # a look at the folders is believed for so long
        handle = client.submit(FAST, {"prompt": "a person speaks", "audio_url": SOUND})
        handle.get()
        assert graph_of(handle)["LTXA2VExpandPrompt"]["expander"] == expander.name
        assert prompts_of(handle) != [said]
    finally:
        shutil.rmtree(expander)


def prompts_of(handle: Any) -> list[str]:
    """What the report says of the prompt."""
    lines = [line["message"] for line in handle.status(with_logs=True).logs]
    return [line for line in lines if line.startswith("prompt: ")]
