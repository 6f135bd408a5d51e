"""Finds NaN and infinite values, which a damaged file has: one of them makes the whole film black."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. It reads each value once and takes no memory. A rehearsal's tensors have no
    values."""
    if tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = (tensor.to(torch.float16) if tensor.element_size() == 1 else tensor).aminmax()  # NaN is both
    return bool(low.isfinite() & high.isfinite())


def check_decoded(values: Tensor, by: str) -> None:
    """Raises InputError if a value that `by` gave is NaN or infinite: in a file it would be black, or a click."""
    if not is_finite(values):
        raise InputError(
            f"decode: {by} gave NaN or infinite values: a file is damaged, or the device computes it wrongly; download "
            "the file again, or load the model in float32."
        )
