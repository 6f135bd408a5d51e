"""Encodes pixels to video latents."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..latents import normalize_video


def encode_image(vae: Any, pixels: Tensor) -> Tensor:
    """Pixels [1, 3, 1, h·32, w·32] in -1..1 → normalised latent, float32 [1, 128, 1, h, w]."""
    return normalize_video(vae, vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode())
