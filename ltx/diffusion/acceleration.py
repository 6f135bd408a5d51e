"""Acceleration levels: what each one gives up for speed. `none` is exact.

Guidance shapes a clip while the noise is high, so the last steps can do without it (Kynkäänniemi et al. 2024, arXiv
2404.07724); where a step's first block changes little, the others would, too (first-block cache, after TeaCache, arXiv
2411.19108); and the distilled recipe needs neither guidance nor many steps. docs/benchmarks.md has what they cost.

diffusers' own first-block cache is not used: it wants every pass to run from the first block and a context for each,
and a perturbed pass here begins at the block where it departs from another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError
from ..models import MODELS, is_distilled
from ..request import ACCELERATIONS

GUIDED = 0.6  # of the steps, from the first on; fewer save more and follow prompt and audio less
REUSE = 0.1  # relative change of the first block's work below which the other blocks' is used again; diffusers has 0.05


@dataclass(frozen=True)
class Acceleration:
    """guided: the share of the steps, from the first on, that are guided. reuse: threshold of the first-block cache, 0
    is off. distilled: the distilled recipe, 8 sigmas of its own and one pass a step.
    """

    guided: float = 1.0
    reuse: float = 0.0
    distilled: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.guided <= 1:
            raise InputError(f"guided is {self.guided}: give a share of the steps from 0 to 1.")
        if not (math.isfinite(self.reuse) and self.reuse >= 0):
            raise InputError(f"reuse is {self.reuse}: give a number of at least 0.")

    def guided_above(self, sigmas: Tensor) -> float:
        """The sigma down to which steps of this schedule are guided, itself not among them."""
        return float(sigmas[math.ceil(self.guided * (len(sigmas) - 1))])


EXACT = Acceleration()
LEVELS = dict(
    zip(
        ACCELERATIONS,
        (EXACT, Acceleration(GUIDED), Acceleration(GUIDED, REUSE), Acceleration(distilled=True)),
        strict=True,
    )
)


def full_strength(checkpoint: str, lora: bool) -> float:
    """The distilled LoRA's strength under `full`: 1, or 0 where the checkpoint is distilled, going by its file's name.

    lora: whether there is one. Errors: InputError where nothing is distilled.
    """
    if is_distilled(checkpoint):
        return 0.0
    if not lora:
        raise InputError(
            "acceleration: full needs a distilled model; give the distilled LoRA "
            f"({MODELS['distilled-lora'].name}) or a distilled checkpoint, or choose another level."
        )
    return 1.0
