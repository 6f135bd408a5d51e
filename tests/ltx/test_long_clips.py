"""Long clips stream: decoding, the safety checker and the encoder hold a tile's worth of a clip, however long it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from a2v.ltx import memory
from a2v.ltx.checkpoint import load_checkpoint
from a2v.ltx.decode import Tiling, decode_tile, held_frames, largest_tile
from a2v.ltx.latents import video_shape
from a2v.ltx.video import probe
from a2v.tests.ltx.test_safety import write as write_classifier
from a2v.tests.tiny import write_tiny

SCRIPT = Path(__file__).with_name("measure.py")
LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
ENCODER = 100  # frames of 1.5 bytes a pixel that x264 looks ahead and refers back to, and the chunks on their way there


@LINUX
def test_a_long_clip_takes_what_a_short_one_takes(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "tiny", layers=1, vae_width=2).checkpoint
    checker = write_classifier(tmp_path / "checker")
    height, width = 192, 320

    def run(frames: int) -> int:
        job = {
            "checkpoint": str(checkpoint),
            "checker": str(checker),
            "size": (frames, height, width),
            "output": str(tmp_path / f"{frames}.mp4"),
        }
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(SCRIPT), "stream", json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert probe(job["output"]).frames == frames
        return int(done.stdout.split()[-1])

    short, long = run(177), run(481)  # in both there are tiles of the full length
    assert long < 1.1 * short, f"{short / 1e6:.0f} MB of 177 frames, {long / 1e6:.0f} MB of 481"
    # It is what is promised: the float32 frames of one time tile, what decoding a tile takes, and the encoder's own.
    latent, tiling = video_shape(481, height, width), Tiling()
    vae = load_checkpoint(checkpoint).video_vae(torch.float32)
    tile = torch.empty(1, 128, *largest_tile(latent, tiling), device="meta")
    held = 12 * held_frames(latent, tiling) * height * width
    assert held == 12 * (80 + 24) * height * width
    promised = held + memory.peak(lambda: decode_tile(vae, tile)) + 1.5 * ENCODER * height * width
    assert long < 1.1 * promised, f"{long / 1e6:.0f} MB, promised {promised / 1e6:.0f}"
