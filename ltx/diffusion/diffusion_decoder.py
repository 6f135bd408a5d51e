"""The diffusion decoder of LTX-2.5: one tile of a clip at a time, for decode.py to blend and stream.

Stages 1 to 3 have a few positions for a latent, and run over whole frames: over the whole clip if it is short, else
over the latents of a tile and all that can reach them, so that a tile does not depend on where it was cut. Stages 4
and 5 have a position for every few pixels, and run on the tile alone, as in the official code and in diffusers. Stage 5
starts from noise; with the published weights its one prediction is the picture.

The windows of attention move inwards at the end of a clip. The official code keeps that away from the last frames: the
last latent is repeated for stages 1 to 4, and what comes of it is dropped. A clip smaller than a window is enlarged by
copies of its edges, and the result cut out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoDiffusionDecoderModel
from einops import rearrange
from torch import Tensor

from ..grid import SPACE_SCALE, frames_of
from ..latents import Noise, check_finite, denormalize_video
from .neighbourhood import adopt

DEEP = 3  # stages that run over whole frames


@dataclass(frozen=True)
class Side:
    """One axis of a clip's latents: how many there are, and how many copies of the edge stand before and after them."""

    length: int
    before: int = 0
    after: int = 0

    @property
    def total(self) -> int:
        return self.before + self.length + self.after

    def stretch(self, part: slice) -> slice:
        """The same part with the copies: those at an edge belong to what touches it."""
        start = part.start + self.before if part.start else 0
        stop = self.total if part.stop == self.length else part.stop + self.before
        return slice(start, stop)


