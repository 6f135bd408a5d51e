"""Pixels of the generator's own clips are read back as what was drawn, blurred ones too; what moves by itself
correlates with nothing."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from a2v.mini import clips, readers, sound, voices
from scipy.ndimage import gaussian_filter

spoken = pytest.mark.skipif(not voices.synthesizers(), reason="neither espeak-ng nor flite is installed")


def blurred(video: np.ndarray, rng: np.random.Generator, pixels: float = 1.2) -> np.ndarray:
    """As soft and as noisy as a small VAE's pictures."""
    soft = gaussian_filter(video, (0, pixels, pixels, 0)) + 0.03 * rng.standard_normal(video.shape)
    return np.clip(soft, 0, 1).astype(np.float32)


@pytest.fixture(params=[1, pytest.param(3, marks=pytest.mark.soak)], ids=["some", "all"])
def many(request: pytest.FixtureRequest) -> int:
    """What the number of scenes is multiplied by: to draw them is most of the time."""
    return request.param


def faces(seed: int, count: int, frames: int = 49) -> list[tuple[clips.Scene, np.ndarray, np.ndarray]]:
    """Scenes, their mouths [frames, 3] and their clips."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        scene = clips.random_scene(rng, "face")
        motion = clips.random_motion(rng, scene, frames)
        found.append((scene, motion, clips.render(scene, motion)))
    return found


@pytest.mark.parametrize("look", [pytest.param("sharp", marks=pytest.mark.soak), "half the size", "blurred"])
def test_every_word_is_read_back(look: str, many: int) -> None:
    rng, wrong = np.random.default_rng(4), []
    for scene, _, video in faces(4, 8 * many, 9):
        if look == "half the size":
            video = clips.render(scene, clips.random_motion(rng, scene, 9), 24.0, (64, 64))
        seen = readers.words(blurred(video, rng) if look == "blurred" else video)
        assert set(seen) == {"colour", "ground", "shape", "place", "size", "hair", "hat", "pattern"}
        wrong += [(scene, seen)] * any(seen[name] != getattr(scene, name) for name in seen)
    assert not wrong


def test_both_faces_of_a_pair_are_read_back(many: int) -> None:
    rng, wrong = np.random.default_rng(14), []
    for _ in range(4 * many):
        scene = clips.random_scene(rng, "pair")
        seen = readers.words(blurred(clips.render(scene, clips.random_motion(rng, scene, 9)), rng), "pair")
        assert set(seen) == {"ground", "pattern", "colour", "shape", "colour2", "shape2"}
        wrong += [(scene, seen)] * any(seen[name] != getattr(scene, name) for name in seen)
    assert not wrong


def test_what_is_no_head_has_no_shape_and_no_mouth() -> None:
    """Colours alone are read: half a head, a bar across, specks."""
    scene = clips.Scene()
    half, bar, specks = (clips.render(scene, np.zeros(5)) for _ in range(3))
    ground, colour = (np.float32(c) / 255 for c in (clips.GROUNDS[scene.ground], clips.COLOURS[scene.colour]))
    half[:, 64:] = ground
    bar[:] = ground
    bar[:, 50:70] = colour
    specks[:] = ground
    specks[:, ::5, ::5] = colour
    for video in (half, bar, specks):
        seen = readers.words(video)
        assert (seen["shape"], seen["place"], seen["ground"]) == ("", "", scene.ground), seen
    for video in (bar, specks, np.zeros_like(bar)):
        assert not readers.mouths(video).any()


@pytest.mark.soak
def test_a_mouth_is_read_back_and_noise_hardly_matters(many: int) -> None:
    rng = np.random.default_rng(5)
    for scene, motion, video in faces(5, 3 * many):
        for frames in (video, np.clip(video + 0.1 * rng.standard_normal(video.shape), 0, 1).astype(np.float32)):
            found, lag = readers.lagged(readers.mouth(frames), motion[:, 0])
            assert found > 0.97 and lag == 0, (scene, found, lag)


def test_a_mouth_is_read_back_while_the_camera_moves_in(many: int) -> None:
    for scene, motion, _ in faces(15, 2 * many):
        video = clips.render(clips.dolly(clips.plain(scene), 1.35), motion)
        assert readers.correlation(readers.mouth(video), motion[:, 0]) > 0.97, scene


@spoken
def test_blurred_visemes_are_read_back(many: int) -> None:
    """Frames with one clear viseme, and loud enough for it to be seen, of speech."""
    rng, right, correlations = np.random.default_rng(6), [], []
    for _ in range(3 * many):
        scene = clips.random_scene(rng, "face")
        track, sounds = sound.utterance(rng, 49 / 24)
        motion, shares = sound.talk(track, sounds, 49, 24.0), sound.visemes(sounds, 49, 24.0)
        read = readers.mouths(blurred(clips.render(scene, motion), rng, 1.0))
        true = shares.argmax(1)
        clear = (shares.max(1) >= 0.6) & ((true == voices.CLOSED) | (motion[:, 0] >= 0.25))
        right += list((readers.shown(read) == true)[clear])
        correlations.append(readers.correlation(read[:, 0], motion[:, 0]))
    assert min(correlations) >= 0.97, correlations
    assert len(right) > 50 * many and np.mean(right) >= 0.9, np.mean(right)


@pytest.mark.parametrize("viseme", range(len(voices.VISEMES)))
def test_each_viseme_looks_like_itself(viseme: int, many: int) -> None:
    shares = np.tile(np.eye(len(voices.VISEMES), dtype=np.float32)[viseme], (9, 1))
    for scene, _, _ in faces(7, 2 * many, 9):
        video = clips.render(scene, sound.mouth(np.linspace(0.4, 1, 9, dtype=np.float32), shares))
        assert (readers.visemes(video) == viseme).all(), (scene, readers.mouths(video))


def test_a_late_mouth_is_told_from_an_early_one() -> None:
    scene = clips.Scene()
    motion = clips.random_motion(np.random.default_rng(6), scene, 60)[:, 0]
    late = readers.mouth(clips.render(scene, np.roll(motion, 2)))[4:]
    assert readers.lagged(late, motion[4:])[1] == 2
    early = readers.mouth(clips.render(scene, np.roll(motion, -2)))[:-4]
    assert readers.lagged(early, motion[:-4])[1] == -2


@pytest.mark.soak
def test_another_sound_does_not_correlate_and_a_still_mouth_does_not_move(many: int) -> None:
    found = faces(7, 4 * many)
    read = [readers.mouth(video) for _, _, video in found]
    other = [readers.correlation(read[n - 1], motion[:, 0]) for n, (_, motion, _) in enumerate(found)]
    assert abs(np.mean(other)) < 0.2
    still = readers.mouth(clips.render(clips.Scene(), np.full(49, 0.3)))
    assert still.std() < 1e-3 and still.mean() == pytest.approx(0.3, abs=0.03)


@pytest.mark.soak
def test_who_talks_is_seen(many: int) -> None:
    rng = np.random.default_rng(8)
    for number in range(3 * many):
        scene = replace(clips.random_scene(rng, "pair"), place=clips.SPEAKERS[number % 3])
        talks = clips.random_motion(rng, clips.Scene(), 49)
        video = clips.render(scene, clips.two(scene, talks))
        assert readers.talker(blurred(video, rng)) == scene.place
        for half, act in zip(readers.halves(video), scene.acts, strict=True):
            own = readers.correlation(readers.mouth(half), talks[:, 0])
            assert own > 0.97 if act == "talks" else own < 0.5, (scene, act, own)


@pytest.mark.parametrize("kind", ["bars", "ball"])
def test_bars_and_balls_are_read_back(kind: str, many: int) -> None:
    rng = np.random.default_rng(9)
    for _ in range(2 * many):
        scene = clips.plain(clips.random_scene(rng, kind))
        motion = clips.random_motion(rng, scene, 49)
        read = getattr(readers, kind)(blurred(clips.render(scene, motion), rng))
        assert np.abs(read - motion).mean() < 0.03, scene
        assert readers.correlation(read.ravel(), motion.ravel()) > 0.98


def test_colours_sharpness_and_flicker_are_those_of_the_clip(many: int) -> None:
    """Of a drawn clip, and of the same with a changed colour, a blur and a brightness that comes and goes."""
    for scene, _, _ in faces(10, 2 * many, 9):
        scene, still = replace(clips.plain(scene), sway=0.0), np.full(20, 0.3)
        video = clips.render(scene, still)
        face, ground = readers.colours(video)[0]
        np.testing.assert_allclose(face, clips.COLOURS[scene.colour], atol=2)
        np.testing.assert_allclose(ground, clips.GROUNDS[scene.ground], atol=2)
        assert readers.drift(readers.colours(video)).max() < 0.5
        bluer = video.copy()
        bluer[10:, ..., 2] = np.abs(bluer[10:, ..., 2] - 10 / 255)
        assert readers.drift(readers.colours(bluer)).max() == pytest.approx(10, abs=1)
        assert readers.sharpness(video, video) == pytest.approx(1)
        assert readers.sharpness(gaussian_filter(video, (0, 1.2, 1.2, 0)), video) < 0.7
        assert readers.flicker(video, video) == 0
        swinging = video + np.where(np.arange(20) % 2, 0.02, 0.0)[:, None, None, None]
        assert readers.flicker(swinging, video) == pytest.approx(0.02 * 255, rel=0.01)


def test_reading_a_clip_takes_less_than_a_second() -> None:
    ((_, _, video),) = faces(11, 1)
    readers.mouths(video)  # outlines are drawn once
    begun = time.process_time()
    readers.mouths(video)
    assert time.process_time() - begun < 1


def test_psnr_is_that_of_the_formula() -> None:
    a = np.full((4, 4, 3), 0.5)
    assert readers.psnr(a, a + 0.1) == pytest.approx(20.0)
    assert readers.psnr(a, a) == pytest.approx(100.0)
