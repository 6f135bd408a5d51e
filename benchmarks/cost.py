"""What a step asks of a GPU at the published size, counted without one: matrix products, bytes, launches, peak memory.

Our side, diffusers' own forward and the official code run their real steps on tensors without numbers (count.py). The
seconds come from the roofline of each card: an operation takes as long as its products or its bytes, whichever is more.
No eager run is that fast; the ratios between the rows are what to read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from math import inf, prod
from pathlib import Path
from typing import Any

import torch
from a2v.benchmarks import gpu
from a2v.benchmarks.count import CARDS, Call, Step, counting
from a2v.benchmarks.layers import RANK, Layers, able, exchanged
from a2v.benchmarks.measure import MISSING, Table, say, version
from a2v.benchmarks.work import Clip, sound, stg_block
from a2v.ltx.weights.rounding import Input
from torch import nn

PUBLISHED = {**gpu.LARGE, "dtype": "bfloat16", "device": "meta"}
SMALL = {"layers": 3, "heads": 2, "head_dim": 64, "dtype": "bfloat16", "device": "meta"}
STAGES = ("first", "second")
LORA_SHARE = 0.1  # what a LoRA may add to a step in fp8
SHOWN = ("H100", "H200", "RTX 5090", "RTX 4090")


def counted(work: Any, size: dict[str, Any], *arguments: Any, again: bool = False, **options: Any) -> dict[str, Step]:
    """The steps of both stages that `work` runs with a `measured`; the weights are made inside and freed again. again:
    count those of a second run, which finds what the first one wrote."""
    steps: list[Step] = []
    with counting() as (cost, meter), able(cost):

        @contextmanager
        def measured(number: int) -> Iterator[dict[str, Any]]:
            before, held = copy(cost), meter.alive
            meter.peak = held
            with called(gpu.our_model(**size).transformer_blocks if work is gpu.ours else ()) as calls:
                yield (found := {})
            found["step"] = 0.0
            each = {call: times / number for call, times in calls.items()}
            steps.append(Step(cost.per(number, before), meter.peak - held, each))

        for _ in range(2 if again else 1):
            steps.clear()
            work(size, *arguments, measured=measured, **options)
    gpu.our_model.cache_clear()
    gpu.official_model.cache_clear()
    return dict(zip(STAGES, steps, strict=True))


@contextmanager
def called(blocks: Iterable[nn.Module]) -> Iterator[Counter[Call]]:
    """Counts the calls of the blocks' linear layers inside `with`."""
    found: Counter[Call] = Counter()

    def note(layer: nn.Linear, given: tuple[Input, ...]) -> None:
        tokens = prod(given[0].shape[:-1])
        found[tokens, layer.in_features, layer.out_features, layer.bias is not None] += 1

    layers = [module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def ours(size: dict[str, Any], clip: Clip, image: bool = False, how: dict[str, Any] | None = None) -> dict[str, Step]:
    """A guided step of the first stage and a step of the second one. how: as for `gpu.prepare`."""
    again = bool(how and how.get("fast"))  # the scales of weights are written once
    return counted(gpu.ours, size, clip.plain, "none", 1, again=again, image=image, room=inf, how=how, early=False)


def official(size: dict[str, Any], clip: Clip) -> dict[str, Step]:
    """The same of ltx-pipelines 1.0.0."""
    return counted(gpu.official, size, clip.plain, 1, early=False)


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


@cache
def plain(small: bool = False) -> dict[str, Step]:
    """Our steps in 16 bits, of the table's size, without an image."""
    return ours(*of_table(small))


def of_table(small: bool) -> tuple[dict[str, Any], Clip]:
    """The sizes of the model and of the clip."""
    return (SMALL, gpu.TOY) if small else (PUBLISHED, gpu.CLIP)


def in_format(layers: Layers, small: bool = False) -> dict[str, Step]:
    """Our steps with such layers in the blocks. Those that multiply in fp8 get inputs that are rounded where they are
    made, so a whole step is counted."""
    if layers.kind == "fp8" and layers.fast:
        return ours(*of_table(small), how={"fp8": True, "fast": True, "rank": layers.rank})
    return {stage: exchanged(step, layers) for stage, step in plain(small).items()}


def weights_of(layers: Layers, size: dict[str, Any]) -> tuple[int, int]:
    """Bytes of the transformer's weights with such layers in its blocks: of all blocks, and of what is outside them."""
    model, whole = gpu.our_model(**{**size, "layers": 1}), Layers()  # all blocks are alike
    block = model.transformer_blocks
    return size["layers"] * layers.bytes(block), whole.bytes(model) - whole.bytes(block)


def lora_share(small: bool = False) -> list[float]:
    """What a LoRA on decoded fp8 weights adds to a step, as a share of it: of each stage, on each card."""
    without, given = (in_format(Layers("fp8", rank), small) for rank in (0, RANK))
    pairs = [pair for stage in STAGES for pair in zip(*(s[stage].cost.seconds for s in (without, given)), strict=True)]
    return [longer / shorter - 1 for shorter, longer in pairs]


def cost(folder: Path, small: bool = False) -> Table:
    """The table of all sides at the published size; `small` counts narrow blocks."""
    size, clip = of_table(small)
    sides = {
        "this pack": lambda: plain(small),
        "… without Triton kernels": lambda: ours(size, clip, how={"fused": False}),
        "… with a first image": lambda: ours(size, clip, image=True),
        "… in fp8, decoded": lambda: in_format(Layers("fp8"), small),
        f"… in fp8, with a LoRA of rank {RANK}": lambda: in_format(Layers("fp8", RANK), small),
        "… in fp8, fast products": lambda: in_format(Layers("fp8", fast=True), small),
        "diffusers": lambda: diffusers(size, clip),
    }
    if version("ltx-core"):
        sides["ltx-core 1.0.0"] = lambda: official(size, clip)
    rows, numbers = [], {}
    for name, count in sides.items():
        say(f"  {name}")
        for stage, step in count().items():
            rows.append((f"{name}, {stage} stage", *_cells(step)))
            numbers |= {f"{name} {stage} GB": step.cost.bytes / 1e9, f"{name} {stage} launches": step.cost.launches}
    columns = ("a step", "TFLOP", "GB moved", "launches", "waits", "peak above the weights", *SHOWN)
    shares, held = lora_share(small), sum(weights_of(Layers(), size))
    numbers["LoRA on fp8, largest share"] = max(shares)
    notes = (
        f"Counted, not measured: {clip.width}×{clip.height}×{clip.frames}, {size['layers']} blocks in bfloat16, frozen "
        "sound, a guided step of four passes in the first stage and one pass in the second. The waits are those at the "
        "start of a stage, spread over its steps; within a step this pack has none. diffusers' forward was given "
        "tensors that are on the GPU already, so a pipeline's own waits are not among these.",
        "The seconds are bounds by the cards' data sheets, for comparing rows; no run reaches them. On an H200 a step "
        "of the first stage took 0.407 s on 2026-11-29, and 0.484 s without Triton kernels. In 16 bits the "
        f"transformer takes {held / 1e9:.0f} GB, which do not fit into the two RTX cards: there, a step also waits for "
        "copies, as the next table shows. A card's room also decides whether it can batch the passes as here.",
        f"A LoRA of rank {RANK} on all layers adds {min(shares):.1%} to {max(shares):.1%} to a step in fp8, counted on "
        f"{len(CARDS)} cards. Wanted: at most {LORA_SHARE:.0%}. Kept: {'yes' if max(shares) <= LORA_SHARE else 'no'}.",
    )
    return Table("What a step asks of a GPU, counted", columns, tuple(rows), notes, numbers)


def _cells(step: Step) -> tuple[str, ...]:
    one, seconds = step.cost, dict(zip(CARDS, step.cost.seconds, strict=True))
    return (
        f"{one.flops / 1e12:.0f}",
        f"{one.bytes / 1e9:.0f}",
        f"{one.launches:,.0f}",
        f"{one.waits:.0f}" if one.waits else MISSING,
        f"{step.peak / 1e9:.1f} GB",
        *(f"{seconds[card]:.3f} s" for card in SHOWN),
    )
