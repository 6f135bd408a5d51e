"""A stage on a given video: what the mask keeps comes back to the bit under every sampler; references and keyframes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion.acceleration import Acceleration
from a2v.ltx.diffusion.conditioning import AudioCondition, Guide, Reference, TextContext, audio_stream, video_stream
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.samplers import Restart
from a2v.ltx.edits import CLEAN, KEPT_CELLS, NOISY
from a2v.ltx.errors import InputError
from a2v.ltx.grid import CHANNELS, audio_length
from a2v.ltx.latents import Noise, patchify_video, unpatchify_video, video_positions
from a2v.ltx.trace import Recorder
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx import stage
from a2v.tests.tiny import write_tiny
from torch import Tensor, nn

FPS, FRAMES, GRID = Fraction(24), 17, (3, 2, 3)
GUIDED = Guidance(cfg=3, stg=1, rescale=0.7, modality=3, stg_blocks=(1,))
SAMPLERS: dict[str, dict[str, Any]] = {
    "euler": {},
    "gradient estimation": {"gamma": 2.0},
    "restart": {"restart": Restart(0.2, 1)},
    "restart and gradient estimation": {"restart": Restart(0.2, 1), "gamma": 2.0},
    "res_2s": {"sampler": "res_2s"},
    "euler_ancestral": {"sampler": "euler_ancestral"},
    "first-block cache": {"acceleration": Acceleration(reuse=0.5)},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """Of two blocks: what is kept does not depend on how many there are."""
    files = write_tiny(tmp_path_factory.mktemp("tiny"), layers=2, vae_width=4, gemma_layers=1)
    return load_checkpoint(files.checkpoint).transformer(torch.float32, "cpu")


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SOURCE = drawn(1, 1, CHANNELS, *GRID)
SOUND = AudioCondition(drawn(2, 1, 8, audio_length(FRAMES, FPS), 16), FRAMES, FPS)


def sample(model: nn.Module, **more: Any) -> tuple[Tensor, AudioCondition, Noise]:
    settings: dict[str, Any] = {
        "latent": torch.zeros_like(SOURCE),
        "sigmas": torch.tensor([1.0, 0.7, 0.5, 0.25, 0.0]),
        "positive": TextContext(drawn(3, 1, 16, 64), drawn(4, 1, 16, 32)),
        "negative": TextContext(drawn(5, 1, 16, 64), drawn(6, 1, 16, 32)),
        "audio": SOUND,
        "guidance": GUIDED,
        "audio_guidance": GUIDED,
        "noise": Noise(4),
        "clean": SOURCE,
    }
    return stage.sample(model, settings, **more)


def region() -> Tensor:
    """Latent 1 may change, in its left half, and in one cell by half."""
    mask = torch.zeros(1, 1, *GRID)
    mask[:, :, 1, :, :2] = 1
    mask[:, :, 1, 0, 1] = 0.5
    return mask


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("start", "kept_cells"), [(1.0, NOISY), (1.0, CLEAN), (0.909375, NOISY)])
def test_what_is_kept_comes_back_to_the_bit(model: nn.Module, sampler: str, start: float, kept_cells: str) -> None:
    """Picture and sound, in the first stage and in a second one that starts from another latent."""
    heard = torch.zeros(SOUND.latent.shape[2])
    heard[3:7] = 1
    sigmas = torch.tensor([start, 0.7, 0.5, 0.25, 0.0])
    latent = drawn(9, *SOURCE.shape) if start < 1 else torch.zeros_like(SOURCE)
    audio = replace(SOUND, mask=heard)
    more = {"kept_cells": kept_cells, **SAMPLERS[sampler]}
    video, made, _ = sample(model, latent=latent, mask=region(), audio=audio, sigmas=sigmas, **more)
    kept = (region() == 0).expand_as(video)
    assert torch.equal(video[kept], SOURCE[kept])
    assert (video - SOURCE)[~kept].abs().min() > 0 and video.isfinite().all()
    assert torch.equal(made.latent[:, :, heard == 0], SOUND.latent[:, :, heard == 0])
    assert (made.latent - SOUND.latent)[:, :, heard == 1].abs().min() > 0
    assert made.frozen and made.mask is None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mask_of_zeros_gives_the_source(model: nn.Module, sampler: str) -> None:
    video, audio, _ = sample(model, mask=torch.zeros(1, 1, *GRID), **SAMPLERS[sampler])
    assert torch.equal(video, SOURCE) and audio is SOUND


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_lower_mask_stays_nearer_to_the_source(model: nn.Module, sampler: str) -> None:
    distances = [
        (sample(model, mask=torch.full((1, 1, *GRID), mask), guidance=Guidance(), **SAMPLERS[sampler])[0] - SOURCE)
        .norm()
        .item()
        for mask in (0.1, 0.5, 1.0)
    ]
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("kept_cells", KEPT_CELLS)
def test_kept_frames_have_timestep_0_and_the_stream_keeps_its_sigma(model: nn.Module, kept_cells: str) -> None:
    """All cells of a frame that changes in part are as noisy as its newest ones, unless they are asked to be clean; the
    mask says what of them is kept."""
    trace, levels = Recorder(), region()
    if kept_cells == NOISY:
        levels[:, :, 1] = 1
    sample(model, mask=region(), kept_cells=kept_cells, trace=trace)
    assert torch.equal(trace.tensors["denoise_mask_video"], patchify_video(region()))
    levels = patchify_video(levels)
    for step, sigma in enumerate((1.0, 0.7, 0.5, 0.25)):
        assert torch.allclose(trace.tensors[f"step{step}/call0/video_timesteps"], levels * sigma)
        assert trace.tensors[f"step{step}/call0/video_sigma"].item() == pytest.approx(sigma)
        assert trace.tensors[f"step{step}/call0/audio_sigma"].item() == 0
    assert torch.equal(trace.tensors["clean_video"], patchify_video(SOURCE))


def test_the_model_is_shown_kept_cells_as_noisy_as_their_frame(model: nn.Module) -> None:
    """What was made of a cell by a share m, and the clean rest of it, are both at the frame's level: with the noise of
    the stage, (1 - sigma) · (m · made + (1 - m) · clean) + sigma · noise."""
    start = torch.zeros_like(SOURCE)
    stream = video_stream(start, (), FPS, region(), clean=SOURCE)
    made, noise = (drawn(seed, *stream.clean.shape) for seed in (21, 22))
    sigma = 0.7
    x = stream.blend((1 - sigma) * made + sigma * noise)
    shown = stream.shown(x, noise, torch.tensor(sigma))
    changing = torch.zeros(GRID, dtype=torch.bool)
    changing[1] = True
    changing = changing.flatten()
    assert torch.equal(shown[:, ~changing], stream.clean[:, ~changing])
    mixed = (1 - sigma) * stream.blend(made) + sigma * noise
    assert torch.allclose(shown[:, changing], mixed[:, changing], atol=1e-6)
    official = video_stream(start, (), FPS, region(), clean=SOURCE, kept_cells=CLEAN)
    assert torch.equal(official.shown(x, noise, torch.tensor(sigma)), x)
    whole = torch.zeros(1, 1, *GRID)
    whole[:, :, 1] = 1
    by_time = video_stream(start, (), FPS, whole, clean=SOURCE)
    assert torch.equal(by_time.level, by_time.mask) and torch.equal(by_time.shown(x, noise, torch.tensor(sigma)), x)


class Silent:
    """The noise of a stage that adds none."""

    seed = 0

    def draw(self, *shapes: tuple[int, ...]) -> tuple[list[Tensor], Silent]:
        return [torch.zeros(shape) for shape in shapes], self


def test_the_model_is_shown_kept_cells_as_noisy_where_no_noise_is_added(model: nn.Module) -> None:
    seen: list[Tensor] = []
    with model.proj_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        sample(model, mask=region(), guidance=Guidance(), sigmas=torch.tensor([0.6, 0.0]), noise=Silent())
    kept = ((region() == 0) & (region().amax((3, 4), keepdim=True) > 0)).expand_as(SOURCE)
    added = (unpatchify_video(seen[0], GRID) - 0.4 * SOURCE)[kept] / 0.6
    assert abs(added.mean()) < 0.2 and abs(added.std() - 1) < 0.2


def test_a_kept_picture_is_frozen_as_kept_sound_is(model: nn.Module) -> None:
    """Its sigma is 0, it is not guided, and its text stays the positive one where the sound's is the negative one."""
    trace, renewed = Recorder(), replace(SOUND, mask=torch.ones(SOUND.latent.shape[2]))
    video, made, _ = sample(
        model, mask=torch.zeros(1, 1, *GRID), audio=renewed, trace=trace, guidance=Guidance(cfg=9, stg_blocks=(1,))
    )
    assert torch.equal(video, SOURCE) and not torch.equal(made.latent, SOUND.latent)
    assert {trace.tensors[f"step0/call{n}/video_sigma"].item() for n in range(4)} == {0}
    assert {trace.tensors[f"step0/call{n}/audio_sigma"].item() for n in range(4)} == {1}
    other = sample(model, mask=torch.zeros(1, 1, *GRID), audio=renewed, guidance=Guidance(cfg=2, stg=3))[1]
    assert torch.equal(made.latent, other.latent)
    swapped = TextContext(drawn(7, 1, 16, 64), drawn(6, 1, 16, 32))
    other = sample(model, mask=torch.zeros(1, 1, *GRID), audio=renewed, negative=swapped)[1]
    assert torch.equal(sample(model, mask=torch.zeros(1, 1, *GRID), audio=renewed)[1].latent, other.latent)


