"""Latents: grids, tokens and positions against ltx-core and the goldens; the noise against torch's own stream."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from a2v.ltx import latents
from a2v.ltx.errors import InputError
from a2v.ltx.grid import audio_length, video_shape
from a2v.ltx.latents import Noise
from safetensors import safe_open
from torch import Tensor

FPS = [Fraction(24), Fraction(25), Fraction(24000, 1001), Fraction(30), Fraction(50)]
GRIDS = [(1, 32, 32), (9, 64, 96), (17, 128, 64), (121, 96, 32)]


@pytest.mark.parametrize(("frames", "height", "width"), GRIDS)
def test_grid(frames: int, height: int, width: int) -> None:
    types = pytest.importorskip("ltx_core.types")
    peer = types.VideoLatentShape.from_pixel_shape(types.VideoPixelShape(1, frames, height, width, 24))
    shape = video_shape(frames, height, width)
    assert shape == tuple(peer[2:])
    assert latents.pixel_frames(torch.zeros(1, 128, *shape)) == frames


@pytest.mark.parametrize("size", [(10, 64, 64), (0, 64, 64), (-7, 64, 64), (9, 65, 64), (9, 64, 16), (9, 0, 64)])
def test_no_grid(size: tuple[int, int, int]) -> None:
    field = ("num_frames", "height", "width")[[size[0] != 9, size[1] != 64, size[2] != 64].index(True)]
    with pytest.raises(InputError, match=f"^{field}: "):
        video_shape(*size)


def test_audio_length() -> None:
    types = pytest.importorskip("ltx_core.types")
    for fps in FPS:
        for frames in range(1, 482, 8):
            peer = types.AudioLatentShape.from_duration(1, frames / float(fps))
            assert audio_length(frames, fps) == peer.frames, (frames, fps)
    # Halves go to the even number, as Python rounds: 12.5 and 37.5 latents.
    assert [audio_length(n, Fraction(50)) for n in (25, 75)] == [12, 38]


@pytest.mark.parametrize("fps", FPS)
@pytest.mark.parametrize(("frames", "height", "width"), GRIDS)
def test_positions_equal_the_peers(frames: int, height: int, width: int, fps: Fraction) -> None:
    tools, types = pytest.importorskip("ltx_core.tools"), pytest.importorskip("ltx_core.types")
    patchifiers = pytest.importorskip("ltx_core.components.patchifiers")
    grid = video_shape(frames, height, width)
    shape = types.VideoLatentShape(1, 128, *grid)
    coordinates = patchifiers.VideoLatentPatchifier(1).get_patch_grid_bounds(shape)
    pixels = patchifiers.get_pixel_coords(coordinates, tools.DEFAULT_SCALE_FACTORS, causal_fix=True).float()
    pixels[:, 0] /= float(fps)
    assert torch.equal(latents.video_positions(grid, fps), pixels)
    length = audio_length(frames, fps)
    audio = patchifiers.AudioPatchifier(1).get_patch_grid_bounds(types.AudioLatentShape(1, 8, length, 16))
    assert torch.equal(latents.audio_positions(length), audio)


def test_positions_in_words() -> None:
    """Frame 0 lasts one frame, each later latent eight; rows before columns; the audio's first latent lasts 10 ms."""
    video = latents.video_positions((3, 2, 2), Fraction(24))
    assert video.shape == (1, 3, 12, 2) and video.dtype == torch.float32
    assert torch.allclose(video[0, 0, ::4] * 24, torch.tensor([[0.0, 1], [1, 9], [9, 17]]))
    assert video[0, 1, :4].tolist() == [[0, 32], [0, 32], [32, 64], [32, 64]]
    assert video[0, 2, :4].tolist() == [[0, 32], [32, 64], [0, 32], [32, 64]]
    audio = latents.audio_positions(3)[0, 0]
    assert torch.allclose(audio, torch.tensor([[0, 0.01], [0.01, 0.05], [0.05, 0.09]]))


