"""Latent space: tokens, positions, statistics, and the stream of noise that a seed defines.

Video latents are [1, 128, F, H, W] on a grid of 8 × 32 × 32 pixels, audio latents [1, 8, T, 16] at 25 Hz. The
transformer sees both as tokens [1, N, 128].
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from .errors import InputError
from .grid import AUDIO_BINS, MEL_FRAMES_PER_LATENT, MEL_HOP, MEL_RATE, SPACE_SCALE, TIME_SCALE, frames_of

REFERENCE_GAP = (
    0.04  # seconds between the end of a reference's sound and the clip: one latent, as IC-LoRAs were trained
)


def pixel_frames(latent: Tensor) -> int:
    """Number of frames to which a video latent [1, 128, F, H, W] decodes."""
    return frames_of(latent.shape[2])


def pixel_size(latent: Tensor) -> tuple[int, int]:
    """Height and width to which a video latent [1, 128, F, H, W] decodes."""
    return latent.shape[3] * SPACE_SCALE, latent.shape[4] * SPACE_SCALE


def patchify_video(latent: Tensor) -> Tensor:
    """Latent [1, 128, F, H, W] → tokens [1, F·H·W, 128]."""
    return rearrange(latent, "b c f h w -> b (f h w) c")


def unpatchify_video(tokens: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Tokens [1, F·H·W, 128] → latent [1, 128, F, H, W]. shape: (F, H, W)."""
    f, h, w = shape
    return rearrange(tokens, "b (f h w) c -> b c f h w", f=f, h=h, w=w)


def patchify_audio(latent: Tensor) -> Tensor:
    """Latent [1, 8, T, 16] → tokens [1, T, 128]."""
    return rearrange(latent, "b c t m -> b t (c m)")


def unpatchify_audio(tokens: Tensor) -> Tensor:
    """Tokens [1, T, 128] → latent [1, 8, T, 16]."""
    return rearrange(tokens, "b t (c m) -> b c t m", m=AUDIO_BINS)


def video_positions(shape: tuple[int, int, int], fps: Fraction, frame: int = 0) -> Tensor:
    """The range [start, end) of each token: seconds, pixels from the top, pixels from the left → float32 [1, 3, N, 2].

    In a grid at frame 0 the first latent covers one frame and each later one eight frames. A grid at another `frame` is
    a keyframe: one latent that covers one frame.
    """
    f, h, w = shape
    starts = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (f, h, w)), indexing="ij")).flatten(1)
    scale = torch.tensor([TIME_SCALE, SPACE_SCALE, SPACE_SCALE])[:, None, None]
    spans = torch.stack([starts, starts + 1], dim=-1) * scale
    spans[0] = (spans[0] + 1 - TIME_SCALE).clamp(min=0)
    if frame:
        spans[0] += frame
    spans = spans.float()
    spans[0] = spans[0] / float(fps)
    return spans[None]


def reference_positions(shape: tuple[int, int, int], fps: Fraction, downscale: int, stride: int) -> Tensor:
    """The same of a reference video in the clip that it stands beside → float32 [1, 3, N, 2].

    Its pixels are `downscale` times as large as the clip's, and each of its frames but the first lasts as long as
    `stride` of the clip's frames, so that both end together.
    """
    spans = video_positions(shape, Fraction(1))
    spans[:, 0] = spans[:, 0] / (float(fps) / stride)
    if stride > 1:
        spans[:, 0] = (spans[:, 0] - (stride - 1) * torch.tensor(1.0).div(float(fps))).clamp(min=0)
    spans[:, 1:] *= downscale
    return spans


def audio_positions(length: int) -> Tensor:
    """The range [start, end) of each audio token in seconds → float32 [1, 1, T, 2]."""
    edges = (torch.arange(length + 1) * MEL_FRAMES_PER_LATENT + 1 - MEL_FRAMES_PER_LATENT).clamp(min=0)
    seconds = edges.float() * MEL_HOP / MEL_RATE
    return torch.stack([seconds[:-1], seconds[1:]], dim=-1)[None, None]


def audio_reference_positions(length: int) -> Tensor:
    """The same of a sound that the model hears as an example: it ends REFERENCE_GAP before the clip begins."""
    spans = audio_positions(length)
    return spans - spans.max() - REFERENCE_GAP


def statistics(vae: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel, float32 [1, C, 1, 1, 1], on the device of `like`."""
    return tuple(
        s.to(like.device, torch.float32)[None, :, None, None, None] for s in (vae.latents_mean, vae.latents_std)
    )


def normalize_video(vae: nn.Module, latent: Tensor) -> Tensor:
    """Latent [1, 128, F, H, W] in the VAE's own space → model space, float32."""
    mean, std = statistics(vae, latent)
    return (latent.float() - mean) / std


def check_finite(latent: Tensor) -> None:
    """Raises InputError if a value is NaN or infinite, because it would give a black picture."""
    if not latent.isfinite().all():
        raise InputError(
            "the latent has NaN or infinite values: the checkpoint or a LoRA is damaged or not made for this dtype; "
            "download it again, or load the model in bfloat16 or float32."
        )


def denormalize_video(vae: nn.Module, latent: Tensor) -> Tensor:
    """Latent [1, 128, F, H, W] in model space → the VAE's own space, float32. Raises InputError as `check_finite`."""
    check_finite(latent)
    mean, std = statistics(vae, latent)
    return latent.float() * std + mean


class NoiseSource(Protocol):
    """What a stage draws its noise from. seed: the number from which restart and res_2s derive their own noise."""

    @property
    def seed(self) -> int: ...

    def draw(self, *shapes: tuple[int, ...]) -> tuple[list[Tensor], NoiseSource]:
        """Draws one float32 CPU tensor for each shape. Returns them and the source for the next stage."""


@dataclass(frozen=True)
class Noise:
    """A stream of Gaussian noise. Both stages draw from one stream: the second continues where the first ended."""

    seed: int
    state: Tensor | None = None

    def draw(self, *shapes: tuple[int, ...]) -> tuple[list[Tensor], Noise]:
        """Draws one float32 CPU tensor for each shape. Returns them and the rest of the stream."""
        generator = torch.Generator("cpu")
        if self.state is None:
            generator.manual_seed(self.seed % 2**64)
        else:
            generator.set_state(self.state)
        drawn = [torch.randn(shape, generator=generator) for shape in shapes]
        return drawn, Noise(self.seed, generator.get_state())
