"""Guidance: which passes of the transformer a step needs, and how their predictions are combined to one.

All predictions are x0, tokens [1, N, C]. denoiser.py runs the passes and blends the result with the clean tokens by the
mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Guidance:
    """Scales of the guidance terms. A pass with a neutral scale (cfg 1, stg 0, modality 1, identity 0) is not run.

    rescale: 0..1, how far the standard deviation of the sum is pulled back to that of the conditional prediction.
    stg_blocks: the transformer blocks whose self-attention the STG pass perturbs; if empty, the default block for the
    model's depth. identity: for a stage that hears a reference, how far the prediction is led away from that of the
    pass without it (identity guidance of ID-LoRA, arXiv 2603.10256). Raises InputError if a value is out of range.
    """

    cfg: float = 1.0
    stg: float = 0.0
    rescale: float = 0.0
    modality: float = 1.0
    stg_blocks: tuple[int, ...] = ()
    identity: float = 0.0

    def __post_init__(self) -> None:
        for field in ("cfg", "stg", "rescale", "modality", "identity"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{field} is {value}: give a number of at least 0.")
        if self.rescale > 1:
            raise InputError(f"rescale is {self.rescale}: give a number from 0 to 1.")
        object.__setattr__(self, "stg_blocks", tuple(self.stg_blocks))
        if any(isinstance(block, bool) or not isinstance(block, int) or block < 0 for block in self.stg_blocks):
            raise InputError(f"stg_blocks is {list(self.stg_blocks)}: give block numbers of at least 0.")

    @property
    def runs_uncond(self) -> bool:
        """Whether the pass with the negative prompt is needed."""
        return not math.isclose(self.cfg, 1.0)

    @property
    def runs_perturbed(self) -> bool:
        """Whether the STG pass, with perturbed self-attention, is needed."""
        return not math.isclose(self.stg, 0.0)

    @property
    def runs_isolated(self) -> bool:
        """Whether the modality pass, without attention between audio and video, is needed."""
        return not math.isclose(self.modality, 1.0)

    @property
    def runs_alone(self) -> bool:
        """Whether the pass without a reference's sound is needed."""
        return not math.isclose(self.identity, 0.0)

    @property
    def passes(self) -> int:
        """Number of transformer passes of a step, with the conditional pass."""
        return 1 + sum(needed(self))

    def blocks(self, layers: int) -> tuple[int, ...]:
        """`stg_blocks` for a transformer of `layers` blocks. Raises InputError if the transformer lacks one of them."""
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
        alone: Tensor | None = None,
    ) -> Tensor:
        """Combines the predictions of the passes to the guided x0, float32 of `cond`'s shape.

        The prediction of a pass that is not run is ignored and may be None. Raises ValueError if a needed one is None.
        """
        cond = cond.float()
        if self.passes == 1:
            return cond
        guided = cond
        # The terms have the official order, and that of ID-LoRA's makers; another order differs in the last bit.
        for runs, weight, other in (
            (self.runs_uncond, self.cfg - 1, uncond),
            (self.runs_alone, self.identity, alone),
            (self.runs_perturbed, self.stg, perturbed),
            (self.runs_isolated, self.modality - 1, isolated),
        ):
            if runs:
                if other is None:
                    raise ValueError("a pass that the guidance needs is missing")
                guided = guided + weight * (cond - other.float())
        if self.rescale:
            # Where every token is kept and all are equal, both deviations are 0, and there is nothing to rescale.
            ratio = (cond.std() / guided.std()).nan_to_num(nan=1.0, posinf=math.inf)
            factor = self.rescale * ratio + (1 - self.rescale)
            guided = guided * factor
        return guided


NONE = Guidance()
"""One pass per step, as in the second stage and in the distilled recipe."""


def default_stg_blocks(layers: int) -> tuple[int, ...]:
    """The block that STG perturbs by default: block 28 of LTX-2.3's 48, in proportion for another depth."""
    return (min(round(28 / 48 * layers), layers - 1),)


def needed(*guidances: Guidance) -> tuple[bool, bool, bool, bool]:
    """Whether streams with these guidances together need the negative pass, the STG pass, the modality pass, and the
    pass without a reference's sound."""
    runs = ("runs_uncond", "runs_perturbed", "runs_isolated", "runs_alone")
    return tuple(any(getattr(guidance, name) for guidance in guidances) for name in runs)
