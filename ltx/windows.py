"""Cuts a clip of any length into windows that are sampled one after the other.

The first latent of a clip stands for one frame and each later one for eight, so a window that begins at frame 8j of the
whole is a clip of its own whose latents 1, 2, … are the whole's latents j+1, j+2, …: both lie on one grid. The first
`overlap` of them are given to the window, as the windows before made them, and what follows is new. The window's own
latent 0, one frame that the whole already has, is dropped. This module only calculates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """A stretch of a clip. start: the whole's latent that its latent 0 lies at; length: its latents; given: how many at
    its beginning are not its result. These are its latent 0, which is dropped, and the overlap, which was made before.

    A window that begins a clip has nothing given, and one behind a hard cut its latent 0 alone.
    """

    start: int
    length: int
    given: int = 0

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


@dataclass(frozen=True)
class Border:
    """A latent at which a window has to begin what it adds. cut: whether it continues nothing of what is before."""

    latent: int
    cut: bool = False


def cut_windows(frames: int, size: WindowSize | None = None, borders: Sequence[Border] = ()) -> tuple[Window, ...]:
    """The windows of a clip of `frames`, 8k+1: without a size one for all, else as few as that size needs.

    borders: in rising order, above latent 0; those behind the end are left out. The lengths between two borders differ
    by at most one latent, and the longer ones come first. With full windows and a rest the last one could have a few
    latents only, which the model was not made for, and there would be as many of them.
    """
    total = (frames - 1) // TIME_SCALE + 1
    if size is None:
        return (Window(0, total),)
    inside = [border for border in borders if border.latent < total]
    stops = [*(border.latent for border in inside), total]
    windows = _stretch(0, stops[0], 0, size)
    for border, stop in zip(inside, stops[1:], strict=True):
        given = 1 if border.cut else 1 + min(size.overlap, border.latent - 1)
        windows += _stretch(border.latent, stop, given, size)
    return tuple(windows)


def _stretch(first: int, stop: int, given: int, size: WindowSize) -> list[Window]:
    """The windows that add the latents [first, stop). given: those that the first of them is given."""
    later = size.overlap + 1
    total = stop - first + given  # of the first window if it were the only one
    count = 1 + max(0, -(-(total - size.length) // (size.length - later)))
    every, longer = divmod(total + (count - 1) * later, count)
    windows = [Window(first - given, every + (longer > 0), given)]
    for number in range(1, count):
        windows.append(Window(windows[-1].stop - later, every + (number < longer), later))
    return windows
