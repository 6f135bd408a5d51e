"""Acceleration levels, which trade exactness for speed. `none` is exact.

Guidance shapes a clip while the noise is high, so the last steps can run without it (Kynkäänniemi et al. 2024, arXiv
2404.07724). If the first block of a step changes little, the other blocks do so, too (first-block cache, after
TeaCache, arXiv 2411.19108). The distilled recipe needs no guidance and few steps. docs/benchmarks.md shows what each
level costs.

diffusers' own first-block cache is not used. It needs every pass to run from the first block and a context for each
pass, but here an STG pass begins at the block where it differs from another pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import InputError
from ..models import GENERATIONS, MODELS, V25, generation, is_distilled
from ..request import ACCELERATIONS

GUIDED = 0.6  # share of the steps that are guided, from the first on; a lower one saves time and weakens guidance
REUSE = 0.1  # relative change of the first block below which the other blocks are reused; diffusers has 0.05


@dataclass(frozen=True)
class Acceleration:
    """The settings of a level. guided: share of the steps that are guided, from the first on. reuse: threshold of the
    first-block cache, 0 for off. distilled: use the distilled recipe with its own 8 sigmas and one pass per step.
    ancestral: LTX-2.5's recipe, whose steps renew noise.

    Raises InputError if a value is out of range.
    """

    guided: float = 1.0
    reuse: float = 0.0
    distilled: bool = False
    ancestral: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.guided <= 1:
            raise InputError(f"guided is {self.guided}: give a number from 0 to 1, the share of guided steps.")
        if not (math.isfinite(self.reuse) and self.reuse >= 0):
            raise InputError(f"reuse is {self.reuse}: give a number of at least 0.")

    def guided_above(self, sigmas: Tensor) -> float:
        """Steps of this schedule are guided if their sigma is above this one."""
        return float(sigmas[math.ceil(self.guided * (len(sigmas) - 1))])


EXACT = Acceleration()
LEVELS = dict(
    zip(
        ACCELERATIONS,
        (EXACT, Acceleration(GUIDED), Acceleration(GUIDED, REUSE), Acceleration(distilled=True)),
        strict=True,
    )
)


def level(name: str, version: str) -> Acceleration:
    """The settings of a level for a transformer of that version, as its file names it."""
    return replace(LEVELS[name], ancestral=LEVELS[name].distilled and generation(version) is V25)


def full_strength(checkpoint: str, lora: bool) -> float:
    """Strength of the distilled LoRA under `full`: 1, or 0 for a distilled checkpoint, which its file name tells.

    checkpoint: the file name. lora: whether there is a distilled LoRA. Raises InputError if neither is distilled.
    """
    if is_distilled(checkpoint):
        return 0.0
    if not lora:
        files = " or ".join(MODELS[each.distilled_lora].name for each in GENERATIONS)
        raise InputError(
            f"acceleration: full needs a distilled model; give the distilled LoRA ({files}) or a distilled checkpoint, "
            "or choose another level."
        )
    return 1.0
