"""Noise under the sound that the model hears: its power, its colour, and what it leaves as it was."""

from __future__ import annotations

import math

import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media.audio import Track, to_stereo
from a2v.ltx.media.room_noise import LOUDEST, QUIETEST, USUAL, check_kept, with_room_noise


@pytest.mark.parametrize("level", [QUIETEST, USUAL, LOUDEST])
@pytest.mark.parametrize(("samples", "rate"), [(48_000, 48_000), (4097, 1000), (1, 16_000)])
def test_the_noise_has_its_power(samples: int, rate: int, level: float) -> None:
    noisy = with_room_noise(Track(torch.zeros(2, samples), rate), level)
    assert noisy.waveform.shape == (2, samples) and noisy.rate == rate
    assert 10 * noisy.waveform.square().mean(dim=1).log10() == pytest.approx([level, level], abs=1e-3)


@pytest.mark.parametrize("speakers", [("FL", "FR", "FC", "LFE", "SL", "SR"), ("FL", "FR", "LFE"), ("LFE",) * 3])
def test_what_the_model_hears_of_surround_sound_has_the_power(speakers: tuple[str, ...]) -> None:
    """The same noise in all channels adds up in the stereo mix: in 5.1 by 7.7 dB."""
    noisy = with_room_noise(Track(torch.zeros(len(speakers), 9000), 48_000, speakers), USUAL).waveform
    heard = to_stereo(noisy, speakers)
    if "FL" in speakers:
        assert 10 * heard.square().mean(dim=1).log10() == pytest.approx([USUAL, USUAL], abs=1e-3)
    assert noisy.isfinite().all() and not noisy[0].equal(torch.zeros(9000))


def test_the_noise_is_pink_and_equal_in_all_channels() -> None:
    noise = with_room_noise(Track(torch.zeros(2, 4 * 48_000), 48_000), USUAL).waveform
    assert torch.equal(noise[0], noise[1])
    power = torch.fft.rfft(noise[0].double()).abs().square()  # a bin is a quarter of a hertz
    octaves = [10 * float(power[4 * low : 8 * low].sum().log10()) for low in (100, 400, 1600, 6400)]
    assert max(octaves) - min(octaves) < 0.5  # white noise would gain 3 dB an octave: 18 dB here


def test_the_sound_stays_under_the_noise() -> None:
    speakers = ("FL", "FR", "FC", "LFE", "SL", "SR")
    sound = Track(torch.randn(6, 10_000, generator=torch.manual_seed(0)), 44_100, speakers)
    before = sound.waveform.clone()
    noisy = with_room_noise(sound, -30)
    assert torch.equal(sound.waveform, before) and noisy.speakers == speakers
    silence = with_room_noise(Track(torch.zeros(6, 10_000), 44_100), -30)
    assert torch.equal(noisy.waveform, before + silence.waveform)  # the noise of one run is that of the next


@pytest.mark.parametrize("level", [QUIETEST - 1, LOUDEST + 1, math.nan, math.inf])
def test_other_levels_are_refused(level: float) -> None:
    with pytest.raises(InputError, match="-90 to -20"):
        with_room_noise(Track(torch.zeros(1, 100), 16_000), level)


def test_sound_that_the_model_makes_gets_none() -> None:
    check_kept("audio", True)
    with pytest.raises(InputError, match=r"^audio: .* at strength 1"):
        check_kept("audio", False)
