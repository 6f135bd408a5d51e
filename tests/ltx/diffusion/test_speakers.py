"""Who speaks: which tokens hear the sound, at every place and time, and what a model makes of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion.block import Block, adopt
from a2v.ltx.diffusion.compiled import compile_blocks
from a2v.ltx.diffusion.conditioning import Conditions, Guide, Reference
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.modulation import Levels, modulation, rotary
from a2v.ltx.diffusion.sample_windows import WindowInputs, sample_windows
from a2v.ltx.diffusion.samplers import Hooks
from a2v.ltx.diffusion.speakers import Speaker, at, check_region, hearing
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.errors import InputError
from a2v.ltx.grid import CHANNELS, frames_of
from a2v.ltx.latents import Noise, video_positions
from a2v.ltx.media.masks import Area
from a2v.ltx.trace import Recorder
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx.diffusion.one_pass import Case, guided_step
from a2v.tests.ltx.diffusion.test_sample_windows import SIGMAS, WINDOWS, conditions, sounds, zeros
from a2v.tests.ltx.diffusion.test_video_conditions import FPS, GRID, SAMPLERS, SOUND, SOURCE, model, sample
from a2v.tests.tiny import write_tiny
from torch import Tensor, nn

__all__ = ["model"]  # the fixture
WHITE, BLACK = (Area(torch.full((1, 64, 96), value)) for value in (1.0, 0.0))
LEFT = Area((torch.arange(96) < 32).float().expand(1, 64, 96))


VOICES = torch.randn(2, *SOUND.latent.shape, generator=torch.Generator().manual_seed(7))


def only(*areas: Area) -> tuple[Speaker, ...]:
    return tuple(Speaker.of(area, 0, FPS) for area in areas)


# Who hears, and when


def test_a_region_hears_its_own_voice() -> None:
    """In place of the sound; where two regions lie over each other, both in equal shares."""
    right, latent = replace(LEFT, frames=1 - LEFT.frames), torch.zeros(1, CHANNELS, *GRID)
    own, other = (Speaker.of(area, 0, FPS, voice) for area, voice in zip((LEFT, right), VOICES, strict=True))
    found = hearing((own, other), latent)
    assert found.shape == (*GRID, 3) and not found[..., 0].any()
    assert torch.equal(found[..., 1] + found[..., 2], torch.ones(GRID))
    assert (found[..., 0, 1] == 1).all() and (found[..., 1:, 2] == 1).all()
    with_the_sound = hearing((own, *only(WHITE)), latent)
    assert torch.equal(with_the_sound[0, 0], torch.tensor([[0.5, 0.5], [1, 0], [1, 0]]))
    grey = hearing((replace(own, area=replace(own.area, frames=LEFT.frames * 0.25)),), latent)
    assert torch.equal(grey[0, 0], torch.tensor([[0, 0.25], [0, 0], [0, 0]]))


def test_outside_every_region_nobody_hears() -> None:
    latent = torch.zeros(1, CHANNELS, *GRID)
    grey = Area(LEFT.frames * 0.25)
    assert torch.equal(hearing(only(grey), latent)[..., 0, 0], torch.full(GRID[:2], 0.25))
    assert not hearing(only(grey), latent)[..., 1:, 0].any()
    assert torch.equal(hearing(only(grey, WHITE), latent), torch.ones(*GRID, 1))


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(30000, 1001), Fraction(60), Fraction(12)])
def test_a_token_hears_as_its_place_does(fps: Fraction) -> None:
    """A token of the grid as its own cell, a keyframe and a reference as the cell where they stand."""
    shape = (31, 3, 4)
    grid = torch.arange(math.prod(shape)).float().view(shape)
    assert torch.equal(at(grid, video_positions(shape, fps), fps), grid.flatten())
    for frame in (1, 8, 9, 17, 240):
        found = at(grid, video_positions((1, 3, 4), fps, frame), fps)
        assert torch.equal(found, grid[-(-frame // 8)].flatten())
    half = Reference(torch.zeros(1, CHANNELS, 31, 2, 2), downscale=2).positions(fps)
    found = at(grid, half, fps).view(31, 2, 2)
    assert torch.equal(found, torch.stack([grid[:, [1, 2]][..., [1, 3]]])[0])


def test_a_moving_mask_in_windows_is_cut_as_the_sound_is() -> None:
    """What a window adds is heard as in the whole; its latent 0 stands for one frame of the whole."""
    count = frames_of(11)
    masks = torch.rand(count, 64, 96, generator=torch.Generator().manual_seed(1))

    def heard(first: int, frames: int) -> Tensor:
        speaker = Speaker.of(Area(masks), first, FPS)
        return hearing([speaker], torch.zeros(1, CHANNELS, (frames - 1) // 8 + 1, 2, 3))[..., 0]

    whole = heard(0, count)
    for window in WINDOWS[1:]:
        part = heard(window.first_frame, window.frames)
        assert torch.equal(part[1:], whole[window.whole][1:])
        assert torch.equal(part[0], Area(masks[window.first_frame][None]).cells(1, 64, 96)[0, 0, 0])


def test_a_black_mask_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--speaker: face\.png: it is black everywhere, .*make the speaker white"):
        check_region("--speaker: face.png", BLACK)
    check_region("mask", LEFT)


# What the model makes of it


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_white_mask_changes_no_bit(model: nn.Module, sampler: str) -> None:
    """Nor does a black one, if nobody could hear: with silenced attention, a mask of any kind is the same."""
    plain, _, noise = sample(model, clean=None, **SAMPLERS[sampler])
    white, audio, other = sample(model, clean=None, audio=replace(SOUND, speakers=only(WHITE)), **SAMPLERS[sampler])
    assert torch.equal(white, plain) and torch.equal(noise.state, other.state)
    assert audio.speakers, "the next stage hears as this one"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_black_mask_is_a_model_that_does_not_hear(model: nn.Module, sampler: str) -> None:
    deaf = copy.deepcopy(model)
    for block in deaf.transformer_blocks:
        for parameter in block.audio_to_video_attn.to_out[0].parameters():
            parameter.data.zero_()
    black, _, _ = sample(model, clean=None, audio=replace(SOUND, speakers=only(BLACK)), **SAMPLERS[sampler])
    assert torch.equal(black, sample(deaf, clean=None, **SAMPLERS[sampler])[0])
    assert (black - sample(model, clean=None, **SAMPLERS[sampler])[0]).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_voice_is_heard_as_a_sound_of_its_own(model: nn.Module, sampler: str) -> None:
    """A region over the whole picture gives the video of a clip with that voice; the clip's own sound stays."""
    voice = replace(SOUND, latent=VOICES[0])
    wanted, _, noise = sample(model, clean=None, audio=voice, **SAMPLERS[sampler])
    speaker = Speaker.of(WHITE, 0, FPS, VOICES[0])
    found, audio, other = sample(model, clean=None, audio=replace(SOUND, speakers=(speaker,)), **SAMPLERS[sampler])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(noise.state, other.state) and torch.equal(audio.latent, SOUND.latent)
    assert (found - sample(model, clean=None, **SAMPLERS[sampler])[0]).abs().max() > 1e-3


