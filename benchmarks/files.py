"""Makes the models and media that the benchmarks share: random weights and a sweep of sound."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from a2v.tests.tiny import TinyFiles, write_tiny

NARROW = {"layers": 48, "heads": 4, "head_dim": 16}
"""48 blocks as in the published model, each 1/64 as wide. The blocks take nearly all of the time, and a step
seconds."""
LAYERS = NARROW["layers"]
SMALL = {"layers": 48, "heads": 2, "head_dim": 16}


def models(folder: Path, small: bool = False) -> TinyFiles:
    return write_tiny(folder / "models", **(SMALL if small else NARROW))


def sound_file(path: Path, seconds: float, rate: int = 48000) -> Path:
    """Writes a stereo WAV with a sweep that swells and fades."""
    time = np.arange(round(seconds * rate)) / rate
    sides = [np.sin(2 * np.pi * (160 + 40 * side + 30 * time) * time) * np.sin(3 * time) ** 2 for side in (0, 1)]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((0.4 * np.stack(sides, axis=1) * 32767).astype("<i2").tobytes())
    return path


def job(files: TinyFiles, audio: Path, output: Path) -> dict[str, str]:
    """The paths of a headless job, under the names of job.Files."""
    return {
        "checkpoint": str(files.checkpoint),
        "text_encoder": str(files.gemma),
        "upscaler": str(files.upscaler),
        "distill_lora": str(files.distilled_lora),
        "audio": str(audio),
        "output": str(output),
    }
