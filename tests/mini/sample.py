"""A fixed sample of `python mini evaluate`: a few clips and the bounds that their figures keep.

test_sample.py asserts them on the pack as it is, and test_mutants.py that they fail where the pack does something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from a2v.ltx.media.audio import load_track
from a2v.mini import clips, evaluate, readers, sizes, speakers, voices
from a2v.mini.evaluate import Evaluation, Figures
from a2v.mini.figures import means
from safetensors.numpy import load_file, save_file

WEIGHTS = Path(__file__).resolve().parents[2] / "mini" / "weights"
SEED = 1


@dataclass(frozen=True)
class Counts:
    """Clips of each kind."""

    faces: int
    images: int
    prompts: int
    duets: int
    pairs: int


FEW = Counts(faces=1, images=1, prompts=2, duets=1, pairs=1)  # of the usual suite: a clip takes ten seconds
MANY = Counts(faces=3, images=2, prompts=4, duets=1, pairs=3)

# Bounds of the means over these few clips. docs/mini.md and docs/mini-figures.md have the means of more clips.
CORRELATION = 0.85
OTHER = 0.2  # correlation with another clip's sound
FIRST = 27.0  # dB, of frame 0 and the image
COLOURS = 12.0  # of 255: how far face and ground go from the image's
WORDS = 0.9  # of all words of the prompts
VISEMES, SHUFFLED = 0.55, 0.1  # of the own sound; and of another clip's, beyond what the sounds have in common
OWN, FOREIGN = 0.5, 0.2  # correlation of a mouth with its own voice while two speak, each behind its mask; and with
# the other one, beyond what the voices have in common

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
def cases(count: int, extras: bool, frames: int = evaluate.FRAMES) -> list[evaluate.Case]:
    return evaluate.cases(count, SEED, frames, extras=extras)


def pairs(counts: Counts, extras: bool) -> list[tuple[evaluate.Case, evaluate.Case]]:
    """Each face with another one, whose sound it does not hear."""
    drawn = cases(max(counts.faces, 2), extras)
    return list(zip(drawn, drawn[1:] + drawn[:1], strict=True))[: counts.faces]


def faces(evaluation: Evaluation, counts: Counts, extras: bool) -> dict[str, float]:
    """Figures of speaking faces, made from words and sound alone."""
    found = [evaluation.figures(case, partial(evaluate.seen, case, other)) for case, other in pairs(counts, extras)]
    return _mean(found)


def _mean(found: Sequence[Figures]) -> dict[str, float]:
    return {name: estimate.mean for name, estimate in means(found).items()}


def check_faces(evaluation: Evaluation, counts: Counts = MANY) -> None:
    """Mouths follow their own sound, in time, and not another clip's."""
    got = faces(evaluation, counts, extras=False)
    assert got["correlation"] >= CORRELATION and got["other"] <= OTHER and abs(got["lag"]) < 1, got


def check_visemes(evaluation: Evaluation, counts: Counts = MANY) -> None:
    """Mouths show which sound is heard, and not that of another clip."""
    got = faces(evaluation, counts, extras=True)
    alike = np.mean([evaluate.seen(case, other, case.video)["shuffled"] for case, other in pairs(counts, extras=True)])
    assert got["visemes"] >= VISEMES and got["shuffled"] - alike <= SHUFFLED, (alike, got)


def check_images(evaluation: Evaluation, counts: Counts = MANY) -> None:
    """A clip begins with its image and keeps its colours to the end."""
    drawn = cases(counts.images, extras=False)
    got = _mean([evaluation.figures(case, partial(evaluate.kept, case), "first") for case in drawn])
    assert got["first"] >= FIRST and got["colours"] <= COLOURS, got


def check_words(evaluation: Evaluation, counts: Counts = MANY) -> None:
    """What the prompt names is seen."""
    drawn = cases(counts.prompts, extras=False, frames=25)
    got = _mean([evaluation.figures(case, partial(evaluate.named, case.scene), num_frames=25) for case in drawn])
    assert got["all words"] >= WORDS, got


def check_talker(evaluation: Evaluation, counts: Counts = MANY) -> None:
    """Of two faces that one talks whom the prompt names, and both are as it says."""
    drawn = evaluate.cases(counts.pairs, SEED, kind="pair", extras=True)
    right = _mean([evaluation.figures(case, partial(evaluate.talking, case)) for case in drawn])["right one"]
    words = _mean([evaluation.figures(case, partial(evaluate.named, case.scene)) for case in drawn])["all words"]
    assert right == 1 and words >= WORDS, (right, words)


def check_voices(evaluation: Evaluation, counts: Counts = MANY) -> None:
    """Of two faces with a voice and a mask each, both at once, each mouth follows its own voice."""
    duets = speakers.duets(counts.duets, SEED)
    found = speakers.at_once(evaluation, duets)
    own, foreign = (np.mean([each for each, _ in found[which]]) for which in (speakers.ONE, speakers.OTHER))
    alike = np.mean([readers.correlation(*duet.motions) for duet in duets])  # the voices themselves
    assert own >= OWN and foreign - max(alike, 0) <= FOREIGN, (alike, found)


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
