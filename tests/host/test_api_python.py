"""The official Python client, unmodified, against a real server with the pack and the tiny models."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import time
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import requests
from a2v.tests.host.api import APP, LONG, SMALL, client_of
from a2v.tests.host.comfy import Comfy


@pytest.fixture(scope="module")
def fal(server: Comfy) -> Iterator[Any]:
    with client_of(server) as client:
        yield client


def test_subscribe(server: Comfy, fal: Any, sound: str, tmp_path: Path) -> None:
    seen: list[Any] = []
    client = fal.SyncClient(key="any")
    result = client.subscribe(
        APP, {**SMALL, "audio_url": sound}, with_logs=True, on_queue_update=seen.append, on_enqueue=seen.append
    )
    video = result["video"]
    assert result["seed"] == 7 and result["prompt"] == "a person speaks"
    assert (video["width"], video["height"], video["num_frames"], video["fps"]) == (64, 64, 9, 24)
    assert video["content_type"] == "video/mp4" and video["duration"] == 9 / 24
    answer = requests.get(video["url"], timeout=10)
    assert answer.status_code == 200 and len(answer.content) == video["file_size"]
    (tmp_path / "video.mp4").write_bytes(answer.content)
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
        assert container.streams.video[0].average_rate == Fraction(24)
        assert container.streams.audio
    assert isinstance(seen[-1], fal.Completed) and seen[-1].error is None
    messages = [line["message"] for line in seen[-1].logs]
    assert [f"First stage: step {n}/8" for n in range(1, 9)] == [m for m in messages if m.startswith("First stage: ")]
    assert "Second stage: step 3/3" in messages
    assert messages.count("Decode and Save") == 1, "ComfyUI asks it for its lazy inputs before the stages"
    assert messages.index("Decode and Save") > messages.index("Second stage: step 3/3")


def test_submit_status_events_result(fal: Any, sound: str) -> None:
    client = fal.SyncClient(key="any")
    handle = client.submit(APP, {**SMALL, "audio_url": sound, "seed": 8, "fps": 12.5})
    again = client.get_handle(APP, handle.request_id)
    assert again.status_url == handle.status_url and again.response_url == handle.response_url
    events = list(handle.iter_events(with_logs=True, interval=0.05))
    kinds = [type(event).__name__ for event in events]
    assert kinds == sorted(kinds, key=["Queued", "InProgress", "Completed"].index) and kinds[-1] == "Completed"
    lengths = [len(event.logs) for event in events if not isinstance(event, fal.Queued)]
    assert lengths == sorted(lengths) and lengths[-1] > 10
    assert events[-1].metrics["inference_time"] > 0
    result = again.get()
    assert result == client.result(APP, handle.request_id) and result["video"]["fps"] == 12.5
    assert isinstance(client.status(APP, handle.request_id), fal.Completed)


def test_run_and_an_absent_seed(fal: Any, sound: str) -> None:
    wanted = {name: value for name, value in SMALL.items() if name != "seed"}
    result = fal.SyncClient(key="any").run(APP, {**wanted, "audio_url": sound, "use_multiscale": False})
    assert 0 <= result["seed"] < 2**31 and result["video"]["width"] == 64


def test_the_async_client(fal: Any, sound: str) -> None:
    async def both() -> tuple[Any, Any]:
        client = fal.AsyncClient(key="any")
        handle = await client.submit(APP, {**SMALL, "audio_url": sound, "seed": 9})
        kinds = [type(event).__name__ async for event in handle.iter_events(interval=0.05)]
        return kinds, await handle.get()

    kinds, result = asyncio.run(both())
    assert kinds[-1] == "Completed" and result["seed"] == 9


def test_cancel_while_it_waits_and_while_it_runs(server: Comfy, fal: Any, sound: str) -> None:
    client = fal.SyncClient(key="any")
    running = client.submit(APP, {**LONG, "audio_url": sound, "seed": 10})
    waiting = client.submit(APP, {**SMALL, "audio_url": sound, "seed": 11})
    assert waiting.status() == fal.Queued(position=1) or waiting.status() == fal.Queued(position=0)
    waiting.cancel()
    ended = waiting.status()
    assert isinstance(ended, fal.Completed) and ended.error_type == "client_cancelled"
    for event in running.iter_events(with_logs=True, interval=0.05):
        if isinstance(event, fal.InProgress) and any(
            "First stage: step 2/50" in line["message"] for line in event.logs
        ):
            break
    running.cancel()
    ended = running.status(with_logs=True)
    assert isinstance(ended, fal.Completed) and ended.error == "The request was cancelled."
    assert not any("step 50/50" in line["message"] for line in ended.logs)
    for handle in (waiting, running):
        with pytest.raises(fal.FalClientHTTPError, match="cancelled") as refused:
            handle.get()
        assert (refused.value.status_code, refused.value.error_type) == (400, "client_cancelled")
        with pytest.raises(fal.FalClientHTTPError) as late:
            handle.cancel()
        assert late.value.response.json() == {"status": "ALREADY_COMPLETED"}
    assert server.get("/queue") == {"queue_running": [], "queue_pending": []} or wait_until_idle(server)
    client.run(APP, {**SMALL, "audio_url": sound, "seed": 12})  # and the next one is not touched by the interrupt


def wait_until_idle(server: Comfy) -> bool:
    for _ in range(100):
        time.sleep(0.1)
        if not server.get("/queue")["queue_running"]:
            return True
    return False


def test_what_is_wrong_is_told_as_the_client_expects(fal: Any, sound: str) -> None:
    client = fal.SyncClient(key="any")
    with pytest.raises(fal.FalClientHTTPError) as refused:
        client.submit(APP, {"prompt": "x", "fps": 0, "video_size": {"width": 10}})
    assert refused.value.status_code == 422
    places = [problem["loc"] for problem in refused.value.message]
    assert places == [["body", "audio_url"], ["body", "video_size", "width"], ["body", "fps"]]
    with pytest.raises(fal.FalClientHTTPError) as refused:
        client.submit(APP, {"prompt": "x", "audio_url": "data:audio/wav;base64,AAAA"})
    assert refused.value.message[0]["loc"] == ["body", "audio_url"]
    handle = client.submit(APP, {**SMALL, "audio_url": "http://127.0.0.1:9/a.wav"})
    with pytest.raises(fal.FalClientHTTPError, match="audio_url") as refused:
        handle.get()
    assert refused.value.status_code == 422 and refused.value.message[0]["loc"] == ["body", "audio_url"]
    assert handle.status().error_type == "validation_error"
    # what only the graph's reading finds out: a header that is right, and not one sample
    empty = io.BytesIO()
    with wave.open(empty, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", "NONE"))
    with pytest.raises(fal.FalClientHTTPError, match="audio_url: no sound") as refused:
        client.run(APP, {**SMALL, "audio_url": fal.encode(empty.getvalue(), "audio/wav")})
    assert not re.search("[0-9a-f]{32}", str(refused.value.message))
    with pytest.raises(fal.FalClientHTTPError, match=re.escape(APP)) as refused:
        client.submit("fal-ai/other", {})
    assert refused.value.status_code == 404


def test_a_request_that_may_not_wait(fal: Any, sound: str) -> None:
    client = fal.SyncClient(key="any")
    first = client.submit(APP, {**LONG, "audio_url": sound, "seed": 13})
    late = client.submit(APP, {**SMALL, "audio_url": sound}, start_timeout=1.1)
    with pytest.raises(fal.FalClientHTTPError, match="did not start within") as refused:
        late.get()
    assert refused.value.status_code == 504
    assert refused.value.response_headers["x-fal-request-timeout-type"] == "user"
    first.cancel()


def test_low_priority_waits_and_one_key_is_one_request(server: Comfy, fal: Any, sound: str) -> None:
    client = fal.SyncClient(key="any")
    first = client.submit(APP, {**LONG, "audio_url": sound, "seed": 14})
    while not isinstance(first.status(), fal.InProgress):
        time.sleep(0.1)
    body = {**SMALL, "audio_url": sound, "seed": 15}
    low = client.submit(APP, body, priority="low", headers={"Idempotency-Key": "one"})
    retried = client.submit(APP, body, priority="low", headers={"Idempotency-Key": "one"})
    normal = client.submit(APP, {**body, "seed": 16})
    assert retried.request_id == low.request_id
    positions = [handle.status().position for handle in (normal, low)]
    assert positions[0] + 1 == positions[1]
    with pytest.raises(fal.FalClientHTTPError) as refused:
        client.submit(APP, {**body, "seed": 17}, headers={"Idempotency-Key": "one"})
    assert refused.value.status_code == 422 and refused.value.message[0]["loc"] == ["header", "idempotency-key"]
    for handle in (low, normal, first):
        handle.cancel()


def events_of(url: str) -> list[dict[str, Any]]:
    with requests.get(url, stream=True, timeout=120) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines(decode_unicode=True) if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_the_stream_ends_and_sends_each_line_once(fal: Any, sound: str) -> None:
    client = fal.SyncClient(key="any")
    handle = client.submit(APP, {**SMALL, "audio_url": sound, "seed": 18})
    events = events_of(handle.status_url + "/stream?logs=1")
    assert [event["status"] for event in events][-1] == "COMPLETED"
    streamed = [line for event in events for line in event.get("logs", [])]
    assert streamed == handle.status(with_logs=True).logs
    assert events_of(handle.status_url + "/stream?logs=1")[0]["logs"] == streamed


def test_the_graph_of_a_request_runs_as_any_prompt(server: Comfy, fal: Any, sound: str) -> None:
    client = fal.SyncClient(key="any")
    handle = client.submit(APP, {**SMALL, "audio_url": sound, "seed": 19, "camera_lora": "dolly_in"})
    result = handle.get()
    graph = requests.get(handle.response_url + "/workflow", timeout=10).json()
    (saver,) = (key for key, node in graph.items() if node["class_type"] == "LTXA2VSaveLatentVideo")
    graph[saver]["inputs"]["filename_prefix"] = "again"
    run = server.run(graph)
    assert run.error is None, run.message
    first = requests.get(result["video"]["url"], timeout=10).content
    again = server.path(run.outputs[saver]["images"][0])
    assert np.array_equal(pictures(io.BytesIO(first)), pictures(again))


def pictures(file: Any) -> np.ndarray:
    with av.open(file if isinstance(file, io.BytesIO) else str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_sync_mode_leaves_nothing_among_the_outputs(server: Comfy, fal: Any, sound: str) -> None:
    client = fal.SyncClient(key="any")
    handle = client.submit(APP, {**SMALL, "audio_url": sound, "seed": 20, "sync_mode": True})
    url = handle.get()["video"]["url"]
    assert url.startswith("data:video/mp4;base64,")
    data = base64.b64decode(url.partition(",")[2])
    assert pictures(io.BytesIO(data)).shape == (9, 64, 64, 3)
    name = handle.get()["video"]["file_name"]
    assert not list((server.base / "output").rglob(f"*{name[:32]}*"))
    assert name[:32] not in json.dumps(server.get("/history"))
    database = (server.base / "user" / "__ltx_a2v" / "requests.sqlite").read_bytes()
    assert data[:64] not in database and url[100:200].encode() not in database


def test_only_json_is_taken(server: Comfy) -> None:
    url = f"{server.url}/fal/queue/{APP}"
    assert requests.post(url, data="{}", timeout=10).status_code == 415
    answer = requests.post(url, data='{"prompt": NaN}', headers={"Content-Type": "application/json"}, timeout=10)
    assert answer.status_code == 422 and answer.json()["detail"][0]["type"] == "json_invalid"


@pytest.mark.parametrize("size", [10**6, 10**8 + 10**7])
def test_uploads_whole_and_in_parts(server: Comfy, fal: Any, size: int) -> None:
    """110 MB are above the client's 100 MiB, from which on it sends parts."""
    data = b"audio" * (size // 5)
    url = fal.SyncClient(key="any").upload(data, "application/octet-stream", "large.bin")
    assert url.startswith(server.url)
    assert requests.get(url, timeout=60).content == data
