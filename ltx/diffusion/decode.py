"""Decodes video latents to pixels, in tiles, and yields the frames as they are finished.

All sizes take the same path: an axis that fits into a tile is one tile, so an untiled clip is a clip with one tile. The
decoder of 2.3 is not causal, and n latents give 8n - 7 frames, because the first latent of its input gives one frame
and not eight. A tile that starts inside the clip therefore starts one latent earlier, and its first frame is dropped.
Otherwise every later tile would be one frame late, as in diffusers' own framewise decoding.

If memory runs out, decoding continues with smaller tiles, from the time tile that did not fit. Frames that were yielded
already stay as they are; frames that both tilings share are blended as between any two tiles.

video.py writes files, and the caller decides on which device the VAE is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoCausalConv3d, LTX2VideoResnetBlock3d
from einops import rearrange
from torch import Tensor, nn

from ..classes import give_classes
from ..errors import InputError
from ..latents import SPACE_SCALE, TIME_SCALE, Noise, denormalize_video, frames_of

if TYPE_CHECKING:
    from .diffusion_decoder import DiffusionTiles

CHUNK = 8  # frames that are yielded at a time


@dataclass(frozen=True)
class Tiling:
    """Size and overlap of a tile in frames and in pixels. The defaults are those of ltx-pipelines 1.2.

    A spatial tile has the proportions of the frame, and its long side has `pixels`, as in ltx-core. Both sides are then
    cut about equally often, and no tile is larger than the given size. Raises InputError if a size or an overlap cannot
    be used.
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
        """A tiling with one tile for the whole latent [1, C, F, H, W]."""
        return cls()._sized(max(2, latent.shape[2]) * TIME_SCALE, max(2, *latent.shape[3:]) * SPACE_SCALE)

    def smaller(self, latent: Tensor) -> Tiling | None:
        """The next smaller tiling for that latent, None if there is no smaller one.

        It halves the pixels of the long side and the frames in turns. The overlap stays the same, but at most half a
        tile.
        """
        whole = Tiling.whole(latent)
        frames, pixels = min(self.frames, whole.frames), min(self.pixels, whole.pixels)  # a tile's real size
        can_shorten, can_narrow = frames > 2 * TIME_SCALE, pixels > 2 * SPACE_SCALE
        if can_narrow and (not can_shorten or pixels * Tiling.frames >= frames * Tiling.pixels):
            pixels = max(2, pixels // 2 // SPACE_SCALE) * SPACE_SCALE
        elif can_shorten:
            frames = max(2, frames // 2 // TIME_SCALE) * TIME_SCALE
        else:
            return None
        return self._sized(frames, pixels)

    def _sized(self, frames: int, pixels: int) -> Tiling:
        half = frames // 2 // TIME_SCALE * TIME_SCALE, pixels // 2 // SPACE_SCALE * SPACE_SCALE
        return Tiling(frames, min(self.frame_overlap, half[0]), pixels, min(self.pixel_overlap, half[1]))

    def __str__(self) -> str:
        return f"{self.pixels} px and {self.frames} frames"


@dataclass(frozen=True)
class _Span:
    """One tile along one axis. latents: the range that it reads; skip: decoded samples to drop at its start; samples:
    the range of frames or pixels that it writes, with their weight."""

    latents: slice
    skip: int
    samples: slice
    weight: Tensor | None  # float32 [samples]; the weights of all tiles add up to 1. None if there is one tile

    @property
    def own(self) -> slice:
        """The latents that the written samples stand for."""
        return slice(self.latents.start + self.skip, self.latents.stop)


def free_cached_memory() -> None:
    """Releases the memory that torch keeps in reserve on a GPU, so that tiles of another size fit."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def decode_video(
    vae: Any,
    latent: Tensor,
    tiling: Tiling | None = Tiling(),
    on_tile: Callable[[int, int], None] | None = None,
    *,
    noise: Noise | None = None,
    continued: bool = False,
    on_retry: Callable[[str], None] | None = None,
    free: Callable[[], None] = free_cached_memory,
) -> Iterator[Tensor]:
    """Normalised latent [1, 128, F, H, W] → float32 frames [n, H*32, W*32, 3] in 0..1, in order, on the CPU.

    A frame is yielded as soon as no later tile changes it, so memory holds the frames of one time tile and not the
    whole clip. With `tiling` None the whole clip is one tile. `vae`: see `clip_tiles`; the latent is moved to its
    device and dtype. `noise` is what a diffusion decoder starts from, by default that of seed 0; for `continued` see
    neighbourhood.py. Tiles are blended in float32 on the CPU, because the device then needs room for a single tile, and
    the frames' readers (video.py, ComfyUI's IMAGE) work on the CPU. `on_tile(done, total)` is called after each tile
    and may raise. If memory runs out, `free()` is called and the tiles get smaller; `on_retry(note)` gets a note for
    the report, which replaces the previous note. Raises InputError if the latent has another shape or if even the
    smallest tile does not fit.
    """
    if latent.ndim != 5 or latent.shape[0] != 1:
        raise InputError(f"The video latent must be [1, channels, frames, height, width], not {list(latent.shape)}.")
    tiles = clip_tiles(vae, latent, noise or Noise(0), continued)
    requested, tiling = tiling, tiling or Tiling.whole(latent)
    times, rows, columns = _spans(*latent.shape[2:], requested)
    height, width = rows[-1].samples.stop, columns[-1].samples.stop
    done, yielded = 0, 0  # decoded tiles; yielded frames
    held, held_weight = torch.zeros(0, height, width, 3), torch.zeros(0)  # the next frames, not final, and their weight

    def tile_done() -> None:
        nonlocal done
        done += 1
        if on_tile is not None:
            on_tile(done, total)

    while times:
        time, following = times[0], times[1] if times[1:] else None
        total = done + len(times) * len(rows) * len(columns)
        frames = _row_of_tiles(tiles, time, rows, columns, yielded, held, tile_done)
        if frames is None:
            free()
            tiling = _smaller(tiling, latent)
            if on_retry is not None:
                first = requested or Tiling.whole(latent)
                on_retry(f"decoded in tiles of {tiling}: {first.pixels} and {first.frames} did not fit")
            start = time.own.start
            times, rows, columns = _spans(*latent.shape[2:], tiling, start, 1 - held_weight)
            continue
        times = times[1:]
        count = (following.samples.start if following else time.samples.stop) - yielded
        weight = torch.zeros(len(frames))
        weight[: time.samples.stop - yielded] += 1 if time.weight is None else time.weight
        weight[: len(held_weight)] += held_weight
        held, held_weight = frames[count:].clone(), weight[count:]
        for chunk in frames[:count].split(CHUNK):
            yield chunk.add(1).div_(2).clamp_(0, 1)
        yielded += count
        del frames, chunk  # frees the memory before the next tile needs it


def _smaller(tiling: Tiling, latent: Tensor) -> Tiling:
    """The next smaller tiling. Raises InputError if there is none."""
    smaller = tiling.smaller(latent)
    if smaller is None:
        raise InputError(
            f"decode: there is not enough memory even for the smallest tile, {tiling}; close other programs that use "
            "memory, or ask for a smaller video."
        )
    return smaller


def out_of_memory(error: Exception) -> bool:
    """Whether the error means that memory ran out, on any device."""
    text = str(error).lower()
    in_words = any(words in text for words in ("out of memory", "not enough memory", "can't allocate memory"))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and in_words)


class ConvolutionTiles:
    """A clip on its way through the convolutional decoder. latent: normalised, [1, 128, F, H, W]."""

    def __init__(self, vae: Any, latent: Tensor) -> None:
        self.vae, self.latent = vae, latent

    def tile(self, time: slice, rows: slice, columns: slice) -> Tensor:
        """The frames that these latents stand for → float32 [f, h, w, 3], about -1..1, on the CPU."""
        early = int(time.start > 0)
        frames = decode_tile(self.vae, self.latent[:, :, time.start - early : time.stop, rows, columns])
        return frames[early:]


def diffuses(vae: Any) -> bool:
    """Whether a decoder is LTX-2.5's diffusion decoder."""
    return "decoder_stage5_kernel" in getattr(vae, "config", ())


def clip_tiles(vae: Any, latent: Tensor, noise: Noise, continued: bool = False) -> ConvolutionTiles | DiffusionTiles:
    """A clip on its way through its decoder, an AutoencoderKLLTX2Video or an LTX2VideoDiffusionDecoderModel."""
    if not diffuses(vae):
        return ConvolutionTiles(vae, latent)
    from .diffusion_decoder import DiffusionTiles  # older versions of diffusers do not have that decoder

    return DiffusionTiles(vae, latent, noise, continued)


def _row_of_tiles(
    tiles: ConvolutionTiles | DiffusionTiles,
    time: _Span,
    rows: list[_Span],
    columns: list[_Span],
    yielded: int,
    held: Tensor,
    tile_done: Callable[[], None],
) -> Tensor | None:
    """The frames from `yielded` to the end of one time tile, with the held ones added; None if memory ran out."""
    frames = None
    for row, column in product(rows, columns):
        try:
            if frames is None:
                frames = torch.zeros(max(time.samples.stop - yielded, len(held)), *held.shape[1:])
                frames[: len(held)] = held
            tile = tiles.tile(time.own, row.latents, column.latents)
            for axis, span in enumerate((time, row, column)):
                if span.weight is not None:
                    tile.mul_(span.weight.view(-1, *[1] * (3 - axis)))
            frames[: time.samples.stop - yielded, row.samples, column.samples] += tile
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None  # this also frees the tensors that the error's traceback holds
        del tile
        tile_done()
    return frames


def to_uint8(frames: Tensor) -> Tensor:
    """Float 0..1 → uint8: float × 255, truncated as in the official pipeline."""
    return (frames * 255).to(torch.uint8)


@torch.no_grad()
def decode_tile(vae: Any, latent: Tensor) -> Tensor:
    """Decodes one tile: normalised latent [1, C, f, h, w] → float32 [8f-7, h*32, w*32, 3], about -1..1, on the CPU."""
    slim(vae)
    latent = denormalize_video(vae, latent.to(vae.device, torch.float32))
    pixels = vae.decode(latent.to(vae.dtype), return_dict=False)[0]
    return rearrange(pixels, "1 c f h w -> f h w c").to("cpu", torch.float32)


class ResnetBlock(LTX2VideoResnetBlock3d):
    """diffusers' block with the same result, bit for bit, and fewer tensors in memory: its input, and the input and the
    output of one convolution.

    This saves a sixth of a tile's peak, which is in the last blocks. It fits blocks without noise, timesteps or
    shortcut.
    """

    def forward(self, inputs: Tensor, temb: None = None, generator: None = None, causal: bool = True) -> Tensor:
        hidden = inputs
        for norm, convolution in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            hidden = F.silu(norm(hidden), inplace=True)
            hidden = _lengthened(hidden, convolution, causal)  # the convolution's own call would also keep its input
            hidden = convolution.conv(hidden)
        return hidden.add_(inputs)


def _lengthened(x: Tensor, convolution: LTX2VideoCausalConv3d, causal: bool) -> Tensor:
    """Repeats the first frame of [N, C, F, H, W], and the last one if it is not causal, as the kernel's length
    needs."""
    extra = convolution.kernel_size[0] - 1
    before, after = (extra, 0) if causal else (extra // 2, extra // 2)
    return torch.cat((x[:, :, :1].expand(-1, -1, before, -1, -1), x, x[:, :, -1:].expand(-1, -1, after, -1, -1)), dim=2)


def slim(vae: Any) -> None:
    """Gives the VAE's plain blocks the forward of `ResnetBlock`. A second call changes nothing."""
    special = ("scale_shift_table", "per_channel_scale1", "norm3", "conv_shortcut")

    def plain(block: nn.Module) -> bool:
        own = all(getattr(block, name, None) is None for name in special)
        return own and isinstance(block.nonlinearity, nn.SiLU) and not block.training

    if isinstance(vae, nn.Module):
        give_classes(vae.modules(), {LTX2VideoResnetBlock3d: ResnetBlock}, plain)


def largest_tile(latent: tuple[int, int, int], tiling: Tiling | None) -> tuple[slice, slice, slice]:
    """The decoder's largest tile, for a latent with that grid: its part of time, height and width."""
    largest = (max(axis, key=lambda span: span.latents.stop - span.latents.start) for axis in _spans(*latent, tiling))
    return tuple(span.own for span in largest)


def held_frames(latent: tuple[int, int, int], tiling: Tiling | None) -> int:
    """Number of whole float32 frames on the CPU while a tile is decoded: the frames of its time tile, those held from
    the previous one, and the chunk that the reader has."""
    times = [span.samples for span in _spans(*latent, tiling)[0]]
    shared = max((one.stop - following.start for one, following in pairwise(times)), default=0)
    return max(span.stop - span.start for span in times) + shared + (CHUNK if len(times) > 1 else 0)


def _spans(
    frames: int, height: int, width: int, tiling: Tiling | None, start: int = 0, missing: Tensor | None = None
) -> tuple[list[_Span], ...]:
    """Tiles along time, height and width for a latent of that shape; in time they begin at latent `start`.

    missing: the weights that the first frames still need, if an earlier tiling has decoded them in part.
    """
    if tiling is None:
        return _time_spans(frames, frames, 0), _space_spans(height, height, 0), _space_spans(width, width, 0)
    size, overlap = tiling.pixels // SPACE_SCALE, tiling.pixel_overlap // SPACE_SCALE
    sides = [
        _space_spans(side, max(2, overlap + 1, round(size * side / max(height, width))), overlap)
        for side in (height, width)
    ]
    length, shared = tiling.frames // TIME_SCALE, tiling.frame_overlap // TIME_SCALE
    return _time_spans(frames, length, shared, start, missing), *sides


def _space_spans(length: int, size: int, overlap: int) -> list[_Span]:
    cuts = _cut(length, size, overlap)
    samples = [slice(a * SPACE_SCALE, b * SPACE_SCALE) for a, b in cuts]
    weights = _weights(samples)
    return [_Span(slice(a, b), 0, s, w) for (a, b), s, w in zip(cuts, samples, weights, strict=True)]


def _time_spans(length: int, size: int, overlap: int, start: int = 0, missing: Tensor | None = None) -> list[_Span]:
    """As in space, but a tile inside the clip also reads the latent before it and drops the frame of that latent."""
    cuts = [(start + a, start + b) for a, b in _cut(length - start, size, overlap)]
    samples = [slice(frames_of(a), frames_of(b)) for a, b in cuts]
    weights = _weights(samples)
    if missing is not None and len(missing):
        weights = [torch.ones(s.stop - s.start) if w is None else w for s, w in zip(samples, weights, strict=True)]
        for s, weight in zip(samples, weights, strict=True):
            shared = missing[s.start - samples[0].start :][: len(weight)]
            weight[: len(shared)] *= shared
    return [
        _Span(slice(max(0, a - 1), b), int(a > 0), s, w) for (a, b), s, w in zip(cuts, samples, weights, strict=True)
    ]


def _cut(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Cuts [0, length) into pieces of `size` that overlap by `overlap`; the last piece may be shorter."""
    if length <= size:
        return [(0, length)]
    stride = size - overlap
    count = math.ceil((length - overlap) / stride)
    return [(i * stride, min(i * stride + size, length)) for i in range(count)]


def _weights(samples: list[slice]) -> list[Tensor] | list[None]:
    """Weights of the tiles along one axis: 1 where there is one tile, a linear ramp where two overlap. They add up to
    1.

    A linear ramp was best when measured. Smoother ramps give less weight to the samples next to a cut, but their RMS
    error is 2 to 4 % larger: the errors of two tiles are independent, and an even mix averages them.
    """
    if len(samples) == 1:
        return [None]
    weights = [torch.ones(s.stop - s.start) for s in samples]
    for (one, following), (falling, rising) in zip(pairwise(samples), pairwise(weights), strict=True):
        overlap = one.stop - following.start
        ramp = torch.arange(1, overlap + 1) / (overlap + 1)
        falling[len(falling) - overlap :] *= 1 - ramp
        rising[:overlap] *= ramp
    # The sum is 1 already, except where an overlap is more than half a tile and three tiles meet.
    total = torch.zeros(samples[-1].stop)
    for s, weight in zip(samples, weights, strict=True):
        total[s] += weight
    return [weight / total[s] for s, weight in zip(samples, weights, strict=True)]
