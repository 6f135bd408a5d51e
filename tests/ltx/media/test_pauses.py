"""Where the sound is quiet: the places between latents, on made sound and on real speech."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from a2v.ltx.media.audio import Track, load_track
from a2v.ltx.media.pauses import QUIETEST, levels, levels_heard
from a2v.ltx.plan import plan
from a2v.ltx.request import parse
from a2v.ltx.windows import WindowSize

SPEECH = Path(__file__).resolve().parents[3] / "assets" / "speech.opus"


def tone(seconds: float, rate: int = 48000) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(round(seconds * rate)) / rate)[None]


def test_the_level_is_that_of_the_eight_frames_around_a_border() -> None:
    wave = tone(4)
    wave[:, 42000:58000] = 0  # frames 21 to 28, the eight around the border between frames 24 and 25
    found = levels(Track(wave, 48000), 97, Fraction(24))
    assert len(found) == 13 and found[4] == QUIETEST and min(found[:4] + found[5:]) > -13


def test_silence_and_what_is_behind_the_end_are_equally_quiet() -> None:
    found = levels(Track(tone(1), 48000), 97, Fraction(24))
    assert found[-8:] == (QUIETEST,) * 8 and found[1] == -9
    assert set(levels_heard(Track(torch.zeros(1, 4800), 48000), 97, Fraction(24), True)) == {QUIETEST}


def test_levelling_counts() -> None:
    """A rumble that the model does not hear fills no pause."""
    wave = tone(4)
    wave[:, 42000:58000] = 0
    rumble = wave + 0.4 * torch.sin(2 * torch.pi * 2 * torch.arange(wave.shape[1]) / 48000)
    usual = levels_heard(Track(wave, 48000), 97, Fraction(24), True)
    heard = levels_heard(Track(rumble, 48000), 97, Fraction(24), True)
    assert heard[4] < -40 and all(abs(a - b) <= 1 for a, b in zip(usual, heard, strict=True) if a > -40)
    assert levels_heard(Track(rumble, 48000), 97, Fraction(24), False)[4] > -15


@pytest.fixture(scope="module")
def talk() -> Track:
    """The pack's sample of speech, again and again: almost two minutes."""
    speech = load_track(SPEECH)
    return Track(speech.waveform.repeat(1, 21), speech.rate)


@pytest.mark.parametrize("frames", [121, 241, 481])
def test_windows_of_speech_end_in_pauses(talk: Track, frames: int) -> None:
    asked = {"prompt": "x", "windows": {"frames": frames}}
    quiet = plan(parse(asked), talk)
    strides = plan(parse({"prompt": "x", "windows": {"frames": frames, "pauses": False}}), talk)
    heard = levels_heard(talk, quiet.frames, quiet.fps, True)

    def mean(windows) -> float:
        return sum(heard[window.new.start] for window in windows[1:]) / (len(windows) - 1)

    assert mean(quiet.windows) < mean(strides.windows) - 5
    assert mean(quiet.windows) < sum(heard) / len(heard) - 5
    sampled, fewest = (sum(window.length for window in film.windows) for film in (quiet, strides))
    assert sampled < 1.06 * fewest, "a few windows more at most"
    assert quiet.windows == plan(parse(asked), talk).windows


def test_what_fits_one_window_is_not_even_measured(talk: Track, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("a2v.ltx.plan.levels_heard", None)
    asked = {"prompt": "x", "match_audio_length": False, "num_frames": 121, "windows": True}
    assert len(plan(parse(asked), talk).windows) == 1
    assert len(plan(parse({**asked, "num_frames": 241, "windows": {"pauses": False}}), talk).windows) == 3
    assert WindowSize().pauses
