"""Conditioning: masks, clean tokens and keyframes against ltx-core's items, the closed formulas and the goldens."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from a2v.ltx import latents
from a2v.ltx.diffusion.conditioning import (
    AudioCondition,
    Conditions,
    Guide,
    TextContext,
    audio_stream,
    video_stream,
)
from a2v.ltx.errors import InputError
from a2v.ltx.grid import audio_length
from a2v.ltx.latents import Noise
from safetensors import safe_open
from torch import Tensor

FPS = Fraction(24)
SHAPE = (3, 2, 3)  # 17 frames of 64 × 96
GUIDES = [[(0, 1.0)], [(0, 0.7)], [(16, 0.8)], [(0, 1.0), (16, 0.8)], [(16, 0.3), (0, 0.6)], [(5, 1.0), (16, 0.5)], []]


def guides(randn: Callable[..., Tensor], places: list[tuple[int, float]]) -> tuple[Guide, ...]:
    return tuple(Guide(randn(1, 128, 1, *SHAPE[1:]), frame, strength) for frame, strength in places)


@pytest.mark.parametrize("places", GUIDES, ids=str)
def test_streams_equal_the_peers(randn: Callable[..., Tensor], places: list[tuple[int, float]]) -> None:
    """ltx-core's items. In its 1.0.0 a keyframe lasts eight frames; that it is one is tested below, and by goldens."""
    tools, types = pytest.importorskip("ltx_core.tools"), pytest.importorskip("ltx_core.types")
    patchifiers = pytest.importorskip("ltx_core.components.patchifiers")
    by_index = pytest.importorskip("ltx_core.conditioning.types.latent_cond").VideoConditionByLatentIndex
    by_keyframe = pytest.importorskip("ltx_core.conditioning.types.keyframe_cond").VideoConditionByKeyframeIndex
    latent = torch.zeros(1, 128, *SHAPE)
    given = guides(randn, places)
    tool = tools.VideoLatentTools(
        patchifiers.VideoLatentPatchifier(1), types.VideoLatentShape.from_torch_shape(latent.shape), float(FPS)
    )
    state = tool.create_initial_state(torch.device("cpu"), torch.float32, latent)
    for guide in given:
        kind = by_keyframe(guide.latent, guide.frame, guide.strength) if guide.frame else None
        state = (kind or by_index(guide.latent, guide.strength, 0)).apply_to(state, tool)
    stream = video_stream(latent, given, FPS)
    grid = SHAPE[0] * SHAPE[1] * SHAPE[2]
    state.positions[:, 0, grid:, 1] = state.positions[:, 0, grid:, 0] + 1 / 24
    torch.testing.assert_close(stream.positions, state.positions, rtol=1e-6, atol=0)
    assert torch.equal(stream.mask, state.denoise_mask)
    assert torch.equal(stream.clean, state.clean_latent)
    x0 = randn(*stream.latent.shape)
    expected = x0 * state.denoise_mask + state.clean_latent * (1 - state.denoise_mask)
    assert torch.equal(stream.blend(x0), expected)


@pytest.mark.parametrize("scale", [1.0, 0.909375, 0.5])
def test_noised(randn: Callable[..., Tensor], scale: float) -> None:
    """lerp(clean, lerp(latent, noise, scale), mask): the image's share is its strength, at every scale."""
    latent = randn(1, 128, *SHAPE)
    stream = video_stream(latent, guides(randn, [(0, 0.7), (16, 0.4)]), FPS)
    noise = randn(*stream.latent.shape)
    expected = torch.lerp(stream.clean, torch.lerp(stream.latent, noise, scale), stream.mask.expand_as(noise))
    torch.testing.assert_close(stream.noised(noise, scale), expected, rtol=1e-5, atol=1e-6)
    token = latents.patchify_video(latent)[0, 8]  # of the second latent frame: free
    torch.testing.assert_close(stream.noised(noise, scale)[0, 8], noise[0, 8] * scale + token * (1 - scale))
    held = stream.clean[0, 2] * 0.7 + 0.3 * (noise[0, 2] * scale + latents.patchify_video(latent)[0, 2] * (1 - scale))
    torch.testing.assert_close(stream.noised(noise, scale)[0, 2], held, rtol=1e-5, atol=1e-6)
    key = stream.clean[0, -1] * 0.4 + 0.6 * noise[0, -1] * scale  # its placeholder is 0
    torch.testing.assert_close(stream.noised(noise, scale)[0, -1], key, rtol=1e-5, atol=1e-6)


def test_a_stage_that_goes_on_without_noise_starts_at_the_state_that_was_left(randn: Callable[..., Tensor]) -> None:
    latent, mask = randn(1, 128, *SHAPE), torch.ones(1, 1, *SHAPE)
    mask[:, :, 2, 0] = 0
    text = TextContext(randn(1, 4, 8), randn(1, 4, 4))
    kept = Conditions(text, AudioCondition(randn(1, 8, 18, 16), 17, FPS), guides=guides(randn, [(0, 0.7)]), mask=mask)
    left = randn(1, 128, *SHAPE)
    resumed = kept.resumed(latent, left, 0.6)
    assert torch.equal(resumed[:, :, 2, 0], latent[:, :, 2, 0]), "what is kept is that of the first start"
    stream = video_stream(resumed, kept.guides, FPS, mask)
    started = stream.noised(torch.zeros_like(stream.latent), 0.6)
    expected = torch.where(mask > 0, left, latent)
    torch.testing.assert_close(started, latents.patchify_video(expected), rtol=1e-5, atol=1e-5)


