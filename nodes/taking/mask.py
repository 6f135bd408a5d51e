"""MASK: an area of the picture, which may change or hears the sound."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ...ltx.media.masks import Area, area_of

WHITE = 253.5 / 255
"""From here on a mask is white. ComfyUI 0.33 reads the white of a grey picture as 254 of 255, which would keep a trace
of the source."""


def to_area(mask: Tensor) -> Area:
    """A native MASK as an area. Raises InputError if it is none."""
    area = area_of(mask)
    return replace(area, frames=area.frames.masked_fill(area.frames >= WHITE, 1))
