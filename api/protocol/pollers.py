"""Finds pollers for whom an answer has no news, so that they wait.

An answer costs the running job a third of a millisecond of the interpreter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable
from typing import Any

from ..queue.snapshots import LATELY


class Told:
    """The last answer to each poller, for as long as it is likely to ask again."""

    def __init__(self) -> None:
        self._last: dict[Hashable, tuple[float, Any]] = {}
        self._swept = 0.0

    def knows(self, poller: Hashable, answer: Any) -> bool:
        """Whether the poller got this very answer just now."""
        at, last = self._last.get(poller, (-math.inf, None))
        return time.monotonic() - at <= LATELY and last == answer

    def note(self, poller: Hashable, answer: Any) -> None:
        now = time.monotonic()
        if now - self._swept > LATELY:
            self._last = {each: told for each, told in self._last.items() if told[0] >= now - LATELY}
            self._swept = now
        self._last[poller] = (now, answer)