def test_masks_in_numbers(randn: Callable[..., Tensor]) -> None:
    given = guides(randn, [(0, 0.75), (16, 0.5)])
    stream = video_stream(torch.zeros(1, 128, *SHAPE), given, FPS)
    assert stream.mask[0, :, 0].tolist() == [0.25] * 6 + [1.0] * 12 + [0.5] * 6
    assert torch.equal(stream.clean[0, :6], latents.patchify_video(given[0].latent)[0])
    assert not stream.clean[0, 6:18].any() and not stream.latent.any()
    assert torch.equal(stream.clean[0, 18:], latents.patchify_video(given[1].latent)[0])
    # The last frame alone: from 16 to 17 twenty-fourths, pixels as in the grid, though a latent there spans eight.
    spans = stream.positions[0, :, 18:]
    torch.testing.assert_close(spans[0], torch.tensor([16 / 24, 17 / 24]).expand(6, 2))
    assert torch.equal(spans[1:], stream.positions[0, 1:, :6])


def test_keyframe_lasts_one_frame(randn: Callable[..., Tensor]) -> None:
    """[frame, frame+1) / fps, at any frame but the first."""
    for frame in (1, 5, 8, 16):
        stream = video_stream(torch.zeros(1, 128, *SHAPE), guides(randn, [(frame, 1.0)]), FPS)
        torch.testing.assert_close(stream.positions[0, 0, 18], torch.tensor([frame / 24, (frame + 1) / 24]))


@pytest.mark.parametrize("frame", [0, 16])
def test_strength_0_is_no_image(randn: Callable[..., Tensor], frame: int) -> None:
    latent = torch.zeros(1, 128, *SHAPE)
    without, with_none = video_stream(latent, (), FPS), video_stream(latent, guides(randn, [(frame, 0.0)]), FPS)
    for name in ("latent", "clean", "mask", "positions"):
        assert torch.equal(getattr(without, name), getattr(with_none, name))
    drawn = [Noise(5).draw(tuple(s.latent.shape), (1, 18, 128))[0] for s in (without, with_none)]
    assert all(map(torch.equal, *drawn))


def test_audio_is_frozen(randn: Callable[..., Tensor]) -> None:
    audio = AudioCondition(randn(1, 8, 18, 16), 17, FPS)
    stream = audio_stream(audio)
    tokens = latents.patchify_audio(audio.latent)
    assert not stream.mask.any() and stream.mask.shape == (1, 18, 1)
    assert torch.equal(stream.noised(randn(1, 18, 128), 1.0), tokens)
    assert torch.equal(stream.blend(randn(1, 18, 128)), tokens)
    assert torch.equal(stream.positions, latents.audio_positions(18))


@pytest.mark.parametrize("name", ["ltx2", "endpoint_defaults", "linear_quadratic_ge"])
@pytest.mark.parametrize("stage", [1, 2])
def test_goldens(oracle: Path, name: str, stage: int) -> None:
    """The tokens that enter each stage, and the levels of noise each of them has."""
    with safe_open(oracle / f"{name}.safetensors", "pt") as golden:
        info = json.loads(golden.metadata()["info"])
        get = golden.get_tensor
        shape = get("up/in" if stage == 1 else "up/out").shape
        latent = torch.zeros(shape) if stage == 1 else get("up/out")
        frames, fps = info["frames"], Fraction(info["fps"]).limit_denominator(1001)
        length = audio_length(frames, fps)
        images = [(f, s) for f, s in ((0, info["first"]), (frames - 1, info["last"])) if s >= 0]
        encoded = [get(f"cond/{n + (stage - 1) * len(images)}/latent") for n in range(len(images))]
        stream = video_stream(latent, tuple(Guide(x, f, s) for x, (f, s) in zip(encoded, images, strict=True)), fps)
        audio = audio_stream(AudioCondition(get("audio/latent")[:, :, :length], frames, fps))
        noise = Noise(info["seed"])
        for n in range(1, stage + 1):
            tokens = tuple(get(f"s{n}/step0/in_video").shape)
            drawn, noise = noise.draw(tokens, tuple(audio.latent.shape))
        sigma = float(get(f"s{stage}/sigmas")[0])
        torch.testing.assert_close(stream.noised(drawn[0], sigma), get(f"s{stage}/step0/in_video"), rtol=0, atol=1e-5)
        torch.testing.assert_close(audio.noised(drawn[1], sigma), get(f"s{stage}/step0/in_audio"), rtol=0, atol=1e-5)
        levels = get(f"s{stage}/step0/call0/video_timesteps")
        torch.testing.assert_close(stream.mask * sigma, levels, rtol=0, atol=1e-6)


def test_errors(randn: Callable[..., Tensor]) -> None:
    latent = torch.zeros(1, 128, *SHAPE)
    for frame, field in ((0, "image_strength"), (16, "end_image_strength")):
        for strength in (-0.1, 1.1, float("nan")):
            with pytest.raises(InputError, match=f"^{field}: "):
                Guide(randn(1, 128, 1, 2, 3), frame, strength)
    with pytest.raises(InputError, match="96×64 video, but this stage is 192×128: encode it for this stage"):
        video_stream(torch.zeros(1, 128, 3, 4, 6), guides(randn, [(0, 1.0)]), FPS)
    for frame in (17, -1):
        with pytest.raises(InputError, match=f"frame {frame}; the frames of this video are 0 to 16"):
            video_stream(latent, guides(randn, [(frame, 1.0)]), FPS)
    with pytest.raises(InputError, match=r"^the noise mask is \[1, 1, 1, 2, 3\]; \[1, 1, 3, 2, 3\] is needed"):
        video_stream(latent, (), FPS, torch.ones(1, 1, 1, 2, 3))
    with pytest.raises(InputError, match="19 latents, but 17 frames at 24 fps need 18"):
        AudioCondition(randn(1, 8, 19, 16), 17, FPS)
