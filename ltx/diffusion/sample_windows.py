"""Samples one stage of a clip of any length, window after window.

Each window is a clip of its own for the model: its positions begin at 0 and its sound was cut and encoded for it alone.
The latents that it shares with the windows before are kept as they are (mask 0), so nothing is encoded a second time. A
clip of one window is sampled by one call of `sample`, with nothing added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..latents import NoiseSource
from ..windows import Window
from .conditioning import AudioCondition, Conditions
from .sample import sample
from .samplers import UNWATCHED, Hooks
from .steering import Steering


@dataclass(frozen=True)
class Sampled:
    """What a window adds. video: float32 [1, 128, its new latents, H, W]; audio: the window's sound for the next stage;
    noise: the source for the next window."""

    video: Tensor
    audio: AudioCondition
    noise: NoiseSource


class Keep(Protocol):
    """Keeps the pieces of finished windows, so that a run that was ended can go on from them."""

    def __call__(
        self,
        make: Callable[[], Sampled],
        number: int,
        latent: Tensor,
        conditions: Conditions,
        steering: Steering,
        noise: NoiseSource,
    ) -> Sampled:
        """Returns the kept piece for these inputs of `sample`, or else the result of `make`."""


def keep_nothing(make: Callable[[], Sampled], *_: Any) -> Sampled:
    """The `Keep` of a run that keeps nothing."""
    return make()


def sample_windows(
    model: nn.Module,
    latent: Tensor,
    windows: Sequence[Window],
    conditions: Conditions,
    sounds: Sequence[AudioCondition],
    steering: Steering,
    noise: NoiseSource,
    *,
    device: torch.device | str | None = None,
    hooks: Callable[[int], Hooks] = lambda number: UNWATCHED,
    keep: Keep = keep_nothing,
) -> tuple[Tensor, tuple[AudioCondition, ...], NoiseSource]:
    """Samples a stage of a whole clip → its video latent, float32 [1, 128, F, H, W], the sound of each window for the
    next stage (frozen), and the noise for the next stage.

    latent: of the whole, as `sample` takes it; if there are several windows, it is overwritten and returned.
    conditions: with the guides and the mask of the whole; its sound is not used. sounds: one for each window. One
    stream of noise goes through all windows. hooks: those of each window, by its number. Raises InputError as `sample`.
    """
    whole, renewed = latent, []
    for number, (window, sound) in enumerate(zip(windows, sounds, strict=True)):
        start, own = whole[:, :, window.whole], conditions_of(window, conditions, sound, whole)
        make = partial(
            _piece, window, model, start, own, steering, noise, device=device, hooks=hooks(number), window=number
        )
        piece = keep(make, number, start, own, steering, noise)
        renewed.append(piece.audio)
        noise = piece.noise
        if len(windows) == 1:
            whole = piece.video
        else:
            whole[:, :, window.new] = piece.video.to(whole.device)
    return whole, tuple(renewed), noise


def _piece(place: Window, *inputs: Any, **named: Any) -> Sampled:
    """Samples the window at that place with these inputs of `sample`."""
    latent, audio, noise = sample(*inputs, **named)
    return Sampled(latent[:, :, place.given :], audio, noise)


def conditions_of(window: Window, conditions: Conditions, sound: AudioCondition, like: Tensor) -> Conditions:
    """The conditions of one window: its sound, the guides at frames that it adds, and a mask that keeps its overlap.

    Its latent 0 is free: it stands for one frame, while the whole's latent at that place stands for eight. like: the
    whole's latent.
    """
    guides = tuple(
        replace(guide, frame=frame)
        for guide in conditions.guides
        if (frame := window.frame_within(guide.frame)) is not None
    )
    mask = None if conditions.mask is None else conditions.mask[:, :, window.whole]
    if window.given:
        mask = torch.ones_like(like[:, :1, window.whole]) if mask is None else mask.clone()
        mask[:, :, :1] = 1
        mask[:, :, 1 : window.given] = 0
    return replace(conditions, audio=sound, guides=guides, mask=mask)
