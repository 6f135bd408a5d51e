"""Cuts a clip of any length into windows that are sampled one after the other.

The first latent of a clip stands for one frame and each later one for eight, so a window that begins at frame 8j of the
whole is a clip of its own whose latents 1, 2, … are the whole's latents j+1, j+2, …: both lie on one grid. The first
`overlap` of them are given to the window, as the windows before made them, and what follows is new. The window's own
latent 0, one frame that the whole already has, is dropped. This module only calculates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise, starmap
from typing import Any

from .errors import InputError
from .grid import TIME_SCALE, frames_of
from .objects import SHOWN, settings

LONGEST = 481  # frames; the model was made for clips up to that
SHORTEST, MOST_OVERLAP = frames_of(3), LONGEST // TIME_SCALE - 1  # with the least overlap, and in the longest window
FRAMES, OVERLAP = 121, 2  # the endpoint's default length, and the overlap that was tried on the miniature
DRIFT = 0.3  # on the miniature, three minutes of song end with colours that are off by 7 of 255, and by 11 without
PAUSE_REACH = Fraction(1, 4)  # the share of a window by which it may end earlier, where the sound is quieter
JOIN = 3  # dB; so much quieter must the ends of windows be on the whole for each window more
NUMBERS, SHARES = ("frames", "overlap"), ("anchor", "drift")


@dataclass(frozen=True)
class WindowSize:
    """The size of windows. frames: 8k+1, at most LONGEST; overlap: latents of eight frames that a window shares with
    the one before it; pauses: whether windows end where the sound is quiet, up to PAUSE_REACH earlier.

    anchor: 0 … 1, how strongly later windows are held to the first frame; drift: 0 … 1, the share by which they are
    pulled to the first window where both show the same; seeds: pairs of a window's number, from 1, and a seed for it
    alone. Raises InputError if a number is out of range or a window would have no new latent.
    """

    frames: int = FRAMES
    overlap: int = OVERLAP
    pauses: bool = True
    anchor: float = 1.0
    drift: float = DRIFT
    seeds: tuple[tuple[int, int], ...] = ()

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

    @property
    def joined(self) -> float:
        """The share by which what a film adds to a given video is matched to it; with the default drift it is 1."""
        return min(1.0, self.drift / DRIFT)

    @classmethod
    def parse(cls, value: Any) -> WindowSize | None:
        """The value of a request: true for the defaults, false or null for none, or an object with some of the fields.
        Raises InputError for any other value."""
        value = settings(cls, "windows", value, '{"frames": 121, "overlap": 2}')
        if value is None:
            return None
        for name in value.keys() & set(NUMBERS):
            if not isinstance(value[name], int) or isinstance(value[name], bool) or abs(value[name]) >= 2**31:
                raise InputError(f"windows: {name} is not a whole number that a window can have.")
        if not isinstance(value.get("pauses", True), bool):
            raise InputError("windows: pauses is not true or false.")
        for name in value.keys() & set(SHARES):
            share = value[name]
            if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
                raise InputError(f"windows: {name} is not a number between 0 and 1.")
        return cls(**{**value, "seeds": _seeds(value.get("seeds", {}))})

    def check_seeds(self, count: int) -> None:
        """Raises InputError if a seed is for a window that a film of so many windows does not have."""
        for number, _ in self.seeds:
            if number > count:
                raise InputError(
                    f"windows: there is a seed for window {number}, but the film has {count}; leave it out."
                )


def _seeds(value: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of a window's number and its seed, in order, from an object. Raises InputError for any other value."""
    if not isinstance(value, Mapping):
        raise InputError('windows: seeds is not an object like {"5": 123}, a window\'s number and its seed.')
    found = {}
    for number, seed in value.items():
        if not (
            isinstance(number, str) and number.isascii() and number.isdecimal() and 0 < len(number) < 7 and int(number)
        ):
            raise InputError(f"windows: {number!r:.{SHOWN}} in seeds is not the number of a window, from 1.")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise InputError(f"windows: the seed of window {number} is not a whole number.")
        found[int(number)] = seed
    return tuple(sorted(found.items()))


@dataclass(frozen=True)
class Window:
    """A stretch of a clip. start: the whole's latent that its latent 0 lies at; length: its latents; given: how many at
    its beginning are not its result. These are its latent 0, which is dropped, and the overlap, which was made before.

    A window that begins a clip has nothing given, and one behind a hard cut its latent 0 alone. cut: whether it is one
    behind a hard cut. At the clip's own beginning latent 0 is all that a section without a cut can be given, too.
    """

    start: int
    length: int
    given: int = 0
    cut: bool = False

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


