"""Sound drives the picture, words name it, images stay: a fixed sample of `python mini evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from a2v.mini import readers
from a2v.mini.evaluate import Evaluation
from a2v.tests.ltx.loaded import loaded_once

from . import sample

pytestmark = sample.ready
USUAL = (sample.check_words,)
FACES = (("round", "black"), ("triangular", "teal"))
CHECKS = (
    *USUAL,
    sample.check_faces,
    sample.check_images,
    sample.check_voices,
    sample.check_visemes,
    sample.check_talker,
)


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    with loaded_once():
        yield


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return Evaluation(sample.WEIGHTS)


@pytest.mark.parametrize(
    ("counts", "check"),
    [
        pytest.param(counts, check, id=f"{name}-{check.__name__}", marks=[pytest.mark.soak] * (check not in usual))
        for name, counts, usual in (("few", sample.FEW, USUAL), ("many", sample.MANY, ()))
        for check in CHECKS
    ],
)
def test_the_pack_keeps_the_sample(
    check: Callable[[Evaluation, sample.Counts], None], counts: sample.Counts, evaluation: Evaluation
) -> None:
    check(evaluation, counts)


def test_a_negative_prompt_acts_in_the_distilled_recipe(evaluation: Evaluation) -> None:
    """Its steps have one pass. A face whose colour the prompt does not name is pink, and with NAG against pink it is
    not."""
    (case,) = sample.cases(1, extras=False, frames=25)
    asked = {"num_frames": 25, "seed": 100, "acceleration": "full", "use_multiscale": False, "negative_prompt": "pink"}

    def colours(**more: object) -> list[str]:
        faces = (f"a {face} face on the center is talking on a {ground} background" for face, ground in FACES)
        return [readers.words(evaluation.video(prompt, case.track, **asked, **more))["colour"] for prompt in faces]

    assert colours() == ["pink", "pink"]
    led = colours(nag=True)
    assert all(led) and "pink" not in led


@pytest.mark.soak
def test_the_clip_is_the_one_that_is_kept(evaluation: Evaluation) -> None:
    sample.check_clip(evaluation)
