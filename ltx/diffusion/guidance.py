"""Guidance: which passes of the transformer a step needs, and how their predictions make one.

All predictions are x0, tokens [1, N, C]. Running the passes is the work of the pipeline; blending the result with the
clean tokens by the mask, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Guidance:
    """Scales of the guidance terms. A pass whose scale is neutral (cfg 1, stg 0, modality 1) is not run.

    `rescale` in 0..1 pulls the standard deviation of the sum back to the conditional prediction's. `stg_blocks` are
    the transformer blocks whose self-attention the STG pass perturbs; empty means the default one of the model's depth.
    """

    cfg: float = 1.0
    stg: float = 0.0
    rescale: float = 0.0
    modality: float = 1.0
    stg_blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in ("cfg", "stg", "rescale", "modality"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{field} is {value}: give a number of at least 0.")
        if self.rescale > 1:
            raise InputError(f"rescale is {self.rescale}: give a number from 0 to 1.")
        object.__setattr__(self, "stg_blocks", tuple(self.stg_blocks))
        if any(isinstance(block, bool) or not isinstance(block, int) or block < 0 for block in self.stg_blocks):
            raise InputError(f"stg_blocks is {list(self.stg_blocks)}: give block numbers from 0 up.")

    @property
    def runs_uncond(self) -> bool:
        """Whether the pass with the negative text is needed."""
        return not math.isclose(self.cfg, 1.0)

    @property
    def runs_perturbed(self) -> bool:
        """Whether the pass with perturbed self-attention (STG) is needed."""
        return not math.isclose(self.stg, 0.0)

    @property
    def runs_isolated(self) -> bool:
        """Whether the pass without attention between audio and video is needed."""
        return not math.isclose(self.modality, 1.0)

    @property
    def passes(self) -> int:
        """Transformer passes a step takes, the conditional one among them."""
        return 1 + self.runs_uncond + self.runs_perturbed + self.runs_isolated

    def blocks(self, layers: int) -> tuple[int, ...]:
        """`stg_blocks` for a transformer of `layers` blocks. Raises InputError where one is not there."""
        outside = [block for block in self.stg_blocks if block >= layers]
        if outside:
            raise InputError(f"stg_blocks names block {outside[0]}, and this model has blocks 0 to {layers - 1}.")
        return self.stg_blocks or default_stg_blocks(layers)

    def combine(
        self,
        cond: Tensor,
        uncond: Tensor | None = None,
        perturbed: Tensor | None = None,
        isolated: Tensor | None = None,
    ) -> Tensor:
        """The guided x0 in float32, of `cond`'s shape. A pass that is not run may be None; its argument is ignored."""
        cond = cond.float()
        if self.passes == 1:
            return cond
        guided = cond
        # In the official order of terms: another one differs in the last bit.
        for runs, weight, other in (
            (self.runs_uncond, self.cfg - 1, uncond),
            (self.runs_perturbed, self.stg, perturbed),
            (self.runs_isolated, self.modality - 1, isolated),
        ):
            if runs:
                if other is None:
                    raise ValueError("a pass that the guidance needs is missing")
                guided = guided + weight * (cond - other.float())
        if self.rescale:
            factor = self.rescale * (cond.std() / guided.std()) + (1 - self.rescale)
            guided = guided * factor
        return guided


NONE = Guidance()
"""One pass a step, as in the second pass and the distilled recipe."""


def default_stg_blocks(layers: int) -> tuple[int, ...]:
    """The block to perturb: 28 of LTX-2.3's 48, in proportion for another depth."""
    return (min(round(28 / 48 * layers), layers - 1),)


def needed(*guidances: Guidance) -> tuple[bool, bool, bool]:
    """Which passes beside the conditional one streams under these need together: uncond, perturbed, isolated."""
    return tuple(
        any(getattr(g, name) for g in guidances) for name in ("runs_uncond", "runs_perturbed", "runs_isolated")
    )
