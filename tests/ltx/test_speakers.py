"""Who speaks, by the command: masks and voices of a job, in both stages and in windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from a2v.ltx.arguments import parser
from a2v.ltx.errors import InputError
from a2v.ltx.headless import files_of as named_files
from a2v.ltx.job import prepare
from a2v.ltx.request import parse
from a2v.tests.ltx.loaded import loaded_once
from a2v.tests.ltx.media.clips import write_damaged
from a2v.tests.ltx.media.test_films import stopping
from a2v.tests.ltx.test_video_in import BASE, HEIGHT, WIDTH, Engine, engine, files_of, media
from a2v.tests.tiny import TinyFiles
from PIL import Image
from scipy.io import wavfile

__all__ = ["engine", "media"]  # the fixtures
SIZE = {"video_size": {"width": WIDTH, "height": HEIGHT}, "match_audio_length": False}


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    with loaded_once():
        yield


def test_both_stages_hear_in_the_mask_alone(engine: Engine, media: dict[str, Path]) -> None:
    result = engine({**SIZE, "num_frames": 25, "use_multiscale": True}, audio=media["voice"], speakers=(media["mask"],))
    for stage, columns in (("s1", 2), ("s2", 4)):
        heard = result.trace[f"{stage}/hearing_video"].view(4, -1, columns)
        assert (heard[..., : columns // 2] == 1).all() and not heard[..., columns // 2 :].any()
    assert "only one region of the picture hears the audio (experimental)" in result.report["notes"]


def test_two_voices_in_windows(engine: Engine, media: dict[str, Path], tmp_path: Path) -> None:
    """The second speaker's mask moves with the film, and his voice ends before the film does."""
    values = {**SIZE, "num_frames": 65, "windows": {"frames": 33, "overlap": 2}}
    speakers = media["mask"], media["video"]
    result = engine(values, audio=media["voice"], speakers=speakers, voices=(media["video"], media["odd"]))
    found = {name: heard for name, heard in result.trace.items() if name.endswith("hearing_video")}
    assert len(found) == 3, sorted(found)
    for heard in found.values():
        assert heard.min() >= 0 and heard.max() <= 1 and heard.std() > 0
    assert "only 2 regions of the picture hear the audio (experimental)" in result.report["notes"]


def test_damage_of_a_speakers_mask_is_told(engine: Engine, media: dict[str, Path], tmp_path: Path) -> None:
    """Once, however often the mask is read."""
    mask = write_damaged(tmp_path / "mask.mov", (25, HEIGHT, WIDTH))
    result = engine({**SIZE, "num_frames": 25}, audio=media["voice"], speakers=(mask,))
    told = [note for note in result.report["notes"] if "damaged" in note]
    assert told == ["mask.mov: damaged parts of it were left out"]


def test_damage_of_every_sound_is_told(tiny: TinyFiles, media: dict[str, Path], tmp_path: Path) -> None:
    """Of the track, of a voice and of a reference."""
    cut = {name: tmp_path / f"{name}.wav" for name in ("track", "voice", "example")}
    for path in cut.values():
        wavfile.write(path, 16_000, (torch.randn(32_000) * 3000).short().numpy())
        path.write_bytes(path.read_bytes()[:40_000])
    values = {**BASE, **SIZE, "num_frames": 25, "match_audio_length": False}
    voices = files_of(tiny, tmp_path / "out.mp4", audio=cut["track"], speakers=(media["mask"],), voices=(cut["voice"],))
    dubbed = files_of(tiny, tmp_path / "out.mp4", audio=cut["track"], reference=cut["example"])
    heard = {"audio_strength": 0.5, "reference": {"sound": True}}
    for files, more, names in ((voices, {}, ["track", "voice"]), (dubbed, heard, ["example", "track"])):
        told = [
            note
            for note in prepare(files, parse({**values, **more})).notes
            if "its sound is cut short or damaged" in note
        ]
        assert sorted(note.partition(":")[0] for note in told) == [f"{name}.wav" for name in names]


def test_damage_of_a_sound_that_is_made_anew_is_told(tiny: TinyFiles, tmp_path: Path) -> None:
    """A part of it stays, and what surrounds the new part is heard."""
    clip = stopping(tmp_path / "clip.mkv", 12, range(4, 8))
    files = files_of(tiny, tmp_path / "out.mp4", video=clip)
    notes = prepare(files, parse({**BASE, **SIZE, "edit": {"renew": "sound", "start": 4.0}})).notes
    assert [note for note in notes if "silence stands for them" in note], notes


def test_words_for_speakers(tiny: TinyFiles, media: dict[str, Path], tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    Image.new("L", (32, 32)).save(black)
    for given, sentence in (
        ({"speakers": (black,)}, r"^--speaker: black\.png: it is black everywhere, "),
        (
            {"speakers": (media["mask"],), "voices": (media["voice"],) * 2},
            r"^--voice: there are 2 voices for 1 speakers; give one voice after each --speaker, or none\.",
        ),
        ({"voices": (media["voice"],)}, r"^--voice: there are 1 voices for 0 speakers; "),
        ({"speakers": (tmp_path / "none.png",)}, r"none\.png"),
    ):
        files = files_of(tiny, tmp_path / "out.mp4", audio=media["voice"], **given)
        with pytest.raises(InputError, match=sentence):
            prepare(files, parse({**BASE, **SIZE, "num_frames": 25}))
    both = files_of(
        tiny, tmp_path / "out.mp4", audio=media["voice"], speakers=(media["mask"],), voices=(media["voice"],)
    )
    with pytest.raises(InputError, match=r"^speakers: a voice of their own needs an audio that is kept as it is; "):
        prepare(both, parse({**BASE, **SIZE, "num_frames": 25, "audio_strength": 0.5}))


def test_the_flags_for_speakers() -> None:
    named = ["--checkpoint", "c", "--text-encoder", "t", "--request", "r", "--output", "o"]
    asked = ["--speaker", "left.png", "--voice", "anna.wav", "--speaker", "right.mp4", "--voice", "bert.wav"]
    found = named_files(parser().parse_args([*named, *asked]))
    assert found.speakers == (Path("left.png"), Path("right.mp4"))
    assert found.voices == (Path("anna.wav"), Path("bert.wav"))
    assert named_files(parser().parse_args(named)).speakers == ()
