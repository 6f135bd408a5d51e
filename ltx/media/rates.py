"""Frame rates as exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from ..errors import InputError

# A rate within this relative distance of an NTSC rate means that rate. It is less than half of 1e-3, the distance of 24
# and 23.976, and more than 1.7e-4, the error of the usual 23.98 and 47.95.
NTSC_TOLERANCE = 2e-4
SHOWN = 60  # characters of a wrong value in a message


def frame_rate(given: Any) -> Fraction:
    """23.976, 29.97, 59.94, … → 24000/1001, 30000/1001, 60000/1001. Whole rates stay the same; any other rate becomes
    the nearest fraction with a denominator up to 1001. A number may be a text, as workflows have it. Raises InputError
    if it is not a number above 0."""
    try:
        fps = float(given)
    except (TypeError, ValueError, OverflowError):
        fps = math.nan
    if not math.isfinite(fps) or fps <= 0:
        raise InputError(f"fps: {given!r:.{SHOWN}} is not a frame rate; give a number of frames per second above 0.")
    if fps.is_integer():
        return Fraction(int(fps))
    ntsc = Fraction(1000 * round(fps * 1.001), 1001)
    if abs(float(ntsc) - fps) <= NTSC_TOLERANCE * fps:
        return ntsc
    return max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
