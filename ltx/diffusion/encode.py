"""Encodes pixels to video latents: one image, or a clip of any length, some frames at a time.

The encoder is causal: a frame depends on no later one. So a clip goes through it in chunks, and each convolution keeps
the last frames of its input for the next chunk. The result is that of the whole clip at once, and memory does not grow
with the clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from ..grid import TIME_SCALE
from ..latents import normalize_video


def encode_image(vae: Any, pixels: Tensor) -> Tensor:
    """Pixels [1, 3, 1, h·32, w·32] in -1..1 → normalised latent, float32 [1, 128, 1, h, w]."""
    return normalize_video(vae, vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode())


@torch.no_grad()
def encode_video(vae: Any, pixels: Iterable[Tensor]) -> Tensor:
    """Pixels of a clip → normalised latent, float32 [1, 128, k+1, h, w] on the CPU.

    pixels: pieces [1, 3, n, h·32, w·32] in -1..1 with any number of frames each, 8k+1 together. vae: an
    AutoencoderKLLTX2Video. Raises ValueError if the frames are not 8k+1.
    """
    encoder = CausalEncoder(vae.encoder)
    found = [normalize_video(vae, encoder(chunk.to(vae.device, vae.dtype))).cpu() for chunk in _chunks(pixels)]
    if not found:
        raise ValueError("a clip has at least one frame")
    return torch.cat(found, dim=2)


def _chunks(pixels: Iterable[Tensor]) -> Iterator[Tensor]:
    """Cuts the frames anew: one frame, then TIME_SCALE at a time, the frames of one latent each."""
    wanted, held = 1, []
    for piece in pixels:
        rest = piece
        while rest.shape[2]:
            taken = rest[:, :, : wanted - sum(each.shape[2] for each in held)]
            held.append(taken)
            rest = rest[:, :, taken.shape[2] :]
            if sum(each.shape[2] for each in held) == wanted:
                yield torch.cat(held, dim=2)
                wanted, held = TIME_SCALE, []
    if held:
        raise ValueError("the frames of a clip are one more than a multiple of 8")


class CausalEncoder:
    """The encoder of a video VAE, diffusers' LTX2VideoEncoder3d, for the chunks of one clip in their order.

    The first chunk has 8a+1 frames and each later one 8a. Its modules stay unchanged: what a convolution keeps is here.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.past: dict[Any, Tensor] = {}  # convolution → the last frames of its input
        self.begun = False

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels [1, 3, f, h·32, w·32] → the mean of the latents, not normalised [1, 128, f', h, w]."""
        encoder = self.encoder
        size = encoder.patch_size
        x = rearrange(pixels, "b c f (h p) (w q) -> b (c q p) f h w", p=size, q=size)
        x = self._convolve(encoder.conv_in, x)
        for block in encoder.down_blocks:
            for resnet in block.resnets:
                x = self._resnet(resnet, x)
            for downsampler in block.downsamplers or ():
                x = self._downsample(downsampler, x)
        for resnet in encoder.mid_block.resnets:
            x = self._resnet(resnet, x)
        x = self._convolve(encoder.conv_out, F.silu(encoder.norm_out(x), inplace=True))
        self.begun = True
        return x[:, :-1]  # the last channel is the variance

    def _convolve(self, convolution: Any, x: Tensor) -> Tensor:
        """A causal convolution, whose first input is repeated before the clip's beginning."""
        kept = convolution.kernel_size[0] - 1
        before = self.past.get(convolution)
        if before is None:
            before = x[:, :, :1].expand(-1, -1, kept, -1, -1)
        x = torch.cat([before, x], dim=2)
        self.past[convolution] = x[:, :, -kept:].clone()
        return convolution.conv(x)

    def _resnet(self, block: Any, x: Tensor) -> Tensor:
        hidden = x
        for norm, convolution in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
            hidden = self._convolve(convolution, F.silu(norm(hidden), inplace=True))
        return hidden.add_(x)

    def _downsample(self, block: Any, x: Tensor) -> Tensor:
        """Moves neighbours into channels, and adds the mean of such groups of the input."""
        time, height, width = block.stride
        if not self.begun:
            x = torch.cat([x[:, :, : time - 1], x], dim=2)

        def folded(y: Tensor) -> Tensor:
            return rearrange(y, "b c (f t) (h p) (w q) -> b (c t p q) f h w", t=time, p=height, q=width)

        mean = reduce(folded(x), "b (c g) f h w -> b c f h w", "mean", g=block.group_size)
        return folded(self._convolve(block.conv, x)).add_(mean)
