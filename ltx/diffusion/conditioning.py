"""Conditioning: what a stage attends to and what it keeps. Images and audio become clean tokens, each with a mask.

mask 0 keeps a token as it is, 1 leaves it to the model; a strength is 1 - mask. The first image replaces latent frame
0; an image at any other frame, the end image too, is appended as keyframe tokens and dropped after sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from .. import latents
from ..errors import InputError

TEXT_LENGTH = 1024  # tokens of a text context, <bos> and padding included


@dataclass(frozen=True)
class TextContext:
    """What the transformer attends to for one prompt; it takes no mask, since registers fill what the text leaves.

    video: [1, 1024, Dv]; audio: [1, 1024, Da]; tokens: those of the whole prompt, <bos> included, before any cut.
    """

    video: Tensor
    audio: Tensor
    tokens: int = 0

    @property
    def truncated(self) -> bool:
        """Whether the end of the prompt was left out."""
        return self.tokens > TEXT_LENGTH


@dataclass(frozen=True)
class Guide:
    """An encoded image: latent [1, 128, 1, H, W] in model space, the pixel frame it stands at, its strength 0..1."""

    latent: Tensor
    frame: int
    strength: float

    def __post_init__(self) -> None:
        check_strength("image_strength" if self.frame == 0 else "end_image_strength", self.strength)


@dataclass(frozen=True)
class AudioCondition:
    """The encoded track: latent [1, 8, T, 16] in model space, the clip it was cut for, and how firmly it is kept.

    strength 1 freezes it; below, the model may change it.
    """

    latent: Tensor
    frames: int
    fps: Fraction
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength("audio_strength", self.strength)
        wanted = latents.audio_length(self.frames, self.fps)
        if self.latent.shape[2] != wanted:
            raise InputError(
                f"the audio condition has {self.latent.shape[2]} latents where {self.frames} frames at "
                f"{float(self.fps):g} fps take {wanted}: encode the audio for this clip."
            )

    @property
    def frozen(self) -> bool:
        """Whether the track is kept as it is."""
        return self.strength == 1


@dataclass(frozen=True)
class Conditions:
    """Everything that a stage is conditioned on. negative: needed where a CFG scale is not 1. guides: images encoded at
    the stage's size."""

    positive: TextContext
    audio: AudioCondition
    negative: TextContext | None = None
    guides: tuple[Guide, ...] = ()


@dataclass(frozen=True)
class Stream:
    """One modality as tokens: latent and clean [1, N, C], mask [1, N, 1], positions [1, axes, N, 2]."""

    latent: Tensor
    clean: Tensor
    mask: Tensor
    positions: Tensor

    def noised(self, noise: Tensor, scale: float) -> Tensor:
        """The tokens that enter a stage whose first sigma is `scale`: [1, N, C]."""
        return self.blend(noise * scale + self.latent * (1 - scale))

    def blend(self, x: Tensor) -> Tensor:
        """`x` where the mask is 1, the clean tokens where it is 0."""
        return x * self.mask + self.clean * (1 - self.mask)

    def to(self, device: torch.device | str) -> Stream:
        return Stream(*(t.to(device) for t in (self.latent, self.clean, self.mask, self.positions)))


def check_strength(name: str, strength: float) -> None:
    if not 0 <= strength <= 1:
        raise InputError(f"{name}: {strength} is not between 0 and 1.")


def video_stream(latent: Tensor, guides: tuple[Guide, ...], fps: Fraction) -> Stream:
    """The video's tokens: the grid of `latent` [1, 128, F, H, W], then the keyframes'. Strength 0 is no guide."""
    shape = tuple(latent.shape[2:])
    last = latents.pixel_frames(latent) - 1
    clean = torch.zeros_like(latent)
    mask = torch.ones_like(latent[:, :1])
    keyframes = []
    for guide in guides:
        if guide.latent.shape[3:] != latent.shape[3:]:
            raise InputError(
                f"an image was encoded for a {_pixels(guide.latent)} video and used in a {_pixels(latent)} one: "
                "encode it for this stage."
            )
        if not 0 <= guide.frame <= last:
            raise InputError(f"an image stands at frame {guide.frame}, and the video ends at frame {last}.")
        if guide.strength == 0:
            continue
        if guide.frame:
            keyframes.append(guide)
        else:
            clean[:, :, :1] = guide.latent.to(clean)
            mask[:, :, :1] = 1 - guide.strength
    tokens = [latents.patchify_video(t) for t in (latent, clean, mask)]
    tokens.append(latents.video_positions(shape, fps))
    for guide in keyframes:
        key = latents.patchify_video(guide.latent.to(clean))
        added = (
            torch.zeros_like(key),
            key,
            torch.full_like(key[..., :1], 1 - guide.strength),
            latents.video_positions((1, *shape[1:]), fps, guide.frame),
        )
        tokens = [torch.cat(pair, dim=2 if i == 3 else 1) for i, pair in enumerate(zip(tokens, added, strict=True))]
    return Stream(*tokens)


def audio_stream(audio: AudioCondition) -> Stream:
    """The audio's tokens: the track is what is clean and where noise is added to, under one mask for all of them."""
    tokens = latents.patchify_audio(audio.latent)
    mask = torch.full_like(tokens[..., :1], 1 - audio.strength)
    return Stream(tokens, tokens, mask, latents.audio_positions(tokens.shape[1]))


def _pixels(latent: Tensor) -> str:
    h, w = latent.shape[3:]
    return f"{w * latents.SPACE_SCALE}×{h * latents.SPACE_SCALE}"
