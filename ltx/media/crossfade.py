"""Joins the sounds of overlapping windows into one.

Each window made its part of the sound anew, so two parts are alike in their overlap, but not the same wave. They are
joined by one short fade, at the place where they differ least: a long one would let both be heard, like two voices.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from ..errors import InputError
from .audio import Track

FADE = Fraction(40, 1000)  # seconds; a lower tone than 25 Hz is rarely cut by it, and an echo is not heard
STEP = Fraction(5, 1000)  # seconds between the places that are compared


def join(parts: Sequence[Track], starts: Sequence[Fraction]) -> Track:
    """Joins parts of one sound, which begin at these seconds. One part is returned as it is.

    Two neighbours that do not overlap, as behind a hard cut, have silence between them. Raises InputError if the parts
    have different rates or channels.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    done, begin = [first.waveform], 0  # the finished pieces, and where the last of them begins
    for part, start in zip(parts[1:], starts[1:], strict=True):
        if (part.rate, len(part.waveform)) != (first.rate, len(first.waveform)):
            raise InputError("audio: the windows' sounds differ in rate or channels; decode all with one vocoder.")
        at, last = max(begin, round(start * first.rate)), done.pop()
        wave = part.waveform[:, at - round(start * first.rate) :]  # a short window may begin before the fade above ends
        overlap = min(begin + last.shape[1] - at, wave.shape[1])
        if overlap <= 0:  # behind a hard cut
            gap = torch.zeros(len(last), -overlap)
            done += [
                torch.cat((_ended(last, first.rate), gap), dim=1),
                _ended(wave.flip(1), first.rate).flip(1),
            ]
            begin = at
            continue
        shared = slice(at - begin, at - begin + overlap)
        faded, used = _faded(last[:, shared], wave[:, :overlap], first.rate)
        done += [torch.cat((last[:, : shared.start], faded), dim=1), wave[:, used:]]
        begin = at + used
    return Track(torch.cat(done, dim=1), first.rate, first.speakers)


def _ended(wave: Tensor, rate: int) -> Tensor:
    """The wave with a short fade to silence at its end."""
    length = min(round(STEP * rate), wave.shape[1])
    fade = torch.ones(wave.shape[1])
    fade[wave.shape[1] - length :] = 1 - torch.arange(1, length + 1) / length
    return wave * fade


def _faded(falling: Tensor, rising: Tensor, rate: int) -> tuple[Tensor, int]:
    """The overlap [C, n] of two parts up to the end of the fade, and the number of its samples."""
    length = max(1, min(round(FADE * rate), falling.shape[1]))
    error = (falling - rising).double().square().mean(dim=0)
    sums = torch.nn.functional.pad(error.cumsum(0), (1, 0))
    costs = (sums[length:] - sums[:-length])[:: max(1, round(STEP * rate))]
    place = int(costs.argmin()) * max(1, round(STEP * rate))
    fade = slice(place, place + length)
    old, new = falling[:, fade], rising[:, fade]
    share = (torch.arange(1, length + 1) / (length + 1)).to(old)
    # The power of the sum is constant for parts of one power and this correlation: a linear fade for equal parts, and
    # one of equal power for unrelated ones.
    power = (1 - share) ** 2 + share**2 + 2 * _correlation(old, new) * share * (1 - share)
    mixed = (old * (1 - share) + new * share) / power.sqrt()
    return torch.cat((falling[:, :place], mixed), dim=1), fade.stop


def _correlation(one: Tensor, other: Tensor) -> float:
    """Of two waves, 0 … 1: parts that cancel each other count as unrelated. Silence is like everything."""
    product = float((one.double() * other.double()).sum())
    power = float(one.double().square().sum() * other.double().square().sum()) ** 0.5
    return 1.0 if power == 0 else min(1.0, max(0.0, product / power))
