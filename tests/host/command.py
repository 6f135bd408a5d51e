"""The command as an oracle for graphs: what `python -m ltx` makes of the same request and the same files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from a2v.tests.host.comfy import ROOT
from safetensors.torch import load_file

REQUEST = {
    "prompt": "a woman speaks to the camera",
    "negative_prompt": "static",
    "num_frames": 17,
    "match_audio_length": False,
    **dict.fromkeys(
        ("use_restart_sampling", "preprocess_audio", "enable_prompt_expansion", "enable_safety_checker"), False
    ),
}
"""What all requests of the parity tests have; what the endpoint adds is switched off."""


def run_command(
    folder: Path, request: Mapping[str, Any], files: Mapping[str, Path | None], *images: Path
) -> tuple[np.ndarray, Path]:
    """Runs the command in float32 on the CPU. files: by option without its dashes; None is left out. images: the first
    and the end image. Returns the frames, uint8 [n, H, W, 3], before they are encoded, and the finished video."""
    written, trace, output = folder / "request.json", folder / "trace.safetensors", folder / "out.mp4"
    written.write_text(json.dumps({**REQUEST, **request}), encoding="utf-8")
    options = {"request": written, "trace": trace, "output": output, **files}
    options |= dict(zip(("image", "end-image"), images, strict=False))
    command = [sys.executable, "-m", "ltx", "--dtype", "float32", "--device", "cpu"]
    for name, path in options.items():
        if path is not None:
            command += [f"--{name}", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=240)
    return load_file(trace)["final/frames_u8"].numpy(), output
