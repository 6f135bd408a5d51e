"""Where a source video lies beside the new part that makes it longer, so that the join is its own first or last frame.

The model makes a stretch of 8k+1 frames: some frames of the source, the context, and the new ones. A latent begins or
ends at the join: behind the source the context has 8k+1 frames, and before it 8k, because the first latent stands for
one frame and each other one for eight. So no frame of the source is made anew. The rest of the source is joined to the
stretch when the film is written. This module only calculates.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError
from .grid import TIME_SCALE

FORWARD, BACKWARD = DIRECTIONS = ("forward", "backward")
CONTEXT = 25
"""Frames that the model sees of the source by default."""


@dataclass(frozen=True)
class Stretch:
    """What the model makes of a longer film, in frames. frames: of the stretch, 8k+1; begin: where the source begins in
    it, below 0 if that is before it; context: how many of the source's frames are in it; count: all of the source's."""

    frames: int
    begin: int
    context: int
    count: int

    @property
    def lead(self) -> int:
        """The frames of the source before the stretch."""
        return max(0, -self.begin)

    @property
    def tail(self) -> int:
        """The frames of the source behind the stretch."""
        return max(0, self.begin + self.count - self.frames)

    @property
    def shown(self) -> int:
        """How many of its frames are written, 0 for all: a source of fewer than eight frames ends before it."""
        return self.begin + self.count if self.begin > 0 and self.begin + self.count < self.frames else 0

    @property
    def new(self) -> int:
        return self.frames - self.context

    @property
    def film(self) -> int:
        """The frames of the source and of the new part."""
        return self.count + self.new

    def told(self) -> str:
        """What the report says of it."""
        where = "first" if self.begin > 0 else "last"
        seen = f"the {where} {min(self.context, self.count)}" if self.context else "none"
        return f"the video has {self.count} frames, of which the model sees {seen}, and gets {self.new} new ones"


def stretch_beside(count: int, num_frames: int, context: int, direction: str) -> Stretch:
    """The stretch beside a source of so many frames. num_frames: of the new part with its context, rounded up to 8k+1;
    context: how many frames of the source the model sees, rounded down to what fits; before a source at least eight,
    of which those that it does not have are its last one, held. Raises InputError if no new frames are left."""
    backward = direction == BACKWARD
    seen = min(context, count)
    if seen and backward:
        seen = max(seen // TIME_SCALE, 1) * TIME_SCALE
    elif seen:
        seen = (seen - 1) // TIME_SCALE * TIME_SCALE + 1
    if num_frames <= seen:
        raise InputError(
            f"num_frames: {num_frames} frames leave no new ones beside the {seen} that the model sees of the video; "
            "raise num_frames, or let the model see fewer."
        )
    frames = -(-(num_frames - 1) // TIME_SCALE) * TIME_SCALE + 1
    return Stretch(frames, frames - seen if backward else seen - count, seen, count)
