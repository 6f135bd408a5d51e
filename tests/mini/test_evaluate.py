"""Figures of drawn clips are perfect, those of spoilt ones are not, and an interval is that of the textbook.

Whether the miniature keeps its bounds is test_sample.py's question.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from a2v.ltx.diffusion.sound import resample
from a2v.ltx.request import parse
from a2v.mini import clips, dataset, evaluate, figures, readers, voices
from a2v.mini.evaluate import Case, Evaluation
from a2v.mini.figures import Estimate

ROOT = Path(__file__).resolve().parents[2]
spoken = pytest.mark.skipif(not voices.synthesizers(), reason="neither espeak-ng nor flite is installed")


class Drawing(Evaluation):
    """Makes no clip, but hands out the drawn one; counts how many were asked for."""

    drawn: dict[str, Case]
    asked: list[dict[str, Any]]

    def video(self, prompt: str, *given: Any, **request: Any) -> np.ndarray:
        self.made += 1
        self.asked = [*getattr(self, "asked", ()), request]
        parse({**evaluate.BASE, "prompt": prompt, **{k: v for k, v in request.items() if k != "restart"}})
        return self.drawn[prompt].video[: request.get("num_frames", evaluate.FRAMES)]


@spoken
@pytest.mark.soak
def test_cases_are_held_out_and_plain_unless_asked_otherwise() -> None:
    plain, dressed = evaluate.cases(4, 0), evaluate.cases(4, 0, extras=True)
    assert all(dataset.held_out(case.scene) and case.scene == clips.plain(case.scene) for case in plain)
    assert any(case.scene != clips.plain(case.scene) for case in dressed)
    assert [case.number for case in plain] == list(range(4))
    assert all(np.ptp(case.mouth[:, 1:], 0).max() > 0.3 for case in (*plain, *dressed))
    for case in (*plain, *dressed):
        np.testing.assert_array_equal(case.mouth[:, 0], case.motion)
        assert case.video.shape == (evaluate.FRAMES, evaluate.SIDE, evaluate.SIDE, 3)


@spoken
@pytest.mark.parametrize("kind", ["pair", "bars", "ball"])
def test_cases_of_other_kinds(kind: str) -> None:
    for case in evaluate.cases(2, 0, 17, kind, extras=True):
        assert case.scene.kind == kind and len(case.video) == len(case.motion) == 17


@pytest.mark.skipif("flite" not in voices.synthesizers(), reason="no flite here")
def test_the_sounds_of_the_pack_s_own_speech_are_known() -> None:
    """flite says the same again, at the same times: that was cut by the codec, and is 1 ms longer."""
    told = json.loads(evaluate.SPEECH.with_suffix(".json").read_text())
    track, sounds = evaluate.spoken()
    again = voices.flite(told["text"], told["voice"])
    assert again.sounds == sounds and len(sounds) > 50
    wave = resample(track.waveform.mean(0, keepdim=True), track.rate, again.rate)[0].numpy()
    length = min(len(wave), len(again.wave))
    assert length / again.rate > 5.5 and readers.correlation(wave[:length], again.wave[:length]) > 0.85


@spoken
def test_a_drawn_clip_is_perfect_and_a_spoilt_one_is_not() -> None:
    case, other = evaluate.cases(2, 0, extras=True)
    found = evaluate.seen(case, other, case.video)
    assert found["correlation"] > 0.97 and found["visemes"] > 0.9 and found["lag"] == 0
    assert found["other"] < 0.5 and found["shuffled"] < 0.5
    assert found["sharpness"] == pytest.approx(1) and found["flicker"] < 1e-3 and found["psnr"] > 90
    late = evaluate.seen(case, other, np.concatenate([case.video[:1]] * 3 + [case.video[:-3]]))
    assert late["lag"] == 3 and late["correlation"] < 0.8 and late["visemes"] < found["visemes"] - 0.2
    kept = evaluate.kept(case, case.video)
    assert kept["first"] > 90 and kept["last"] > 90 and kept["colours"] < 2
    tinted = case.video.copy()
    tinted[1:, ..., 1] = np.abs(tinted[1:, ..., 1] - 8 / 255)
    assert evaluate.kept(case, tinted)["colours"] == pytest.approx(8, abs=2)
    assert set(evaluate.named(case.scene, case.video).values()) == {1.0}


@spoken
@pytest.mark.soak
def test_a_drawn_pair_talks_as_its_words_say() -> None:
    for case in evaluate.cases(3, 0, kind="pair", extras=True):
        found = evaluate.talking(case, case.video)
        assert found["right one"] == 1 and found["correlation"] > 0.97, case.scene
        assert math.isnan(found["the other's movement"]) == (case.scene.place == "both")


@spoken
def test_a_request_is_made_once() -> None:
    case, other = evaluate.cases(2, 0)
    evaluation = Drawing(Path("nowhere"))
    evaluation.drawn = {each.scene.prompt: each for each in (case, other)}
    read = partial(evaluate.seen, case, other)
    for request in ({}, {"video_cfg_scale": 3}, {}, {"video_cfg_scale": 1}, {"num_frames": 25}):
        evaluation.figures(case, read, **request)
    assert evaluation.made == 3  # the default's own value is the default
    evaluation.figures(case, partial(evaluate.kept, case))
    evaluation.figures(other, read)
    assert evaluation.made == 5


@spoken
def test_the_page_has_every_setting_and_each_is_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(case: Case, other: Case, video: np.ndarray) -> evaluate.Figures:
        return dict.fromkeys(figures.METRICS, float(case.number))

    monkeypatch.setattr(evaluate, "seen", quick)
    bench = figures.Bench(Drawing(Path("nowhere")), 2, 2)
    bench.evaluation.drawn = {case.scene.prompt: case for case in bench.faces}
    page = figures.of_settings(bench).page()
    for name in (*figures.SETTINGS, *figures.STAGES, *figures.IMAGES, *figures.SOUNDS):
        assert f"| {name} |" in page
    assert "**" not in page  # nothing differs from itself
    rows = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert set(rows) == {len(figures.METRICS) + 2}


@spoken
def test_what_guides_the_first_stage_is_judged_in_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """On MORE clips, each with the default's guidance and without one of its terms."""
    monkeypatch.setattr(evaluate, "seen", lambda case, other, video: dict.fromkeys(figures.METRICS, float(case.number)))
    bench = figures.Bench(Drawing(Path("nowhere")), 1, 1)
    bench.evaluation.drawn = {case.scene.prompt: case for case in evaluate.cases(figures.MORE, 0, extras=True)}
    figures.of_guidance(bench)
    asked = bench.evaluation.asked
    assert len(asked) == 5 * figures.MORE and all(request["use_multiscale"] is False for request in asked)
    assert sum(len(request) == 2 for request in asked) == figures.MORE  # the default's: its seed and one stage alone


def test_an_interval_is_that_of_students_t() -> None:
    """Of the example in Student's own paper: the sleep that a drug gained ten patients, against another one's."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    more = figures.differences([{"hours": b} for b in second], [{"hours": a} for a in first])["hours"]
    # R: t.test(extra ~ group, data = sleep, paired = TRUE), 95 percent confidence interval 0.7001142 2.4598858
    assert (more.mean - more.half, more.mean + more.half) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert more.differs and more.text(".2f", sign=True) == "+1.58 ± 0.88"
    assert not Estimate.of([1, -1]).differs and not Estimate.of([1]).differs
    known = Estimate.of([0.5, math.nan, 0.7])
    assert known.count == 2 and known.mean == pytest.approx(0.6) and known.text(".0%").startswith("60 ± 127 %")


def test_a_page_that_could_not_be_written_is_told_before_hours_of_work(tmp_path: Path) -> None:
    page = tmp_path / "gone" / "figures.md"
    command = [sys.executable, ROOT / "mini", "evaluate", "--weights", tmp_path / "no set", "--to", page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, f"{page}: there is no folder {page.parent}; create it.\n")
