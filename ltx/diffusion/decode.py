"""Video latents to pixels, in tiles, streamed.

One path for everything: an axis that fits is one tile, so "untiled" is the same code with one tile and the same bits.
The decoder of 2.3 looks both ways in time, and n latents give 8n - 7 frames: the first latent of whatever it is given
counts as one frame, not eight. A tile that starts inside the clip therefore starts one latent early and loses its first
frame; without that every later tile would come a frame late (the fault of diffusers' own framewise decoding).

Where memory runs out, the clip goes on in smaller tiles from the time tile that did not fit: frames that have left stay
as they are, and those that two tilings share are blended as between any two tiles.

It does not write files (video.py) and does not decide where the VAE lives (its caller does).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoCausalConv3d, LTX2VideoResnetBlock3d
from einops import rearrange
from torch import Tensor, nn

from ..classes import give_classes
from ..errors import InputError
from ..latents import SPACE_SCALE, TIME_SCALE, denormalize_video

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

    @classmethod
    def whole(cls, latent: Tensor) -> Tiling:
        """One tile for all of that latent [1, C, F, H, W]."""
        return cls()._sized(max(2, latent.shape[2]) * TIME_SCALE, max(2, *latent.shape[3:]) * SPACE_SCALE)

    def smaller(self, latent: Tensor) -> Tiling | None:
        """The next smaller tiles for that latent: half the pixels on a side, then half the frames, in turns.

        None at the end. The overlap stays what it is up to half a tile.
        """
        whole = Tiling.whole(latent)
        frames, pixels = min(self.frames, whole.frames), min(self.pixels, whole.pixels)  # what a tile really has
        long, wide = frames > 2 * TIME_SCALE, pixels > 2 * SPACE_SCALE
        if wide and (not long or pixels * Tiling.frames >= frames * Tiling.pixels):
            pixels = max(2, pixels // 2 // SPACE_SCALE) * SPACE_SCALE
        elif long:
            frames = max(2, frames // 2 // TIME_SCALE) * TIME_SCALE
        else:
            return None
        return self._sized(frames, pixels)

    def _sized(self, frames: int, pixels: int) -> Tiling:
        shared = frames // 2 // TIME_SCALE * TIME_SCALE, pixels // 2 // SPACE_SCALE * SPACE_SCALE
        return Tiling(frames, min(self.frame_overlap, shared[0]), pixels, min(self.pixel_overlap, shared[1]))

    def __str__(self) -> str:
        return f"{self.pixels} px and {self.frames} frames"


@dataclass(frozen=True)
class _Span:
    """One tile along one axis: the latents it reads, the decoded samples it skips, those it writes and their weight."""

    latents: slice
    skip: int
    samples: slice
    weight: Tensor | None  # [samples] float32, adding up to 1 over the axis; None where it is one tile


def free_cached_memory() -> None:
    """Gives what torch holds in reserve on a GPU back, so that another size of tile finds room."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def decode_video(
    vae: Any,
    latent: Tensor,
    tiling: Tiling | None = Tiling(),
    on_tile: Callable[[int, int], None] | None = None,
    *,
    on_retry: Callable[[str], None] | None = None,
    free: Callable[[], None] = free_cached_memory,
) -> Iterator[Tensor]:
    """Normalised latent [1, 128, F, H, W] → float32 frames [n, H*32, W*32, 3] in 0..1, in order, on the CPU.

    Frames leave as soon as no later tile can touch them: one tile's worth of the clip is held, never all of it (with
    `tiling` None the clip is the tile). `vae` is an AutoencoderKLLTX2Video; the latent follows its device and dtype.
    Tiles are blended in float32 on the CPU: the device needs room for a single tile, and both readers of the frames
    (the encoder of video.py, ComfyUI's IMAGE) are there. `on_tile(done, total)` follows each tile and may raise.
    Where memory runs out, `free()` is called and tiles get smaller; `on_retry(note)` is told, in words for the report,
    each note replacing the one before. Errors: InputError; also where the smallest tile does not fit.
    """
    if latent.ndim != 5 or latent.shape[0] != 1:
        raise InputError(f"The video latent must be [1, channels, frames, height, width], not {list(latent.shape)}.")
    asked, tiling = tiling, tiling or Tiling.whole(latent)
    times, rows, columns = _spans(*latent.shape[2:], asked)
    height, width = rows[-1].samples.stop, columns[-1].samples.stop
    done, left = 0, 0  # tiles decoded; frames that have left
    held, share = torch.zeros(0, height, width, 3), torch.zeros(0)  # the frames after them, not final; their weight

    def follow() -> None:
        nonlocal done
        done += 1
        if on_tile is not None:
            on_tile(done, total)

    while times:
        time, following = times[0], times[1] if times[1:] else None
        total = done + len(times) * len(rows) * len(columns)
        frames = _row_of_tiles(vae, latent, time, rows, columns, left, held, follow)
        if frames is None:
            free()
            tiling = _smaller(tiling, latent)
            if on_retry is not None:
                first = asked or Tiling.whole(latent)
                on_retry(f"decoded in tiles of {tiling}: {first.pixels} and {first.frames} did not fit")
            start = time.latents.start + time.skip
            times, rows, columns = _spans(*latent.shape[2:], tiling, start, 1 - share)
            continue
        times = times[1:]
        count = (following.samples.start if following else time.samples.stop) - left
        weight = torch.zeros(len(frames))
        weight[: time.samples.stop - left] += 1 if time.weight is None else time.weight
        weight[: len(share)] += share
        held, share = frames[count:].clone(), weight[count:]
        for chunk in frames[:count].split(CHUNK):
            yield chunk.add(1).div_(2).clamp_(0, 1)
        left += count
        del frames, chunk  # before the next tile needs the room


