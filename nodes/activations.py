"""Bytes of activations, for which ComfyUI keeps room beside the weights, and how a stage is placed with them.

On a CPU they are 0, because no weights move there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from ..ltx.diffusion.conditioning import AudioCondition, Reference
from ..ltx.diffusion.guidance import NONE, Guidance
from ..ltx.diffusion.passes import batch_memory
from ..ltx.diffusion.steering import EULER
from ..ltx.diffusion.tiling import Tiling
from ..ltx.latents import pixel_frames
from ..ltx.memory.rehearsal import peak, twin
from ..ltx.memory.tiles import choose, needed
from ..ltx.memory.work import clip_encoding, image_encoding, one_step, sound_like, upscaling
from ..ltx.nag import Nag
from .fetching import stay_memory
from .memory import Handle, Model, obtainable

KEYFRAMES = 2  # images at later frames for which a batch has room
REPEATED = (
    "ComfyUI pages the weights, and the passes of a step are too large to run together, so each pass fetches what is "
    "not on the card; a smaller size, fewer frames or ComfyUI's --disable-dynamic-vram avoid that"
)
FOUR_PASSES = Guidance(cfg=3.0, stg=1.0, modality=3.0)
TEXT_MEMORY = 5e9
"""Bytes for the texts that take one walk through Gemma with all hidden states, for a layer that stays meanwhile, and
for its embeddings, which `settle` moves."""


@dataclass(frozen=True)
class Sampling:
    """How a stage is placed. room: bytes of activations to keep free beside the weights. stay: whether a block's
    waiting weights stay on the device while its passes run (fetching.py). repeated: whether each pass of a step fetches
    the waiting weights again."""

    room: int
    stay: bool = False
    repeated: bool = False

    @property
    def notes(self) -> list[str]:
        """What a report says of it."""
        return [REPEATED] if self.repeated else []


def sampling_memory(
    model: Model,
    latent: Tensor,
    passes: int,
    reference: Reference | None = None,
    heard: AudioCondition | None = None,
    sampler: str = EULER,
) -> Sampling:
    """How a stage over `latent` [1, C, F, H, W] is placed, with so many passes in a step. reference: the largest one
    beside it. heard: the sound of one of its windows, None for one that is kept, at 24 frames per second. sampler: one
    of SAMPLERS.

    If all weights fit beside a step whose passes run one after the other, nothing waits in host memory. Otherwise each
    waiting weight shall come to the device once a step and not once a pass: there is room for the passes as one batch,
    or, where that would take half of what the device has for it, for one block that stays while its passes run.
    """
    module, device = model.module, model.patcher.load_device
    frames = pixel_frames(latent)
    sound = sound_like(frames, Fraction(24)) if heard is None else _as_long(heard, frames)
    single = _step_memory(module, latent, sound, reference, model.acceleration.reuse, sampler, model.nag)
    if passes == 1 or device.type == "cpu":
        return Sampling(single)
    room = obtainable(device)
    if model.get_ram_usage() + single <= room:
        return Sampling(single)
    grid = latent.shape[2:]
    seen = 0 if reference is None else math.prod(reference.latent.shape[2:])
    referred = 0 if sound.reference is None else sound.reference.shape[2]
    tokens = math.prod(grid) + KEYFRAMES * math.prod(grid[1:]) + seen + sound.latent.shape[2] + referred
    batch = max(single, batch_memory(module, tokens, passes))
    if batch <= room / 2:
        return Sampling(batch)
    if model.paged:
        return Sampling(single, repeated=True)
    return Sampling(single + stay_memory(module.transformer_blocks, device), stay=True)


def _as_long(heard: AudioCondition, frames: int) -> AudioCondition:
    """A sound like that, for so many frames."""
    voices = [speaker.voice is not None for speaker in heard.speakers]
    referred = 0 if heard.reference is None else heard.reference.shape[2]
    return sound_like(frames, heard.fps, made=not heard.frozen, voices=voices, referred=referred)


def _step_memory(
    module: nn.Module,
    latent: Tensor,
    sound: AudioCondition,
    reference: Reference | None = None,
    reuse: float = 0.0,
    sampler: str = EULER,
    nag: Nag | None = None,
) -> int:
    """Bytes for a guided step over `latent`, if its passes run one after the other. reuse: the threshold of the
    first-block cache."""
    empty = torch.empty_like(latent, device="meta")
    more: dict[str, Any] = {"reuse": reuse, "sampler": sampler, "nag": nag}
    if reference is not None:
        more |= {"reference": torch.empty_like(reference.latent, device="meta"), "attention": reference.attention}

    def step(twin: nn.Module, on: str) -> int:
        return peak(lambda: one_step(twin, empty, sound, (FOUR_PASSES, NONE), images=[True], **more), on)

    return _room(module, step, num_layers=2)


def decoding_memory(module: nn.Module, latent: Tensor, tiling: Tiling) -> int:
    """Bytes for decoding the largest tile of `latent` [1, C, F, H, W] with the video VAE."""
    on = module.device.type
    return 0 if on == "cpu" else needed(module, tuple(latent.shape[2:]), tiling, on)[0]


def fitting_tiles(decoder: Handle, latent: Tensor, tiling: Tiling) -> Tiling:
    """The tiling for decoding `latent` [1, C, F, H, W], with its open sizes chosen by the memory of the decoder's
    device."""
    if not tiling.open:
        return tiling
    module, device = decoder.module, decoder.module.device
    return choose(module, tuple(latent.shape[2:]), tiling, device.type, obtainable(device))


def encoding_memory(module: nn.Module, height: int, width: int) -> int:
    """Bytes for encoding one image with the video VAE. height, width: pixels."""
    return _room(module, lambda twin, on: image_encoding(twin, height, width, on))


def clip_encoding_memory(module: nn.Module, height: int, width: int) -> int:
    """Bytes for encoding a clip of any length with the video VAE. height, width: pixels."""
    return _room(module, lambda twin, on: clip_encoding(twin, height, width, on))


def upscaling_memory(module: nn.Module, vae: nn.Module, latent: Tensor) -> int:
    """Bytes for upscaling `latent` [1, C, F, H, W]."""
    return _room(module, lambda like, on: upscaling(like, twin(vae), tuple(latent.shape[2:]), on))


def _room(module: nn.Module, rehearse: Callable[[nn.Module, str], int], **changes: object) -> int:
    """The result of `rehearse` for a twin of the module and the kind of its device. changes: see `twin`."""
    on = module.device.type
    return 0 if on == "cpu" else rehearse(twin(module, **changes), on)
