"""Video latents to pixels, in tiles, streamed.

One path for everything: an axis that fits is one tile, so "untiled" is the same code with one tile and the same bits.
The decoder of 2.3 looks both ways in time, and n latents give 8n - 7 frames: the first latent of whatever it is given
counts as one frame, not eight. A tile that starts inside the clip therefore starts one latent early and loses its first
frame; without that every later tile would come a frame late (the fault of diffusers' own framewise decoding).

It does not write files (video.py) and does not decide where the VAE lives (its caller does).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from .errors import InputError
from .latents import SPACE_SCALE, TIME_SCALE, denormalize_video

CHUNK = 8  # frames per yield: what a consumer holds at a time


@dataclass(frozen=True)
class Tiling:
    """Size and overlap of a tile in frames and in pixels; the defaults are ltx-pipelines 1.2's.

    A spatial tile has the frame's proportions and `pixels` on its long side, as in ltx-core: both sides are then cut
    about as often, and the tile is no larger than memory was asked to bear.
    """

    frames: int = 80
    frame_overlap: int = 24
    pixels: int = 768
    pixel_overlap: int = 64

    def __post_init__(self) -> None:
        for name, size, overlap, unit in (
            ("frames", self.frames, self.frame_overlap, TIME_SCALE),
            ("pixels", self.pixels, self.pixel_overlap, SPACE_SCALE),
        ):
            if size < 2 * unit or size % unit:
                raise InputError(f"The tile size of {size} {name} must be a multiple of {unit}, at least {2 * unit}.")
            if not 0 <= overlap < size or overlap % unit:
                raise InputError(
                    f"The tile overlap of {overlap} {name} must be a multiple of {unit}, below the tile's {size}."
                )


@dataclass(frozen=True)
class _Span:
    """One tile along one axis: the latents it reads, the decoded samples it skips, those it writes and their weight."""

    latents: slice
    skip: int
    samples: slice
    weight: Tensor | None  # [samples] float32, adding up to 1 over the axis; None where it is one tile


def decode_video(
    vae: Any,
    latent: Tensor,
    tiling: Tiling | None = Tiling(),
    on_tile: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """Normalised latent [1, 128, F, H, W] → float32 frames [n, H*32, W*32, 3] in 0..1, in order, on the CPU.

    Frames leave as soon as no later tile can touch them: one tile's worth of the clip is held, never all of it (with
    `tiling` None the clip is the tile). `vae` is an AutoencoderKLLTX2Video; the latent follows its device and dtype.
    Tiles are blended in float32 on the CPU: the device needs room for a single tile, and both readers of the frames
    (the encoder of video.py, ComfyUI's IMAGE) are there. `on_tile(done, total)` follows each tile and may raise.
    """
    if latent.ndim != 5 or latent.shape[0] != 1:
        raise InputError(f"The video latent must be [1, channels, frames, height, width], not {list(latent.shape)}.")
    times, rows, columns = _spans(*latent.shape[2:], tiling)
    total = len(times) * len(rows) * len(columns)
    done, left = 0, 0  # tiles decoded; frames that have left
    held = torch.zeros(0, rows[-1].samples.stop, columns[-1].samples.stop, 3)  # the frames after them, not yet final
    for time, following in pairwise([*times, None]):
        frames = torch.zeros(time.samples.stop - left, *held.shape[1:])
        frames[: len(held)] = held
        for row, column in product(rows, columns):
            tile = _decode(vae, latent[:, :, time.latents, row.latents, column.latents])[time.skip :]
            for axis, span in enumerate((time, row, column)):
                if span.weight is not None:
                    tile.mul_(span.weight.view(-1, *[1] * (3 - axis)))
            frames[time.samples.start - left :, row.samples, column.samples] += tile
            done += 1
            if on_tile is not None:
                on_tile(done, total)
        count = (following.samples.start if following else time.samples.stop) - left
        held = frames[count:].clone()
        for chunk in frames[:count].split(CHUNK):
            yield chunk.add(1).div_(2).clamp_(0, 1)
        left += count
        del tile, frames, chunk  # before the next tile needs the room


def to_uint8(frames: Tensor) -> Tensor:
    """Float 0..1 → uint8; float × 255 truncated, as the official pipeline does."""
    return (frames * 255).to(torch.uint8)


@torch.no_grad()
def _decode(vae: Any, latent: Tensor) -> Tensor:
    """One tile: normalised latent [1, C, f, h, w] → [8f-7, h*32, w*32, 3] float32 in about -1..1, on the CPU."""
    latent = denormalize_video(vae, latent.to(vae.device, torch.float32))
    pixels = vae.decode(latent.to(vae.dtype), return_dict=False)[0]
    return rearrange(pixels, "1 c f h w -> f h w c").to("cpu", torch.float32)


def _spans(frames: int, height: int, width: int, tiling: Tiling | None) -> tuple[list[_Span], ...]:
    """Tiles along time, height and width for a latent of that shape."""
    if tiling is None:
        return _time_spans(frames, frames, 0), _space_spans(height, height, 0), _space_spans(width, width, 0)
    size, overlap = tiling.pixels // SPACE_SCALE, tiling.pixel_overlap // SPACE_SCALE
    sides = [
        _space_spans(side, max(2, overlap + 1, round(size * side / max(height, width))), overlap)
        for side in (height, width)
    ]
    return _time_spans(frames, tiling.frames // TIME_SCALE, tiling.frame_overlap // TIME_SCALE), *sides


def _space_spans(length: int, size: int, overlap: int) -> list[_Span]:
    cuts = _cut(length, size, overlap)
    samples = [slice(a * SPACE_SCALE, b * SPACE_SCALE) for a, b in cuts]
    weights = _weights(samples)
    return [_Span(slice(a, b), 0, s, w) for (a, b), s, w in zip(cuts, samples, weights, strict=True)]


def _time_spans(length: int, size: int, overlap: int) -> list[_Span]:
    """As in space, but a tile inside the clip reads the latent before it and drops the one frame that comes of it."""
    cuts = _cut(length, size, overlap)
    samples = [slice(_frames(a), _frames(b)) for a, b in cuts]
    weights = _weights(samples)
    return [
        _Span(slice(max(0, a - 1), b), int(a > 0), s, w) for (a, b), s, w in zip(cuts, samples, weights, strict=True)
    ]


def _frames(latents: int) -> int:
    """Frames that the first `latents` of a clip decode to."""
    return max(0, (latents - 1) * TIME_SCALE + 1)


def _cut(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """[0, length) in pieces of `size` that overlap by `overlap`; the last may be shorter."""
    if length <= size:
        return [(0, length)]
    stride = size - overlap
    count = math.ceil((length - overlap) / stride)
    return [(i * stride, min(i * stride + size, length)) for i in range(count)]


def _weights(samples: list[slice]) -> list[Tensor] | list[None]:
    """Weights of the tiles along one axis: 1 where a tile is alone, a linear ramp where two meet, adding up to 1.

    Linear, because it was measured: smoother ramps give less weight to the samples next to a cut, yet leave a larger
    error (2 to 4 % RMS), since the errors of the two tiles are independent and an even mix averages them.
    """
    if len(samples) == 1:
        return [None]
    weights = [torch.ones(s.stop - s.start) for s in samples]
    for (left, right), (fading, rising) in zip(pairwise(samples), pairwise(weights), strict=True):
        overlap = left.stop - right.start
        ramp = torch.arange(1, overlap + 1) / (overlap + 1)
        fading[len(fading) - overlap :] *= 1 - ramp
        rising[:overlap] *= ramp
    # Already 1, but where an overlap is more than half a tile and three tiles meet.
    total = torch.zeros(samples[-1].stop)
    for s, weight in zip(samples, weights, strict=True):
        total[s] += weight
    return [weight / total[s] for s, weight in zip(samples, weights, strict=True)]
