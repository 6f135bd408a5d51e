"""Acceleration levels: how much work each level saves against `none`, how much faster it is, and how large its error
is.

It uses two models: one with 48 narrow blocks, whose sampling takes nearly all of the time, and the trained miniature.
Successive steps of the miniature are similar, as those of the real model are, so it shows what reusing blocks saves and
costs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from a2v.benchmarks import files as made
from a2v.benchmarks.measure import MISSING, ROOT, Ratio, Table, middle, say, sides
from a2v.benchmarks.peer import SMALL
from a2v.benchmarks.work import Clip, request
from a2v.ltx.request import PARAMETERS
from a2v.mini import sizes
from safetensors.torch import load_file

CLIP = Clip(49, 384, 384)
TRAINED = Clip(49, 128, 128)
PROMPT = "a red round face on the left is talking on a black background"
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


def miniature(folder: Path) -> dict[str, str]:
    """The paths of a headless job with the trained weights and the pack's sample of speech."""
    weights, names = ROOT / "mini" / "weights", sizes.FILES
    return {
        "checkpoint": str(weights / names["checkpoint"]),
        "text_encoder": str(weights / names["gemma"]),
        "upscaler": str(weights / names["upscaler"]),
        "distill_lora": str(weights / names["distilled"]),
        "audio": str(ROOT / "assets" / "speech.opus"),
        "output": str(folder / "trained.mp4"),
    }


def levels(folder: Path, small: bool = False, rounds: int = 3) -> Table:
    files, steps = made.models(folder, small), 4 if small else 15
    audio = made.sound_file(folder / "sound.wav", CLIP.frames / CLIP.fps + 1)
    names = PARAMETERS["acceleration"].choices
    models = {
        f"{made.LAYERS} random blocks": (
            made.job(files, audio, folder / "out.mp4"),
            request(SMALL if small else CLIP, steps, **DEFAULTS),
            made.LAYERS,
        ),
        "the trained miniature": (
            miniature(folder),
            request(TRAINED, steps, **DEFAULTS) | {"prompt": PROMPT},
            sizes.LAYERS,
        ),
    }
    rows, numbers = [], {}
    for model, (paths, values, layers) in models.items():
        kept = {name: str(folder / f"{name}.safetensors") for name in names}
        times: dict[str, list[float]] = {name: [] for name in names}
        runs: dict[str, int] = {}
        with sides("ours", log=folder / "sides.log") as (side,):
            side("whole", files=paths, values={**values, "num_inference_steps": 1}, layers=layers)
            for number in range(1 if small else rounds):
                say(f"  levels, {model}, round {number + 1}")
                for name in names:
                    asked = {**values, "acceleration": name}
                    wanted = {"save": kept[name], "names": [LATENT, FRAMES], "count": True}
                    answer = side("whole", files=paths, values=asked, layers=layers, **wanted)
                    times[name].append(answer["sampling"])
                    runs[name] = answer["runs"]
        exact = load_file(kept["none"])
        for name in names:
            found = load_file(kept[name])
            error = float((found[LATENT] - exact[LATENT]).norm() / exact[LATENT].norm())
            speed = Ratio(times["none"], times[name])
            off = (f"{speed}", f"{error:.3f}", f"{psnr(found[FRAMES], exact[FRAMES]):.1f} dB")
            rows.append(
                (
                    f"{model}: {name}",
                    f"{runs[name] / runs['none']:.2f}",
                    f"{middle(times[name])} s",
                    *((MISSING,) * 3 if name == "none" else off),
                )
            )
            numbers |= {
                f"{model}, {name}: block runs": runs[name] / runs["none"],
                f"{model}, {name}: speed-up": speed.median,
                f"{model}, {name}: error": error,
            }
    notes = (
        f"{CLIP.width}×{CLIP.height}×{CLIP.frames} with {made.LAYERS} narrow blocks, {TRAINED.width}×{TRAINED.height}×"
        f"{TRAINED.frames} with the miniature's {sizes.LAYERS}; {steps} steps and the endpoint's other defaults, with "
        "two stages. The time is measured from the start of the first stage to the end of the second one. Block runs "
        "are those of both stages, as a share of the block runs of `none`. Latent and frames are compared with those "
        "of `none`.",
        "A model with random weights changes the video differently in every step, so `high` finds nothing to reuse "
        "there: it runs as many blocks as `regular`, and where their speed-ups differ, the machine's speed did. It is "
        "made for trained weights. But the miniature is so small that most of its time goes into starting each "
        "operation. So read the errors and block runs of the miniature, and the times of the other model.",
    )
    columns = ("model and level", "block runs", "sampling", "speed-up", "final latent, relative L2", "frames, PSNR")
    return Table("Acceleration levels", columns, tuple(rows), notes, numbers)