class DiffusionTiles:
    """A clip on its way through the diffusion decoder.

    latent: normalised, [1, 128, F, H, W]; it stays where it is, and only what a tile needs is moved to the model's
    device. noise: what stage 5 starts from, one draw a tile in the order of the calls. continued: see
    `neighbourhood.Layer`. Errors: InputError for values that are no numbers.
    """

    def __init__(
        self, model: LTX2VideoDiffusionDecoderModel, latent: Tensor, noise: Noise, continued: bool = False
    ) -> None:
        adopt(model)
        self.model, self.net, self.noise = model, model.decoder, noise
        for block in self.net.diff_blocks:
            block.attn.continued = continued
        self.strides = [upsample.stride for upsample in self.net.upsamples]
        self.kernels = [blocks[0].attn.kernel_size for blocks in (*self.net.det_stages, self.net.diff_blocks)]
        self.time, self.height, self.width = self._sides(latent.shape[2:])
        check_finite(latent)
        self.latent = latent
        self._deep: tuple[int, int, Tensor] | None = None  # stage 3's result, and the latents that it is of
        self._canvas: Tensor | None = None

    def _sides(self, shape: torch.Size) -> tuple[Side, Side, Side]:
        """Enlarged to what the window of every stage needs: time at its end, height and width at both ends."""
        need = []
        for axis in range(3):
            rates = [math.prod(stride[axis] for stride in self.strides[:stage]) for stage in range(len(self.kernels))]
            least = max(-(-kernel[axis] // rate) for kernel, rate in zip(self.kernels, rates, strict=True))
            need.append(max(0, least - shape[axis]))
        frames, *sides = shape
        return Side(frames, 0, need[0]), *(Side(s, n // 2, n - n // 2) for s, n in zip(sides, need[1:], strict=True))

    @torch.no_grad()
    def tile(self, time: slice, rows: slice, columns: slice) -> Tensor:
        """The frames that these latents stand for → float32 [f, h, w, 3] in about -1..1, on the CPU.

        They are those of the clip as a whole: a tile inside it has eight frames a latent from its first one on.
        """
        wide = self.time.stretch(time), self.height.stretch(rows), self.width.stretch(columns)
        context = self._context(*wide)
        frames = frames_of(time.stop) - frames_of(time.start)
        if wide[0].stop == self.time.total:  # what the repeated last latent made is dropped; stage 5 wants its window
            kept = frames_of(wide[0].stop) - frames_of(wide[0].start)
            context = context[:, : max(kept, self.kernels[-1][0])]
        shape = [1, self.net.out_channels, context.shape[1], *(n * self.net.patch_size for n in context.shape[2:4])]
        start = self._start(shape, wide).to(context.device, context.dtype)
        pixels = self.net.denoise(context, start, self.net.default_num_inference_steps)
        top, left = (
            (part.start + side.before - stretched.start) * SPACE_SCALE
            for part, side, stretched in zip((rows, columns), (self.height, self.width), wide[1:], strict=True)
        )
        height, width = ((part.stop - part.start) * SPACE_SCALE for part in (rows, columns))
        pixels = pixels[0, :, :frames, top : top + height, left : left + width]
        return rearrange(pixels, "c f h w -> f h w c").to("cpu", torch.float32)

    def _context(self, time: slice, rows: slice, columns: slice) -> Tensor:
        """What stage 5 is conditioned on for these latents, [1, frames, h, w, C], with what follows the last latent."""
        first, deep = self._around(time)
        rate = math.prod(stride[0] for stride in self.strides[: DEEP - 1])
        shift = rate * first
        start = frames_of(time.start, rate) - shift if time.start else 0
        stop = None if time.stop == self.time.total else frames_of(time.stop, rate) - shift
        parts = [slice(None), slice(start, stop)]
        for axis, part in enumerate((rows, columns), start=1):
            scale = math.prod(stride[axis] for stride in self.strides[: DEEP - 1])
            parts.append(slice(part.start * scale, part.stop * scale))
        features = self.net.upsamples[DEEP - 1](deep[tuple(parts)], drop_leading_frame=time.start == 0)
        return self.net.forward_stage_4(features, drop_leading_frame=time.start == 0, crop_trailing_ghost=False)

    def _around(self, time: slice) -> tuple[int, Tensor]:
        """Stage 3's result for these latents and for all that they depend on, and the first latent that it is of."""
        total, reach = self.time.total, self._reach()
        first, last = max(0, time.start - reach), min(total, time.stop + reach)
        if total <= time.stop - time.start + 2 * reach:
            first, last = 0, total
        if self._deep is None or not (self._deep[0] <= first and last <= self._deep[1]):
            self._deep = None  # before the next one needs the room
            self._deep = first, last, self._run_deep(first, last)
        return self._deep[0], self._deep[2]

    def _run_deep(self, first: int, last: int) -> Tensor:
        """Stages 1 to 3, without the last upsampling, over these latents: [1, frames, h, w, C]."""
        latent = self._raw(first, last)
        if last == self.time.total:
            ghosts = latent[:, :, -1:].expand(-1, -1, self.net.trailing_pad_latent_frames, -1, -1)
            latent = torch.cat((latent, ghosts), dim=2)
        hidden = self.net.conv_in(rearrange(latent, "b c f h w -> b f h w c"))
        for number, blocks in enumerate(self.net.det_stages[:DEEP]):
            if number:
                hidden = self.net.upsamples[number - 1](hidden)
            for block in blocks:
                hidden = block(hidden)
        return hidden

    def _raw(self, first: int, last: int) -> Tensor:
        """These latents of the enlarged clip in the VAE's own space, on the model's device in its dtype."""
        places = [_continued(side, self.latent.device) for side in (self.time, self.height, self.width)]
        latent = self.latent.index_select(2, places[0][first:last]).to(self.model.device, torch.float32)
        latent = denormalize_video(self.model, latent)
        for axis, place in enumerate(places[1:], start=3):
            latent = latent.index_select(axis, place.to(latent.device))
        return latent.to(self.model.dtype)

    def _reach(self) -> int:
        """How many latents away a latent still acts on stage 3's result."""
        reach, rate = 0.0, 1
        for number, blocks in enumerate(self.net.det_stages[:DEEP]):
            reach += len(blocks) * (self.kernels[number][0] // 2) / rate
            rate *= self.strides[number][0]
        return math.ceil(reach) + 1  # and what upsampling makes of the first latent of a window

    def _start(self, shape: list[int], wide: tuple[slice, slice, slice]) -> Tensor:
        """The noise that stage 5 begins with: the tile's own, or where it takes several steps a part of the clip's."""
        if self.net.default_num_inference_steps == 1 and self.net.model_output_type == "x0":
            (drawn,), self.noise = self.noise.draw(tuple(shape))
            return drawn
        if self._canvas is None:
            sides = (side.total * SPACE_SCALE for side in (self.height, self.width))
            whole = (1, self.net.out_channels, frames_of(self.time.total), *sides)
            (self._canvas,), self.noise = self.noise.draw(whole)
        time, rows, columns = wide
        part = self._canvas[
            :,
            :,
            frames_of(time.start) : frames_of(time.stop),
            rows.start * SPACE_SCALE : rows.stop * SPACE_SCALE,
            columns.start * SPACE_SCALE : columns.stop * SPACE_SCALE,
        ]
        if part.shape[2] < shape[2]:
            part = torch.cat((part, part[:, :, -1:].expand(-1, -1, shape[2] - part.shape[2], -1, -1)), dim=2)
        return part


def _continued(side: Side, device: torch.device) -> Tensor:
    """Which latent stands where: the first and the last one, repeated."""
    return torch.arange(-side.before, side.length + side.after, device=device).clamp(0, side.length - 1)