def hard_cuts(windows: Sequence[Window]) -> tuple[int, ...]:
    """The latents behind the hard cuts of a film."""
    return tuple(window.new.start for window in windows if window.cut)


def shares(windows: Sequence[Window], count: int) -> tuple[range, ...]:
    """The numbers of the windows of each part of a film that is made in `count` parts, which end at hard cuts and are
    about equally long. There are fewer if the film has fewer cuts."""
    borders = [0, *(number for number, window in enumerate(windows) if window.cut), len(windows)]
    count = min(count, len(borders) - 1)
    total, chosen = windows[-1].stop, [0]
    for number in range(1, count):
        possible = borders[borders.index(chosen[-1]) + 1 : len(borders) - count + number]
        chosen.append(min(possible, key=lambda each: abs(windows[each].new.start * count - total * number)))
    return tuple(starmap(range, pairwise((*chosen, len(windows)))))


def cut_windows(
    frames: int, size: WindowSize | None = None, borders: Sequence[Border] = (), levels: Sequence[int] = ()
) -> tuple[Window, ...]:
    """The windows of a clip of `frames`, 8k+1: without a size one for all, else as that size needs.

    borders: in rising order, above latent 0; those behind the end are left out. levels: of the sound at the first frame
    of each latent, in dB. With them windows end at quiet places, up to PAUSE_REACH earlier than they could. Without
    them, or where all levels are equal, there are as few windows as possible, the lengths between two borders differ by
    at most one latent, and the longer ones come first. With full windows and a rest the last one could have a few
    latents only, which the model was not made for, and there would be as many of them.
    """
    total = (frames - 1) // TIME_SCALE + 1
    if size is None:
        return (Window(0, total),)
    inside = [border for border in borders if border.latent < total]
    stops = [*(border.latent for border in inside), total]
    windows = _stretch(0, stops[0], 0, size, levels)
    behind = 1  # the first latent that windows may share: latent 0 stands for one frame, and a hard cut parts latents
    for border, stop in zip(inside, stops[1:], strict=True):
        behind = border.latent if border.cut else behind
        given = 1 if border.cut else 1 + min(size.overlap, border.latent - behind)
        first, *later = _stretch(border.latent, stop, given, size, levels)
        windows += [replace(first, cut=border.cut), *later]
    return tuple(windows)


def _stretch(first: int, stop: int, given: int, size: WindowSize, levels: Sequence[int]) -> list[Window]:
    """The windows that add the latents [first, stop). given: those that the first of them is given."""
    later = size.overlap + 1
    total = stop - first + given  # of the first window if it were the only one
    count = 1 + max(0, -(-(total - size.length) // (size.length - later)))
    every, longer = divmod(total + (count - 1) * later, count)
    windows = [Window(first - given, every + (longer > 0), given)]
    for number in range(1, count):
        windows.append(Window(windows[-1].stop - later, every + (number < longer), later))
    if not levels or count == 1:
        return windows
    shortest = max(min(every, size.length - int(size.length * PAUSE_REACH)), given + 1, later + 1)
    return _quiet(first, stop, given, range(shortest, size.length + 1), later, levels)


def _quiet(first: int, stop: int, given: int, lengths: range, later: int, levels: Sequence[int]) -> list[Window]:
    """The windows of these lengths that add the latents [first, stop) and end where the sound is quiet: with the least
    sum of levels above the lowest one and of JOIN for each window, then with the most equal lengths."""
    lowest = min(levels[first + 1 : stop], default=0)
    best: dict[int, tuple[int, int, int]] = {stop: (0, 0, 0)}  # from a latent on: levels, squared lengths, next latent
    for begin in range(stop - 1, first - 1, -1):
        shared = given if begin == first else later
        found = []
        for length in reversed(lengths):  # of equal ones the longest is taken first
            end = begin + length - shared
            if end in best and begin < end:
                cost, squares, _ = best[end]
                loud = 0 if end == stop else levels[end] - lowest + JOIN
                found.append((cost + loud, squares + length**2, end))
        if found:
            best[begin] = min(found, key=lambda each: each[:2])
    windows, begin = [], first
    while begin < stop:
        shared, end = given if begin == first else later, best[begin][2]
        windows.append(Window(begin - shared, end - begin + shared, shared))
        begin = end
    return windows
