"""SIGMAS: a schedule from any node."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ltx.diffusion.schedules import checked
from ...ltx.errors import InputError


def to_sigmas(sigmas: Any) -> Tensor:
    """A native SIGMAS as the engine reads it: float32 [steps + 1] on the CPU, falling from at most 1.

    Repeated values are steps without effect, and they are left out. Raises InputError if the schedule cannot be used.
    """
    if not isinstance(sigmas, (Tensor, np.ndarray, list, tuple)):
        raise InputError(f"sigmas: it is {type(sigmas).__name__}; connect Scheduler or another node that gives SIGMAS.")
    try:
        values = torch.as_tensor(sigmas, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("sigmas: it is no row of numbers; connect Scheduler.") from error
    if values.numel() == max(values.shape, default=0):  # one row, whatever dimensions of 1 are around it
        values = torch.unique_consecutive(values.flatten())
    return checked(values)
