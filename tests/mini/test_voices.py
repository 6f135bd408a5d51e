"""Speech with known times: each sound is heard when its viseme says so, in every voice that is used."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from a2v.ltx.errors import InputError
from a2v.mini import sound, voices

here = voices.synthesizers()
needs = {name: pytest.mark.skipif(name not in here, reason=f"no {name} here") for name in ("espeak-ng", "flite")}
FPS = 24.0


@pytest.mark.parametrize(
    ("name", "viseme"),
    [
        *(("b", 0), ("ː", 0), ("_:", 0), ("t", 1), ("iː", 1), ("ə", 1), ("æ", 2), ("aɪ", 2), ("oʊ", 3), ("uː", 3)),
        *(("f", 4), ("tʃ", 4), ("ts", 4), ("ˈʃ", 4)),
    ],
)
def test_a_phoneme_in_ipa_has_one_viseme(name: str, viseme: int) -> None:
    assert voices.of_ipa(name) == viseme


def test_a_phoneme_of_flite_has_one_viseme() -> None:
    assert [voices.of_arpabet(name) for name in ("pau", "b", "iy", "aa", "uw", "sh")] == [0, 0, 1, 2, 3, 4]


@needs["espeak-ng"]
@pytest.mark.parametrize("language", sound.ESPEAK)
def test_every_voice_of_espeak_speaks_and_tells_its_sounds(language: str) -> None:
    for kind in sound.ESPEAK_KINDS:
        said = voices.espeak("market, banana", language + kind, 150, 50)
        begins = [at for at, _ in said.sounds]
        assert said.rate > 8000 and len(said.sounds) >= 8 and begins == sorted(begins)
        assert begins[-1] <= len(said.wave) / said.rate + 0.01
        assert {voices.CLOSED, voices.WIDE} <= {viseme for _, viseme in said.sounds}


@needs["espeak-ng"]
def test_the_library_says_what_the_command_says(tmp_path: object) -> None:
    """The same voice, speed and pitch begin and end at the same times."""
    file = f"{tmp_path}/said.wav"
    subprocess.run(["espeak-ng", "-v", "en-us", "-s", "150", "-p", "60", "-w", file, "banana market."], check=True)
    track = voices.load_track(file)
    said = voices.espeak("banana market.", "en-us", 150, 60)
    ends = [np.flatnonzero(np.abs(wave) > 1e-3)[[0, -1]] for wave in (track.waveform[0].numpy(), said.wave)]
    assert track.rate == said.rate and np.abs(ends[0] - ends[1]).max() < 0.02 * track.rate


@needs["espeak-ng"]
def test_an_unknown_voice_is_told() -> None:
    with pytest.raises(InputError, match="no voice qqq; see `espeak-ng --voices`"):
        voices.espeak("hello", "qqq", 150, 50)


@pytest.mark.parametrize("program", [pytest.param(name, marks=mark) for name, mark in needs.items()])
def test_a_hiss_is_heard_where_teeth_are_told_and_silence_where_lips_are_closed(program: str) -> None:
    """Of "sa sa sa": the share of power above 3 kHz is far higher in the sounds with teeth than in the vowels."""
    text = "sa, sa, sa."
    said = voices.espeak(text, "en-us", 120, 40) if program == "espeak-ng" else voices.flite(text, "slt")
    ends = [at for at, _ in said.sounds[1:]] + [len(said.wave) / said.rate]
    shares: dict[int, list[float]] = {}
    for (begins, viseme), stop in zip(said.sounds, ends, strict=True):
        piece = said.wave[round(begins * said.rate) : round(stop * said.rate)]
        if len(piece) < 256:
            continue
        power = np.abs(np.fft.rfft(piece * np.hanning(len(piece)))) ** 2
        high = np.linspace(0, said.rate / 2, len(power)) > 3000
        shares.setdefault(viseme, []).append(float(power[high].sum() / max(power.sum(), 1e-12)))
    assert np.median(shares[voices.TEETH]) > 0.5 > 0.2 > np.median(shares[voices.WIDE])


def test_visemes_of_frames_are_those_around_their_middles() -> None:
    sounds = ((0.0, voices.WIDE), (0.5, voices.TEETH), (1.0, voices.CLOSED))
    shares = sound.visemes(sounds, 36, FPS)
    assert shares.shape == (36, 5)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    assert (shares[:9].argmax(1) == voices.WIDE).all() and shares[4, voices.WIDE] == pytest.approx(1)
    assert (shares[14:22].argmax(1) == voices.TEETH).all() and (shares[26:].argmax(1) == voices.CLOSED).all()
    middle = shares[11:13]  # 11.5 and 12.5 of 24: either side of half a second
    np.testing.assert_allclose(middle.sum(0)[[voices.WIDE, voices.TEETH]], 1, atol=0.02)


def test_a_mouth_is_shaped_by_its_visemes() -> None:
    shares = np.eye(5, dtype=np.float32)
    opening, width, teeth = sound.mouth(np.full(5, 0.8, np.float32), shares).T
    assert opening[voices.CLOSED] == 0 and (opening[1:] == np.float32(0.8)).all()
    assert width[voices.ROUND] < width[voices.NARROW] < width[voices.WIDE]
    assert teeth.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.skipif(not here, reason="no espeak-ng or flite here")
def test_an_utterance_is_as_long_as_asked_and_repeats() -> None:
    track, sounds = sound.utterance(np.random.default_rng(3), 2.0)
    again, same = sound.utterance(np.random.default_rng(3), 2.0)
    assert track.waveform.shape == (1, 2 * sound.RATE) and sounds == same
    np.testing.assert_array_equal(track.waveform, again.waveform)


@pytest.mark.skipif(not here, reason="no espeak-ng or flite here")
def test_a_song_has_the_sounds_of_its_voice_before_a_quieter_band() -> None:
    """The band changes no time of the voice, and MUSIC says how loud it is."""
    (spoken, sounds), (sung, same) = (make(np.random.default_rng(4), 3.0) for make in (sound.utterance, sound.song))
    assert same == sounds and len(sounds) > 10
    band = sung.waveform - spoken.waveform
    power = spoken.waveform.square().mean() / band.square().mean()
    assert float(10 * power.log10()) == pytest.approx(-sound.MUSIC, abs=0.01)
