"""Whether sound drives the picture and words name it: a fixed sample of `python mini evaluate`, on mini/weights.

The whole table is docs/mini-figures.md; what is asserted here are the bounds that it keeps.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from a2v.mini import evaluate, readers, sizes

WEIGHTS = Path(__file__).resolve().parents[2] / "mini" / "weights"
CLIPS, PROMPTS = 8, 10
FIRST, LAST = 27.0, 24.0  # dB; docs/mini-figures.md has the means of more clips

pytestmark = [
    pytest.mark.skipif(not (WEIGHTS / sizes.FILES["checkpoint"]).is_file(), reason="no weights in mini/weights"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def evaluation() -> evaluate.Evaluation:
    return evaluate.Evaluation(WEIGHTS, say=lambda text: None)


def test_mouths_follow_their_own_sound(evaluation: evaluate.Evaluation) -> None:
    """Held-out voices and real speech: in time with their own, and not with another clip's."""
    own, other, lags = evaluate.agreement(evaluation, evaluate.cases(CLIPS, seed=0))
    assert own >= 0.8 and other <= 0.2, (own, other)
    assert max(map(abs, lags)) <= 1, lags


def test_words_are_seen(evaluation: evaluate.Evaluation) -> None:
    """Colour and shape, in combinations that training never had."""
    assert evaluate.adherence(evaluation, PROMPTS, seed=0) >= 0.9


def test_images_are_kept(evaluation: evaluate.Evaluation) -> None:
    """The first and the last frame are the images that were given."""
    (case,) = evaluate.cases(1, seed=0)
    video = evaluation.video(case.scene.prompt, case.track, case.video[0], case.video[-1])
    first, last = readers.psnr(video[0], case.video[0]), readers.psnr(video[-1], case.video[-1])
    assert first >= FIRST and last >= LAST, (first, last)
