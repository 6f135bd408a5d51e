"""A fixed sample of `python mini evaluate`: a few clips and the bounds that their figures keep.

test_sample.py asserts them on the pack as it is, and test_mutants.py that they fail where the pack does something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from a2v.ltx.media.audio import load_track
from a2v.mini import clips, evaluate, sizes, voices
from a2v.mini.evaluate import Evaluation, Figures
from a2v.mini.figures import means
from safetensors.numpy import load_file, save_file

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

# One clip as the pack made it with these weights, thumbnails of its frames: bounds tell good from bad, and this tells
# one way to compute from another. `python tests/mini/draw_sample.py` makes it again for new weights, and says how much
# other instructions of the processor and the mutants change.
CLIP = Path(__file__).with_name("sample.safetensors")
FINE = 100  # parts of a 255th in that file: an image's bytes would hide the smallest of the mutants
SCENE = clips.Scene(colour="orange", ground="teal", shape="square", hat="cap", pattern="dotted")
NEAR = 0.03  # of 255, root mean square: less is the processor's rounding
CELL = 8  # pixels of a thumbnail's pixel

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


def check_images(evaluation: Evaluation) -> None:
    """A clip begins with its image and keeps its colours to the end."""
    got = images(evaluation)
    assert FIRST is None or got["first"] >= FIRST, got
    assert COLOURS is None or got["colours"] <= COLOURS, got


def check_words(evaluation: Evaluation) -> None:
    """What the prompt names is seen."""
    got = words(evaluation)
    assert WORDS is None or got["all words"] >= WORDS, got
    assert COLOUR is None or got["colour"] >= COLOUR, got


def check_pairs(evaluation: Evaluation) -> None:
    """Of two faces the right one talks."""
    got = pairs(evaluation)
    assert RIGHT is None or got["right one"] >= RIGHT, got


def thumbnails(evaluation: Evaluation) -> np.ndarray:
    """The clip's frames in small, [49 · 16, 16, 3] in 255ths: the pack's own speech, so that no synthesizer's version
    matters, and an image at a strength that leaves some noise in its tokens."""
    image = clips.render(SCENE, np.full(1, 0.3, np.float32))[0]
    video = evaluation.video(
        SCENE.prompt, load_track(evaluate.SPEECH), image, image_strength=0.7, use_restart_sampling=True
    )
    side = evaluate.SIDE // CELL
    small = video.reshape(-1, side, CELL, side, CELL, 3).mean((2, 4)) * 255
    return small.reshape(-1, side, 3)


def keep(evaluation: Evaluation) -> None:
    """Writes the file."""
    save_file({"thumbnails": (thumbnails(evaluation) * FINE).round().astype(np.int16)}, CLIP)


def away(evaluation: Evaluation) -> float:
    """How far the clip is from the one that is kept: root mean square, of 255."""
    known = load_file(CLIP)["thumbnails"] / FINE
    return float(np.sqrt(((thumbnails(evaluation) - known) ** 2).mean()))


def check_clip(evaluation: Evaluation) -> None:
    """The clip is the one that is kept, but for what another processor rounds otherwise."""
    assert away(evaluation) <= NEAR
