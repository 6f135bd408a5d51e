"""How a clip is cut into the decoder's tiles: their sizes, where they lie, and how much of the clip they share.

Nothing is decoded here (decode.py), and no memory is measured (memory/tiles.py chooses sizes by it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise, product

import torch
from torch import Tensor

from ..errors import InputError
from ..grid import SPACE_SCALE, TIME_SCALE, frames_of

CHUNK = 8  # frames that are yielded at a time
STEP = 0.75
"""A size that is tried is at most this part of the one before: finer steps save little overlap and take longer."""


@dataclass(frozen=True)
class Tiling:
    """Size and overlap of a tile in frames and in pixels. The defaults are those of ltx-pipelines 1.2.

    A size of 0 is open: memory/tiles.py chooses it by the free memory. A spatial tile has the proportions of the frame,
    and its long side has `pixels`, as in ltx-core. Both sides are then cut about equally often, and no tile is larger
    than the given size. Raises InputError if a size or an overlap cannot be used.
    """

    frames: int = 80
    frame_overlap: int = 24
    pixels: int = 768
    pixel_overlap: int = 64

    def __post_init__(self) -> None:
        for name, size, overlap, unit in (
            ("frames", self.frames, self.frame_overlap, TIME_SCALE),
            ("pixels", self.pixels, self.pixel_overlap, SPACE_SCALE),
        ):
            if size and (size < 2 * unit or size % unit):
                raise InputError(
                    f"The tile size of {size} {name} must be a multiple of {unit}, at least {2 * unit}; 0 is chosen by "
                    "the free memory."
                )
            if not 0 <= overlap < (size or math.inf) or overlap % unit:
                below = f", below the tile's {size}" if size else ""
                raise InputError(f"The tile overlap of {overlap} {name} must be a multiple of {unit}{below}.")

    @classmethod
    def of(cls, frames: int, pixels: int) -> Tiling:
        """A tiling with these sizes, 0 for an open one, and the usual overlaps, but at most half a tile. Raises
        InputError as the class does."""
        return cls()._sized(frames, pixels)

    @classmethod
    def whole(cls, latent: Tensor) -> Tiling:
        """A tiling with one tile for the whole latent [1, C, F, H, W]."""
        return cls()._sized(max(2, latent.shape[2]) * TIME_SCALE, max(2, *latent.shape[3:]) * SPACE_SCALE)

    @property
    def open(self) -> bool:
        """Whether a size is to be chosen."""
        return not (self.frames and self.pixels)

    def closed(self, other: Tiling) -> Tiling:
        """This tiling with the other one's sizes where its own are open. The overlap is then at most half a tile."""
        closed = self._sized(self.frames or other.frames, self.pixels or other.pixels)
        return replace(
            closed,
            frame_overlap=self.frame_overlap if self.frames else closed.frame_overlap,
            pixel_overlap=self.pixel_overlap if self.pixels else closed.pixel_overlap,
        )

    def smaller(self, latent: Tensor) -> Tiling | None:
        """The next smaller tiling for that latent, None if there is no smaller one.

        It halves the pixels of the long side and the frames in turns. The overlap stays the same, but at most half a
        tile.
        """
        whole = Tiling.whole(latent)
        frames, pixels = min(self.frames, whole.frames), min(self.pixels, whole.pixels)  # a tile's real size
        can_shorten, can_narrow = frames > 2 * TIME_SCALE, pixels > 2 * SPACE_SCALE
        if can_narrow and (not can_shorten or pixels * Tiling.frames >= frames * Tiling.pixels):
            pixels = max(2, pixels // 2 // SPACE_SCALE) * SPACE_SCALE
        elif can_shorten:
            frames = max(2, frames // 2 // TIME_SCALE) * TIME_SCALE
        else:
            return None
        return self._sized(frames, pixels)

    def choices(self, latent: tuple[int, int, int]) -> list[Tiling]:
        """Sizes for a latent with that grid where this tiling's are open: those first that decode least of the clip
        twice, the whole clip before all others. Overlaps stay as they are, but at most half a tile. Raises ValueError
        if nothing is open."""
        if not self.open:
            raise ValueError("the tiling has no open size")
        times = [2] if self.frames else _sizes(latent[0], self.frame_overlap // TIME_SCALE)
        sides = [2] if self.pixels else _sizes(max(latent[1:]), self.pixel_overlap // SPACE_SCALE)
        found = [
            self.closed(Tiling(max(2, time) * TIME_SCALE, 0, max(2, side) * SPACE_SCALE, 0))
            for time, side in product(times, sides)
        ]
        found.append(self.closed(USUAL))  # so that no choice shares more than the usual tiles, if these fit
        return sorted(found, key=lambda tiling: (written(latent, tiling), tile_count(latent, tiling)))

    def _sized(self, frames: int, pixels: int) -> Tiling:
        def at_most_half(overlap: int, size: int, unit: int) -> int:
            return min(overlap, size // 2 // unit * unit) if size else overlap

        return Tiling(
            frames,
            at_most_half(self.frame_overlap, frames, TIME_SCALE),
            pixels,
            at_most_half(self.pixel_overlap, pixels, SPACE_SCALE),
        )

    def __str__(self) -> str:
        return f"{self.pixels} px and {self.frames} frames"


USUAL = Tiling()


def _sizes(length: int, overlap: int) -> list[int]:
    """Sizes of a tile along an axis of so many latents, from the whole axis down. Each cuts the axis into pieces as
    even as can be, and no overlap is more than half a tile."""
    found = [length]
    for pieces in range(2, length + 1):
        size = math.ceil((length + (pieces - 1) * overlap) / pieces)
        if size < max(2, 2 * overlap):
            break
        if size <= STEP * found[-1]:
            found.append(size)
    return found


@dataclass(frozen=True)
class Span:
    """One tile along one axis. latents: the range that it reads; skip: decoded samples to drop at its start; samples:
    the range of frames or pixels that it writes, with their weight."""

    latents: slice
    skip: int
    samples: slice
    weight: Tensor | None  # float32 [samples]; the weights of all tiles add up to 1. None if there is one tile

    @property
    def own(self) -> slice:
        """The latents that the written samples stand for."""
        return slice(self.latents.start + self.skip, self.latents.stop)


def spans(
    latent: tuple[int, int, int], tiling: Tiling | None, start: int = 0, missing: Tensor | None = None
) -> tuple[list[Span], list[Span], list[Span]]:
    """Tiles along time, height and width for a latent with that grid; in time they begin at latent `start`. With
    `tiling` None there is one tile.

    missing: the weights that the first frames still need, if an earlier tiling has decoded them in part.
    """
    times, *sides = cuts(latent, tiling, start)
    return _time_spans(times, missing), *map(_space_spans, sides)


def cuts(latent: tuple[int, int, int], tiling: Tiling | None, start: int = 0) -> tuple[list[tuple[int, int]], ...]:
    """The first latent of each tile and the one behind its last, along time, height and width; see `spans`."""
    if tiling is None:
        tiling = Tiling.whole(torch.empty(1, 1, *latent, device="meta"))
    if tiling.open:
        raise ValueError("an open tiling cuts nothing; memory/tiles.py closes it")
    frames, *sides = latent
    size, overlap = tiling.pixels // SPACE_SCALE, tiling.pixel_overlap // SPACE_SCALE
    length, shared = tiling.frames // TIME_SCALE, tiling.frame_overlap // TIME_SCALE
    times = [(start + a, start + b) for a, b in _cut(frames - start, length, shared)]
    return times, *(_cut(side, max(2, overlap + 1, round(size * side / max(sides))), overlap) for side in sides)


def tile_count(latent: tuple[int, int, int], tiling: Tiling | None) -> int:
    """Number of tiles of a latent with that grid."""
    return math.prod(map(len, cuts(latent, tiling)))


def written(latent: tuple[int, int, int], tiling: Tiling | None) -> int:
    """Pixels of all frames that the tiles write: those of the clip, and each again for each further tile that has
    it."""
    times, *sides = cuts(latent, tiling)
    frames = sum(frames_of(stop) - frames_of(start) for start, stop in times)
    return frames * math.prod(SPACE_SCALE * sum(stop - start for start, stop in side) for side in sides)


def volume(*axes: list[Span]) -> int:
    """Pixels of all frames that tiles with these spans in time, height and width write."""
    return math.prod(sum(span.samples.stop - span.samples.start for span in axis) for axis in axes)


def in_words(latent: tuple[int, int, int], tiling: Tiling, tiles: int, pixels: int) -> str:
    """How a clip with that grid is decoded, for the report. tiling: that of the largest tile; tiles: their number;
    pixels: of all frames that they write."""
    frames, *sides = latent
    if tiles == 1:
        return "decoded whole"
    long, length = SPACE_SCALE * max(sides), frames_of(frames)
    clip = length * math.prod(SPACE_SCALE * side for side in sides)
    size = f"{min(tiling.frames, length)} frames and {min(tiling.pixels, long)} pixels"
    return f"decoded in {tiles} tiles of at most {size}; {100 * (pixels - clip) / clip:.0f} % of the clip twice"


def largest_tile(latent: tuple[int, int, int], tiling: Tiling | None) -> tuple[slice, slice, slice]:
    """The decoder's largest tile, for a latent with that grid: its part of time, height and width. In time a tile
    inside the clip also reads the latent before it, and is the larger one of two of the same length."""
    times, rows, columns = cuts(latent, tiling)
    time = max(times, key=lambda cut: cut[1] - max(0, cut[0] - 1))
    return tuple(slice(*cut) for cut in (time, *(max(axis, key=lambda c: c[1] - c[0]) for axis in (rows, columns))))


def held_frames(latent: tuple[int, int, int], tiling: Tiling | None) -> int:
    """Number of whole float32 frames on the CPU while a tile is decoded: the frames of its time tile, those held from
    the previous one, and the chunk that the reader has."""
    times = [(frames_of(start), frames_of(stop)) for start, stop in cuts(latent, tiling)[0]]
    shared = max((one[1] - following[0] for one, following in pairwise(times)), default=0)
    return max(stop - start for start, stop in times) + shared + (CHUNK if len(times) > 1 else 0)


def _space_spans(cut: list[tuple[int, int]]) -> list[Span]:
    samples = [slice(a * SPACE_SCALE, b * SPACE_SCALE) for a, b in cut]
    weights = _weights(samples)
    return [Span(slice(a, b), 0, s, w) for (a, b), s, w in zip(cut, samples, weights, strict=True)]


def _time_spans(cut: list[tuple[int, int]], missing: Tensor | None = None) -> list[Span]:
    """As in space, but a tile inside the clip also reads the latent before it and drops the frame of that latent."""
    samples = [slice(frames_of(a), frames_of(b)) for a, b in cut]
    weights = _weights(samples)
    if missing is not None and len(missing):
        weights = [torch.ones(s.stop - s.start) if w is None else w for s, w in zip(samples, weights, strict=True)]
        for s, weight in zip(samples, weights, strict=True):
            shared = missing[s.start - samples[0].start :][: len(weight)]
            weight[: len(shared)] *= shared
    return [Span(slice(max(0, a - 1), b), int(a > 0), s, w) for (a, b), s, w in zip(cut, samples, weights, strict=True)]


def _cut(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Cuts [0, length) into pieces of `size` that overlap by `overlap`; the last piece may be shorter."""
    if length <= size:
        return [(0, length)]
    stride = size - overlap
    count = math.ceil((length - overlap) / stride)
    return [(i * stride, min(i * stride + size, length)) for i in range(count)]


def _weights(samples: list[slice]) -> list[Tensor] | list[None]:
    """Weights of the tiles along one axis: 1 where there is one tile, a linear ramp where two overlap. They add up to
    1.

    A linear ramp was best when measured. Smoother ramps give less weight to the samples next to a cut, but their RMS
    error is 2 to 4 % larger: the errors of two tiles are independent, and an even mix averages them.
    """
    if len(samples) == 1:
        return [None]
    weights = [torch.ones(s.stop - s.start) for s in samples]
    for (one, following), (falling, rising) in zip(pairwise(samples), pairwise(weights), strict=True):
        overlap = one.stop - following.start
        ramp = torch.arange(1, overlap + 1) / (overlap + 1)
        falling[len(falling) - overlap :] *= 1 - ramp
        rising[:overlap] *= ramp
    # The sum is 1 already, except where an overlap is more than half a tile and three tiles meet.
    total = torch.zeros(samples[-1].stop)
    for s, weight in zip(samples, weights, strict=True):
        total[s] += weight
    return [weight / total[s] for s, weight in zip(samples, weights, strict=True)]
