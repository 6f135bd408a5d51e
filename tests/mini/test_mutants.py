"""The sample tells the pack from one that does something else: each mutant makes its check fail.

A mutant replaces the code that decides one thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from a2v.ltx import encoding
from a2v.ltx.diffusion import denoiser, guidance, samplers
from a2v.mini.evaluate import Evaluation
from a2v.tests.ltx.loaded import loaded_once

from . import sample

pytestmark = sample.ready
Mutant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    with loaded_once():
        yield


def late_sound(patch: pytest.MonkeyPatch) -> None:
    """The model hears the track three frames late."""
    original = encoding.conditioning_track

    def late(track: Any, frames: int, fps: Any) -> Any:
        heard = original(track, frames, fps)
        shift = round(3 / fps * heard.rate)
        return replace(heard, waveform=torch.nn.functional.pad(heard.waveform, (shift, 0))[:, :-shift])

    patch.setattr(encoding, "conditioning_track", late)


def wrong_stg_block(patch: pytest.MonkeyPatch) -> None:
    """STG perturbs the first block."""
    patch.setattr(guidance, "default_stg_blocks", lambda layers: (0,))


def swapped_gates(patch: pytest.MonkeyPatch) -> None:
    """The gates between the streams take their own stream's sigma in place of the other one's."""
    original = denoiser.modulation

    def swapped(model: Any, video: Any, audio: Any, video_sigma: Any, audio_sigma: Any, dtype: Any) -> Any:
        right = original(model, video, audio, video_sigma, audio_sigma, dtype)
        wrong = original(model, video, audio, audio_sigma, video_sigma, dtype)
        return replace(
            right,
            video=replace(right.video, gate=wrong.video.gate),
            audio=replace(right.audio, gate=wrong.audio.gate),
        )

    patch.setattr(denoiser, "modulation", swapped)


def noisy_frozen_sound(patch: pytest.MonkeyPatch) -> None:
    """The model is told that the kept sound is as noisy as the picture."""
    original = denoiser.modulation

    def told(model: Any, video: Any, audio: Any, video_sigma: Any, audio_sigma: Any, dtype: Any) -> Any:
        level = type(audio)(torch.full_like(audio.values, float(video_sigma)), audio.places)
        return original(model, video, level, video_sigma, video_sigma, dtype)

    patch.setattr(denoiser, "modulation", told)


def restart_for_all(patch: pytest.MonkeyPatch) -> None:
    """Restart sampling renews the noise of every token by the stage's sigma, that of kept ones, too."""
    original = samplers._renewed

    def renewed(x: Any, x0: Any, mask: Any, *rest: Any) -> Any:
        return original(x, x0, torch.ones_like(mask), *rest)

    patch.setattr(samplers, "_renewed", renewed)


SMALL = (wrong_stg_block, swapped_gates, noisy_frozen_sound, restart_for_all)
USUAL = (noisy_frozen_sound,)


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        pytest.param(late_sound, sample.check_faces, marks=pytest.mark.soak),
        pytest.param(late_sound, sample.check_clip, marks=pytest.mark.soak),
        *(
            pytest.param(mutant, sample.check_clip, marks=[pytest.mark.soak] * (mutant not in USUAL))
            for mutant in SMALL
        ),
    ],
    ids=lambda value: value.__name__,
)
def test_a_mutant_does_not_keep_the_sample(
    mutant: Mutant, check: Callable[[Evaluation], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check(Evaluation(sample.WEIGHTS))
