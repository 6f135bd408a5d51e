"""Requests that run on other ComfyUI servers, through a real Ray cluster in token mode. Through the Python client."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import fal_client
import pytest
import requests
from a2v.tests.host.api import APP, CAMERA_FILE, LONG, ROOT, SMALL, SPEECH, client_of, environment, write_published
from a2v.tests.host.cluster import NO_TOKEN, TOKEN, Node, ray_start
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.command import command_files, run_request
from a2v.tests.tiny import TinyFiles

from .test_api_features import check_same, download

pytest.importorskip("ray")
BRIDGE = ROOT / "api" / "cluster" / "bridge.py"
LOST = "did not finish it, another one will"
MEDIUM = {**SMALL, "num_inference_steps": 50, "num_frames": 97}
"""A request of some seconds."""
HEAD_SETTINGS = {**TOKEN, "LTX_A2V_LEASE_SECONDS": "6"}
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


@dataclass
class Pair:
    """A head and one worker, each with folders of its own."""

    head: Comfy
    worker: Comfy
    node: Node
    fal: Any

    @property
    def client(self) -> Any:
        return self.fal.SyncClient(key="any")

    def logs(self, request_id: str) -> list[str]:
        status = self.client.status(APP, request_id, with_logs=True)
        return [line["message"] for line in getattr(status, "logs", None) or []]

    def ran_there(self, request_id: str) -> bool:
        """Whether the worker ran it, and did not lose it."""
        lines = self.logs(request_id)
        assert not any(LOST in line for line in lines)
        return any("Sent to" in line for line in lines)


def wait(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tmp_path_factory.mktemp("head"), tmp_path_factory.mktemp("worker")


@pytest.fixture(scope="module")
def files(bases: tuple[Path, Path]) -> TinyFiles:
    """Both have the same models; those of the head."""
    write_published(bases[1])
    return write_published(bases[0])


@pytest.fixture(scope="module")
def pair(bases: tuple[Path, Path], files: TinyFiles) -> Iterator[Pair]:
    with environment(LTX_A2V_WORKER="1"):
        worker = Comfy(bases[1])
    with worker, ray_start({**TOKEN, "LTX_A2V_COMFYUI": str(worker.port)}) as node:
        with environment(**HEAD_SETTINGS, LTX_A2V_RAY_ADDRESS=node.address):
            head = Comfy(bases[0])
        with head, client_of(head) as fal:
            wait(lambda: "is ready" in head.log)
            yield Pair(head, worker, node, fal)


def results(base: Path) -> list[str]:
    return [path.name for path in (base / "output" / "ltx_a2v_api").iterdir() if not path.name.startswith(".")]


def parts(base: Path) -> list[str]:
    return [path.name for path in (base / "output" / "ltx_a2v_api").glob("*.safetensors")]


def leftovers(base: Path) -> list[str]:
    """What of the API's lies in a worker's folders, but for the server's own database."""
    folders = (base / "output" / "ltx_a2v_api", base / "input" / "ltx_a2v_api")
    return [str(path) for folder in folders if folder.is_dir() for path in folder.rglob("*")]


@pytest.mark.soak
def test_requests_are_spread_and_results_come_from_the_head(pair: Pair) -> None:
    sound = pair.client.upload(SPEECH.read_bytes(), "audio/ogg", "speech.opus")

    def one(seed: int) -> dict[str, Any]:
        arguments = {**SMALL, "audio_url": sound, "seed": seed, "num_inference_steps": 20}
        handle = pair.client.submit(APP, arguments)
        return {**handle.get(), "request_id": handle.request_id}

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(one, range(6)))
    assert [result["seed"] for result in results] == list(range(6))
    remote = [result for result in results if pair.ran_there(result["request_id"])]
    assert 1 <= len(remote) <= 5
    steps = [line for line in pair.logs(remote[0]["request_id"]) if "step" in line]
    assert any(line.endswith("step 20/20") for line in steps), "a worker's progress reaches the head's log"
    for result in results:
        data = requests.get(result["video"]["url"], timeout=10).content
        assert len(data) == result["video"]["file_size"]
        with av.open(io.BytesIO(data)) as container:
            assert sum(1 for _ in container.decode(video=0)) == result["video"]["num_frames"] == 9
    wait(lambda: not leftovers(pair.worker.base), 10)
    assert pair.worker.get("/history") == {}


@pytest.mark.soak
def test_the_same_request_gives_the_same_video_on_either(pair: Pair) -> None:
    """What ran there is what would have run here: the seed alone decides. Sent in the answer, it is kept nowhere."""
    sound = fal_client.encode_file(SPEECH)
    found: dict[bool, bytes] = {}
    before = results(pair.head.base)
    for _ in range(10):
        handles = [pair.client.submit(APP, {**SMALL, "audio_url": sound, "sync_mode": True}) for _ in range(2)]
        for handle in handles:
            kind, _, data = handle.get()["video"]["url"].partition(",")
            assert kind == "data:video/mp4;base64"
            data = base64.b64decode(data)
            with av.open(io.BytesIO(data)) as container:
                pixels = b"".join(frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0))
            found[pair.ran_there(handle.request_id)] = pixels
        if len(found) == 2:
            break
    assert found[True] == found[False]
    assert results(pair.head.base) == before
    wait(lambda: not leftovers(pair.worker.base), 10)


