"""Pixels of the generator's own clips are read back as what was drawn; what moves by itself correlates with nothing."""

from __future__ import annotations

import numpy as np
import pytest
from a2v.mini import clips, readers


@pytest.mark.parametrize("side", [64, 128])
def test_every_word_is_read_back(side: int) -> None:
    rng = np.random.default_rng(4)
    wrong = []
    for _ in range(40):
        scene = clips.random_scene(rng, "face")
        video = clips.render(scene, clips.random_motion(rng, scene, 9), 24.0, (side, side))
        seen = readers.words(video)
        wrong += [(scene, seen)] * any(seen[name] != getattr(scene, name) for name in seen)
    assert not wrong


def test_what_is_no_head_has_no_shape() -> None:
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


def test_a_mouth_is_read_back_and_noise_hardly_matters() -> None:
    rng = np.random.default_rng(5)
    for _ in range(12):
        scene = clips.random_scene(rng, "face")
        motion = clips.random_motion(rng, scene, 49)
        video = clips.render(scene, motion, 24.0, (128, 128))
        noisy = np.clip(video + 0.1 * rng.standard_normal(video.shape), 0, 1).astype(np.float32)
        for frames in (video, noisy):
            found, lag = readers.lagged(readers.mouth(frames), motion)
            assert found > 0.95 and lag == 0, (scene, found, lag)


def test_a_late_mouth_is_told_from_an_early_one() -> None:
    scene = clips.Scene()
    motion = clips.random_motion(np.random.default_rng(6), scene, 60)
    late = readers.mouth(clips.render(scene, np.roll(motion, 2)))[4:]
    assert readers.lagged(late, motion[4:])[1] == 2
    early = readers.mouth(clips.render(scene, np.roll(motion, -2)))[:-4]
    assert readers.lagged(early, motion[:-4])[1] == -2


def test_another_sound_does_not_correlate_and_a_still_mouth_is_no_agreement() -> None:
    rng, scene = np.random.default_rng(7), clips.Scene()
    other = [
        readers.correlation(readers.mouth(clips.render(scene, clips.random_motion(rng, scene, 49))), motion)
        for motion in (clips.random_motion(rng, scene, 49) for _ in range(12))
    ]
    assert abs(np.mean(other)) < 0.2
    still = readers.mouth(clips.render(scene, np.zeros(49)))
    assert readers.lagged(still, clips.random_motion(rng, scene, 49))[0] < 0.3


def test_psnr_is_that_of_the_formula() -> None:
    a = np.full((4, 4, 3), 0.5)
    assert readers.psnr(a, a + 0.1) == pytest.approx(20.0)
    assert readers.psnr(a, a) == pytest.approx(100.0)
