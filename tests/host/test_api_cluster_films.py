"""Films that a head and its workers make together, when a client cancels or a worker dies. Through a real Ray cluster.

tests/host/test_api_cluster.py compares such a film with the command's, and tests/api/test_crew.py has the same as here
without machines.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import fal_client
import pytest
from a2v.tests.host.api import APP, SPEECH
from a2v.tests.host.command import command_files, run_request
from a2v.tests.tiny import TinyFiles

from .test_api_cluster import FILM, LOST, Pair, bases, files, pair, parts, wait
from .test_api_features import check_same, download

__all__ = ["bases", "files", "pair"]  # fixtures
pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def sound() -> str:
    return fal_client.encode_file(SPEECH)


def test_a_cancel_reaches_all_machines_and_what_was_made_stays(pair: Pair, sound: str) -> None:
    asked = {**FILM, "audio_url": sound, "seed": 5, "video_size": {"width": 128, "height": 128}}
    before = len(parts(pair.head.base))
    handle = pair.client.submit(APP, {**asked, "num_inference_steps": 30})
    wait(lambda: len([line for line in pair.logs(handle.request_id) if line.endswith(": made")]) >= 1, 180)
    handle.cancel()
    with pytest.raises(fal_client.FalClientHTTPError, match="cancelled"):
        handle.get()
    wait(lambda: not any(server.get("/queue")["queue_running"] for server in (pair.head, pair.worker)), 30)
    kept = len(parts(pair.head.base)) - before
    assert kept >= 1
    again = pair.client.submit(APP, {**asked, "num_inference_steps": 30})
    assert again.get()["video"]["num_frames"] == 137
    lines = pair.logs(again.request_id)
    assert sum(line.endswith(": made before") for line in lines) == kept


def test_a_killed_worker_s_part_goes_to_another(pair: Pair, files: TinyFiles, sound: str, tmp_path: Path) -> None:
    """Last: the worker is gone after it."""
    asked = {**FILM, "seed": 6}
    handle = pair.client.submit(APP, {**asked, "audio_url": sound})
    wait(lambda: any("sent to" in line for line in pair.logs(handle.request_id)))
    there = next(line.partition(":")[0] for line in pair.logs(handle.request_id) if "sent to" in line)
    wait(lambda: any(line.startswith(f"{there}: First stage: window") for line in pair.logs(handle.request_id)))
    os.killpg(pair.worker.pid, signal.SIGKILL)
    ours, theirs = download(handle.get(), tmp_path), tmp_path / "command.mov"
    run_request(tmp_path, asked, {**command_files(files), "output": theirs})
    check_same(ours, theirs)
    lines = pair.logs(handle.request_id)
    assert any(LOST in line for line in lines) and len([line for line in lines if line.endswith(": made")]) == 4
