"""What a step asks of a GPU at the published size, counted without one: matrix products, bytes, launches, peak memory.

Our side, diffusers' own forward and the official code run their real steps on tensors without numbers (count.py). The
seconds come from the roofline of each card: an operation takes as long as its products or its bytes, whichever is more.
No eager run is that fast; the ratios between the rows are what to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from a2v.benchmarks import gpu
from a2v.benchmarks.count import CARDS, Cost, counting
from a2v.benchmarks.measure import MISSING, Table, say, version
from a2v.benchmarks.work import Clip, sound, stg_block

PUBLISHED = {**gpu.LARGE, "dtype": "bfloat16", "device": "meta"}
SMALL = {"layers": 3, "heads": 2, "head_dim": 16, "dtype": "bfloat16", "device": "meta"}
STAGES = ("first", "second")


@dataclass(frozen=True)
class Step:
    """A step of one stage. peak: the most bytes alive at once beside the weights."""

    cost: Cost
    peak: int


def counted(work: Any, size: dict[str, Any], *arguments: Any, **options: Any) -> dict[str, Step]:
    """The steps of both stages that `work` runs with a `measured`; the weights are made inside and freed again."""
    steps: list[Step] = []
    with counting() as (cost, meter):

        @contextmanager
        def measured(number: int) -> Iterator[dict[str, Any]]:
            before, held = copy(cost), meter.alive
            meter.peak = held
            yield (found := {})
            found["step"] = 0.0
            steps.append(Step(cost.per(number, before), meter.peak - held))

        work(size, *arguments, measured=measured, **options)
    gpu.our_model.cache_clear()
    gpu.official_model.cache_clear()
    return dict(zip(STAGES, steps, strict=True))


def ours(size: dict[str, Any], clip: Clip, image: bool = False) -> dict[str, Step]:
    """A guided step of the first stage and a step of the second one."""
    return counted(gpu.ours, size, clip.plain, "none", 1, image=image, room=inf)


def official(size: dict[str, Any], clip: Clip) -> dict[str, Step]:
    """The same of ltx-pipelines 1.0.0."""
    return counted(gpu.official, size, clip.plain, 1)


def diffusers(size: dict[str, Any], clip: Clip) -> dict[str, Step]:
    """The same of diffusers' own forward: four passes one by one, then one pass at the second stage's size."""
    return counted(_by_diffusers, size, clip)


def _by_diffusers(size: dict[str, Any], clip: Clip, measured: Any) -> None:
    kind, place, model = gpu.dtype(size["dtype"]), gpu.device(size["device"]), gpu.our_model(**size)
    video_text, audio_text, video_negative, _ = gpu.texts(size)
    stg = {"spatio_temporal_guidance_blocks": [stg_block(size["layers"])]}
    passes = ((video_text, {}), (video_negative, {}), (video_text, stg), (video_text, {"isolate_modalities": True}))
    for shape, running in ((gpu.halved(clip), passes), (clip, passes[:1])):
        heard = sound(shape.frames).shape[2]
        with measured(1):
            for text, how in running:
                model(
                    hidden_states=torch.zeros(1, shape.tokens, 128, dtype=kind, device=place),
                    audio_hidden_states=torch.zeros(1, heard, 128, dtype=kind, device=place),
                    encoder_hidden_states=text,
                    audio_encoder_hidden_states=audio_text,
                    timestep=torch.ones(1, shape.tokens, device=place),
                    audio_timestep=torch.zeros(1, heard, device=place),
                    sigma=torch.ones(1, device=place),
                    audio_sigma=torch.zeros(1, device=place),
                    num_frames=(shape.frames - 1) // 8 + 1,
                    height=shape.height // 32,
                    width=shape.width // 32,
                    fps=float(shape.fps),
                    audio_num_frames=heard,
                    **how,
                )


def cost(folder: Path, small: bool = False) -> Table:
    """The table of all sides at the published size; `small` counts narrow blocks."""
    size, clip = (SMALL, gpu.TOY) if small else (PUBLISHED, gpu.CLIP)
    sides = {"this pack": lambda: ours(size, clip), "… with a first image": lambda: ours(size, clip, image=True)}
    sides["diffusers"] = lambda: diffusers(size, clip)
    if version("ltx-core"):
        sides["ltx-core 1.0.0"] = lambda: official(size, clip)
    rows, numbers = [], {}
    for name, count in sides.items():
        say(f"  {name}")
        for stage, step in count().items():
            rows.append((f"{name}, {stage} stage", *_cells(step)))
            numbers |= {f"{name} {stage} GB": step.cost.bytes / 1e9, f"{name} {stage} launches": step.cost.launches}
    columns = ("a step", "TFLOP", "GB moved", "launches", "waits", "peak above the weights", *CARDS)
    notes = (
        f"Counted, not measured: {clip.width}×{clip.height}×{clip.frames}, {size['layers']} blocks in bfloat16, frozen "
        "sound, a guided step of four passes in the first stage and one pass in the second. The seconds are bounds by "
        "the cards' data sheets. The waits are those at the start of a stage, spread over its steps; within a step "
        "this pack has none. A card's room decides whether it can batch the passes as here.",
    )
    return Table("What a step asks of a GPU, counted", columns, tuple(rows), notes, numbers)


def _cells(step: Step) -> tuple[str, ...]:
    one = step.cost
    return (
        f"{one.flops / 1e12:.0f}",
        f"{one.bytes / 1e9:.0f}",
        f"{one.launches:,.0f}",
        f"{one.waits:g}" if one.waits else MISSING,
        f"{step.peak / 1e9:.1f} GB",
        *(f"{seconds:.3f} s" for seconds in one.seconds),
    )
