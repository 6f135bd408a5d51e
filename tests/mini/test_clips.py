"""The generator: what a sentence names is what is drawn, at every size alike, and movement belongs to its sound."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media.audio import Track
from a2v.mini import clips, dataset, readers, sound, voices


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
        said = clips.worded(scene, rng).lower()
        words = set(re.findall(r"\w+", said))
        assert {scene.colour, scene.ground} <= words
        assert not words & (set(clips.COLOURS) | set(clips.GROUNDS)) - {scene.colour, scene.ground, scene.colour2}
        if scene.kind == "face":
            assert {scene.shape, scene.place} <= words and scene.hair in said and scene.hat in said
            assert ("small" in words) == (scene.size == "small") and ("hair" in words) == bool(scene.hair)
        if scene.kind == "pair":
            assert {scene.shape, scene.colour2, scene.shape2} <= words
            acts = re.findall("talks|listens", said)  # the left one is named first
            assert acts == ["talks" if scene.place in (side, "both") else "listens" for side in ("left", "right")]


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
        sound.utterance(np.random.default_rng(0), 1.0)


@pytest.mark.skipif(not voices.synthesizers(), reason="no espeak-ng or flite here")
def test_speech_moves_a_mouth() -> None:
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        track, motion = sound.accompany(rng, clips.Scene(), 49, 24.0, held_out)
        assert track.waveform.shape == (1, round(49 / 24 * sound.RATE))
        opening, width, teeth = motion.T
        assert motion.shape == (49, 3) and opening.std() > 0.08 and 0.15 < opening.mean() < 0.8
        assert width.std() > 0.1 and teeth.max() > 0.5 > teeth.mean()


@pytest.mark.skipif(not voices.synthesizers(), reason="no espeak-ng or flite here")
def test_of_a_pair_those_talk_that_should() -> None:
    rng = np.random.default_rng(0)
    both = clips.Scene(kind="pair", place="both", colour2="red", shape2="square", radius=clips.PAIR)
    _, motion = sound.accompany(rng, both, 25, 24.0)
    assert (motion[:, 0] == motion[:, 1]).all() and motion[:, 0].std() > 0.08
    for side, place in enumerate(("left", "right")):
        scene = clips.Scene(kind="pair", place=place, colour2="red", shape2="square", radius=clips.PAIR)
        _, motion = sound.accompany(rng, scene, 25, 24.0)
        assert motion.shape == (25, 2, 3) and motion[:, side].std() > 0.08 and not motion[:, 1 - side].any()
        moved = clips.render(scene, motion).std(0).sum((0, 2))  # by column
        assert moved[side * 64 :][:64].sum() > 10 > 0.1 > moved[(1 - side) * 64 :][:64].sum()


def test_what_a_sentence_adds_is_seen() -> None:
    """Hair, hat, size and pattern each change the picture, and where they should."""
    bare = clips.Scene()
    closed = np.zeros(1, np.float32)
    plain = clips.render(bare, closed)[0]

    def changed(**words: str) -> np.ndarray:
        return np.abs(clips.render(replace(bare, **words), closed)[0] - plain).max(-1) > 0.1

    for hat in ("cap", "top hat"):
        seen = changed(hat=hat)
        assert seen[:32].sum() > 100 and not seen[44:].any()
    for hair in ("ginger", "blond"):
        seen = changed(hair=hair)
        assert seen[:64].sum() > 200 and not seen[70:].any() and not seen[40:90, 50:78].any()
    for pattern in ("striped", "dotted"):
        seen = changed(pattern=pattern)
        assert 0.1 < seen.mean() < 0.45 and not seen[40:90, 40:88].any()
    small = clips.render(replace(bare, size="small", radius=clips.SIZES["small"]), closed)[0]
    assert (np.abs(small - plain).max(-1) > 0.1).mean() > 0.1


def test_a_mouth_shows_its_viseme() -> None:
    """Round is narrower than wide at the same opening; teeth are bright; without an opening nothing differs much."""
    scene, dark = clips.Scene(colour="yellow"), []
    for width, teeth in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)):
        frame = clips.render(scene, np.array([[0.6, width, teeth]], np.float32))[0]
        patch = frame[64:100, 40:88]
        dark.append((int((patch.max(-1) < 0.3).sum()), int((patch.min(-1) > 0.85).sum())))
    assert dark[1][0] > 1.8 * dark[0][0] and dark[2][0] < 0.7 * dark[1][0]
    assert dark[0][1] == dark[1][1] == 0 < 60 < dark[2][1]
    plain = clips.render(scene, np.array([0.5], np.float32))
    same = clips.render(scene, clips.mouths(np.array([0.5], np.float32)))
    np.testing.assert_array_equal(plain, same)


def test_a_plain_scene_has_only_the_first_words() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        scene = clips.plain(clips.random_scene(rng, "face"))
        assert scene.prompt == (
            f"{clips.article(scene.colour)} {scene.colour} {scene.shape} face on the {scene.place} is talking on a "
            f"{scene.ground} background"
        )
        assert 0.3 < scene.radius < 0.33


def test_what_is_held_out_is_never_drawn_and_covers_every_word() -> None:
    rng = np.random.default_rng(0)
    assert not any(dataset.held_out(dataset.draw(rng, dataset.Plan())) for _ in range(300))
    kept = [s for s in (clips.random_scene(rng, "face") for _ in range(2000)) if dataset.held_out(s)]
    assert {s.colour for s in kept} == set(clips.COLOURS) and {s.shape for s in kept} == set(clips.SHAPES)
    assert 0.08 < len(kept) / 2000 < 0.25