def _smaller(tiling: Tiling, latent: Tensor) -> Tiling:
    """The next smaller tiles. Errors: InputError where there are none."""
    smaller = tiling.smaller(latent)
    if smaller is None:
        raise InputError(
            f"decode: memory is short even for the smallest tile, {tiling}; close what else uses the memory, "
            "or ask for a smaller video."
        )
    return smaller


def out_of_memory(error: Exception) -> bool:
    """Whether that is what it says, on whatever device."""
    text = str(error).lower()
    said = any(words in text for words in ("out of memory", "not enough memory", "can't allocate memory"))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and said)


def _row_of_tiles(
    vae: Any,
    latent: Tensor,
    time: _Span,
    rows: list[_Span],
    columns: list[_Span],
    left: int,
    held: Tensor,
    follow: Callable[[], None],
) -> Tensor | None:
    """The frames from `left` to the end of one time tile, blended with what is held of them; None: out of memory."""
    frames = None
    for row, column in product(rows, columns):
        try:
            if frames is None:
                frames = torch.zeros(max(time.samples.stop - left, len(held)), *held.shape[1:])
                frames[: len(held)] = held
            tile = decode_tile(vae, latent[:, :, time.latents, row.latents, column.latents])[time.skip :]
            for axis, span in enumerate((time, row, column)):
                if span.weight is not None:
                    tile.mul_(span.weight.view(-1, *[1] * (3 - axis)))
            frames[: time.samples.stop - left, row.samples, column.samples] += tile
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None  # and with the error go the tensors that its traceback holds
        del tile
        follow()
    return frames


def to_uint8(frames: Tensor) -> Tensor:
    """Float 0..1 → uint8; float × 255 truncated, as the official pipeline does."""
    return (frames * 255).to(torch.uint8)


@torch.no_grad()
def decode_tile(vae: Any, latent: Tensor) -> Tensor:
    """One tile: normalised latent [1, C, f, h, w] → [8f-7, h*32, w*32, 3] float32 in about -1..1, on the CPU."""
    slim(vae)
    latent = denormalize_video(vae, latent.to(vae.device, torch.float32))
    pixels = vae.decode(latent.to(vae.dtype), return_dict=False)[0]
    return rearrange(pixels, "1 c f h w -> f h w c").to("cpu", torch.float32)


class ResnetBlock(LTX2VideoResnetBlock3d):
    """diffusers' block to the same bits, with fewer tensors alive: its input, and what a convolution reads and gives.

    A sixth less at a tile's peak, which is in the last blocks. For blocks without noise, timesteps or a shortcut.
    """

    def forward(self, inputs: Tensor, temb: None = None, generator: None = None, causal: bool = True) -> Tensor:
        hidden = inputs
        for norm, convolution in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            hidden = F.silu(norm(hidden), inplace=True)
            hidden = _lengthened(hidden, convolution, causal)  # the convolution's own call would keep the shorter, too
            hidden = convolution.conv(hidden)
        return hidden.add_(inputs)


