"""A fixed sample of `python mini evaluate`: a few clips and the bounds that their figures keep.

test_sample.py asserts them on the pack as it is, and test_mutants.py that they fail where the pack does something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import pytest
from a2v.mini import evaluate, sizes, voices
from a2v.mini.evaluate import Evaluation, Figures
from a2v.mini.figures import means

WEIGHTS = Path(__file__).resolve().parents[2] / "mini" / "weights"
SEED = 1
FACES, IMAGES, PROMPTS, PAIRS = 3, 2, 4, 3  # clips of each kind

# Bounds of the means over these few clips; None is not asserted. docs/mini-figures.md has the means of more clips.
CORRELATION: float | None = 0.7
OTHER: float | None = 0.35  # correlation with another clip's sound
VISEMES: float | None = None
SHUFFLED: float | None = None  # visemes of another clip's sound
FIRST: float | None = 20.0  # dB, of frame 0 and the image
COLOURS: float | None = 25.0  # of 255: how far face and ground go from the image's
WORDS: float | None = 0.3  # of all words of the prompts
COLOUR: float | None = 0.7  # of the prompts, whose colour is seen
RIGHT: float | None = None  # of the pairs, in which the right one talks

# What the pack made of the sample with these weights: bounds tell good from bad, and these tell one way to compute from
# another. A failing check says all that it found. New weights get new figures here.
FIGURES: dict[str, dict[str, float]] = {
    "faces": {"correlation": 0.9115, "sharpness": 0.3252, "flicker": 1.7004, "psnr": 17.9232},
    "images": {"first": 23.223, "colours": 16.143},
}
ROUNDING = {"correlation": 3e-4, "sharpness": 3e-4, "flicker": 0.003, "psnr": 0.002, "first": 0.005, "colours": 0.02}

ready = [
    pytest.mark.skipif(not (WEIGHTS / sizes.FILES["checkpoint"]).is_file(), reason="no weights in mini/weights"),
    pytest.mark.skipif(not voices.synthesizers(), reason="neither espeak-ng nor flite is installed"),
    pytest.mark.timeout(900),
]


@cache
def cases(kind: str, count: int, frames: int = evaluate.FRAMES) -> list[evaluate.Case]:
    """Without the pack's own speech, whose visemes are not known."""
    drawn = evaluate.cases(2 * count, SEED, frames, kind, extras=True)
    return [case for case in drawn if kind != "face" or case.shares is not None][:count]


def faces(evaluation: Evaluation) -> dict[str, float]:
    """Figures of speaking faces, made from words and sound alone."""
    drawn = cases("face", FACES)
    others = drawn[1:] + drawn[:1]
    found = [
        evaluation.figures(case, partial(evaluate.seen, case, other)) for case, other in zip(drawn, others, strict=True)
    ]
    return _mean(found)


def images(evaluation: Evaluation) -> dict[str, float]:
    """Figures of clips with a first image."""
    return _mean(
        [evaluation.figures(case, partial(evaluate.kept, case), "first") for case in cases("face", FACES)[:IMAGES]]
    )


def words(evaluation: Evaluation) -> dict[str, float]:
    drawn = cases("face", PROMPTS, 25)
    return _mean([evaluation.figures(case, partial(evaluate.named, case.scene), num_frames=25) for case in drawn])


def pairs(evaluation: Evaluation) -> dict[str, float]:
    return _mean([evaluation.figures(case, partial(evaluate.talking, case)) for case in cases("pair", PAIRS)])


def _mean(found: Sequence[Figures]) -> dict[str, float]:
    return {name: estimate.mean for name, estimate in means(found).items()}


def check_faces(evaluation: Evaluation) -> None:
    """Mouths follow their own sound, in time and in shape, and not another clip's."""
    got = faces(evaluation)
    assert CORRELATION is None or got["correlation"] >= CORRELATION, got
    assert OTHER is None or got["other"] <= OTHER, got
    assert abs(got["lag"]) < 1, got
    assert VISEMES is None or got["visemes"] >= VISEMES, got
    assert SHUFFLED is None or got["shuffled"] <= SHUFFLED, got
    check_figures("faces", got)


def check_images(evaluation: Evaluation) -> None:
    """A clip begins with its image and keeps its colours to the end."""
    got = images(evaluation)
    assert FIRST is None or got["first"] >= FIRST, got
    assert COLOURS is None or got["colours"] <= COLOURS, got
    check_figures("images", got)


def check_words(evaluation: Evaluation) -> None:
    """What the prompt names is seen."""
    got = words(evaluation)
    assert WORDS is None or got["all words"] >= WORDS, got
    assert COLOUR is None or got["colour"] >= COLOUR, got


def check_pairs(evaluation: Evaluation) -> None:
    """Of two faces the right one talks."""
    got = pairs(evaluation)
    assert RIGHT is None or got["right one"] >= RIGHT, got


def check_figures(part: str, got: dict[str, float]) -> None:
    """The figures of a part are those of the pack as it is, but for what another machine rounds otherwise."""
    known = FIGURES.get(part, {})
    wrong = [name for name, value in known.items() if abs(got[name] - value) > ROUNDING[name]]
    assert not wrong, f"{part}, {', '.join(wrong)}: {got}"
