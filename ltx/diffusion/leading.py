"""Leads attention to the prompt away from the negative prompt: the arithmetic of NAG. ltx/nag.py has its settings."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..nag import Nag

TINY = torch.finfo(torch.float32).tiny


class Leading(NamedTuple):
    """The settings of `Nag` as tensors of no dimension, so that compiled blocks serve all of them. tau is in float32,
    the others are in the compute dtype."""

    scale: Tensor
    alpha: Tensor
    tau: Tensor

    @classmethod
    def of(cls, nag: Nag, device: torch.device | str, dtype: torch.dtype) -> Leading:
        """The settings for a model that computes there in that dtype."""
        numbers = ((nag.scale, dtype), (nag.alpha, dtype), (nag.tau, torch.float32))
        return cls(*(torch.full((), number, dtype=own, device=device) for number, own in numbers))

    def __call__(self, positive: Tensor, negative: Tensor) -> Tensor:
        """What attention to the prompt and to the negative prompt gave, [R, N, heads, d] each → the result.

        A token's length is that over all heads, before their gates.
        """
        far = torch.lerp(negative, positive, self.scale)
        factor = self.tau * _length(positive) / _length(far).clamp_min(TINY)
        return torch.lerp(positive, far * factor.clamp_max(1).to(far.dtype), self.alpha)


def _length(x: Tensor) -> Tensor:
    """The L1 norm of each token of [R, N, heads, d] → float32 [R, N, 1, 1]."""
    return torch.linalg.vector_norm(x, 1, (2, 3), keepdim=True, dtype=torch.float32)
