"""What requests can ask for, over HTTP on a real server: every feature, the same numbers as the command, refusals."""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import fal_client
import numpy as np
import pytest
import requests
import torch
from a2v.api.settings import SUBFOLDER
from a2v.ltx.media import audio
from a2v.tests.api.described import Described
from a2v.tests.host.api import APP, CAMERA_FILE, LONG, SMALL, client_of, environment
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.command import command_files, run_request
from a2v.tests.ltx.media.test_safety import write as write_classifier
from a2v.tests.tiny import TinyFiles
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
OTHER = "other.mp4"


@pytest.fixture(scope="module")
def client(server: Comfy) -> Iterator[Any]:
    with client_of(server) as fal:
        yield fal.SyncClient(key="any")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that is neither a multiple of the grid nor as flat as one colour."""
    small = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(8), dtype=torch.uint8).numpy()
    path = tmp_path_factory.mktemp("pictures") / "first.png"
    Image.fromarray(small).resize((120, 70), Image.Resampling.BICUBIC).save(path)
    return path


def download(result: dict[str, Any], folder: Path) -> Path:
    path = folder / result["video"]["file_name"]
    path.write_bytes(requests.get(result["video"]["url"], timeout=20).content)
    return path


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


CASES: dict[str, dict[str, Any]] = {
    "end image alone": {"end_image_url": True, "video_size": "auto", "end_image_strength": 0.8},
    "both images, one pass, huge seed": {
        "image_url": True,
        "end_image_url": True,
        "use_multiscale": False,
        "seed": 2**64 - 3,
        "video_output_type": "VP9 (.webm)",
    },
    "all reports": {"camera_lora": "dolly_in", "audio_strength": 0.5, "image_url": True, "scheduler": "ltx2"},
    "one pass, new sound": {"use_multiscale": False, "audio_strength": 0, "video_output_type": "PRORES4444 (.mov)"},
    "distilled recipe": {"acceleration": "full", "nag": True},
    "negative seed, no restart": {"seed": -5, "use_restart_sampling": False, "video_output_type": "GIF (.gif)"},
    "written prompt": {"enable_prompt_expansion": True, "image_url": True, "image_strength": 0},
}
SUFFIXES = {"VP9 (.webm)": "webm", "PRORES4444 (.mov)": "mov", "GIF (.gif)": "gif"}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_features(client: Any, sound: str, picture: Path, tmp_path: Path, case: dict[str, Any]) -> None:
    image = fal_client.encode_file(picture)
    media = {name: image for name in ("image_url", "end_image_url") if case.get(name)}
    result = client.subscribe(APP, {**SMALL, "audio_url": sound, **case, **media})
    video = result["video"]
    size = (128, 128) if case.get("video_size") == "auto" else (64, 64)
    assert (video["width"], video["height"], video["num_frames"]) == (*size, 9)
    assert video["file_name"].endswith("." + SUFFIXES.get(case.get("video_output_type", ""), "mp4"))
    assert frames_of(download(result, tmp_path)).shape == (9, *size[::-1], 3)
    assert result["seed"] == case.get("seed", 7)
    assert (result["prompt"] != "a person speaks") == case.get("enable_prompt_expansion", False)


DISTILLED_RECIPE = {"acceleration": "full", "use_restart_sampling": False}


@pytest.mark.parametrize(
    ("variant", "asked", "same"),
    [
        (
            "audio-to-video/lora",
            {"loras": [{"path": f"https://host/{CAMERA_FILE}", "scale": 0.7}]},
            {"camera_lora": "dolly_in", "camera_lora_scale": 0.7},
        ),
        ("distilled/audio-to-video", {}, DISTILLED_RECIPE),
        pytest.param(
            "distilled/audio-to-video/lora",
            {"loras": [{"path": CAMERA_FILE}]},
            {"camera_lora": "dolly_in", **DISTILLED_RECIPE},
            marks=pytest.mark.soak,
        ),
    ],
)
def test_a_variant_gives_the_frames_of_the_inputs_that_do_the_same(
    client: Any, sound: str, tmp_path: Path, variant: str, asked: dict[str, Any], same: dict[str, Any]
) -> None:
    """The tiny set has no distilled checkpoint, so the distilled variants take the undistilled one with its LoRA."""
    small = {**SMALL, "audio_url": sound}
    found = client.subscribe(f"{APP.rpartition('/')[0]}/{variant}", {**small, **asked})
    expected = client.subscribe(APP, {**small, **same})
    assert np.array_equal(frames_of(download(found, tmp_path)), frames_of(download(expected, tmp_path)))


def test_what_is_answered_is_what_the_document_says(server: Comfy, sound: str) -> None:
    """Each route of requests, with its refusals. tests/api/test_uploads.py has those of uploads."""
    described = Described(server.get("/fal/openapi.json"))
    queue, owner = f"{server.url}/fal/queue/{APP}", f"{server.url}/fal/queue/{APP.rpartition('/')[0]}/requests"
    body = {**SMALL, "audio_url": sound, "seed": 60}
    with requests.Session() as session:
        session.hooks["response"].append(described.check)
        session.get(f"{server.url}/fal/openapi.json")
        session.get(f"{server.url}/fal/rest/.well-known/jwks.json")
        session.post(queue, json={"prompt": "x", "fps": 0})  # 422
        session.post(queue, data="{}")  # 415
        session.post(queue, json=body, headers={"X-Fal-Queue-Priority": "high"})  # 422
        running = session.post(queue, json={**LONG, "audio_url": sound}).json()
        waiting = session.post(queue, json={**body, "seed": 61}).json()
        while session.get(running["status_url"] + "?logs=1").json()["status"] != "IN_PROGRESS":
            time.sleep(0.1)
        session.get(running["response_url"])  # 400, not ended
        session.get(running["response_url"] + "/workflow")
        session.get(waiting["response_url"] + "/workflow")  # 404, no graph yet
        for each in (waiting, waiting, running):  # 202, 400, 202
            session.put(each["cancel_url"])
        session.get(running["status_url"] + "?logs=1")  # with its error
        session.get(running["response_url"])  # 400, cancelled
        for method, rest in (("GET", ""), ("GET", "/status"), ("GET", "/status/stream"), ("PUT", "/cancel")):
            session.request(method, f"{owner}/no-such-request{rest}")
        queued = session.post(queue, json=body).json()
        session.get(queued["status_url"] + "/stream?logs=1")
        session.get(queued["status_url"] + "?logs=1")
        video = session.get(queued["response_url"]).json()["video"]
        session.get(video["url"], headers={"Range": "bytes=0-9"})
        session.get(video["url"][:-4])  # 404
        session.post(queue.replace("/queue/", "/run/"), json={**body, "sync_mode": True})
        later = session.post(queue, json={**body, "audio_url": "http://127.0.0.1:9/a.wav"}).json()
        while session.get(later["status_url"]).json()["status"] != "COMPLETED":
            time.sleep(0.1)
        session.get(later["response_url"])  # 422
        headers = {"x-fal-target-url": f"https://queue.fal.run/{APP}"}
        session.post(f"{server.url}/fal/proxy", json={}, headers=headers)
    of_requests = {found for found in described.called if "/requests/" in found[1]}
    assert {status for *_, status in of_requests} == {200, 202, 400, 404, 422}
    assert len({found[:2] for found in of_requests if found[2] in (200, 202)}) == 5


def test_a_lora_that_is_not_there_is_named(client: Any, sound: str) -> None:
    asked = {**SMALL, "audio_url": sound, "loras": [{"path": "https://host/none.safetensors"}]}
    with pytest.raises(fal_client.client.FalClientHTTPError, match=r"'none.safetensors' is not in .*loras") as no:
        client.submit(f"{APP}/lora", asked)
    assert no.value.status_code == 424


def test_a_request_is_the_command_bit_for_bit(
    client: Any, files: TinyFiles, sound: str, picture: Path, tmp_path: Path
) -> None:
    request = {
        "prompt": "a woman speaks",
        "negative_prompt": "static",
        "video_size": "auto",
        "seed": 2**33 + 3,
        "num_inference_steps": 8,
        "num_frames": 17,
        "match_audio_length": False,
        "camera_lora": "dolly_in",
        "camera_lora_scale": 0.8,
        "audio_strength": 0.6,
        "image_strength": 0.9,
        "gradient_estimation_gamma": 1.5,
        "enable_safety_checker": False,
        "video_cfg_scale": 2.5,
        "audio_cfg_scale": 3.0,
        "nag": {"scale": 6},
        "video_output_type": "PRORES4444 (.mov)",
    }
    image = fal_client.encode_file(picture)
    result = client.subscribe(APP, {**request, "audio_url": sound, "image_url": image})
    ours = download(result, tmp_path)

    theirs = tmp_path / "command.mov"
    own = {"camera-lora": files.camera_lora, "image": picture, "output": theirs}
    run_request(tmp_path, request, {**command_files(files), **own})
    check_same(ours, theirs)


def check_same(ours: Path, theirs: Path) -> None:
    """Two files have the same frames and the same sound, to the bit."""
    assert np.array_equal(frames_of(ours), frames_of(theirs))
    assert torch.equal(audio.load_track(ours).waveform, audio.load_track(theirs).waveform)


def refusal(client: Any, **arguments: Any) -> dict[str, Any]:
    with pytest.raises(fal_client.FalClientHTTPError) as refused:
        client.submit(APP, {**SMALL, **arguments})
    assert refused.value.status_code == 422
    (problem,) = refused.value.message
    return problem


def safety_of(client: Any, **arguments: Any) -> str:
    handle = client.submit(APP, {**SMALL, **arguments})
    handle.get()
    return requests.get(handle.response_url, timeout=10).headers["x-ltx-safety"]


def test_the_safety_checker_is_never_silently_absent(server: Comfy, client: Any, sound: str, tmp_path: Path) -> None:
    assert safety_of(client, audio_url=sound, seed=31) == "not-installed"
    assert safety_of(client, audio_url=sound, seed=32, enable_safety_checker=False) == "off"
    problem = refusal(client, audio_url=sound, enable_safety_checker=True)
    assert problem["loc"] == ["body", "enable_safety_checker"] and "huggingface.co" in problem["msg"]
    folder = write_classifier(server.base / "models" / "safety_checker" / "bright")
    try:
        time.sleep(3.1)  # a look at the folders is believed for so long
        handle = client.submit(APP, {**SMALL, "audio_url": sound, "seed": 33, "enable_safety_checker": True})
        handle.get()
        assert any("the safety checker bright" in line["message"] for line in handle.status(with_logs=True).logs)
        assert requests.get(handle.response_url, timeout=10).headers["x-ltx-safety"] == "checked"
    finally:
        shutil.rmtree(folder.parent)


def test_a_camera_lora_that_is_not_there_is_named(client: Any, sound: str) -> None:
    problem = refusal(client, audio_url=sound, camera_lora="jib_up")
    assert problem["loc"] == ["body", "camera_lora"]
    assert "ltx-2-19b-lora-camera-control-jib-up.safetensors is not in models/loras" in problem["msg"]


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_cancelling_touches_no_other_prompt(server: Comfy, client: Any, sound: str) -> None:
    """Somebody else's prompt runs while ours waits behind it in ComfyUI's queue."""
    done = client.submit(APP, {**SMALL, "audio_url": sound, "seed": 34})
    done.get()
    graph = requests.get(done.response_url + "/workflow", timeout=10).json()
    for node in graph.values():
        node["inputs"].update({"steps": 50} if "steps" in node["inputs"] else {})
        node["inputs"].update({"filename_prefix": "theirs"} if "filename_prefix" in node["inputs"] else {})
    theirs = server.queue(graph)
    until(lambda: server.get("/queue")["queue_running"])
    ours = client.submit(APP, {**SMALL, "audio_url": sound, "seed": 35})
    until(lambda: server.get("/queue")["queue_pending"])
    ours.cancel()
    until(lambda: not server.get("/queue")["queue_pending"])
    until(lambda: theirs in server.get("/history"))
    assert server.get(f"/history/{theirs}")[theirs]["status"]["status_str"] == "success"


def test_stopped_or_taken_out_in_comfyui(server: Comfy, client: Any, sound: str) -> None:
    handle = client.submit(APP, {**LONG, "audio_url": sound, "seed": 36})
    until(
        lambda: any(
            "First stage: step" in line["message"] for line in getattr(handle.status(with_logs=True), "logs", [])
        )
    )
    server.interrupt()
    with pytest.raises(fal_client.FalClientHTTPError, match=re.escape("Somebody stopped")) as stopped:
        handle.get()
    assert stopped.value.error_type == "interrupted"


def test_what_was_sent_once_goes(server: Comfy, client: Any, sound: str) -> None:
    handle = client.submit(APP, {**SMALL, "audio_url": sound, "seed": 37, "sync_mode": True})
    name = handle.get()["video"]["file_name"]
    assert (server.base / "user" / "__ltx_a2v" / "passing" / name).is_file()
    with sqlite3.connect(server.base / "user" / "__ltx_a2v" / "requests.sqlite") as database:
        set_back = "UPDATE requests SET read = read - 601 WHERE id = ?"
        assert database.execute(set_back, (handle.request_id,)).rowcount == 1
    time.sleep(0.1)
    with pytest.raises(fal_client.FalClientHTTPError, match="sync_mode") as gone:
        handle.get()
    assert gone.value.status_code == 410


@pytest.fixture(scope="module")
def later(
    server: Comfy, client: Any, sound: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Comfy, str]]:
    """What a server left, under another one that has no models and keeps nothing for long, and the id of a request.
    Beside what the API made lies a file of somebody's."""
    handle = client.submit(APP, {**SMALL, "audio_url": sound, "seed": 39})
    handle.get()
    base, own = tmp_path_factory.mktemp("later"), Path("user", "__ltx_a2v")
    folders = [Path(kind, SUBFOLDER) for kind in ("output", "input")]
    for folder in (own, *folders):
        shutil.copytree(server.base / folder, base / folder, ignore=shutil.ignore_patterns("requests.sqlite*"))
    with sqlite3.connect(server.base / own / "requests.sqlite") as database:
        database.backup(sqlite3.connect(base / own / "requests.sqlite"))
    (base / "models").mkdir()
    for folder in folders:
        assert list((base / folder).iterdir())
        (base / folder / OTHER).write_bytes(b"other")
    with environment(LTX_A2V_EXPIRE_HOURS="0.00001", LTX_A2V_SAFETY="require"), Comfy(base) as comfy:
        yield comfy, handle.request_id


