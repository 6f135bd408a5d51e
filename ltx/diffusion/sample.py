"""Samples one stage: from noise, or from the latent of the previous stage, down the sigmas to a video latent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..grid import CHANNELS
from ..latents import NoiseSource, unpatchify_audio, unpatchify_video
from ..trace import Trace
from .ancestral import euler_ancestral
from .conditioning import AudioCondition, Conditions, Stream
from .denoiser import GuidedDenoiser
from .passes import batch_room
from .res_2s import res_2s
from .samplers import UNWATCHED, Hooks, euler, gradient_estimation, restarting
from .steering import ANCESTRAL, RES_2S, Steering
from .tokens import FreshNoise, Tokens

RESTART_SEED = 10_000  # the seed of noise that is renewed in a stage is the request's seed plus this number
WINDOW_SEED = 1_000_003  # and plus this number for each window before, so that windows do not repeat one pattern


@torch.inference_mode()
def sample(
    model: nn.Module,
    latent: Tensor,
    conditions: Conditions,
    steering: Steering,
    noise: NoiseSource,
    *,
    device: torch.device | str | None = None,
    room: float | None = None,
    texts: float | None = None,
    hooks: Hooks = UNWATCHED,
    window: int = 0,
) -> tuple[Tensor, AudioCondition, NoiseSource]:
    """Samples one stage → float32 video latent, the audio for the next stage (frozen), and the noise for the next
    stage.

    latent: [1, 128, F, H, W], which gives the size and, if the first sigma is below 1, the start. device: the device to
    compute on, by default the model's. room: free bytes there for the passes of a step as one batch, by default
    measured on the device. texts: bytes for the kept keys and values of texts, by default `text_limit` within the free
    bytes. The hooks receive x0 as tokens; `grid` turns the video's tokens into a latent. window: the number of windows
    of a long clip that were sampled before, which decides about renewed noise. Raises InputError if the latent has
    another shape or the conditions and the steering do not fit together.
    """
    if latent.ndim != 5 or latent.shape[:2] != (1, CHANNELS):
        raise InputError(f"the latent is {list(latent.shape)}; an LTX video latent [1, {CHANNELS}, F, H, W] is needed.")
    device = device if device is not None else next(model.parameters()).device
    audio, sigmas, trace = conditions.audio, steering.sigmas, hooks.trace
    video, sound = (stream.to(device) for stream in conditions.streams(latent))
    seed = noise.seed + RESTART_SEED + WINDOW_SEED * window
    drawn, noise = noise.draw(tuple(video.latent.shape), tuple(sound.latent.shape))
    # The 1 of a schedule may be slightly below 1 in float32; the start is pure noise nevertheless.
    scale = 1.0 if sigmas[0] > 1 - 1e-6 else float(sigmas[0])
    x = Tokens(*(s.noised(n.to(device), scale) for s, n in zip((video, sound), drawn, strict=True)))
    if trace is not None:
        trace("sigmas", sigmas)
        _trace(trace, video, sound)
    room = batch_room(torch.device(device)) if room is None else room
    shown = drawn[0].to(device)
    if video.level is not None and not drawn[0].any():  # kept cells look noisy also where no noise is added
        shown = FreshNoise(noise.seed)(x).video
    denoise = GuidedDenoiser(model, video, sound, conditions, steering, hooks, room, texts, shown)
    if steering.sampler == RES_2S:
        x = res_2s(denoise, x, sigmas, seed, hooks, blend=denoise.blend)
    elif steering.sampler == ANCESTRAL:
        x = euler_ancestral(denoise, x, sigmas, seed, hooks, blend=denoise.blend)
    elif steering.restart is not None:
        masks = Tokens(video.mask, sound.mask)
        x = restarting(denoise, x, sigmas, steering.restart, seed, hooks, masks=masks, gamma=steering.gamma)
    elif steering.gamma:
        x = gradient_estimation(denoise, x, sigmas, steering.gamma, hooks)
    else:
        x = euler(denoise, x, sigmas, hooks)
    if audio.frozen:
        return grid(x.video, latent), audio.alone, noise
    made = unpatchify_audio(x.audio[:, : audio.latent.shape[2]])  # without the reference's tokens
    return grid(x.video, latent), audio.made(made), noise


def _trace(trace: Trace, video: Stream, sound: Stream) -> None:
    for name, stream in (("video", video), ("audio", sound)):
        trace(f"positions_{name}", stream.positions)
        trace(f"denoise_mask_{name}", stream.mask)
        trace(f"clean_{name}", stream.clean)
    trace("keyframes_mask_video", video.marked)
    if video.sight is not None:
        trace("attention_mask_video", video.sight.matrix())
    if video.hearing is not None:
        trace("hearing_video", video.hearing)


def grid(tokens: Tensor, like: Tensor) -> Tensor:
    """Video tokens → latent of the shape of `like`. The keyframes after the grid's tokens are left out."""
    f, h, w = like.shape[2:]
    return unpatchify_video(tokens[:, : f * h * w], (f, h, w))