def test_noise_is_drawn_for_all_picture_tokens_then_for_the_sound(model: nn.Module) -> None:
    """Of grid, keyframes and references in one draw, also where the mask keeps them or the sound is frozen."""
    guides = tuple(Guide(drawn(8, 1, CHANNELS, 1, *GRID[1:]), frame, 0.5) for frame in (5, 9, 16))
    references = (Reference(drawn(9, 1, CHANNELS, 2, 1, 2), 2, 1, 0.5),)
    trace = Recorder()
    _, _, rest = sample(model, mask=region(), guides=guides, references=references, trace=trace)
    shapes = (1, 18 + 3 * 6 + 4, CHANNELS), (1, SOUND.latent.shape[2], 128)
    (noise, _), expected = Noise(4).draw(*shapes)
    stream = video_stream(torch.zeros_like(SOURCE), guides, FPS, region(), clean=SOURCE, references=references)
    assert torch.equal(trace.tensors["step0/in_video"], stream.noised(noise, 1.0))
    assert torch.equal(rest.state, expected.state)


def test_references_come_last_on_their_own_grid() -> None:
    guides = (Guide(drawn(8, 1, CHANNELS, 1, *GRID[1:]), 5, 0.7),)
    references = tuple(
        Reference(drawn(seed, 1, CHANNELS, *grid), downscale, stride, strength)
        for seed, grid, downscale, stride, strength in ((9, (3, 1, 2), 2, 1, 1.0), (10, (2, 2, 3), 1, 2, 0.8))
    )
    stream = video_stream(torch.zeros_like(SOURCE), guides, FPS, references=references)
    assert stream.clean.shape[1] == stream.positions.shape[2] == 18 + 6 + 6 + 12 and stream.sight is None
    assert torch.equal(stream.clean[:, 24:30], patchify_video(references[0].latent))
    assert torch.equal(stream.mask[0, 24:, 0], torch.tensor([0.0] * 6 + [1 - 0.8] * 12))
    assert not stream.latent[:, 18:].any() and not stream.marked[:, 18:].any()
    first = stream.positions[0, :, 24:30]
    assert torch.equal(first[0], video_positions((3, 1, 2), FPS)[0, 0])
    assert torch.equal(first[1:], 2 * video_positions((3, 1, 2), FPS)[0, 1:])
    # Every other frame: the second latent stands for 16 frames of the clip, and both end together.
    assert torch.allclose(stream.positions[0, 0, 30::6], torch.tensor([[0, 1 / 24], [1 / 24, 17 / 24]]))


