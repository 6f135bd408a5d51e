"""The upscale between the stages against ltx-core's own, and against the goldens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion.upscale import EDGE, FADE, PIECE, cut_pieces, upscale, upscale_long
from a2v.ltx.weights.checkpoint import load_checkpoint, load_upscaler
from a2v.tests.tiny import TinyFiles
from hypothesis import given
from hypothesis import strategies as st
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


# In pieces


@given(st.integers(1, 1000))
def test_pieces_cover_a_clip(frames: int) -> None:
    pieces, weights = cut_pieces(frames)
    total = torch.zeros(frames)
    for number, (piece, weight) in enumerate(zip(pieces, weights, strict=True)):
        assert piece.stop - piece.start == len(weight) == min(PIECE, frames)
        total[piece] += weight
        edges = (weight[:EDGE] if number else weight[:0]), (weight[-EDGE:] if piece.stop < frames else weight[:0])
        assert all((edge == 0).all() for edge in edges), "what lies at a cut is not used"
    torch.testing.assert_close(total, torch.ones(frames))
    assert pieces[0].start == 0 and pieces[-1].stop == frames
    assert len(pieces) == max(1, -(-(frames - PIECE) // (PIECE - 2 * EDGE - FADE)) + 1)


def test_a_clip_of_one_piece_is_upscaled_as_a_whole(tiny_default: TinyFiles, randn: Callable[..., Tensor]) -> None:
    vae = load_checkpoint(tiny_default.checkpoint).video_vae(torch.float32)
    upsampler = load_upscaler(tiny_default.upscaler, torch.float32)
    latent = randn(1, 128, PIECE, 1, 1)
    assert torch.equal(upscale_long(upsampler, vae, latent), upscale(upsampler, vae, latent))


def test_pieces_are_clips_of_their_own(tiny_default: TinyFiles, off: Callable, randn: Callable[..., Tensor]) -> None:
    """Each gives what it gives alone, and passes into the next within FADE latents."""
    vae = load_checkpoint(tiny_default.checkpoint).video_vae(torch.float32)
    upsampler = load_upscaler(tiny_default.upscaler, torch.float32)
    latent = randn(1, 128, 2 * PIECE, 1, 2)
    large = upscale_long(upsampler, vae, latent)
    assert large.shape == (1, 128, 2 * PIECE, 2, 4)
    pieces, _ = cut_pieces(2 * PIECE)
    alone = [upscale(upsampler, vae, latent[:, :, piece]) for piece in pieces]
    first, second = PIECE - EDGE - FADE, pieces[1].start + EDGE
    assert first == second
    torch.testing.assert_close(large[:, :, :first], alone[0][:, :, :first])
    after = slice(second + FADE, pieces[2].start + EDGE)
    torch.testing.assert_close(large[:, :, after], alone[1][:, :, slice(EDGE + FADE, after.stop - pieces[1].start)])
    share = torch.arange(1, FADE + 1).view(-1, 1, 1) / (FADE + 1)
    one, two = alone[0][:, :, first : first + FADE], alone[1][:, :, EDGE : EDGE + FADE]
    torch.testing.assert_close(large[:, :, first : first + FADE], one * (1 - share) + two * share)
