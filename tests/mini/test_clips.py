"""The generator: what a sentence names is what is drawn, at every size alike, and movement belongs to its sound."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media.audio import Track
from a2v.mini import clips, dataset, readers, sound


def test_a_window_is_the_same_pixels_as_the_frame() -> None:
    rng = np.random.default_rng(1)
    for kind in clips.KINDS:
        scene = clips.random_scene(rng, kind)
        motion = clips.random_motion(rng, scene, 20)
        whole = clips.render(scene, motion, 24.0, (128, 96))
        part = clips.render(scene, motion, 24.0, (128, 96), (32, 16, 64, 48), 5, 12)
        np.testing.assert_allclose(part, whole[5:12, 16:64, 32:96], atol=1e-6)


def test_sizes_show_the_same_picture() -> None:
    rng = np.random.default_rng(2)
    for _ in range(6):
        scene = clips.random_scene(rng, "face")
        motion = clips.random_motion(rng, scene, 9)
        small, large = (clips.render(scene, motion, 24.0, (n, n)) for n in (64, 128))
        halved = large.reshape(9, 64, 2, 64, 2, 3).mean((2, 4))
        assert readers.psnr(small, halved) > 28


def test_every_sentence_names_what_is_seen() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        scene = clips.random_scene(rng)
        words = set(re.findall(r"\w+", clips.worded(scene, rng).lower()))
        assert {scene.colour, scene.ground} <= words
        assert scene.kind != "face" or {scene.shape, scene.place} <= words
        assert not words & (set(clips.COLOURS) | set(clips.GROUNDS)) - {scene.colour, scene.ground}


def test_a_loud_tone_opens_the_mouth_and_silence_closes_it() -> None:
    seconds = np.arange(3 * sound.RATE) / sound.RATE
    wave = np.sin(2 * np.pi * 220 * seconds) * ((seconds > 1) & (seconds < 2))
    track = Track(torch.from_numpy(wave.astype(np.float32))[None], sound.RATE)
    opening = sound.envelope(sound.heard(track, 73, 24.0), 73, 24.0)
    assert opening[:20].max() < 0.02 < 0.5 < opening[28:44].min() and opening[52:].max() < 0.02
    bars = sound.bands(sound.heard(track, 73, 24.0), 73, 24.0)
    assert bars[36].argmax() == 0 and bars[36, 0] > 0.8 > 0.4 > bars[36, 2:].max()  # 60 … 250 Hz


def test_a_ball_is_on_the_floor_at_every_beat() -> None:
    rng = np.random.default_rng(8)
    track, beat, first = sound.beats(rng, 4.0)
    wave = track.waveform[0].abs()
    for number in range(3):
        at = first + number * beat
        before, after = (wave[int((at + a) * sound.RATE) :][: int(0.03 * sound.RATE)].mean() for a in (-0.04, 0.002))
        assert after > 10 * before
        assert clips.bounce(np.array([at - first + 1e-6]), beat)[0] < 1e-3
    assert clips.bounce(np.array([beat / 2]), beat)[0] == pytest.approx(1)


def test_without_a_synthesizer_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="apt-get install espeak-ng flite"):
        sound.speech(np.random.default_rng(0), 1.0)


@pytest.mark.skipif(not sound.synthesizers(), reason="no espeak-ng or flite here")
def test_speech_moves_a_mouth() -> None:
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        track, motion = sound.accompany(rng, clips.Scene(), 49, 24.0, held_out)
        assert track.waveform.shape == (1, round(49 / 24 * sound.RATE))
        assert motion.shape == (49,) and motion.std() > 0.08 and 0.2 < motion.mean() < 0.8


def test_what_is_held_out_is_never_drawn_and_covers_every_word() -> None:
    rng = np.random.default_rng(0)
    assert not any(dataset.held_out(dataset.draw(rng, dataset.Plan())) for _ in range(300))
    kept = [s for s in (clips.random_scene(rng, "face") for _ in range(2000)) if dataset.held_out(s)]
    assert {s.colour for s in kept} == set(clips.COLOURS) and {s.shape for s in kept} == set(clips.SHAPES)
    assert 0.08 < len(kept) / 2000 < 0.25
