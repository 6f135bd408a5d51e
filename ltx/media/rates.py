"""Frame rates as exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

from ..errors import InputError

# Relative distance within which a rate is taken for an NTSC one. 24 and 23.976 are 1e-3 apart, so less than half that;
# 23.98 and 47.95, as people write them, are 1.7e-4 off.
NTSC_TOLERANCE = 2e-4


def frame_rate(fps: float) -> Fraction:
    """23.976, 29.97, 59.94, … → 24000/1001, 30000/1001, 60000/1001; whole rates stay; others to the nearest n/1001."""
    if not math.isfinite(fps) or fps <= 0:
        raise InputError(f"fps: {fps} is not a frame rate; give a number of frames per second above 0.")
    if float(fps).is_integer():
        return Fraction(int(fps))
    ntsc = Fraction(1000 * round(fps * 1.001), 1001)
    if abs(float(ntsc) - fps) <= NTSC_TOLERANCE * fps:
        return ntsc
    return max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
