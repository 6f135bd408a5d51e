"""This pack's side: it does the same work as official.py, with the engine's public functions.

Every function runs in its own process (`measure.Side`), takes and returns plain values, and keeps the loaded models.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import torch
from a2v.benchmarks.work import GUIDANCE, WHOLE, Clip, Counter, contexts, rows, sound, stg_block
from a2v.ltx import pipeline
from a2v.ltx.diffusion import schedules
from a2v.ltx.diffusion.block import Block
from a2v.ltx.diffusion.compiled import compile_blocks
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, TextContext
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.grid import CHANNELS, video_shape
from a2v.ltx.job import Compute, Files
from a2v.ltx.latents import Noise
from a2v.ltx.request import parse
from a2v.ltx.weights.checkpoint import load_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


@cache
def transformer(checkpoint: str) -> nn.Module:
    return load_checkpoint(checkpoint).transformer(torch.float32)


def load(checkpoint: str) -> None:
    transformer(checkpoint)


def compile_step(checkpoint: str, code: str) -> None:
    """Lets later steps compile their blocks, or take them from the folder `code` if they lie there."""
    compile_blocks(transformer(checkpoint), folder=Path(code))


def step(checkpoint: str, clip: list[int], steps: int, save: str | None = None, count: bool = False) -> dict[str, Any]:
    """Runs guided steps of a first stage. save: run one step to sigma 0 instead and write its latent there. count:
    count block runs, too."""
    model, size = transformer(checkpoint), Clip(*clip)
    widths = model.config.cross_attention_dim, model.config.audio_cross_attention_dim
    video_text, audio_text, video_negative, audio_negative = contexts(*widths)
    with Counter(model.transformer_blocks, enabled=count) as counter:
        start = time.perf_counter()
        guidance = Guidance(
            cfg=GUIDANCE["cfg_scale"],
            stg=GUIDANCE["stg_scale"],
            rescale=GUIDANCE["rescale_scale"],
            modality=GUIDANCE["modality_scale"],
            stg_blocks=(stg_block(len(model.transformer_blocks)),),
        )
        sigmas = torch.tensor(WHOLE) if save else schedules.SCHEDULES["ltx2"](15)[: steps + 1]
        audio = AudioCondition(sound(size.frames), size.frames, Fraction(size.fps))
        latent, _, _ = sample(
            model,
            torch.zeros(1, CHANNELS, *video_shape(size.frames, size.height, size.width)),
            Conditions(TextContext(video_text, audio_text), audio, TextContext(video_negative, audio_negative)),
            Steering(sigmas, guidance),
            Noise(1),
        )
        seconds = time.perf_counter() - start
    if save:
        save_file({"latent": latent.contiguous()}, save)
    return {"step": seconds / steps, "runs": counter.runs / steps, "finite": bool(latent.isfinite().all())}


class Kept:
    """A trace that keeps the tensors with some names, and the time at which each name arrived."""

    def __init__(self, *names: str) -> None:
        self.names, self.tensors, self.times = names, {}, {}

    def __call__(self, name: str, tensor: Tensor) -> None:
        self.times[name] = time.perf_counter()
        if name in self.names:
            self.tensors[name] = tensor.detach().clone().contiguous()


def whole(
    files: dict[str, str],
    values: dict[str, Any],
    layers: int,
    save: str | None = None,
    names: tuple[str, ...] = (),
    count: bool = False,
) -> dict[str, Any]:
    """Runs the whole job, from files to a file. save: a file for the tensors of its trace with these `names`.

    "sampling": seconds from the first stage's start to the second one's end, if there is a trace. count: count the
    "runs", block runs of both stages, too. They are calls of `Block`, because the job loads the model itself; counting
    slows every module down.
    """
    paths = Files(**{name: Path(path) for name, path in files.items()})
    kept: Callable | None = Kept(*names) if save else None
    runs = 0

    def add(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal runs
        runs += rows(arguments) if isinstance(module, Block) else 0

    counting = register_module_forward_pre_hook(add) if count else None
    start = time.perf_counter()
    result = pipeline.run(paths, parse(values), Compute(torch.float32), stg_blocks=(stg_block(layers),), trace=kept)
    seconds = time.perf_counter() - start
    if counting is not None:
        counting.remove()
    facts = {
        "run": seconds,
        "runs": runs,
        "frames": result.video.frames,
        "width": result.video.width,
        "height": result.video.height,
    }
    if kept is not None:
        save_file(kept.tensors, save)
        facts["sampling"] = kept.times["final/video_latent"] - kept.times["s1/sigmas"]
    return facts
