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
    from a2v.ltx.diffusion.conditioning import TextContext
    from a2v.ltx.diffusion.kept import disk_needed
    from a2v.ltx.encoding import Prompts
    from a2v.ltx.job import Compute, Files, prepare
    from a2v.ltx.pipeline import run
    from a2v.ltx.request import parse

    paths, request, told, phase = *map(json.loads, sys.argv[2:4]), [], ""
    files = Files(**{k: Path(v) for k, v in paths.items()})
    text = TextContext(torch.zeros(1, 16, 64), torch.zeros(1, 16, 32))
    folder = Path(paths["output"] + ".windows")

    def resident():
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    def progress(name, done, total):
        global phase
        if name != phase:
            told.append([phase, resident()])
            if name == "decode":
                told.append(["disk", sum(file.stat().st_size for file in folder.glob("*.safetensors"))])
            phase = name

    run(files, parse(request), Compute(torch.float32), prompts=Prompts("", text, text), progress=progress)
    plan = prepare(files, parse(request)).plan
    told += [["end", resident()], ["needed", disk_needed(plan.windows, *plan.sizes)], ["frames", plan.frames]]
    print(json.dumps(told))
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
    figures = dict(found)
    stages = {
        stage: [size for name, size in found if name.startswith(f"{stage} stage")] for stage in ("first", "second")
    }
    grown = {name: max(sizes) / sizes[1] - 1 for name, sizes in stages.items()}
    print(f"resident memory {stages['first'][1] / 1024:.0f} MB, then {grown}; disk {figures['disk'] / 1e6:.1f} MB, ")
    print(f"forecast {figures['needed'] / 1e6:.1f} MB; {len(stages['first'])} windows a stage")
    assert figures["frames"] == MINUTES * 60 * 24 + 1 and len(stages["first"]) == len(stages["second"]) > 250
    assert max(stages["first"]) < 1.05 * stages["first"][1]
    assert max(stages["second"]) < 1.05 * stages["second"][1]
    assert stages["second"][-1] < 1.05 * stages["first"][1] + figures["needed"] / 1024, (
        "the latents of the whole beside it"
    )
    states = len(stages["first"]) * 2 * 6000
    assert figures["needed"] < figures["disk"] < figures["needed"] + states
    assert not (tmp_path / "film.mp4.windows").exists()
