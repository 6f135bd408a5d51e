"""Sound drives the picture, words name it, images stay: a fixed sample of `python mini evaluate`.

Plain faces by mini/weights; visemes and two faces by mini/next, which alone knows them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from a2v.mini.evaluate import Evaluation

from . import sample

pytestmark = sample.ready


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return Evaluation(sample.WEIGHTS)


@pytest.mark.parametrize("check", [sample.check_faces, sample.check_images, sample.check_words, sample.check_clip])
def test_the_pack_keeps_the_sample(check: Callable[[Evaluation], None], evaluation: Evaluation) -> None:
    check(evaluation)


@pytest.mark.parametrize("check", [sample.check_visemes, sample.check_voices])
def test_the_pack_keeps_the_sample_of_the_whole_world(check: Callable[[Evaluation], None]) -> None:
    check(Evaluation(sample.NEXT))
