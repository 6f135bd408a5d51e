"""Noise under the sound that the model hears, by the command: what is encoded, what is written, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from a2v.ltx import pipeline
from a2v.ltx.arguments import parser
from a2v.ltx.encoding import Prompts
from a2v.ltx.errors import InputError
from a2v.ltx.headless import files_of as named_files
from a2v.ltx.job import Compute, prepare
from a2v.ltx.media.audio import Track, conditioning_track, load_track, soundtrack
from a2v.ltx.media.preprocess import preprocess
from a2v.ltx.media.room_noise import with_room_noise
from a2v.ltx.request import parse
from a2v.ltx.trace import Recorder
from a2v.tests.ltx.loaded import loaded_once
from a2v.tests.ltx.test_video_in import BASE, HEIGHT, WIDTH, files_of, media, text
from a2v.tests.tiny import TinyFiles

__all__ = ["media"]  # the fixture
REQUEST = {**BASE, "video_size": {"width": WIDTH, "height": HEIGHT}, "match_audio_length": False, "num_frames": 9}
LEVEL = -40.0


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    with loaded_once():
        yield


@pytest.mark.parametrize("levelled", [True, False])
def test_the_model_hears_it_and_the_file_does_not_get_it(
    tiny: TinyFiles, media: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levelled: bool
) -> None:
    written: list[Track] = []
    write = pipeline.write_video
    monkeypatch.setattr(
        pipeline, "write_video", lambda *given, **more: (written.append(given[3]), write(*given, **more))[1]
    )
    recorder = Recorder()
    result = pipeline.run(
        files_of(tiny, tmp_path / "out.mp4", audio=media["voice"], room_noise=LEVEL),
        parse({**REQUEST, "preprocess_audio": levelled}),
        Compute(torch.float32),
        prompts=Prompts("a woman speaks", text(1), text(2)),
        trace=recorder,
    )
    track, frames, fps = load_track(media["voice"]), 9, Fraction(24)
    heard = preprocess(soundtrack(track, frames, fps)) if levelled else track
    noisy = conditioning_track(with_room_noise(heard, LEVEL), frames, fps)
    assert torch.equal(recorder.tensors["audio/waveform"], noisy.waveform[None])
    assert torch.equal(written[0].waveform, soundtrack(track, frames, fps).waveform)
    assert "the model hears noise of -40 dBFS under the audio" in result.report["notes"]


@pytest.mark.parametrize(
    ("level", "strength", "sentence"),
    [
        (0.0, 1.0, r"^--room-noise: 0 dBFS; give a number from -90 to -20\.$"),
        (LEVEL, 0.5, "^--room-noise: the model would put the noise into the sound that it makes; "),
    ],
)
def test_words_for_noise(
    tiny: TinyFiles, media: dict[str, Path], tmp_path: Path, level: float, strength: float, sentence: str
) -> None:
    files = files_of(tiny, tmp_path / "out.mp4", audio=media["voice"], room_noise=level)
    with pytest.raises(InputError, match=sentence):
        prepare(files, parse({**REQUEST, "audio_strength": strength}))


def test_the_flag() -> None:
    named = ["--checkpoint", "c", "--text-encoder", "t", "--request", "r", "--output", "o"]
    assert named_files(parser().parse_args([*named, "--room-noise", "-50"])).room_noise == -50
    assert named_files(parser().parse_args(named)).room_noise is None
