"""Estimates how long the sampling of a film still takes, from the windows that are done.

The first stage is guided and the second one is larger, so their windows take different times. A stage that has begun is
judged by its own speed, a later one by what it costs in comparison. This module only calculates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .windows import Window

COMPILING = "compiling"  # what progress says of a step that compiles the transformer's blocks


class TimeLeft:
    """Told when windows begin and go on, it says how many seconds are left.

    costs: of the windows of each stage, in any unit that is the same for all. clock: seconds. A window that begins and
    makes no step, because it was kept, counts as free.
    """

    def __init__(self, costs: Sequence[Sequence[float]], clock: Callable[[], float] = time.monotonic) -> None:
        self.costs, self.clock = costs, clock
        self._place, self._share, self._last = (0, 0), 0.0, 0.0
        self._spent = [[0.0, 0.0] for _ in costs]  # of each stage: seconds, and what was made in them

    def begin(self, stage: int, window: int) -> None:
        """The window of that number begins, from 0."""
        self._place, self._share, self._last = (stage, window), 0.0, self.clock()

    def step(self, done: int, total: int, usual: bool = True) -> float | None:
        """The window that began last has done so many of its steps. Returns the seconds that are left, None if that
        cannot be known yet. usual: whether later steps take as long as this one; a step that compiled does not."""
        stage, window = self._place
        now, share = self.clock(), done / max(total, 1)
        if usual:
            self._spent[stage][0] += now - self._last
            self._spent[stage][1] += self.costs[stage][window] * (share - self._share)
        self._share, self._last = share, now
        return self.left()

    def left(self) -> float | None:
        """Seconds that are left, None if nothing was made yet."""
        stage, window = self._place
        seconds, made = (sum(each) for each in zip(*self._spent, strict=True))
        if made <= 0:
            return None
        found = 0.0
        for number, costs in enumerate(self.costs):
            if number < stage:
                continue
            rest = sum(costs) if number > stage else sum(costs[window:]) - costs[window] * self._share
            own_seconds, own_made = self._spent[number]
            found += rest * (own_seconds / own_made if own_made > 0 else seconds / made)
        return found


def cost(window: Window, size: tuple[int, int], steps: int, passes: int) -> float:
    """What a window costs in a stage, for TimeLeft. size: width and height in pixels; passes: those of a step."""
    return float(window.length * size[0] * size[1] * steps * passes)


def told(seconds: float) -> str:
    """A time in words, no more exact than an estimate can be."""
    if seconds < 90:
        return f"about {max(5, round(seconds / 5) * 5)} s left"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min left"
    hours, minutes = divmod(round(seconds / 60 / 5) * 5, 60)
    return f"about {hours} h {minutes:02d} min left"