def test_two_voices_at_once_reach_their_own_regions(model: nn.Module) -> None:
    """After a block without self-attention, each half is as in a clip of its voice alone, and the middle as of none."""
    apart = copy.deepcopy(model)
    for block in apart.transformer_blocks:
        for parameter in block.attn1.to_out[0].parameters():
            parameter.data.zero_()
    right, more = Area(LEFT.frames.flip(2)), {"clean": None, "guidance": Guidance()}
    two = tuple(Speaker.of(area, 0, FPS, voice) for area, voice in zip((LEFT, right), VOICES, strict=True))
    # One step: later ones hear, in the sound's blocks, what the other half showed before.
    found, *singles, nobody = (
        sample(apart, audio=replace(SOUND, speakers=speakers), sigmas=torch.tensor([1.0, 0.0]), trace=trace, **more)[0]
        for speakers, trace in ((two, None), (two[:1], None), (two[1:], None), (only(BLACK), None))
    )
    assert found.isfinite().all() and (found - nobody).abs().amax((0, 1, 2, 3)).gt(1e-3).tolist()[::2] == [True, True]
    for column, single in zip((0, 2), singles, strict=True):
        other = singles[column == 0]
        near = (found - single)[..., column].norm() / (found - nobody)[..., column].norm()
        assert near < 0.05 < (found - other)[..., column].norm() / (found - nobody)[..., column].norm()


def test_a_voice_beside_a_sound_that_changes_is_refused() -> None:
    speaker = Speaker.of(WHITE, 0, FPS, VOICES[0])
    mask = torch.zeros(SOUND.latent.shape[2])
    mask[2] = 1
    for changed in ({"strength": 0.5}, {"mask": mask}):
        with pytest.raises(InputError, match=r"^speakers: a voice of their own needs an audio that is kept as it is"):
            replace(SOUND, speakers=(speaker,), **changed)
        replace(SOUND, speakers=only(WHITE), **changed)
    with pytest.raises(InputError, match=r"^voice: it was encoded to .*encode both for one clip\.$"):
        replace(SOUND, speakers=(replace(speaker, voice=VOICES[0][:, :, 1:]),))


