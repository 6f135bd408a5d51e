"""Measures how loud a sound is at each place where a window of a film may end.

A mouth rests in a pause, so a join between two windows is seen least there. windows.py chooses among the places.
"""

from __future__ import annotations

import math
from fractions import Fraction

from ..grid import TIME_SCALE, frames_of
from .audio import Track, conditioning_track, samples_in
from .preprocess import SILENCE, preprocess

QUIETEST = round(SILENCE)  # dBFS; quieter sound moves nothing, so that all of it counts as equal


def levels(track: Track, frames: int, fps: Fraction) -> tuple[int, ...]:
    """The level at the first frame of each latent of a clip of `frames`, 8k+1, in whole dBFS, at least QUIETEST.

    It is the power of the eight frames around the border before that frame, as the mean of both channels. Whole numbers
    let equally quiet places count as equal. track: as the model hears it. Silence follows its end.
    """
    waveform = conditioning_track(track, frames, fps).waveform
    found = []
    for latent in range((frames - 1) // TIME_SCALE + 1):
        border = frames_of(latent)
        first, last = (
            samples_in(max(0, border + side), fps, track.rate) for side in (-TIME_SCALE // 2, TIME_SCALE // 2)
        )
        part = waveform[:, first:last]
        power = float(part.square().mean()) if part.numel() else 0.0
        found.append(max(QUIETEST, round(10 * math.log10(max(power, 1e-12)))))
    return tuple(found)


def levels_heard(track: Track, frames: int, fps: Fraction, levelled: bool) -> tuple[int, ...]:
    """`levels` of the sound that the model hears beside a clip. levelled: whether `preprocess` levels it before."""
    cut = Track(track.waveform[:, : samples_in(frames, fps, track.rate)], track.rate, track.speakers)
    return levels(preprocess(cut) if levelled else cut, frames, fps)
