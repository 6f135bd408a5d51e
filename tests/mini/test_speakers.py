"""Who speaks, on mini/weights: a mouth follows the sound where its region hears it, and not elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from a2v.ltx.media.audio import Track
from a2v.mini import evaluate, readers, sizes, sound, speakers

WEIGHTS = Path(__file__).resolve().parents[2] / "mini" / "weights"
RATE = sizes.RATE


def test_two_voices_speak_in_turn() -> None:
    tone = torch.sin(torch.arange(RATE * 3) * 0.3)[None]
    first, second = speakers.in_turn(Track(tone, RATE), Track(tone * 0.5, RATE))
    turn = round(speakers.TURN / sizes.FRAME_RATE * RATE)
    assert first.waveform.shape == second.waveform.shape == (1, round(evaluate.FRAMES / sizes.FRAME_RATE * RATE))
    assert not first.waveform[:, turn:].any() and not second.waveform[:, : turn - 1].any()
    assert first.waveform[:, :turn].std() > 0.01 and second.waveform[:, turn:].std() > 0.01


def test_a_drawn_clip_is_read_as_it_is() -> None:
    (case,) = evaluate.cases(1, seed=0)
    found = speakers.seen(case.video, case, case.motion)
    assert found.correlation > 0.95 and found.movement == pytest.approx(1) and found.same
    still = np.repeat(case.video[:1], len(case.video), 0)
    assert speakers.seen(still, case, case.motion).movement == pytest.approx(0, abs=1e-5)


@pytest.mark.skipif(not (WEIGHTS / sizes.FILES["checkpoint"]).is_file(), reason="no weights in mini/weights")
@pytest.mark.timeout(900)
@pytest.mark.soak  # test_sample.py has two voices at once
def test_a_mouth_follows_where_it_hears() -> None:
    """The fourth of the clips in docs/lip-sync.md: the pack's sample of speech, the same with every synthesizer. Lips
    close for its p, b and m: a mouth that followed its loudness at 0.94 followed its sounds at 0.78."""
    case = evaluate.cases(4, seed=0)[3]
    evaluation = evaluate.Evaluation(WEIGHTS, say=lambda text: None)
    there, elsewhere = (
        speakers.seen(evaluation.video(case.scene.prompt, case.track, speakers=(mask,)), case, case.motion)
        for mask in (speakers.LOWER, ~speakers.LOWER)
    )
    assert there.correlation >= 0.8 and there.same and there.movement > 0.8
    assert elsewhere.correlation <= 0.35 and elsewhere.same and elsewhere.movement < 0.5


def test_voices_of_a_mix_are_heard_as_the_command_hears_them() -> None:
    """The envelope of a voice's turn is that of the mix in the same frames."""
    (case, other) = evaluate.cases(2, seed=0)
    voices = speakers.in_turn(case.track, other.track)
    mix = Track(voices[0].waveform + voices[1].waveform, RATE)
    motions = [
        sound.envelope(sound.heard(each, evaluate.FRAMES, sizes.FRAME_RATE), evaluate.FRAMES, sizes.FRAME_RATE)
        for each in (mix, *voices)
    ]
    early, late = slice(0, speakers.TURN - 2), slice(speakers.TURN + 2, None)
    assert readers.correlation(motions[0][early], motions[1][early]) > 0.99
    assert readers.correlation(motions[0][late], motions[2][late]) > 0.99
