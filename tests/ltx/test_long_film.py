"""Twenty minutes of sound on tiny weights: memory stays flat after the first windows, and the disk is as forecast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import wave
from pathlib import Path

import numpy as np
import pytest
from a2v.tests.tiny import TinyFiles

ROOT = Path(__file__).resolve().parents[2]
MINUTES, RATE = 20, 16000
WATCH = textwrap.dedent(
    """
    import json, sys, types
    from pathlib import Path
    pack = types.ModuleType("a2v"); pack.__path__ = [sys.argv[1]]; sys.modules["a2v"] = pack
    import torch
    torch.set_num_threads(1)
    from a2v.benchmarks.films import Watch
    from a2v.ltx.diffusion.conditioning import TextContext
    from a2v.ltx.diffusion.kept import disk_needed
    from a2v.ltx.encoding import Prompts
    from a2v.ltx.job import Compute, Files, prepare
    from a2v.ltx.pipeline import run
    from a2v.ltx.request import parse

    paths, request, watch, disk = *map(json.loads, sys.argv[2:4]), Watch(), []
    files = Files(**{k: Path(v) for k, v in paths.items()})
    text = TextContext(torch.zeros(1, 16, 64), torch.zeros(1, 16, 32))
    folder = Path(paths["output"] + ".windows")

    def progress(name, done, total):
        watch(name, done, total)
        if name == "decode" and not disk:
            disk.append(sum(file.stat().st_size for file in folder.glob("*.safetensors")))

    run(files, parse(request), Compute(torch.float32), prompts=Prompts("", text, text), progress=progress)
    plan = prepare(files, parse(request)).plan
    held = {stage: [held for _, held in windows] for stage, windows in watch.windows.items()}
    needed = disk_needed(plan.windows, *plan.sizes)
    print(json.dumps({"held": held, "disk": disk[0], "needed": needed, "frames": plan.frames}))
    """
)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory as Linux tells it")
@pytest.mark.soak
def test_memory_is_flat(tiny: TinyFiles, tmp_path: Path) -> None:
    time = np.arange(MINUTES * 60 * RATE) / RATE
    samples = 8000 * np.sin(2 * np.pi * 200 * time) * (1 + np.sin(2 * np.pi * 3 * time))
    with wave.open(str(tmp_path / "song.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    files = {
        "checkpoint": tiny.checkpoint, "text_encoder": tiny.gemma, "upscaler": tiny.upscaler,
        "audio": tmp_path / "song.wav", "output": tmp_path / "film.mp4",
    }  # fmt: skip
    request = {
        "prompt": "x", "seed": 1, "video_size": {"width": 64, "height": 64}, "num_inference_steps": 1,
        "enable_prompt_expansion": False, "enable_safety_checker": False, "windows": True,
    }  # fmt: skip
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WATCH, str(ROOT), json.dumps(files, default=str), json.dumps(request)],
        capture_output=True, text=True, check=True, timeout=3000,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    found = json.loads(told.stdout.splitlines()[-1])
    first, second = (found["held"][f"{stage} stage"] for stage in ("first", "second"))
    grown = {name: max(sizes[1:]) / sizes[1] - 1 for name, sizes in (("first", first), ("second", second))}
    print(f"{first[1] / 1e6:.0f} MB in the second window, then {grown}; disk {found['disk'] / 1e6:.1f} MB, ")
    print(f"forecast {found['needed'] / 1e6:.1f} MB; {len(first)} windows a stage")
    assert found["frames"] == MINUTES * 60 * 24 + 1 and len(first) == len(second) > 250
    assert max(first) < 1.05 * first[1]
    assert max(second) < 1.05 * second[1]
    assert second[-1] < 1.05 * first[1] + found["needed"], "the latents of the whole beside it"
    states = len(first) * 2 * 6000
    assert found["needed"] < found["disk"] < found["needed"] + states
    assert not (tmp_path / "film.mp4.windows").exists()