def _lengthened(x: Tensor, convolution: LTX2VideoCausalConv3d, causal: bool) -> Tensor:
    """[N, C, F, H, W] with its first frame, and unless causal its last one, repeated for the kernel's length."""
    extra = convolution.kernel_size[0] - 1
    before, after = (extra, 0) if causal else (extra // 2, extra // 2)
    return torch.cat((x[:, :, :1].expand(-1, -1, before, -1, -1), x, x[:, :, -1:].expand(-1, -1, after, -1, -1)), dim=2)


def slim(vae: Any) -> None:
    """Gives the VAE's plain blocks the forward of `ResnetBlock`. Doing it again changes nothing."""
    special = ("scale_shift_table", "per_channel_scale1", "norm3", "conv_shortcut")

    def plain(block: nn.Module) -> bool:
        own = all(getattr(block, name, None) is None for name in special)
        return own and isinstance(block.nonlinearity, nn.SiLU) and not block.training

    if isinstance(vae, nn.Module):
        give_classes(vae.modules(), {LTX2VideoResnetBlock3d: ResnetBlock}, plain)


def largest_tile(latent: tuple[int, int, int], tiling: Tiling | None) -> tuple[int, int, int]:
    """The grid of the largest tile that the decoder is given, for a latent of that grid."""
    return tuple(max(span.latents.stop - span.latents.start for span in axis) for axis in _spans(*latent, tiling))


def held_frames(latent: tuple[int, int, int], tiling: Tiling | None) -> int:
    """Whole float32 frames on the CPU while a tile is decoded: those of its time, those held from the one before, and
    the chunk that the reader has."""
    times = [span.samples for span in _spans(*latent, tiling)[0]]
    shared = max((left.stop - right.start for left, right in pairwise(times)), default=0)
    return max(span.stop - span.start for span in times) + shared + (CHUNK if len(times) > 1 else 0)


def _spans(
    frames: int, height: int, width: int, tiling: Tiling | None, start: int = 0, rising: Tensor | None = None
) -> tuple[list[_Span], ...]:
    """Tiles along time, height and width for a latent of that shape; in time from latent `start` on.

    rising: what the first frames there lack in weight, where they are decoded in part already.
    """
    if tiling is None:
        return _time_spans(frames, frames, 0), _space_spans(height, height, 0), _space_spans(width, width, 0)
    size, overlap = tiling.pixels // SPACE_SCALE, tiling.pixel_overlap // SPACE_SCALE
    sides = [
        _space_spans(side, max(2, overlap + 1, round(size * side / max(height, width))), overlap)
        for side in (height, width)
    ]
    length, shared = tiling.frames // TIME_SCALE, tiling.frame_overlap // TIME_SCALE
    return _time_spans(frames, length, shared, start, rising), *sides


def _space_spans(length: int, size: int, overlap: int) -> list[_Span]:
    cuts = _cut(length, size, overlap)
    samples = [slice(a * SPACE_SCALE, b * SPACE_SCALE) for a, b in cuts]
    weights = _weights(samples)
    return [_Span(slice(a, b), 0, s, w) for (a, b), s, w in zip(cuts, samples, weights, strict=True)]


def _time_spans(length: int, size: int, overlap: int, start: int = 0, rising: Tensor | None = None) -> list[_Span]:
    """As in space, but a tile inside the clip reads the latent before it and drops the one frame that comes of it."""
    cuts = [(start + a, start + b) for a, b in _cut(length - start, size, overlap)]
    samples = [slice(_frames(a), _frames(b)) for a, b in cuts]
    weights = _weights(samples)
    if rising is not None and len(rising):
        weights = [torch.ones(s.stop - s.start) if w is None else w for s, w in zip(samples, weights, strict=True)]
        for s, weight in zip(samples, weights, strict=True):
            shared = rising[s.start - samples[0].start :][: len(weight)]
            weight[: len(shared)] *= shared
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