@pytest.mark.soak  # tests/api/test_endpoint.py has it without a server
def test_expiry_takes_what_the_api_made_and_nothing_else(later: tuple[Comfy, str]) -> None:
    comfy, request_id = later
    folders = [comfy.base / kind / SUBFOLDER for kind in ("output", "input")]
    until(lambda: all([path.name for path in folder.iterdir()] == [OTHER] for folder in folders))
    with (
        client_of(comfy) as fal,
        pytest.raises(fal_client.FalClientHTTPError, match="deleted") as gone,
    ):
        fal.SyncClient(key="any").get_handle(APP, request_id).get()
    assert gone.value.status_code == 410


@pytest.mark.soak  # test_api_25.py has it of the other version
def test_without_models_a_submission_says_what_is_missing(later: tuple[Comfy, str], sound: str) -> None:
    with client_of(later[0]) as fal:
        with pytest.raises(fal_client.FalClientHTTPError) as missing:
            fal.SyncClient(key="any").submit(APP, {**SMALL, "audio_url": sound})
        assert missing.value.status_code == 424 and missing.value.error_type == "model_missing"
        assert str(missing.value).startswith(
            "ltx-2.3-22b-dev.safetensors is not in ComfyUI's models/checkpoints: get it from https://huggingface.co/"
        )
