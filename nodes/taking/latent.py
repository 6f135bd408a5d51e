"""LATENT: the tensor of one LTX video latent, and the noise mask that other nodes put beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...ltx.errors import InputError
from ...ltx.grid import CHANNELS

MASK = "noise_mask"  # ComfyUI's key for the part that a sampler may change


def samples_of(latent: Any) -> Tensor:
    """The tensor of a native LATENT [1, 128, F, H, W]. Raises InputError if it is another kind of latent or a batch."""
    samples = latent.get("samples") if isinstance(latent, Mapping) else None
    if getattr(samples, "is_nested", False):
        shape: Any = "nested"
    elif not isinstance(samples, Tensor):
        shape = "missing" if samples is None else type(samples).__name__
    elif samples.ndim == 5 and samples.shape[:2] == (1, CHANNELS) and samples.numel() and samples.is_floating_point():
        return samples
    else:
        shape = f"{samples.dtype} {list(samples.shape)}"
    raise InputError(f"latent: it is {shape}; one LTX video latent [1, {CHANNELS}, frames, height, width] is needed.")


def start_of(latent: Any) -> Tensor:
    """`samples_of` for a sampler. Raises InputError also if a value is NaN or infinite."""
    samples = samples_of(latent)
    if not samples.isfinite().all():
        raise InputError(
            "latent: it has NaN or infinite values; check the node that it comes from, and the checkpoint and LoRAs if "
            "that is a sampler."
        )
    return samples


def mask_of(latent: Any) -> Tensor | None:
    """The noise mask of a native LATENT for each of its cells: float32 [1, 1, F, H, W], 1 where the sampler may change
    the latent and 0 where it must keep it. None if there is none, or if it is 1 everywhere.

    ComfyUI's masks are [H, W], [n, H, W], [n, 1, H, W] or [1, 1, n, H, W] of any size; they are scaled linearly, as its
    own samplers do. Raises InputError if the mask is none of them.
    """
    mask, size = latent.get(MASK), samples_of(latent).shape[2:]
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or not mask.numel() or mask.is_complex() or not 2 <= mask.ndim <= 5:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"latent: its noise mask is {shape}; numbers [1, 1, frames, height, width] are needed.")
    cells = mask.detach().cpu().float()
    if not cells.isfinite().all():
        raise InputError("latent: its noise mask has NaN or infinite values; check the node that it comes from.")
    if cells.ndim < 5:  # pictures: one for all frames, or one for each
        cells = cells.reshape(1, 1, -1, *cells.shape[-2:])
    if cells.shape[:2] != (1, 1):
        raise InputError(
            f"latent: its noise mask is {list(mask.shape)}; one mask [1, 1, frames, height, width] is needed."
        )
    if cells.shape[2:] != size:
        cells = torch.nn.functional.interpolate(cells, size=tuple(size), mode="trilinear", align_corners=False)
    cells = cells.clamp(0, 1)
    return None if bool((cells == 1).all()) else cells
