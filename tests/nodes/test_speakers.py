"""The Speaker node: what it adds to the sound of a clip and of a film."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

from a2v.ltx.diffusion.conditioning import AudioCondition
from a2v.ltx.diffusion.speakers import Speaker, hearing
from a2v.ltx.errors import InputError
from a2v.ltx.latents import CHANNELS, audio_length
from a2v.ltx.media.masks import area_of
from a2v.ltx.windows import WindowSize, cut_windows
from a2v.nodes.film import IN_FILM, Cut, FilmSound, InFilm, prepared
from a2v.nodes.film import heard as audible
from a2v.nodes.speakers import WhoSpeaks
from a2v.nodes.taking.sound import to_track
from a2v.tests.nodes.test_steering import run
from torch import Tensor

FPS, FRAMES = Fraction(24), 65
LEFT = torch.cat((torch.ones(1, 8, 6), torch.zeros(1, 8, 6)), 2)


def sound(frames: int) -> AudioCondition:
    return AudioCondition(torch.zeros(1, 8, audio_length(frames, FPS), 16), frames, FPS)


def voice(first: float, last: float, frames: int = FRAMES) -> dict[str, object]:
    """Noise between two shares of the whole, and silence elsewhere."""
    samples = torch.randn(1, 2, round(frames / 24 * 16000), generator=torch.Generator().manual_seed(1)) * 0.1
    place = torch.arange(samples.shape[2]) / samples.shape[2]
    return {"waveform": samples * ((place >= first) & (place < last)), "sample_rate": 16000}


def heard(condition: AudioCondition) -> Tensor:
    return hearing(condition.speakers, torch.zeros(1, CHANNELS, (condition.frames - 1) // 8 + 1, 1, 2))[:, 0]


def test_two_nodes_in_a_row_are_two_speakers() -> None:
    (one,) = run(WhoSpeaks, audio=sound(FRAMES), mask=LEFT, voice=voice(0, 0.5))
    assert isinstance(one, AudioCondition) and (heard(one)[:, 0] == 1).all() and not heard(one)[:, 1].any()
    (both,) = run(WhoSpeaks, audio=one, mask=1 - LEFT, voice=voice(0.5, 1))
    assert len(both.speakers) == 2 and torch.equal(both.latent, one.latent)
    early, late = heard(both)[1:4], heard(both)[-3:]
    assert (early[:, 0] == 1).all() and (early[:, 1] < 0.01).all()
    assert (late[:, 1] == 1).all() and (late[:, 0] < 0.01).all()


def test_each_window_of_a_film_has_its_part() -> None:
    windows = cut_windows(FRAMES, WindowSize(33, 2))
    assert len(windows) == 3
    film = FilmSound(Cut(FRAMES, FPS, windows), tuple(sound(window.frames) for window in windows))
    moving = torch.zeros(FRAMES, 8, 12)
    moving[-8:] = 1  # the last latent
    (made,) = run(WhoSpeaks, audio=film, mask=moving)
    assert isinstance(made, FilmSound) and made.cut is film.cut
    assert [bool(heard(each).any()) for each in made.sounds] == [False, False, True]
    assert not heard(made.sounds[-1])[:-1].any() and (heard(made.sounds[-1])[-1] == 1).all()


def test_a_voice_and_a_mask_begin_with_the_video() -> None:
    """Of a clip that is made longer, what the model sees begins later: voice and mask are counted from the video's
    first frame, also a voice that comes from Retake, and one that was levelled and begins where the model hears it."""
    lead, count = 40, FRAMES + 40
    speaks = voice(0.5, 0.7, count)
    moving = torch.zeros(count, 8, 12)
    moving[-8:] = 1
    late = replace(sound(FRAMES), lead=lead)
    (own,) = run(WhoSpeaks, audio=late, mask=LEFT, voice=speaks)
    whole = Speaker.of(area_of(LEFT), 0, count, FPS, to_track(speaks)).power
    (found,) = (each.power for each in own.speakers)
    assert torch.allclose(found[1:], whole[lead // 8 + 1 :], rtol=0.02) and found.max() > 0 == found[-1]
    placed = {**speaks, IN_FILM: InFilm(lead, FPS, False)}
    levelled = prepared(audible(placed), placed)
    for given in (placed, levelled):
        (again,) = run(WhoSpeaks, audio=late, mask=LEFT, voice=given)
        assert torch.equal(again.speakers[0].power, found)
    (seen,) = run(WhoSpeaks, audio=late, mask=moving)
    assert not heard(seen)[:-1].any() and (heard(seen)[-1] == 1).all()


def test_a_mask_of_a_picture_without_transparency_is_refused() -> None:
    with pytest.raises(InputError, match=r"^mask: it is black everywhere"):
        run(WhoSpeaks, audio=sound(FRAMES), mask=torch.zeros(1, 64, 64))
