"""Rehearses the memory that each kind of work takes beside the weights: a step, encoding, upscaling, decoding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from ..diffusion.acceleration import Acceleration
from ..diffusion.conditioning import TEXT_LENGTH, AudioCondition, Conditions, Guide, Reference, TextContext
from ..diffusion.decode import clip_tiles
from ..diffusion.encode import encode_image, encode_video
from ..diffusion.guidance import NONE, Guidance, needed
from ..diffusion.sample import sample
from ..diffusion.speakers import Speaker
from ..diffusion.steering import EULER, Steering
from ..diffusion.tiling import Tiling, held_frames, largest_tile
from ..diffusion.upscale import upscale
from ..grid import AUDIO_BINS, AUDIO_CHANNELS, CHANNELS, SPACE_SCALE, audio_length, frames_of
from ..latents import Noise, pixel_frames
from ..media.masks import Area
from ..nag import Nag
from .rehearsal import META, peak


def decoding(vae: nn.Module, latent: tuple[int, int, int], tiling: Tiling | None, on: str = "cpu") -> tuple[int, int]:
    """Bytes that the largest tile takes on the VAE's device, and bytes of the frames that are held on the CPU."""
    clip = torch.empty(1, CHANNELS, *latent, device=META)
    frame = 3 * torch.float32.itemsize * latent[1] * latent[2] * SPACE_SCALE**2
    work = peak(lambda: clip_tiles(vae, clip, Noise(0)).tile(*largest_tile(latent, tiling)), on)
    return work, held_frames(latent, tiling) * frame


def image_encoding(vae: nn.Module, height: int, width: int, on: str = "cpu") -> int:
    """Bytes that encoding one image takes. height, width: pixels."""
    return peak(lambda: encode_image(vae, torch.zeros(1, 3, 1, height, width)), on)


def clip_encoding(vae: nn.Module, height: int, width: int, on: str = "cpu") -> int:
    """Bytes that encoding a clip takes, some frames at a time. height, width: pixels."""
    return peak(lambda: encode_video(vae, [torch.zeros(1, 3, frames_of(4), height, width)]), on)


def upscaling(upsampler: nn.Module, vae: nn.Module, latent: tuple[int, int, int], on: str = "cpu") -> int:
    """Bytes that upscaling a latent with that grid takes."""
    return peak(lambda: upscale(upsampler, vae, torch.zeros(1, CHANNELS, *latent)), on)


def step_size(
    model: nn.Module,
    latent: Tensor,
    audio: AudioCondition,
    guidance: tuple[Guidance, Guidance] = (NONE, NONE),
    *,
    images: Iterable[bool] = (),
    reference: Tensor | None = None,
    attention: float = 1.0,
    still: bool = False,
) -> tuple[int, int]:
    """The tokens of both streams in the step of `one_step`, and the number of its passes that may run as one batch."""
    streams = _conditions(model, latent, audio, images, reference, attention, still).streams(latent)
    return sum(stream.mask.shape[1] for stream in streams), 1 + sum(needed(*guidance)[:3])


# long: what a step is rehearsed with, by name
def one_step(
    model: nn.Module,
    latent: Tensor,
    audio: AudioCondition,
    guidance: tuple[Guidance, Guidance] = (NONE, NONE),
    *,
    images: Iterable[bool] = (),
    reference: Tensor | None = None,
    attention: float = 1.0,
    still: bool = False,
    reuse: float = 0.0,
    sampler: str = EULER,
    nag: Nag | None = None,
    room: float = 0.0,
) -> None:
    """Samples one step of a stage. The model has at least two blocks, and STG perturbs the second one.

    guidance: for picture and sound. images: for each image, whether it is the first frame. reference: a latent beside
    it, seen with that attention. still: whether the picture is kept as it is. reuse: the threshold of the first-block
    cache; with one, three steps are sampled, because the second one runs beside what the first one has kept. sampler:
    one of SAMPLERS; res_2s computes in float64, and keeps a step's start and its first prediction. nag: as in
    `Steering`. room: bytes that the passes may take as one batch. No text is kept for the next step: a forecast adds
    `kept_texts`.
    """
    conditions = _conditions(model, latent, audio, images, reference, attention, still)
    sigmas = torch.tensor([1.0, 0.9, 0.8, 0.0] if reuse else [1.0, 0.0])
    guidance = (replace(each, stg_blocks=(1,)) for each in guidance)
    steering = Steering(sigmas, *guidance, acceleration=Acceleration(reuse=reuse), sampler=sampler, nag=nag)
    sample(model, latent, conditions, steering, Noise(0), room=room, texts=0)


def sound_like(
    frames: int,
    fps: Fraction,
    strength: float = 1.0,
    made: bool = False,
    voices: Iterable[bool] = (),
    referred: int = 0,
) -> AudioCondition:
    """A sound for a rehearsal. made: whether the model makes it anew. voices: for each speaker, whether there is a
    voice of their own. referred: latents of a reference's sound."""
    length = audio_length(frames, fps)
    sound, everywhere = torch.zeros(1, AUDIO_CHANNELS, length, AUDIO_BINS), Area(torch.ones(1, 1, 1))
    speakers = tuple(Speaker(everywhere, sound if own else None) for own in voices)
    reference = torch.zeros(1, AUDIO_CHANNELS, referred, AUDIO_BINS) if referred else None
    mask = torch.ones(length) if made else None
    return AudioCondition(sound, frames, fps, strength, mask, speakers, reference=reference)


def _conditions(
    model: nn.Module,
    latent: Tensor,
    audio: AudioCondition,
    images: Iterable[bool],
    reference: Tensor | None,
    attention: float,
    still: bool,
) -> Conditions:
    widths = model.config.cross_attention_dim, model.config.audio_cross_attention_dim

    def text() -> TextContext:
        return TextContext(*(torch.zeros(1, TEXT_LENGTH, width) for width in widths))

    image = torch.zeros(1, CHANNELS, 1, *latent.shape[3:])
    last = pixel_frames(latent) - 1
    guides = tuple(Guide(image, 0 if first else last, 0.9) for first in images)
    references = () if reference is None else (Reference(reference, attention=attention),)
    mask = torch.zeros(1, 1, *latent.shape[2:]) if still else None
    return Conditions(text(), audio, text(), guides, mask, references=references)
