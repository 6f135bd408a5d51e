"""Latent space: grid sizes, tokens, positions, statistics, and the one stream of noise behind a seed.

Video latents are [1, 128, F, H, W] on a grid of 8 × 32 × 32 pixels, audio latents [1, 8, T, 16] at 25 Hz. The
transformer sees both as tokens [1, N, 128].
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from einops import rearrange
from torch import Tensor, nn

from .errors import InputError

TIME_SCALE = 8
SPACE_SCALE = 32
CHANNELS = 128
AUDIO_RATE = 25
AUDIO_CHANNELS = 8
AUDIO_BINS = 16
# One latent of audio covers four mel frames of 10 ms, and the first of them only one: the encoder is causal.
MEL_FRAMES_PER_LATENT = 4
MEL_HOP, MEL_RATE = 160, 16000


def video_shape(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Frames and pixels → latent grid (F, H, W). Errors: frames not 8k+1, sides not multiples of 32."""
    if frames < 1 or (frames - 1) % TIME_SCALE:
        raise InputError(f"num_frames: {frames} is not one more than a multiple of {TIME_SCALE}.")
    for name, side in (("height", height), ("width", width)):
        if side < SPACE_SCALE or side % SPACE_SCALE:
            raise InputError(f"{name}: {side} is not a multiple of {SPACE_SCALE}.")
    return (frames - 1) // TIME_SCALE + 1, height // SPACE_SCALE, width // SPACE_SCALE


def pixel_frames(latent: Tensor) -> int:
    """Frames that a video latent [1, 128, F, H, W] decodes to."""
    return (latent.shape[2] - 1) * TIME_SCALE + 1


def audio_length(frames: int, fps: Fraction) -> int:
    """Audio latents beside `frames` of video."""
    return round(float(frames / fps) * AUDIO_RATE)


def patchify_video(latent: Tensor) -> Tensor:
    return rearrange(latent, "b c f h w -> b (f h w) c")


def unpatchify_video(tokens: Tensor, shape: tuple[int, int, int]) -> Tensor:
    f, h, w = shape
    return rearrange(tokens, "b (f h w) c -> b c f h w", f=f, h=h, w=w)


def patchify_audio(latent: Tensor) -> Tensor:
    return rearrange(latent, "b c t m -> b t (c m)")


def unpatchify_audio(tokens: Tensor) -> Tensor:
    return rearrange(tokens, "b t (c m) -> b c t m", m=AUDIO_BINS)


def video_positions(shape: tuple[int, int, int], fps: Fraction, frame: int = 0) -> Tensor:
    """[start, end) of each token: seconds, then pixels down and across → float32 [1, 3, N, 2].

    The first latent of a grid at frame 0 stands for one frame, each later one for eight. A grid at another `frame` is a
    keyframe: one latent that lasts one frame.
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


def audio_positions(length: int) -> Tensor:
    """[start, end) of each audio token in seconds → float32 [1, 1, T, 2]."""
    edges = (torch.arange(length + 1) * MEL_FRAMES_PER_LATENT + 1 - MEL_FRAMES_PER_LATENT).clamp(min=0)
    seconds = edges.float() * MEL_HOP / MEL_RATE
    return torch.stack([seconds[:-1], seconds[1:]], dim=-1)[None, None]


def statistics(vae: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each latent channel, shaped for [1, C, F, H, W], in float32."""
    return tuple(
        s.to(like.device, torch.float32)[None, :, None, None, None] for s in (vae.latents_mean, vae.latents_std)
    )


def normalize_video(vae: nn.Module, latent: Tensor) -> Tensor:
    """The VAE's own space → model space, float32."""
    mean, std = statistics(vae, latent)
    return (latent.float() - mean) / std


def denormalize_video(vae: nn.Module, latent: Tensor) -> Tensor:
    """Model space → the VAE's own space, float32. Errors: NaN or infinite values, which would be a black picture."""
    if not latent.isfinite().all():
        raise InputError(
            "the latent holds values that are no numbers (NaN or infinite): the checkpoint or a LoRA is damaged or not "
            "made for this dtype; download it again, or load the model in bfloat16 or float32."
        )
    mean, std = statistics(vae, latent)
    return latent.float() * std + mean


@dataclass(frozen=True)
class Noise:
    """The stream of Gaussian noise that a seed names. Both passes draw from one stream, so the state travels."""

    seed: int
    state: Tensor | None = None

    def draw(self, *shapes: tuple[int, ...]) -> tuple[list[Tensor], Noise]:
        """One float32 CPU tensor a shape, and the stream behind them."""
        generator = torch.Generator("cpu")
        if self.state is None:
            generator.manual_seed(self.seed % 2**64)
        else:
            generator.set_state(self.state)
        drawn = [torch.randn(shape, generator=generator) for shape in shapes]
        return drawn, Noise(self.seed, generator.get_state())
