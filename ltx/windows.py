"""Cuts a clip of any length into windows that are sampled one after the other.

The first latent of a clip stands for one frame and each later one for eight, so a window that begins at frame 8j of the
whole is a clip of its own whose latents 1, 2, … are the whole's latents j+1, j+2, …: both lie on one grid. The first
`overlap` of them are given to the window, as the windows before made them, and what follows is new. The window's own
latent 0, one frame that the whole already has, is dropped. This module only calculates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .errors import InputError
from .latents import TIME_SCALE, frames_of

LONGEST = 481  # frames; the model was made for clips up to that
FRAMES, OVERLAP = 121, 2  # the endpoint's default length, and the overlap that was tried on the miniature


@dataclass(frozen=True)
class WindowSize:
    """The size of windows. frames: 8k+1, at most LONGEST; overlap: latents of eight frames that a window shares with
    the one before it.

    Raises InputError if a number is out of range or a window would have no new latent.
    """

    frames: int = FRAMES
    overlap: int = OVERLAP

    def __post_init__(self) -> None:
        least = frames_of(self.overlap + 2)
        if (self.frames - 1) % TIME_SCALE:
            raise InputError(f"windows: {self.frames} frames is not one more than a multiple of {TIME_SCALE}.")
        if self.frames > LONGEST:
            raise InputError(f"windows: {self.frames} frames are too many for the model; give at most {LONGEST}.")
        if self.overlap < 1:
            raise InputError(
                f"windows: an overlap of {self.overlap} is too small; give at least 1 latent of eight frames."
            )
        if self.frames < least:
            raise InputError(
                f"windows: an overlap of {self.overlap} latents leaves nothing new in {self.frames} frames; "
                f"give a smaller overlap, or at least {least} frames."
            )

    @property
    def length(self) -> int:
        """Latents of a window."""
        return (self.frames - 1) // TIME_SCALE + 1

    @classmethod
    def parse(cls, value: Any) -> WindowSize | None:
        """The value of a request: true for the defaults, false or null for none, or an object with `frames` and
        `overlap`. Raises InputError for any other value."""
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if not isinstance(value, Mapping) or value.keys() - {"frames", "overlap"}:
            raise InputError('windows: the value is not true, false or an object like {"frames": 121, "overlap": 2}.')
        for name, number in value.items():
            if not isinstance(number, int) or isinstance(number, bool) or abs(number) >= 2**31:
                raise InputError(f"windows: {name} is not a whole number that a window can have.")
        return cls(**value)


@dataclass(frozen=True)
class Window:
    """A stretch of a clip. start: the whole's latent that its latent 0 lies at; length: its latents; overlap: how many
    after its latent 0 are given. A first window starts at 0 and has no overlap."""

    start: int
    length: int
    overlap: int = 0

    @property
    def frames(self) -> int:
        return frames_of(self.length)

    @property
    def first_frame(self) -> int:
        """The frame of the whole that is its frame 0."""
        return self.start * TIME_SCALE

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def given(self) -> int:
        """How many latents at its beginning are not its result: latent 0 and the overlap; none in a first window."""
        return 1 + self.overlap if self.start else 0

    @property
    def whole(self) -> slice:
        """All its latents, in the whole."""
        return slice(self.start, self.stop)

    @property
    def new(self) -> slice:
        """The latents that it adds to the whole."""
        return slice(self.start + self.given, self.stop)

    def frame_within(self, frame: int) -> int | None:
        """The place of a frame of the whole in this window, if the frame is one of those that it adds; else None."""
        inside = frames_of(self.new.start) <= frame < frames_of(self.stop)
        return frame - self.first_frame if inside else None

    def starts_at(self, fps: Fraction) -> Fraction:
        """Seconds from the start of the whole to its frame 0."""
        return self.first_frame / Fraction(fps)


def cut_windows(frames: int, size: WindowSize | None = None) -> tuple[Window, ...]:
    """The windows of a clip of `frames`, 8k+1: without a size one for all, else as few as that size needs.

    Their lengths differ by at most one latent, and the longer ones come first. With full windows and a rest the last
    one could have a few latents only, which the model was not made for, and there would be as many of them.
    """
    total = (frames - 1) // TIME_SCALE + 1
    if size is None or total <= size.length:
        return (Window(0, total),)
    given = size.overlap + 1
    count = -(-(total - given) // (size.length - given))
    every, longer = divmod(total + (count - 1) * given, count)
    windows = [Window(0, every + (longer > 0))]
    for number in range(1, count):
        windows.append(Window(windows[-1].stop - given, every + (number < longer), size.overlap))
    return tuple(windows)
