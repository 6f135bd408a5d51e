"""Acceleration levels on one request: how much faster each samples than `none`, and how far off its result is."""

from __future__ import annotations

from pathlib import Path

import torch
from a2v.benchmarks import files as made
from a2v.benchmarks.measure import MISSING, Ratio, Table, middle, say, sides
from a2v.benchmarks.peer import SMALL
from a2v.benchmarks.work import Clip, request
from a2v.ltx.request import PARAMETERS
from safetensors.torch import load_file

CLIP = Clip(49, 384, 384)
LATENT, FRAMES = "final/video_latent", "final/frames_u8"
DEFAULTS = {
    "scheduler": "beta",
    "use_restart_sampling": True,
    "distill_lora_first_pass_scale": 0.2,
    "distill_lora_second_pass_scale": 0.5,
}


def psnr(frames: torch.Tensor, expected: torch.Tensor) -> float:
    """dB between uint8 clips; infinite where they are equal."""
    return float(10 * torch.log10(255**2 / (frames.double() - expected.double()).square().mean()))


def levels(folder: Path, small: bool = False, rounds: int = 2) -> Table:
    files, layers = made.models(folder, small), made.LAYERS
    clip, steps = (SMALL, 4) if small else (CLIP, 15)
    audio = made.sound_file(folder / "sound.wav", clip.frames / clip.fps + 1)
    paths = made.job(files, audio, folder / "out.mp4")
    names = PARAMETERS["acceleration"].choices
    results = {name: str(folder / f"{name}.safetensors") for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    with sides("ours", log=folder / "sides.log") as (side,):
        side("whole", files=paths, values=request(SMALL, 1), layers=layers)
        for number in range(1 if small else rounds):
            say(f"  levels, round {number + 1}")
            for name in names:
                values = request(clip, steps, **DEFAULTS, acceleration=name)
                answer = side(
                    "whole", files=paths, values=values, layers=layers, save=results[name], names=[LATENT, FRAMES]
                )
                times[name].append(answer["sampling"])
    exact = load_file(results["none"])
    rows, numbers = [], {}
    for name in names:
        found = load_file(results[name])
        error = float((found[LATENT] - exact[LATENT]).norm() / exact[LATENT].norm())
        apart = psnr(found[FRAMES], exact[FRAMES])
        speed = Ratio(times["none"], times[name])
        plain = name == "none"
        rows.append(
            (
                name,
                f"{middle(times[name])} s",
                MISSING if plain else f"{speed}",
                MISSING if plain else f"{error:.3f}",
                MISSING if plain else f"{apart:.1f} dB",
            )
        )
        numbers |= {f"{name} speed-up": speed.median, f"{name} error": error}
    notes = (
        f"{clip.width}×{clip.height}×{clip.frames}, {steps} steps and the endpoint's other defaults, two passes; from "
        "the first pass's start to the second one's end. Latent and frames are compared with those of `none`. The "
        "weights are random: with trained ones the steps differ less from each other, so that these errors say that a "
        "level does something else, not how it looks.",
    )
    columns = ("level", "sampling", "speed-up", "final latent, relative L2", "frames, PSNR")
    return Table("Acceleration levels", columns, tuple(rows), notes, numbers)
