"""How the transformer computes attention: by torch, or by a package that is faster on some cards.

diffusers' dispatcher calls the packages. A backend is exact if it computes the formula itself, with the rounding of the
compute dtype; SageAttention rounds queries and keys to 8 bits, so its videos differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _check_attention_backend_requirements
from torch import nn

from ..computing import FLASH, FLASH_3, MATH, SAGE, TORCH, XFORMERS
from ..errors import InputError


@dataclass(frozen=True)
class Backend:
    """name: diffusers' name. package: what must be installed, None for torch itself. exact: see above."""

    name: AttentionBackendName
    package: str | None = None
    exact: bool = True


BACKENDS: Mapping[str, Backend] = {
    TORCH: Backend(AttentionBackendName.NATIVE),
    MATH: Backend(AttentionBackendName._NATIVE_MATH),
    SAGE: Backend(AttentionBackendName.SAGE, "sageattention", exact=False),
    FLASH: Backend(AttentionBackendName.FLASH, "flash-attn"),
    FLASH_3: Backend(AttentionBackendName._FLASH_3, "flash_attn_interface (FlashAttention 3)"),
    XFORMERS: Backend(AttentionBackendName.XFORMERS, "xformers"),
}
"""torch chooses its fastest kernel for the device; math is the plain formula, which takes much memory. Backends with
which diffusers fetches kernels from a hub are left out, because they run code that nobody installed."""


def check_attention(name: str, device: torch.device | str, dtype: torch.dtype | None) -> None:
    """Raises InputError if a backend is unknown, its package is not installed, or it cannot compute on this device in
    this dtype. dtype: None for the dtype of the files."""
    if name not in BACKENDS:
        raise InputError(f"attention: {name!r} is unknown; choose one of {', '.join(BACKENDS)}.")
    backend = BACKENDS[name]
    if backend.package is None:
        return
    try:
        _check_attention_backend_requirements(backend.name)
    except RuntimeError:
        raise InputError(
            f"attention: {name!r} needs the package {backend.package}, which is not installed here; install it, or "
            f"choose {TORCH!r}."
        ) from None
    if torch.device(device).type != "cuda":
        raise InputError(f"attention: {name!r} computes on GPUs by NVIDIA and AMD only; choose {TORCH!r} here.")
    if dtype == torch.float32:
        raise InputError(f"attention: {name!r} computes in 16 bits only; choose the dtype bfloat16, or {TORCH!r}.")


def taking_weights(backend: AttentionBackendName | None) -> AttentionBackendName:
    """The backend for an attention whose keys have weights: torch, since the packages take no row of weights, or the
    plain formula if that is the backend."""
    math = BACKENDS[MATH].name
    return math if backend == math else BACKENDS[TORCH].name


def attend_by(model: nn.Module, name: str) -> None:
    """Makes the transformer's blocks compute attention by one of BACKENDS."""
    backend = None if name == TORCH else BACKENDS[name].name
    for block in model.transformer_blocks:
        for module in block.modules():
            if (processor := getattr(module, "processor", None)) is not None:
                processor._attention_backend = backend
