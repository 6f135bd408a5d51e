"""Who speaks: which places of the picture hear the sound, and when.

A speaker is a region of the picture. A video token takes from the sound as much as its place hears; outside every
region nobody hears. Several speakers share one sound, the mix that the model is given. If the voice of a speaker is
known by itself, its loudness says when the region hears: as much as it is loud beside the loudest of the voices. This
is an experiment: the model was not trained for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from ..errors import InputError
from ..latents import SPACE_SCALE, TIME_SCALE, frames_of, pixel_size
from ..media.audio import Track, part_from
from ..media.masks import Area
from .masks import video_spans

SILENCE = 1e-5  # mean square of -50 dBFS: voices below it are equally quiet, and then every speaker hears


@dataclass(frozen=True, eq=False)
class Speaker:
    """A region of a clip's picture that hears the sound.

    area: the region, from 0 (it hears nothing) to 1, with the clip's beginning as its start. power: float32 [F], the
    mean square of the speaker's own voice beside each latent frame; None for one that always hears.
    """

    area: Area
    power: Tensor | None = None
    voice: Tensor | None = None

    @classmethod
    def of(cls, area: Area, first: int, frames: int, fps: Fraction, voice: Track | None = None) -> Speaker:
        """The speaker in `frames` of a film from its frame `first` on. area: frame k of its masks belongs to frame k
        of the film. voice: the speaker's own, which begins with the film."""
        placed = replace(area, fps=fps, rate=fps, start=first / fps)
        return cls(placed, None if voice is None else power(part_from(voice, first, fps), frames, fps))


def check_region(field: str, area: Area) -> None:
    """Raises InputError if masks are black everywhere. field: the input that they came in by."""
    if area.frames is not None and not area.frames.any():
        raise InputError(f"{field}: it is black everywhere, so nobody would hear the sound; make the speaker white.")


def heard_by(speakers: int) -> list[str]:
    """The note for the report if only so many speakers hear the sound, and not the whole picture."""
    regions = "one region of the picture hears" if speakers == 1 else f"{speakers} regions of the picture hear"
    return [f"only {regions} the audio (experimental)"] if speakers else []


def power(voice: Track, frames: int, fps: Fraction) -> Tensor:
    """Mean square of all channels beside each latent frame of a clip, float32 [F]. Behind its end a voice is silent."""
    square = voice.waveform.double().square().mean(0)
    total = torch.cat((square.new_zeros(1), square.cumsum(0)))
    edges = (video_spans((frames - 1) // TIME_SCALE + 1, fps).double() * voice.rate).round().long()
    start, stop = edges.clamp(max=len(square)).unbind(1)
    return ((total[stop] - total[start]) / (edges[:, 1] - edges[:, 0]).clamp(min=1)).float()


def hearing(speakers: Sequence[Speaker], latent: Tensor) -> Tensor:
    """How much each cell of a latent [1, 128, F, H, W] hears, float32 [F, H, W] in 0..1: the most of what its speakers
    hear."""
    length = latent.shape[2]
    powers = [each.power for each in speakers if each.power is not None]
    loudest = torch.stack(powers).amax(0) if powers else None
    found = torch.zeros(latent.shape[2:])
    for each in speakers:
        cells = each.area.cells(frames_of(length), *pixel_size(latent))[0, 0]
        if each.power is not None:
            cells = cells * ((each.power + SILENCE) / (loudest + SILENCE))[:, None, None]
        found = torch.maximum(found, cells)
    return found


def shares(speakers: Sequence[Speaker], latent: Tensor, silence: bool) -> tuple[Tensor, list[Tensor]]:
    """What each cell of a latent [1, 128, F, H, W] hears of each sound, and the sounds beside the whole one.

    Without silence that is the whole sound alone, [F, H, W, 1], as `hearing` says. With it, a cell hears the voices of
    its speakers, each by itself, and what is left of it hears silence: [F, H, W, 2 + voices], of the whole sound, of
    silence and of each voice, 1 together.
    """
    if not silence:
        return hearing(speakers, latent)[..., None], []
    length, voices = frames_of(latent.shape[2]), [each.voice for each in speakers if each.voice is not None]
    found = torch.zeros(*latent.shape[2:], 2 + len(voices))
    number = 2
    for each in speakers:
        cells = each.area.cells(length, *pixel_size(latent))[0, 0]
        place = 0
        if each.voice is not None:
            place, number = number, number + 1
        found[..., place] = torch.maximum(found[..., place], cells)
    found = found / found.sum(-1, keepdim=True).clamp(min=1)
    found[..., 1] = 1 - found.sum(-1)
    return found, voices


def at(grid: Tensor, positions: Tensor, fps: Fraction) -> Tensor:
    """The values of a grid [F, H, W] at other tokens of the same clip, by the middle of their positions [1, 3, N, 2] →
    [N]."""
    seconds, rows, columns = (each.mean(-1) for each in positions[0])
    frames = (seconds * float(fps)).floor() / TIME_SCALE
    cells = (frames.ceil(), *((each / SPACE_SCALE).floor() for each in (rows, columns)))
    return grid[tuple(each.long().clamp(0, size - 1) for each, size in zip(cells, grid.shape[:3], strict=True))]
