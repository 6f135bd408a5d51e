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
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoCausalConv3d, LTX2VideoResnetBlock3d
from einops import rearrange
from torch import Tensor, nn

from ..classes import give_classes
from ..devices import free_cached_memory
from ..errors import InputError, out_of_memory
from ..latents import Noise, denormalize_video
from ..weights.finite import check_decoded
from .tiling import CHUNK, USUAL, Span, Tiling, in_words, spans, volume

if TYPE_CHECKING:
    from .diffusion_decoder import DiffusionTiles


def decode_video(
    vae: Any,
    latent: Tensor,
    tiling: Tiling | None = USUAL,
    on_tile: Callable[[int, int], None] | None = None,
    *,
    noise: Noise | None = None,
    continued: bool = False,
    on_retry: Callable[[str], None] | None = None,
    on_tiles: Callable[[str], None] | None = None,
    free: Callable[[], None] = free_cached_memory,
) -> Iterator[Tensor]:
    """Normalised latent [1, 128, F, H, W] → float32 frames [n, H*32, W*32, 3] in 0..1, in order, on the CPU.

    A frame is yielded as soon as no later tile changes it, so memory holds the frames of one time tile and not the
    whole clip. With `tiling` None the whole clip is one tile. `vae`: see `clip_tiles`; the latent is moved to its
    device and dtype. `noise` is what a diffusion decoder starts from, by default that of seed 0; for `continued` see
    neighbourhood.py. Tiles are blended in float32 on the CPU, because the device then needs room for a single tile, and
    the frames' readers (video.py, ComfyUI's IMAGE) work on the CPU. `on_tile(done, total)` is called after each tile
    and may raise. If memory runs out, `free()` is called and the tiles get smaller; `on_retry(note)` gets a note for
    the report, which replaces the previous note. `on_tiles(sentence)` gets the tiles in words for the report, and again
    if they get smaller. Raises InputError if the latent has another shape, if even the smallest tile does not fit
    or if a value is NaN or infinite, and ValueError for an open tiling.
    """
    if latent.ndim != 5 or latent.shape[0] != 1:
        raise InputError(f"The video latent must be [1, channels, frames, height, width], not {list(latent.shape)}.")
    tiles = clip_tiles(vae, latent, noise or Noise(0), continued)
    grid, requested, tiling = tuple(latent.shape[2:]), tiling, tiling or Tiling.whole(latent)
    times, rows, columns = spans(grid, requested)
    height, width = rows[-1].samples.stop, columns[-1].samples.stop
    yielded, tally = 0, _Tally(grid, on_tile, on_tiles)
    tally.plan(tiling, times, rows, columns)
    held, held_weight = torch.zeros(0, height, width, 3), torch.zeros(0)  # the next frames, not final, and their weight

    while times:
        time, following = times[0], times[1] if times[1:] else None
        frames = _row_of_tiles(tiles, time, rows, columns, yielded, held, tally.tile_done)
        if frames is None:
            free()
            tiling = _smaller(tiling, latent)
            if on_retry is not None:
                first = requested or Tiling.whole(latent)
                on_retry(f"decoded in tiles of {tiling}: {first.pixels} and {first.frames} did not fit")
            times, rows, columns = spans(grid, tiling, time.own.start, 1 - held_weight)
            tally.plan(tiling, times, rows, columns)
            continue
        times = times[1:]
        count = (following.samples.start if following else time.samples.stop) - yielded
        weight = torch.zeros(len(frames))
        weight[: time.samples.stop - yielded] += 1 if time.weight is None else time.weight
        weight[: len(held_weight)] += held_weight
        held, held_weight = frames[count:].clone(), weight[count:]
        for chunk in frames[:count].split(CHUNK):
            check_decoded(chunk, "the video VAE")
            yield chunk.add(1).div_(2).clamp_(0, 1)
        yielded += count
        del frames, chunk  # frees the memory before the next tile needs it


class _Tally:
    """Counts the tiles of a clip that are decoded, and tells them. latent: the clip's grid; on_tile, on_tiles: as in
    `decode_video`."""

    def __init__(
        self,
        latent: tuple[int, int, int],
        on_tile: Callable[[int, int], None] | None,
        on_tiles: Callable[[str], None] | None,
    ) -> None:
        self.latent, self.on_tile, self.on_tiles = latent, on_tile, on_tiles
        self.done, self.total = 0, 0
        self.written = 0  # pixels of all frames that the decoded tiles wrote
        self.first: Tiling | None = None  # the tiling of the first tile that was decoded

    def plan(self, tiling: Tiling, *axes: list[Span]) -> None:
        """Counts the tiles that are still to be decoded. axes: their spans in time, height and width."""
        self.first = self.first if self.done and self.first is not None else tiling
        self.total = self.done + math.prod(map(len, axes))
        if self.on_tiles is not None:
            self.on_tiles(in_words(self.latent, self.first, self.total, self.written + volume(*axes)))

    def tile_done(self, *tile: Span) -> None:
        """Counts a tile. tile: its spans in time, height and width."""
        self.done += 1
        self.written += volume(*([span] for span in tile))
        if self.on_tile is not None:
            self.on_tile(self.done, self.total)


def _smaller(tiling: Tiling, latent: Tensor) -> Tiling:
    """The next smaller tiling. Raises InputError if there is none."""
    smaller = tiling.smaller(latent)
    if smaller is None:
        raise InputError(
            f"decode: there is not enough memory even for the smallest tile, {tiling}; close other programs that use "
            "memory, or ask for a smaller video."
        )
    return smaller


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
    """A clip on its way through its decoder, an AutoencoderKLLTX2Video or an LTX2VideoDiffusionDecoderModel. latent:
    normalised, [1, 128, F, H, W]; noise, continued: for the diffusion decoder."""
    if not diffuses(vae):
        return ConvolutionTiles(vae, latent)
    from .diffusion_decoder import DiffusionTiles  # older versions of diffusers do not have that decoder

    return DiffusionTiles(vae, latent, noise, continued)


def _row_of_tiles(
    tiles: ConvolutionTiles | DiffusionTiles,
    time: Span,
    rows: list[Span],
    columns: list[Span],
    yielded: int,
    held: Tensor,
    tile_done: Callable[[Span, Span, Span], None],
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
        tile_done(time, row, column)
    return frames


def to_uint8(frames: Tensor) -> Tensor:
    """Float 0..1 of any shape → uint8: float × 255, truncated as in the official pipeline."""
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