def test_keyframes_and_references_hear_as_their_places_do(model: nn.Module) -> None:
    trace, middle = Recorder(), replace(LEFT, frames=LEFT.frames.roll(32, 2))
    more = {
        "guides": (Guide(SOURCE[:, :, :1], 12, 1.0),),
        "references": (Reference(SOURCE[:, :, :, :1, :2], downscale=2),),
    }
    sample(model, audio=replace(SOUND, speakers=only(middle)), trace=trace, **more)
    heard = trace.tensors["hearing_video"][0, :, 0]
    row = torch.tensor([0.0, 1, 0])
    wanted = [
        row.repeat(6),
        row.repeat(2),
        torch.tensor([1.0, 0]).repeat(3),
    ]  # the middle of a cell that is twice as wide
    assert torch.equal(heard, torch.cat(wanted))


def test_in_a_block_a_tokens_own_weight_counts(model: nn.Module, randn) -> None:
    """Of the attention's change, nothing, half or all arrives; what the sound takes from the picture is as before."""
    adopt(model)
    block: Block = model.transformer_blocks[1]
    run = Case(model, randn)
    adaln = modulation(model, Levels.of(run.levels), Levels.of(run.sound_levels), run.sigma, run.sound, torch.float32)
    places = rotary(model, *run.where, torch.device("cpu"))
    count, weights = run.x.video.shape[1], torch.tensor([0.0, 0.5, 1.0])
    hearing = weights[torch.arange(count) % 3][None, :, None]
    video, audio = model.proj_in(run.x.video), model.audio_proj_in(run.x.audio)

    def after(given: Tensor | None) -> tuple[Tensor, Tensor]:
        streams = video.clone(), audio.clone()
        block._exchange(*streams, adaln, replace(places, hearing=given), 1, True)
        return streams

    whole, part = after(None), after(hearing)
    assert torch.equal(part[0][:, ::3], video[:, ::3]) and torch.equal(part[0][:, 2::3], whole[0][:, 2::3])
    torch.testing.assert_close(part[0][:, 1::3], (video + whole[0])[:, 1::3] / 2)
    assert (whole[0] - video).abs().amin(2).max() > 0 and torch.equal(part[1], whole[1])


@pytest.mark.soak  # test_acceleration.py compiles blocks
@pytest.mark.parametrize("voices", [0, 2])
def test_a_guided_step_hears_alike_in_one_batch_and_compiled(
    tmp_path: Path, voices: int, randn: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled block is one graph, with a mask as without, and with voices."""
    files = write_tiny(tmp_path, layers=2, connector_layers=1, vae_width=4, gemma_layers=1)  # each block is compiled
    run = Case(load_checkpoint(files.checkpoint).transformer(torch.float32), randn, image=0.4)
    if voices:
        run.x = replace(run.x, audio=torch.cat((run.x.audio, randn(voices, *run.x.audio.shape[1:]))))
    hearing = torch.rand(1, run.x.video.shape[1], 1 + voices, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(
        "a2v.tests.ltx.diffusion.one_pass.rotary", lambda *args: replace(rotary(*args), hearing=hearing)
    )
    together, single = (run.run(guided_step(run), batched=batched) for batched in (True, False))
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager", fullgraph=True))
    compile_blocks(run.model)
    for one, *others in zip(together, single, run.run(guided_step(run)), strict=True):
        for other in others:
            torch.testing.assert_close(one.video, other.video, rtol=1e-4, atol=1e-5)


def test_each_window_hears_its_part(model: nn.Module) -> None:
    """Only the second window's sound can be heard by anything, so the others come out as if nobody heard."""
    masks = torch.zeros(frames_of(11), 64, 96)
    late = WINDOWS[-1].first_frame + 8 * WINDOWS[-1].given
    masks[late:] = 1
    shown = {}
    for name, area in (("all", None), ("nobody", BLACK), ("late", Area(masks))):
        traces: dict[int, Recorder] = {}
        heard = [
            each if area is None else replace(each, speakers=(Speaker.of(area, place.first_frame, FPS),))
            for place, each in zip(WINDOWS, sounds(), strict=True)
        ]
        parts = [WindowInputs(place, each) for place, each in zip(WINDOWS, heard, strict=True)]
        hooks = [Hooks(trace=traces.setdefault(number, Recorder())) for number in range(len(WINDOWS))]
        given: Conditions = conditions()
        video, *_ = sample_windows(
            model, zeros(), parts, given, Steering(SIGMAS), [Noise(4)], hooks=lambda n, each=hooks: each[n]
        )
        shown[name] = video, traces
    last = WINDOWS[-1].new.start
    assert torch.equal(shown["late"][0][:, :, :last], shown["nobody"][0][:, :, :last])
    assert (shown["late"][0] - shown["nobody"][0])[:, :, last:].abs().max() > 1e-3
    assert (shown["all"][0] - shown["nobody"][0]).abs().max() > 1e-3
    own = shown["late"][1][len(WINDOWS) - 1].tensors["hearing_video"].view(-1, 6)
    assert not own[: WINDOWS[-1].given].any() and (own[WINDOWS[-1].given :] == 1).all()
    assert "hearing_video" not in shown["all"][1][0].tensors
