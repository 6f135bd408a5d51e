"""Upscales between the two stages: latents of half the size → latents of the full size, in the VAE's own space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..latents import denormalize_video, normalize_video
from ..trace import Trace


def upscale(upsampler: nn.Module, vae: nn.Module, latent: Tensor, trace: Trace | None = None) -> Tensor:
    """Latent [1, 128, F, H, W] in model space → float32 [1, 128, F, 2H, 2W] in model space."""
    raw = denormalize_video(vae, latent)
    with torch.inference_mode():
        large = upsampler(raw.to(upsampler.device, upsampler.dtype)).float().to(latent.device)
    result = normalize_video(vae, large)
    if trace is not None:
        for name, tensor in (("in", latent), ("unnorm_in", raw), ("unnorm_out", large), ("out", result)):
            trace(f"up/{name}", tensor)
    return result
