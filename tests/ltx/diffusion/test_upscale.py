"""The upscale between the stages against ltx-core's own, and against the goldens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion.upscale import upscale
from a2v.ltx.weights.checkpoint import load_checkpoint, load_upscaler
from a2v.tests.tiny import TinyFiles
from safetensors import safe_open
from torch import Tensor


def test_equals_the_peer(tiny_any: TinyFiles, peer: Callable, off: Callable, randn: Callable[..., Tensor]) -> None:
    model = pytest.importorskip("ltx_core.model.upsampler.model")
    latent = randn(1, 128, 3, 2, 3)
    vae = load_checkpoint(tiny_any.checkpoint).video_vae(torch.float32)
    large = upscale(load_upscaler(tiny_any.upscaler, torch.float32), vae, latent)
    with torch.no_grad():
        expected = model.upsample_video(latent, peer(tiny_any, "vae_encoder"), peer(tiny_any, "upsampler"))
    assert large.shape == (1, 128, 3, 4, 6)
    assert off(large, expected) < 1e-5


@pytest.mark.parametrize("name", ["ltx2", "endpoint_defaults", "linear_quadratic_ge"])
def test_goldens(oracle: Path, off: Callable, name: str) -> None:
    tiny = oracle / "tiny"
    vae = load_checkpoint(tiny / "ltx-2.3-tiny.safetensors").video_vae(torch.float32)
    upsampler = load_upscaler(tiny / "ltx-2.3-tiny-upscaler-x2.safetensors", torch.float32)
    traced: dict[str, Tensor] = {}
    with safe_open(oracle / f"{name}.safetensors", "pt") as golden:
        large = upscale(upsampler, vae, golden.get_tensor("up/in"), traced.__setitem__)
        assert off(large, golden.get_tensor("up/out")) < 1e-5
        assert traced.keys() == {f"up/{step}" for step in ("in", "unnorm_in", "unnorm_out", "out")}
        for key, tensor in traced.items():
            assert off(tensor, golden.get_tensor(key)) < 1e-5, key


def test_half_precision(tiny_default: TinyFiles, off: Callable, randn: Callable[..., Tensor]) -> None:
    """In the file's bfloat16 the statistics still work in float32, and the result is float32."""
    vae = load_checkpoint(tiny_default.checkpoint).video_vae()
    latent = randn(1, 128, 2, 2, 2)
    half, full = (upscale(load_upscaler(tiny_default.upscaler, d), vae, latent) for d in (None, torch.float32))
    assert half.dtype == full.dtype == torch.float32
    assert 0 < off(half, full) < 0.03
