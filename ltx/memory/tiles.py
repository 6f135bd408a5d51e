"""Chooses the decoder's tiles by the free memory: the whole clip if it fits, else tiles that share as little as can be.

The choice depends on the clip, the decoder, the kind of device and `coarse` of the free memory, and on nothing else.
So the command, the graph and the HTTP API choose the same tiles on the same machine, and a run gives the same frames as
the one before. Another choice gives other frames: blended tiles differ from the clip as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn

from ..diffusion.tiling import USUAL, Tiling, held_frames, largest_tile, tile_count
from ..grid import CHANNELS, SPACE_SCALE
from .free import UNKNOWN
from .rehearsal import META, SPARE, twin, weights
from .work import decoding

SHARE = 4
"""On a CPU a clip is decoded whole if this takes at most one part in SHARE of the free memory. The system and all other
programs need the same memory, and whoever takes too much of it is ended without a message."""
HELD = 4 * 2**30
"""The most bytes of frames that a chosen tile may hold for the encoder, whatever the length of the film: enough for 121
frames of 1920 × 1088 and for 481 of 1024 × 576. They are in host memory, beside the models that wait there. Only the
usual tiles of a larger picture hold more."""
AMPLE = 16 * 2**30
"""Free bytes on a CPU with which nothing is rehearsed for a clip of one usual tile: the published decoder takes nine
gigabytes for it in float32, and a rehearsal takes as long as decoding a small clip."""
NEAR = 0.8
"""A tiling is not rehearsed if less than this part of its need, judged by a rehearsed one and the sizes, is too
much."""


def coarse(room: int) -> int:
    """Free bytes, rounded down to a power of two or one and a half of one.

    Cards have such sizes, and some of it is always taken: what is free on a card that nothing else uses is never near a
    step, and small changes do not change the tiles.
    """
    power = 1 << max(room, 1).bit_length() - 1
    return power * 3 // 2 if room >= power * 3 // 2 else power


def needed(vae: nn.Module, latent: tuple[int, int, int], tiling: Tiling | None, on: str) -> tuple[int, int]:
    """Bytes that the largest tile takes on a device of that kind beside the weights, and bytes of the frames that are
    held on the CPU. They are measured once for each tiling."""
    return _rehearsed(twin(vae), latent, tiling, on)


@lru_cache(maxsize=64)
def _rehearsed(like: nn.Module, latent: tuple[int, int, int], tiling: Tiling | None, on: str) -> tuple[int, int]:
    return decoding(like, latent, tiling, on)


def choose(vae: nn.Module, latent: tuple[int, int, int], tiling: Tiling, on: str, room: int) -> Tiling:
    """The tiling with its open sizes chosen; one without open sizes stays as it is.

    vae: the decoder; latent: the clip's grid; on: the kind of device; room: bytes that are free there without the
    decoder and any other model. A whole clip comes first, then the tiles that share least. On a CPU, and where nobody
    knows what is free, tiles have at most their usual size unless the clip is decoded whole. If nothing else fits, the
    usual tiles get smaller as they do when memory runs out. SPARE of the room beside the decoder's weights stays free.
    """
    if not tiling.open:
        return tiling
    clip = torch.empty(1, CHANNELS, *latent, device=META)
    usual = tiling.closed(USUAL)
    if room >= UNKNOWN:
        return usual
    if on == "cpu" and room >= AMPLE and tile_count(latent, usual) == 1:
        return tiling.closed(Tiling.whole(clip))
    room, own = coarse(room), weights(vae)
    # The decoder's own bytes are known, and only what is rehearsed can be wrong.
    limit = own + int((room - own) * (1 - SPARE))
    frame = 3 * torch.float32.itemsize * latent[1] * latent[2] * SPACE_SCALE**2
    most = max(HELD, held_frames(latent, usual) * frame)

    def takes(tiling: Tiling) -> int:
        work, host = needed(vae, latent, tiling, on)
        return own + work + (host if on == "cpu" else 0)

    choices = [choice for choice in tiling.choices(latent) if held_frames(latent, choice) * frame <= most]
    if on == "cpu":
        whole = tiling.closed(Tiling.whole(clip))
        if whole in choices and takes(whole) <= room // SHARE:
            return whole
    elif (found := _first(choices, takes, latent, own, limit)) is not None:
        return found
    while takes(usual) > limit and (smaller := usual.smaller(clip)) is not None:
        usual = smaller
    return usual


def _first(
    choices: list[Tiling], takes: Callable[[Tiling], int], latent: tuple[int, int, int], own: int, room: int
) -> Tiling | None:
    """The first tiling that takes at most `room`, of which `own` is for weights; None if there is none. A tile's need
    grows with its size, so that few are rehearsed."""
    rate = 0.0  # bytes for a latent of a tile that did not fit
    for choice in choices:
        size = math.prod(part.stop - part.start for part in largest_tile(latent, choice))
        if NEAR * rate * size > room - own:
            continue
        need = takes(choice) - own
        if need <= room - own:
            return choice
        rate = need / size
    return None