def occupy(pair: Pair, sound: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Two requests that run, the first on the head and the second on the worker."""
    first = pair.client.submit(APP, {**arguments, "audio_url": sound})
    wait(lambda: len(pair.head.get("/queue")["queue_running"]) + len(pair.worker.get("/queue")["queue_running"]) == 1)
    second = pair.client.submit(APP, {**arguments, "audio_url": sound})
    wait(lambda: pair.head.get("/queue")["queue_running"] and pair.worker.get("/queue")["queue_running"])
    both = (first, second)
    wait(lambda: all(isinstance(pair.client.status(APP, one.request_id), fal_client.InProgress) for one in both))
    return both if pair.ran_there(second.request_id) else (second, first)


@pytest.mark.soak  # tests/api/test_crew.py has it without Ray, and a mistake in a part
def test_cancel_reaches_a_worker(pair: Pair) -> None:
    here, there = occupy(pair, fal_client.encode_file(SPEECH), LONG)
    there.cancel()
    wait(lambda: not pair.worker.get("/queue")["queue_running"], 20)
    assert pair.head.get("/queue")["queue_running"], "the other one is left alone"
    with pytest.raises(fal_client.FalClientHTTPError, match="cancelled"):
        there.get()
    here.cancel()
    wait(lambda: not leftovers(pair.worker.base), 10)


@pytest.mark.soak
def test_the_head_is_no_worker_unless_asked(pair: Pair) -> None:
    """Its orders find no route, and Ray is no part of its process."""
    assert "_raylet" not in Path(f"/proc/{pair.head.pid}/maps").read_text()
    assert pair.head.post("/ltx-a2v/worker/run", {}).status_code in (404, 405)
    assert requests.get(f"{pair.head.url}/ltx-a2v/worker", timeout=10).status_code == 404


@pytest.mark.soak
@pytest.mark.parametrize("strength", [1.0, 0.5], ids=["sound", "renewed sound"])
def test_a_film_of_two_machines_is_the_command_s_bit_for_bit(
    pair: Pair, files: TinyFiles, tmp_path: Path, strength: float
) -> None:
    asked, sound = {**FILM, "audio_strength": strength}, fal_client.encode_file(SPEECH)
    before = len(parts(pair.head.base))
    handle = pair.client.submit(APP, {**asked, "audio_url": sound})
    result = handle.get()
    ours, theirs = download(result, tmp_path), tmp_path / "command.mov"
    run_request(tmp_path, asked, {**command_files(files), "output": theirs})
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
    assert len(parts(pair.head.base)) == before + 4
    wait(lambda: not leftovers(pair.worker.base), 10)
    for server in (pair.head, pair.worker):
        kept = list((server.base / "output" / "ltx_a2v_windows").glob("*.safetensors"))
        assert not kept, "what is in the parts is not kept twice"

    changed = {**asked, "timeline": TIMELINE.replace("rain", "fog")}
    handle = pair.client.submit(APP, {**changed, "audio_url": sound})
    ours = download(handle.get(), tmp_path)
    run_request(tmp_path, changed, {**command_files(files), "output": theirs})
    check_same(ours, theirs)
    lines = pair.logs(handle.request_id)
    assert [line for line in lines if line.endswith(": made")] == ["Part 2 of 4: made"]
    assert sum(line.endswith(": made before") for line in lines) == 3
    assert len(parts(pair.head.base)) == before + 5


@pytest.mark.soak
def test_a_mistake_in_a_part_ends_the_film_in_the_request_s_words(pair: Pair) -> None:
    """The section is within the limits of a request, but behind the end of its sound."""
    handle = pair.client.submit(
        APP, {**FILM, "audio_url": fal_client.encode_file(SPEECH), "timeline": f"{TIMELINE}\n1:00 [cut] late"}
    )
    with pytest.raises(fal_client.FalClientHTTPError) as failed:
        handle.get()
    (problem,) = failed.value.message
    assert problem["loc"] == ["body", "timeline"] and "begins after the end of the film" in problem["msg"]
    wait(lambda: not leftovers(pair.worker.base), 10)


@pytest.mark.soak  # tests/api/test_crew.py loses workers without Ray
def test_a_killed_worker_loses_nothing(pair: Pair) -> None:
    """Last: the worker is gone after it."""
    sound = fal_client.encode_file(SPEECH)
    before = set(results(pair.head.base))
    here, there = occupy(pair, sound, MEDIUM)
    os.killpg(pair.worker.pid, signal.SIGKILL)
    names = {handle.get()["video"]["file_name"] for handle in (here, there)}
    assert set(results(pair.head.base)) - before == names, "each has one file"
    lines = pair.logs(there.request_id)
    assert sum(LOST in line for line in lines) == 1 and lines.count("Started") == 2
    assert lines.count("Decode and Save") == 1, "the first worker was only asked what it wants to save"
    small = pair.client.submit(APP, {**SMALL, "audio_url": sound})
    assert small.get()["video"]["num_frames"] == 9 and not pair.ran_there(small.request_id)


def bridge(address: str, until: str, environment: dict[str, str]) -> dict[str, Any]:
    """What the bridge says first of that kind, or that it refuses."""
    env = {**os.environ, **environment}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, BRIDGE, address], env=env, stdin=pipe, stdout=pipe, text=True) as process:
        for line in process.stdout:
            said = json.loads(line)
            assert said.get("workers", []) == [] or until == "workers"
            if said["say"] in (until, "refused"):
                process.stdin.close()
                return said
    raise AssertionError("it ended without a word")


@pytest.mark.soak  # tests/api/test_cluster.py has it without Ray
def test_a_cluster_without_a_token_is_refused() -> None:
    """Of one machine, but Ray listens on all of its addresses; a token on this side alone protects nothing."""
    with ray_start({**NO_TOKEN, "LTX_A2V_COMFYUI": "9"}) as node:
        said = bridge(node.address, "workers", NO_TOKEN)
        assert said["say"] == "refused" and "this server has no RAY_AUTH_MODE=token" in said["why"]
        said = bridge(node.address, "problem", TOKEN)
        assert "it needs RAY_AUTH_MODE=token" in said["why"]


@pytest.mark.soak
def test_a_wrong_token_and_a_cluster_on_loopback() -> None:
    with ray_start(TOKEN) as node:
        said = bridge(node.address, "workers", {**TOKEN, "RAY_AUTH_TOKEN": "a" * 64})
        assert said["say"] == "refused" and "cannot be joined" in said["why"]
    alone = {**NO_TOKEN, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # what Ray does by itself on Windows and macOS
    with ray_start({**alone, "LTX_A2V_COMFYUI": "9, 10"}) as node:
        assert bridge(node.address, "joined", alone) == {"say": "joined", "ip": "127.0.0.1"}
        urls = [worker["url"] for worker in bridge(node.address, "workers", alone)["workers"]]
        assert urls == ["http://127.0.0.1:9", "http://127.0.0.1:10"]


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_two_machines_one_dies_the_other_shares_folders(tmp_path: Path) -> None:
    """Ten requests on a head and two nodes. One node's Ray and ComfyUI are killed while they run something."""
    bases = [tmp_path / name for name in ("head", "apart", "sharing")]
    for base in bases:
        base.mkdir()
        write_published(base)
    (bases[2] / "models" / "loras" / CAMERA_FILE).unlink()
    (bases[0] / "input").mkdir()
    shared = [f"--{kind}-directory={bases[0] / kind}" for kind in ("input", "output")]
    with ExitStack() as stack:
        enter = stack.enter_context
        with environment(LTX_A2V_WORKER="1"):
            apart, sharing = enter(Comfy(bases[1])), enter(Comfy(bases[2], args=tuple(shared)))
        main = enter(ray_start(TOKEN))
        first = enter(ray_start({**TOKEN, "LTX_A2V_COMFYUI": str(apart.port)}, main.address))
        enter(ray_start({**TOKEN, "LTX_A2V_COMFYUI": str(sharing.port)}, main.address))
        with environment(**HEAD_SETTINGS, LTX_A2V_RAY_ADDRESS=main.address):
            head = enter(Comfy(bases[0]))
        pair = Pair(head, apart, main, enter(client_of(head)))
        wait(lambda: head.log.count("is ready") == 2)
        sound = fal_client.encode_file(SPEECH)
        handles = [pair.client.submit(APP, {**MEDIUM, "audio_url": sound, "seed": seed}) for seed in range(10)]
        wait(lambda: apart.get("/queue")["queue_running"] and sharing.get("/queue")["queue_running"], 120)
        os.killpg(apart.pid, signal.SIGKILL)
        first.kill()
        found = [handle.get() for handle in handles]
        assert [result["seed"] for result in found] == list(range(10))
        names = [result["video"]["file_name"] for result in found]
        assert len(set(names)) == 10 and set(names) == set(results(bases[0]))
        said = [pair.logs(handle.request_id) for handle in handles]
        assert any(LOST in line for lines in said for line in lines)
        assert any(f"Sent to {socket.gethostname()}:{sharing.port}" in lines for lines in said)
        assert not list((bases[2] / "output").rglob("*.mp4")), "what is shared is not copied"
        assert "connection to Ray's cluster is gone" not in head.log
        moving = {**MEDIUM, "camera_lora": "dolly_in", "audio_url": sound}
        handles = [pair.client.submit(APP, {**moving, "seed": seed}) for seed in range(3)]
        assert [handle.get()["seed"] for handle in handles] == [0, 1, 2]
        assert "it rejected a graph that this server accepts" in head.log, "that worker has no such LoRA"
        for _ in range(24):  # more than the head can do within the minute after which the other one is tried again
            pair.client.submit(APP, {**LONG, "audio_url": sound})
        wait(lambda: sharing.get("/queue")["queue_running"], 120)
        os.killpg(head.pid, signal.SIGKILL)
        wait(lambda: not sharing.get("/queue")["queue_running"], 60)
