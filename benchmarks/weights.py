"""Which card gains what from small weights, counted without one: whether the transformer fits, how many GB are copied
to it in each step where it does not, and the bound of a step's time.

The times are those of cost.py with other layers in the blocks (layers.py): decoded at each call, or multiplied in the
weights' own format where the card has such units.
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path

from a2v.benchmarks.cost import STAGES, in_format, of_table, plain, weights_of
from a2v.benchmarks.count import CARDS, Card
from a2v.benchmarks.layers import KINDS, Layers
from a2v.benchmarks.measure import MISSING, Table, say

RESERVE = 1.5e9
"""Bytes of a card that are not for weights and activations: the driver's, the allocator's, and a screen's. A card
without a screen has about half a GB more."""
MOVING = 2  # blocks that are on the card beside those that stay: one computes, one is copied
FAST = ("fp8", "int8", "nvfp4")  # what some card multiplies


def copied(card: Card, blocks: int, outside: int, count: int, peak: int) -> int:
    """Bytes of the blocks that do not fit and are copied in each step. blocks: bytes of all `count` of them; outside:
    of the other weights; peak: of a step."""
    room, one = card.room - RESERVE - peak - outside, blocks // count
    if blocks <= room:
        return 0
    return blocks - one * min(max(int(room // one) - MOVING, 0), count)


def weights(folder: Path, small: bool = False) -> Table:
    """The table of all cards and formats; `small` counts narrow blocks."""
    size, clip = of_table(small)
    peaks = {stage: step.peak for stage, step in plain(small).items()}
    cells: dict[str, list[tuple[str, ...]]] = {name: [] for name in CARDS}
    numbers: dict[str, float] = {}
    for name, kind in KINDS.items():
        say(f"  {name}")
        blocks, outside = weights_of(Layers(kind), size)
        ways = [in_format(Layers(kind), small)]
        ways += [in_format(Layers(kind, fast=True), small)] if kind in FAST else []
        for number, (title, card) in enumerate(CARDS.items()):
            streamed = {s: copied(card, blocks, outside, size["layers"], peaks[s]) for s in STAGES}
            computed = [[way[stage].cost.seconds[number] for stage in STAGES] for way in ways]
            computed += [[float("inf")] * len(STAGES)] * (2 - len(ways))
            times = [_shown(t, streamed[s] / card.link) for way in computed for s, t in zip(STAGES, way, strict=True)]
            most = max(streamed.values())
            gb = (f"{(blocks + outside) / 1e9:.1f} GB", f"{most / 1e9:.1f} GB" if most else "fits")
            cells[title].append((f"{title}: {name}", *gb, *times))
            numbers |= {f"{title}, {name}: copied GB": most / 1e9, f"{title}, {name}: first": computed[0][0]}
    heads = ("decoded: first stage, counted", "second stage", "fast products: first stage, counted", "second stage")
    columns = ("card and format", "transformer", "copied in a step", *heads)
    notes = (
        f"Counted, not measured: {clip.width}×{clip.height}×{clip.frames}, {size['layers']} blocks, a guided step of "
        "four passes in the first stage and a step of the second one, without a LoRA. Every figure is a bound by the "
        "card's data sheet that no eager run reaches: read the ratios of the rows of one card. Where blocks do not "
        "fit, as many stay as fit beside the step, and the others are copied once in each step while it computes; "
        "`copies` marks the times that the copies take longer than the computing. They are pinned in host memory, and "
        f"the link has 16 lanes. {RESERVE / 1e9:g} GB of each card are left to the driver and the screen.",
        "All linear layers of the blocks are in the format; the official fp8 and NVFP4 files leave four blocks in 16 "
        "bits. `decoded` is what the pack does by itself: the weight is decoded at each call and multiplied in 16 "
        "bits. Decoding costs time, so a small format gains room and fewer copies, and no speed where copies are "
        "hidden. Fast products (`--fast-products`) replace decoding and the 16-bit product by rounding the input and a "
        "product in the format. For fp8, the pack's Triton kernels round most inputs where they make them. For int8 "
        "the input is rounded in one pass over memory, and for NVFP4 in two.",
        ", ".join(f"{name}: {_sheet(card)}" for name, card in CARDS.items()) + ".",
    )
    rows = tuple(row for card in cells.values() for row in card)
    return Table("Small weights on six cards, counted", columns, rows, notes, numbers)


def _shown(computing: float, copying: float) -> str:
    if not isfinite(computing):
        return MISSING
    return f"{copying:.2f} s, copies" if copying > computing else f"{computing:.2f} s"


def _sheet(card: Card) -> str:
    return f"{card.room / 1e9:.0f} GB, {card.products['bf16'] / 1e12:g} TFLOP/s in bf16, {card.memory / 1e9:.0f} GB/s"
