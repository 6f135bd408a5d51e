"""Puts the source's own pixels and samples back into a film where nothing was made anew.

The decoder gives back what was kept only nearly. Where something that was made touches the source, one passes into the
other within what was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor

from .diffusion.masks import audio_spans, ramped
from .diffusion.sound import resample
from .given import SourceVideo
from .latents import audio_length
from .media.audio import Track, samples_in, to_stereo
from .media.masks import blend, fitted
from .plan import Plan

FADE = Fraction(20, 1000)  # seconds in which sound that was made passes into the source's


def restored(decoded: Iterator[Tensor], source: SourceVideo, plan: Plan) -> Iterator[Tensor]:
    """Decoded frames, uint8 [n, H, W, 3] → the same with the source's own pixels where they are kept. Frames that the
    plan does not write are left out."""
    pictures = fitted(source.pictures(plan), plan.width, plan.height)
    left = plan.written
    for chunk in blend(decoded, pictures, source.weights(plan)):
        if left > 0:
            yield chunk[:left]
        left -= len(chunk)


def resounded(made: Track, track: Track, source: SourceVideo, plan: Plan) -> Track:
    """The sound that was made, in stereo, with the source's own where that is kept."""
    mask = source.sound_mask(plan.whole, plan.fps)
    if bool((mask > 0).all()):
        return made
    samples = samples_in(plan.frames, plan.fps, made.rate)
    kept = resample(to_stereo(track.waveform.float(), track.speakers), track.rate, made.rate)
    kept, new = (torch.nn.functional.pad(wave, (0, samples))[:, :samples] for wave in (kept, made.waveform))
    weight = torch.zeros(samples)
    for (start, end), value in zip(audio_spans(audio_length(plan.frames, plan.fps)).tolist(), mask, strict=True):
        if value > 0:
            weight[round(start * made.rate) : round(end * made.rate)] = 1
    return Track(kept.lerp(new, ramped(weight, round(FADE * made.rate))), made.rate)
