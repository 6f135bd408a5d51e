"""A clock that only goes forward. All processes of this machine share it, and it starts when the machine starts.

People and the network set wall clocks, and summer time does. Durations are therefore measured by this clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@cache
def boot_id() -> str:
    """An id that changes with each start of the machine. It is empty if the system has none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Moment:
    """A time by both clocks. steady: seconds since the machine started; wall: seconds since 1970; boot: its
    `boot_id`."""

    steady: float
    wall: float
    boot: str

    def plus(self, seconds: float) -> Moment:
        return Moment(self.steady + seconds, self.wall + seconds, self.boot)


def now() -> Moment:
    return Moment(time.monotonic(), time.time(), boot_id())
