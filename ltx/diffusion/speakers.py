"""Who speaks: which places of the picture hear the sound, or a voice of their own.

A speaker is a region of the picture. A video token takes from the sound as much as its place hears; outside every
region nobody hears. If a speaker has a voice by itself, the region hears that voice in place of the sound: it runs
through the model's audio blocks beside the sound, and the region's tokens attend to it. This is an experiment: the
model was not trained for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from ..errors import InputError
from ..grid import SPACE_SCALE, TIME_SCALE, frames_of
from ..latents import pixel_size
from ..media.masks import Area


@dataclass(frozen=True, eq=False)
class Speaker:
    """A region of a clip's picture that hears.

    area: the region, from 0 (it hears nothing) to 1, with the clip's beginning as its start. voice: what it hears,
    encoded as the clip's sound is, [1, 8, T, 16]; None for the clip's sound.
    """

    area: Area
    voice: Tensor | None = None

    @classmethod
    def of(cls, area: Area, first: int, fps: Fraction, voice: Tensor | None = None) -> Speaker:
        """The speaker in a clip that begins at frame `first` of a film. area: frame k of its masks belongs to frame k
        of the film."""
        return cls(replace(area, fps=fps, rate=fps, start=first / fps), voice)


def check_region(field: str, area: Area) -> None:
    """Raises InputError if masks are black everywhere. field: the input that they came in by."""
    if area.frames is not None and not area.frames.any():
        raise InputError(f"{field}: it is black everywhere, so nobody would hear the sound; make the speaker white.")


def check_voices(frozen: bool) -> None:
    """Raises InputError if speakers have voices of their own beside a sound that the model may change."""
    if not frozen:
        raise InputError(
            "speakers: a voice of their own needs an audio that is kept as it is; set audio_strength to 1 and make no "
            "sound anew, or leave the voices out."
        )


def heard_by(speakers: int) -> list[str]:
    """The note for the report if only so many speakers hear the sound, and not the whole picture."""
    regions = "one region of the picture hears" if speakers == 1 else f"{speakers} regions of the picture hear"
    return [f"only {regions} the audio (experimental)"] if speakers else []


def hearing(speakers: Sequence[Speaker], latent: Tensor) -> Tensor:
    """How much each cell of a latent [1, 128, F, H, W] hears of the sound, and of each voice in the order of the
    speakers: float32 [F, H, W, 1 + voices]. Where regions overlap, it hears the most of what its speakers hear of one
    sound, and of several ones 1 together."""
    length = frames_of(latent.shape[2])
    parts = [torch.zeros(latent.shape[2:])]
    for each in speakers:
        cells = each.area.cells(length, *pixel_size(latent))[0, 0]
        if each.voice is None:
            parts[0] = torch.maximum(parts[0], cells)
        else:
            parts.append(cells)
    found = torch.stack(parts, -1)
    return found / found.sum(-1, keepdim=True).clamp(min=1)


def at(grid: Tensor, positions: Tensor, fps: Fraction) -> Tensor:
    """The values of a grid [F, H, W, …] at other tokens of the same clip, by the middle of their positions [1, 3, N, 2]
    → [N, …]."""
    seconds, rows, columns = (each.mean(-1) for each in positions[0])
    frames = (seconds * float(fps)).floor() / TIME_SCALE
    cells = (frames.ceil(), *((each / SPACE_SCALE).floor() for each in (rows, columns)))
    return grid[tuple(each.long().clamp(0, size - 1) for each, size in zip(cells, grid.shape[:3], strict=True))]