@pytest.mark.parametrize("name", ["ltx2", "endpoint_defaults", "linear_quadratic_ge"])
@pytest.mark.parametrize("stage", ["s1", "s2"])
def test_golden_positions(oracle: Path, name: str, stage: str) -> None:
    """The grid's, then the end image's tokens at the last frame."""
    with safe_open(oracle / f"{name}.safetensors", "pt") as golden:
        video, audio = (golden.get_tensor(f"{stage}/positions_{kind}") for kind in ("video", "audio"))
        grid = tuple(golden.get_tensor("up/in" if stage == "s1" else "final/video_latent").shape[2:])
    frames, fps = (25, Fraction(25)) if "linear" in name else (17, Fraction(24))
    ours = latents.video_positions(grid, fps)
    if name == "endpoint_defaults":
        ours = torch.cat([ours, latents.video_positions((1, *grid[1:]), fps, frames - 1)], dim=2)
    assert torch.equal(ours, video)
    assert torch.equal(latents.audio_positions(audio_length(frames, fps)), audio)


def test_tokens(randn: Callable[..., Tensor]) -> None:
    video, audio = randn(1, 128, 3, 2, 5), randn(1, 8, 7, 16)
    tokens, sounds = latents.patchify_video(video), latents.patchify_audio(audio)
    assert torch.equal(tokens[0, 1 * 10 + 1 * 5 + 3], video[0, :, 1, 1, 3])
    assert torch.equal(sounds[0, 4, 3 * 16 : 4 * 16], audio[0, 3, 4])
    assert torch.equal(latents.unpatchify_video(tokens, (3, 2, 5)), video)
    assert torch.equal(latents.unpatchify_audio(sounds), audio)


def test_statistics(randn: Callable[..., Tensor]) -> None:
    vae = SimpleNamespace(latents_mean=randn(128).bfloat16(), latents_std=randn(128).abs().bfloat16() + 0.5)
    latent = randn(1, 128, 2, 1, 3)
    normal = latents.normalize_video(vae, latent)
    channel = (latent[0, 7] - vae.latents_mean[7].float()) / vae.latents_std[7].float()
    assert normal.dtype == torch.float32 and torch.allclose(normal[0, 7], channel, rtol=1e-6)
    assert torch.allclose(latents.denormalize_video(vae, normal), latent, atol=1e-5)
    assert latents.normalize_video(vae, latent.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("seed", [0, 42, 2**31, 2**63, 2**64 - 1, 2**64, 2**64 + 5, -1, -(2**70) - 3])
def test_noise_is_torchs_stream(seed: int) -> None:
    """One generator a run: what is drawn together, in turns or after a copy is the same."""
    shapes = [(1, 18, 128), (1, 7, 128), (1, 72, 128), (1, 7, 128)]
    generator = torch.Generator("cpu").manual_seed(seed % 2**64)
    expected = [torch.randn(shape, generator=generator) for shape in shapes]
    first, behind = Noise(seed).draw(*shapes[:2])
    second, _ = behind.draw(*shapes[2:])
    again, _ = behind.draw(*shapes[2:])
    assert all(map(torch.equal, first + second, expected))
    assert all(map(torch.equal, second, again)), "drawing leaves the stream it started from as it was"
    assert not torch.equal(first[1], second[1])


def test_drawing_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    Noise(3).draw((4, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_golden_noise(oracle: Path) -> None:
    """At sigma 1 an unguided token is the noise itself: the first stage, then the second through its start."""
    with safe_open(oracle / "linear_quadratic_ge.safetensors", "pt") as golden:
        first, second = (golden.get_tensor(f"s{n}/step0/in_video") for n in (1, 2))
        start = latents.patchify_video(golden.get_tensor("up/out"))
        sigma = golden.get_tensor("s2/sigmas")[0]
        sound = golden.get_tensor("s1/step0/in_audio").shape
    drawn, behind = Noise(11).draw(tuple(first.shape), tuple(sound))
    assert torch.equal(drawn[0], first)
    (later,), _ = behind.draw(tuple(second.shape))
    torch.testing.assert_close(later * sigma + start * (1 - sigma), second, rtol=1e-5, atol=1e-5)
