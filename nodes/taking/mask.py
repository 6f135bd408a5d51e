"""MASK: an area of the picture, which may change or hears the sound."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ...ltx.media.masks import Area, area_of

GREYS = 255
"""Levels above black that a mask has, as a picture of 8 bits. The model computes parameters for each level that it is
shown at once, and thousands of them, as a blur gives, would take as much memory as all else."""
WHITE = 253.5 / GREYS
"""From here on a mask is white. ComfyUI 0.33 reads the white of a grey picture as 254 of 255, which would keep a trace
of the source."""


def to_area(mask: Tensor) -> Area:
    """A native MASK as an area. Raises InputError if it is none."""
    area = area_of(mask)
    greys = area.frames.mul(GREYS).round_().div_(GREYS)
    greys.masked_fill_((area.frames > 0) & (greys == 0), 1 / GREYS)  # what may change a little stays so
    return replace(area, frames=greys.masked_fill_(area.frames >= WHITE, 1))
