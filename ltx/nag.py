"""NAG, normalized attention guidance (Chen et al. 2025, arXiv 2505.21179): a negative prompt without a pass of its own.

CFG leads the prediction of a step away from that of a second pass, with the negative prompt. NAG leads the attention to
the prompt away from the attention to the negative prompt, in each block. So it also acts where a step has one pass:
with distilled models, and in the second stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .objects import check_number, settings

RANGES: Mapping[str, tuple[float, float]] = {"scale": (1.0, 100.0), "alpha": (0.0, 1.0), "tau": (1.0, 10.0)}


@dataclass(frozen=True)
class Nag:
    """How far attention to the prompt is led away from the negative prompt.

    scale: how far it is extrapolated; 1 is neutral. alpha: the share of the extrapolated result; the rest is attention
    to the prompt alone, so 0 is neutral. tau: the most by which the extrapolation may lengthen a token (its L1 norm).
    The defaults are those that are usual for LTX-2. Raises InputError if a value is out of its range.
    """

    scale: float = 11.0
    alpha: float = 0.25
    tau: float = 2.5

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            check_number("nag", name, getattr(self, name), low, high)

    @property
    def acts(self) -> bool:
        """Whether it changes anything."""
        return self.scale > 1 and self.alpha > 0

    @classmethod
    def parse(cls, value: Any) -> Nag | None:
        """The value of a request: true for the defaults, false or null for none, or an object with some of the fields.
        Raises InputError for any other value."""
        given = settings(cls, "nag", value, '{"scale": 11, "alpha": 0.25}')
        return None if given is None else cls(**given)
