"""Reading a clip back from its pixels: how far a mouth is open, which colour and shape are seen, how alike frames are.

Frames are float [T, H, W, 3] in 0..1. Nothing here knows what was asked for, but the colours and heads of clips.py.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from . import clips

NAMES = (*clips.COLOURS, *clips.GROUNDS)
PALETTE = np.array([*clips.COLOURS.values(), *clips.GROUNDS.values()], np.float32) / 255
GROUND = len(clips.COLOURS)  # the first of the palette that is a ground
ALIKE = 0.75  # of a head and what is seen, intersection over union, below which it is no head
LAGS = 4  # frames that a movement may be early or late
LOW = np.array([0.299, 0.587, 0.114], np.float32)  # luma


def nearest(frames: np.ndarray) -> np.ndarray:
    """Each pixel's entry of the palette: [T, H, W]."""
    return ((frames[..., None, :] - PALETTE) ** 2).sum(-1).argmin(-1)


def words(frames: np.ndarray) -> dict[str, str]:
    """Colour, ground, shape and place of a face, as the middle frames show them; "" where there is nothing."""
    middle = frames[len(frames) // 2 :][:1] if len(frames) < 4 else frames[len(frames) // 2 - 1 : len(frames) // 2 + 2]
    picture = np.median(middle, axis=0)[None]
    entry = nearest(picture)[0]
    h, w = entry.shape
    edge = np.concatenate([entry[: h // 10].ravel(), entry[-(h // 10) :].ravel()])
    ground = np.bincount(edge, minlength=len(NAMES)).argmax()
    own = (picture[0] - PALETTE[ground]) ** 2
    seen = own.sum(-1) > 0.03  # whatever is not the ground
    if seen.sum() < 0.02 * seen.size:
        return {"colour": "", "ground": NAMES[ground], "shape": "", "place": ""}
    counts = np.bincount(entry[seen], minlength=len(NAMES))
    counts[GROUND:] = 0
    # Nearer the subject's colour than the ground's, along the line between them: stray tints do not widen a shape.
    axis = PALETTE[counts.argmax()] - PALETTE[ground]
    own = ((picture[0] - PALETTE[ground]) @ axis) > 0.5 * (axis @ axis)
    if not own.any():
        return {"colour": NAMES[counts.argmax()], "ground": NAMES[ground], "shape": "", "place": ""}
    (shape, place), best = max(
        ((words, _overlap(_rows(own), head)) for words, head in _heads(h, w).items()), key=lambda found: found[1]
    )
    if best < ALIKE:
        shape = place = ""
    return {"colour": NAMES[counts.argmax()], "ground": NAMES[ground], "shape": shape, "place": place}


@cache
def _heads(height: int, width: int) -> dict[tuple[str, str], np.ndarray]:
    """By shape and place: where such a head of middling size is, [H, W]."""
    unit, scene = min(height, width), clips.Scene()
    x, y = ((np.arange(n) + 0.5 - n / 2) / unit / scene.radius for n in (width, height))
    return {
        (shape, place): clips.shape(shape, x[None] - (i - 1) * clips.SHIFT / scene.radius, y[:, None]) < 0
        for shape in clips.SHAPES
        for i, place in enumerate(clips.PLACES)
    }


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def _largest(mask: np.ndarray) -> np.ndarray:
    """Without rows and columns that hold next to nothing: specks do not widen a box."""
    rows, columns = mask.sum(1) > 0.03 * mask.shape[1], mask.sum(0) > 0.03 * mask.shape[0]
    return mask & rows[:, None] & columns[None, :]


def _rows(mask: np.ndarray) -> np.ndarray:
    """Each row filled from its first to its last: a face has eyes and a mouth, and no dents."""
    return np.logical_or.accumulate(mask, 1) & np.logical_or.accumulate(mask[:, ::-1], 1)[:, ::-1]


def mouth(frames: np.ndarray) -> np.ndarray:
    """How much of the lower middle of a face is dark, in each frame: [T]. Zeros where no face is found."""
    picture = np.median(frames, axis=0)
    entry = nearest(picture[None])[0]
    counts = np.bincount(entry.ravel(), minlength=len(NAMES))
    counts[GROUND:] = 0
    if counts.max() < 0.02 * entry.size:
        return np.zeros(len(frames))
    colour = counts.argmax()
    ys, xs = np.nonzero(_largest(entry == colour))
    if not len(ys):
        return np.zeros(len(frames))
    top, bottom, left, right = (*np.percentile(ys, (1, 99)), *np.percentile(xs, (1, 99)))
    high, wide = bottom - top, right - left
    region = frames[
        :,
        round(top + 0.5 * high) : round(top + 0.95 * high) + 1,
        round(left + 0.25 * wide) : round(left + 0.75 * wide) + 1,
    ]
    bright = float(PALETTE[colour] @ LOW)
    # Softly: what is half covered counts half.
    return np.clip((bright - region @ LOW) / (0.8 * bright), 0, 1).mean((1, 2))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one does not move."""
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def lagged(motion: np.ndarray, envelope: np.ndarray) -> tuple[float, int]:
    """The highest correlation and its lag in frames: above 0, the motion comes late."""
    found = []
    for lag in range(-LAGS, LAGS + 1):
        n = len(motion) - abs(lag)
        a, b = motion[max(0, lag) :][:n], envelope[max(0, -lag) :][:n]
        found.append((correlation(a, b), lag))
    return max(found, key=lambda pair: (round(pair[0], 6), -abs(pair[1])))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In dB, of values in 0..1."""
    return float(-10 * np.log10(max(float(((a - b) ** 2).mean()), 1e-10)))
