"""Frame rates as exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

from ..errors import InputError

# A rate within this relative distance of an NTSC rate means that rate. It is less than half of 1e-3, the distance of 24
# and 23.976, and more than 1.7e-4, the error of the usual 23.98 and 47.95.
NTSC_TOLERANCE = 2e-4


def frame_rate(fps: float) -> Fraction:
    """23.976, 29.97, 59.94, … → 24000/1001, 30000/1001, 60000/1001. Whole rates stay the same; any other rate becomes
    the nearest fraction with a denominator up to 1001. Raises InputError if it is not a number above 0."""
    if not math.isfinite(fps) or fps <= 0:
        raise InputError(f"fps: {fps} is not a frame rate; give a number of frames per second above 0.")
    if float(fps).is_integer():
        return Fraction(int(fps))
    ntsc = Fraction(1000 * round(fps * 1.001), 1001)
    if abs(float(ntsc) - fps) <= NTSC_TOLERANCE * fps:
        return ntsc
    return max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
