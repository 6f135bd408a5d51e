"""Puts the source's own pixels and samples back into a film where nothing was made anew.

The decoder gives back what was kept only nearly. Where something that was made touches the source, one passes into the
other within what was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import pad

from .diffusion.sound import resample
from .given import Note, SourceVideo, beside
from .media.audio import Track, samples_in, to_stereo
from .media.masks import blend, fitted
from .plan import Plan

FADE = Fraction(20, 1000)  # seconds in which sound that was made passes into the source's


def restored(decoded: Iterator[Tensor], source: SourceVideo, plan: Plan, note: Note | None = None) -> Iterator[Tensor]:
    """Decoded frames, uint8 [n, H, W, 3] → the same with the source's own pixels where they are kept, between its
    frames that the plan writes before and behind them. Frames that the plan does not write are left out. note: as for
    `Clip.pictures`, of the source and of its mask."""
    pictures = fitted(source.all_pictures(plan, note), plan.width, plan.height)
    for picture in islice(pictures, plan.lead):
        yield picture[None]
    left = plan.used
    for chunk in blend(decoded, pictures, source.weights(plan, note)):
        if left > 0:
            yield chunk[:left]
        left -= len(chunk)
    for picture in islice(pictures, plan.tail):
        yield picture[None]


def resounded(made: Track, track: Track, source: SourceVideo, plan: Plan) -> Track:
    """The sound that was made, in stereo, with the source's own where that is kept. track: of the whole film.

    At its first and its last sample the source's sound is held while what was made takes over, so that there is no
    click and every sample of the source stays.
    """
    rate, weight = made.rate, source.sound_weights(plan, made.rate)
    if bool((weight > 0).all()) and not plan.lead and not plan.tail:
        return made
    begin, length = samples_in(plan.lead, plan.fps, rate), len(weight)
    whole = resample(to_stereo(track.waveform.float(), track.speakers), track.rate, rate)
    whole = pad(whole, (0, max(0, begin + length + 1 - whole.shape[1])))  # with a sample behind what was made
    kept, new = whole[:, begin : begin + length].clone(), pad(made.waveform, (0, length))[:, :length]
    first, last = source.samples(plan, rate)
    kept[:, :first] = whole[:, begin + first : begin + first + 1]
    if begin + last > 0:
        kept[:, last:] = whole[:, begin + last - 1 : begin + last]
    rising = beside(weight, plan, round(FADE * rate))
    tail = whole[:, begin + length : samples_in(plan.written, plan.fps, rate)] if plan.tail else whole[:, :0]
    return Track(torch.cat((whole[:, :begin], kept.lerp(new, rising), tail), 1), rate)