def test_a_reference_acts_by_its_strength_and_its_attention(model: nn.Module) -> None:
    def made(**changes: Any) -> Tensor:
        reference = Reference(drawn(9, 1, CHANNELS, 3, 1, 2), 2)
        return sample(model, references=(replace(reference, **changes),), clean=None)[0]

    without = sample(model, clean=None, references=())[0]
    assert (made() - without).abs().max() > 1e-4
    assert not torch.equal(made(), made(attention=0.5)) and not torch.equal(made(), made(strength=0.5))
    for nothing in ({"attention": 0.0}, {"strength": 0.0}):
        assert torch.equal(made(**nothing), without)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("mask", [None, 0.0, 1.0])
@pytest.mark.parametrize("strength", [None, 1.0, 0.5])
def test_what_is_kept_whole_is_known(frames: int, mask: float | None, strength: float | None) -> None:
    """Often without asking the masks, and always as they say."""
    latent, given = SOURCE[:, :, :frames], None if mask is None else torch.full((1, 1, frames, *GRID[1:]), mask)
    guides = () if strength is None else (Guide(drawn(8, 1, CHANNELS, 1, *GRID[1:]), 0, strength),)
    references = () if strength is None else (Reference(drawn(9, 1, CHANNELS, 1, 1, 2), 2, strength=strength),)
    for seen in ((), references):
        stream = video_stream(latent, guides, FPS, given, references=seen)
        assert stream.frozen is not bool(stream.mask.any())
    heard = None if mask is None else torch.full((SOUND.latent.shape[2],), mask)
    stream = audio_stream(replace(SOUND, mask=heard, strength=1.0 if strength is None else strength))
    assert stream.frozen is not bool(stream.mask.any())


def test_words_for_what_does_not_fit() -> None:
    latent = torch.zeros_like(SOURCE)
    with pytest.raises(InputError, match=r"the source video was encoded to .* encode it for this stage\."):
        video_stream(latent, (), FPS, torch.zeros(1, 1, *GRID), clean=torch.zeros(1, CHANNELS, 3, 2, 2))
    with pytest.raises(InputError, match=r"the mask of the audio is \[3\]; \[18\] is needed for this clip\."):
        replace(SOUND, mask=torch.zeros(3))
    with pytest.raises(InputError, match=r"reference: strength: 2 is not between 0 and 1\."):
        Reference(latent, strength=2)
    with pytest.raises(InputError, match=r"reference: stride is 0; give a whole number of at least 1\."):
        Reference(latent, stride=0)
    assert torch.equal(audio_stream(replace(SOUND, mask=torch.ones(18))).mask, torch.ones(1, 18, 1))
