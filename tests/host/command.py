"""The command as an oracle for graphs: what `python -m ltx` makes of the same request and the same files."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from a2v.ltx import __main__ as program
from a2v.tests.host.comfy import ROOT
from a2v.tests.ltx.goldens import unforeseen
from a2v.tests.tiny import TinyFiles
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


class Said(NamedTuple):
    """What the command wrote on standard output and on standard error."""

    out: str
    error: str


def command_files(files: TinyFiles) -> dict[str, Path]:
    """By their options, the models that most requests take, and the pack's speech."""
    return {
        "checkpoint": files.checkpoint,
        "text-encoder": files.gemma,
        "upscaler": files.upscaler,
        "distill-lora": files.distilled_lora,
        "audio": ROOT / "assets" / "speech.opus",
    }


def run_command(
    folder: Path,
    request: Mapping[str, Any],
    files: Mapping[str, Path | None],
    *images: Path,
    flags: Sequence[str] = (),
) -> tuple[np.ndarray, Path]:
    """Runs the command in float32 on the CPU. files: by option without its dashes; None is left out. images: the first
    and the end image. flags: as in `run_request`. Returns the frames, uint8 [n, H, W, 3], before they are
    encoded, and the finished video."""
    trace, output = folder / "trace.safetensors", folder / "out.mp4"
    pictures = dict(zip(("image", "end-image"), images, strict=False))
    run_request(folder, {**REQUEST, **request}, {"trace": trace, "output": output, **files, **pictures}, flags=flags)
    return load_file(trace)["final/frames_u8"].numpy(), output


def run_request(
    folder: Path,
    request: Mapping[str, Any],
    files: Mapping[str, Path | list[Path] | None],
    *,
    flags: Sequence[str] = (),
) -> Said:
    """Runs the command in float32 on the CPU with that request and no other parameter. files: as in `run_command`, with
    the output; a list repeats an option. flags: further ones, or the same with other values.

    It runs in this process, because a program of its own takes seconds to start; tests/ltx/test_command.py starts that.
    """
    written = folder / "request.json"
    written.write_text(json.dumps(request), encoding="utf-8")
    arguments = ["--dtype", "float32", "--device", "cpu", *flags]
    for name, path in {"request": written, **files}.items():
        for each in path if isinstance(path, list) else [path]:
            arguments += [] if each is None else [f"--{name}", str(each)]
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        status = program.main(arguments, unforeseen)
    assert status == 0, error.getvalue()
    return Said(out.getvalue(), error.getvalue())
