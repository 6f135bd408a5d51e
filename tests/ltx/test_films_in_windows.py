"""Films that are made in windows, from files to a file, on tiny weights: what they equal, and that nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from a2v.ltx import pipeline
from a2v.ltx.diffusion import kept, sample_windows
from a2v.ltx.diffusion.conditioning import TextContext
from a2v.ltx.diffusion.kept import AS_FAR_AS_IT_IS
from a2v.ltx.encoding import Prompts, encode_prompts
from a2v.ltx.errors import FlaggedError, InputError
from a2v.ltx.job import Compute, Files, prepare
from a2v.ltx.media.audio import LONGEST, Track, load_track
from a2v.ltx.media.probe import probe
from a2v.ltx.memory.forecast import Forecast, estimate
from a2v.ltx.plan import plan
from a2v.ltx.request import parse
from a2v.ltx.timeline import SECTION_SEED
from a2v.ltx.trace import Recorder
from a2v.tests.ltx.loaded import loaded_once
from a2v.tests.ltx.measure import job_of
from a2v.tests.tiny import TinyFiles
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FRAMES, COUNT = 81, 4  # eleven latents, in windows of five that share two
FILM = {
    "prompt": "a woman sings", "seed": 21, "match_audio_length": False, "num_frames": FRAMES, "num_inference_steps": 2,
    "video_size": {"width": 64, "height": 64}, "enable_prompt_expansion": False, "enable_safety_checker": False,
    "windows": {"frames": 33, "overlap": 2},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with loaded_once():
        yield


def text(seed: int) -> TextContext:
    draw = torch.Generator().manual_seed(seed)
    return TextContext(torch.randn(1, 16, 64, generator=draw), torch.randn(1, 16, 32, generator=draw))


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with song.wav (4 s, stereo, 48 kHz), first.png and last.png."""
    folder = tmp_path_factory.mktemp("media")
    noise, time = np.random.default_rng(3), np.arange(4 * 48000) / 48000
    rows = [np.sin(2 * np.pi * (150 + 70 * c + 60 * time) * time) for c in range(2)]
    samples = 0.4 * np.stack(rows, axis=1) + 0.02 * noise.standard_normal((time.size, 2))
    with wave.open(str(folder / "song.wav"), "wb") as file:
        file.setparams((2, 2, 48000, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    for name in ("first", "last"):
        Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def files_of(tiny: TinyFiles, media: Path, output: Path, images: bool = False) -> Files:
    return Files(
        checkpoint=tiny.checkpoint, text_encoder=tiny.gemma, audio=media / "song.wav", output=output,
        upscaler=tiny.upscaler, distill_lora=tiny.distilled_lora,
        image=media / "first.png" if images else None, end_image=media / "last.png" if images else None,
    )  # fmt: skip


class Made:
    """A run: its trace, its report, the phases that were told, and the numbers of sampled windows."""

    def __init__(
        self, files: Files, request: dict[str, Any], stop: Callable[[str, int], bool] | None = None, **more: Any
    ):
        recorder, self.phases = Recorder(), []

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in self.phases:
                self.phases.append(phase)
            if stop is not None and stop(phase, done):
                raise KeyboardInterrupt

        made = pipeline.run(
            files, parse(request), Compute(torch.float32), trace=recorder, progress=progress,
            **{"prompts": Prompts("", text(1), text(2)), **more},
        )  # fmt: skip
        self.trace, self.report = recorder.tensors, made.report

    @property
    def sampled(self) -> list[str]:
        return [phase for phase in self.phases if "window" in phase]


@pytest.fixture
def make(tiny: TinyFiles, media: Path, tmp_path: Path) -> Callable[..., Made]:
    def run(request: dict[str, Any] | None = None, name: str = "film", images: bool = False, **more: Any) -> Made:
        return Made(files_of(tiny, media, tmp_path / f"{name}.mp4", images), {**FILM, **(request or {})}, **more)

    return run


def in_second_stage(phase: str, done: int) -> bool:
    return phase == "second stage, window 3 of 4" and done == 2


def test_a_film_of_one_window_is_the_clip(make: Callable[..., Made]) -> None:
    """Every tensor on the way, to the bit, with images and renewed sound."""
    base = {"num_frames": 17, "audio_strength": 0.6}
    clip = make({**base, "windows": None}, "clip", images=True)
    film = make(base, images=True)
    assert clip.trace.keys() == film.trace.keys()
    assert all(torch.equal(tensor, film.trace[name]) for name, tensor in clip.trace.items())
    assert clip.phases == film.phases and film.sampled == []
    assert film.report["used"].pop("windows") == {"count": 1, "frames": 17, "overlap": 0, "pauses": True}
    assert clip.report["used"] == film.report["used"]


def test_a_film_of_four(make: Callable[..., Made], media: Path, tmp_path: Path) -> None:
    film = make(images=True)
    assert film.sampled == [f"{stage} stage, window {n} of 4" for stage in ("first", "second") for n in (1, 2, 3, 4)]
    told = [film.phases.index(phase) for phase in ("load transformer", "first stage", film.sampled[0])]
    assert told == sorted(told) and film.phases.index("second stage") < film.phases.index(film.sampled[4])
    assert film.report["used"]["windows"] == {"count": COUNT, "frames": 33, "overlap": 2, "pauses": True}
    assert film.report["used"]["frames"] == FRAMES == probe(tmp_path / "film.mp4").frames
    assert film.trace["final/video_latent"].shape == (1, 128, 11, 2, 2)
    assert film.trace["final/frames_u8"].shape == (FRAMES, 64, 64, 3)
    for name in ("cond/0/latent", "cond/2/latent"):  # the first image, in each stage
        assert name in film.trace
    torch.testing.assert_close(film.trace["final/video_latent"][:, :, :1], film.trace["cond/2/latent"])
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"], "what was kept is gone"
    # The windows' sounds are cut at exact fractions: 16 and 32 frames of 24 a second into the track.
    whole = film.trace["audio/waveform"]
    later = film.trace["audio/window1/waveform"]
    assert later.shape == whole.shape and torch.equal(later[..., :32000], whole[..., 32000:64000])
    source, heard = load_track(media / "song.wav"), load_track(tmp_path / "film.mp4")
    assert heard.seconds == pytest.approx(FRAMES / 24, abs=0.05) and source.seconds > heard.seconds


def test_the_second_stage_starts_from_the_upscaled_whole(make: Callable[..., Made]) -> None:
    film = make()
    assert film.trace["up/in"].shape == (1, 128, 11, 1, 1) and film.trace["up/out"].shape == (1, 128, 11, 2, 2)
    first = [film.trace[f"s1/window{n}/step1/out_video"].reshape(5, 128) for n in range(COUNT)]
    whole = torch.cat([first[0], *(each[3:] for each in first[1:])]).T[None, :, :, None, None]
    assert torch.equal(whole, film.trace["up/in"])


def test_renewed_sound_is_one_sound(make: Callable[..., Made], tmp_path: Path) -> None:
    film = make({"audio_strength": 0.5})
    assert {"final/audio_latent", "final/audio_latent1", "final/audio_latent3"} <= film.trace.keys()
    heard = load_track(tmp_path / "film.mp4")
    assert FRAMES / 24 - 0.1 < heard.seconds < FRAMES / 24 + 0.05


# Nothing finished is lost.


@pytest.fixture(scope="module")
def left_over(tiny: TinyFiles, media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that ended in the third window of the second stage."""
    film = tmp_path_factory.mktemp("ended") / "film.mp4"
    with pytest.raises(KeyboardInterrupt):
        Made(files_of(tiny, media, film), FILM, stop=in_second_stage)
    return film.with_name("film.mp4.windows")


@pytest.fixture
def ended(left_over: Path, tmp_path: Path) -> None:
    """A run that ended in the third window of the second stage lies in the test's folder."""
    shutil.copytree(left_over, tmp_path / left_over.name)


def test_an_ended_run_goes_on(make: Callable[..., Made], tmp_path: Path) -> None:
    """To the bit, with renewed sound, and only what was missing is sampled."""
    whole = make({"audio_strength": 0.6}, "whole")
    with pytest.raises(KeyboardInterrupt):
        make({"audio_strength": 0.6}, stop=in_second_stage)
    folder = tmp_path / "film.mp4.windows"
    assert kept.KeptWindows(folder).count() == 6 and not (tmp_path / "film.mp4").exists()
    again = make({"audio_strength": 0.6}, resume=True)
    assert again.sampled == ["second stage, window 3 of 4", "second stage, window 4 of 4"]
    for name in ("final/video_latent", "final/frames_u8", "final/audio_latent2"):
        assert torch.equal(again.trace[name], whole.trace[name]), name
    assert "6 windows of an earlier run were used again" in again.report["notes"]
    assert load_track(tmp_path / "film.mp4").waveform.equal(load_track(tmp_path / "whole.mp4").waveform)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "sampled"),
    [
        ({"video_quality": "low"}, 2),
        ({"distill_lora_second_pass_scale": 0.4}, 4),
        pytest.param({"distill_lora_first_pass_scale": 0.3}, 8, marks=pytest.mark.soak),
        pytest.param({"seed": 22}, 8, marks=pytest.mark.soak),
    ],
    ids=str,
)
def test_what_is_still_valid(ended: None, make: Callable[..., Made], change: dict[str, Any], sampled: int) -> None:
    assert len(make(change, resume=True).sampled) == sampled


def test_damaged_files_count_as_missing(ended: None, make: Callable[..., Made], tmp_path: Path) -> None:
    for file in (tmp_path / "film.mp4.windows").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    assert len(make(resume=True).sampled) == 8


def test_without_the_flag_nothing_is_read_and_nothing_lost(
    ended: None, make: Callable[..., Made], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        make({"seed": 3}, stop=lambda phase, done: "window 2" in phase)
    assert kept.KeptWindows(tmp_path / "film.mp4.windows").count() == 7


def test_a_clip_without_windows_leaves_what_is_kept(ended: None, make: Callable[..., Made], tmp_path: Path) -> None:
    make({"windows": None, "num_frames": 9})
    assert kept.KeptWindows(tmp_path / "film.mp4.windows").count() == 6


def test_what_is_flagged_does_not_stay(
    make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flag(*_: Any, **__: Any) -> None:
        raise FlaggedError("flagged")

    monkeypatch.setattr(pipeline, "write_video", flag)
    with pytest.raises(FlaggedError):
        make()
    assert list(tmp_path.iterdir()) == []


def test_an_end_before_the_first_window_leaves_nothing(make: Callable[..., Made], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(stop=lambda phase, done: phase == "first stage, window 1 of 4")
    assert list(tmp_path.iterdir()) == []


def test_a_drawn_seed_is_kept(make: Callable[..., Made], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make({"seed": None}, stop=in_second_stage)
    seed = kept.KeptWindows(tmp_path / "film.mp4.windows").seed()
    again = make({"seed": None}, resume=True)
    assert len(again.sampled) == 2 and again.report["used"]["seed"] == seed == again.report["asked"]["seed"]


def test_a_full_disk_is_told_and_what_is_finished_stays(
    make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        if kept.KeptWindows(tmp_path / "film.mp4.windows").count() == 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kept.os, "fsync", full)
        with pytest.raises(OSError, match="is the disk full"):
            make()
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4.windows"]
    assert len(make(resume=True).sampled) == 5


# As far as it is.


def test_what_is_finished_becomes_a_film(ended: None, make: Callable[..., Made], tmp_path: Path) -> None:
    """Two windows of the second stage: seven of eleven latents. Nothing is sampled, and what is kept stays."""
    whole = make(name="whole")
    film = make(resume=AS_FAR_AS_IT_IS)
    assert film.sampled == []
    assert torch.equal(film.trace["final/video_latent"], whole.trace["final/video_latent"][:, :, :7])
    assert film.report["used"]["frames"] == 49 == probe(tmp_path / "film.mp4").frames
    assert film.report["used"]["windows"]["count"] == 2
    assert f"written as far as it is: 49 of {FRAMES} frames" in film.report["notes"]
    assert load_track(tmp_path / "film.mp4").seconds == pytest.approx(49 / 24, abs=0.05)
    assert kept.KeptWindows(tmp_path / "film.mp4.windows").count() == 6
    again = make(resume=True)
    assert len(again.sampled) == 2
    assert torch.equal(again.trace["final/frames_u8"], whole.trace["final/frames_u8"])


def test_a_first_stage_becomes_a_film_of_half_the_size(make: Callable[..., Made], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make({"audio_strength": 0.6}, stop=lambda phase, done: phase == "first stage, window 3 of 4" and done == 2)
    film = make({"audio_strength": 0.6}, resume=AS_FAR_AS_IT_IS)
    found = probe(tmp_path / "film.mp4")
    assert (found.width, found.height, found.frames) == (32, 32, 49)
    assert film.report["used"]["width"] == 32 and film.sampled == []
    assert any("at half the size, because no window of the second stage is finished" in n for n in film.report["notes"])
    assert 49 / 24 - 0.1 < load_track(tmp_path / "film.mp4").seconds < 49 / 24 + 0.05


def test_a_film_that_only_was_not_written(make: Callable[..., Made], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(stop=lambda phase, done: phase == "decode")
    film = make(resume=AS_FAR_AS_IT_IS)
    assert film.report["used"]["frames"] == FRAMES and not any("as far as" in note for note in film.report["notes"])
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_what_is_not_there_cannot_be_written(make: Callable[..., Made], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--as-far-as-it-is: no windows are kept in .*film\.mp4\.windows; run"):
        make(resume=AS_FAR_AS_IT_IS)
    with pytest.raises(InputError, match=r"^--as-far-as-it-is: only a film in windows"):
        make({"windows": None}, resume=AS_FAR_AS_IT_IS)
    with pytest.raises(KeyboardInterrupt):
        make(stop=lambda phase, done: phase == "first stage, window 2 of 4")
    with pytest.raises(InputError, match=r"is of another request; use the one that made it\.$"):
        make({"seed": 3}, resume=AS_FAR_AS_IT_IS)
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4.windows"]


# The disk.


def old(folder: Path, days: float, *more: str) -> Path:
    """A folder of kept windows that nobody touched for so many days."""
    folder.mkdir()
    for name in ("seed.json", f"{'a' * 64}.safetensors", *more):
        (folder / name).write_text("{}")
        os.utime(folder / name, (time.time() - days * 86400,) * 2)
    return folder


@pytest.mark.soak
def test_leftovers_are_swept(make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, recent = old(tmp_path / "gone.mp4.windows", 31), old(tmp_path / "recent.mp4.windows", 29)
    strange = old(tmp_path / "strange.windows", 400, "notes.txt")
    other = tmp_path / "house.windows"
    other.mkdir()
    (other / "blinds.safetensors").write_text("")
    os.utime(other / "blinds.safetensors", (0, 0))
    elsewhere = old(tmp_path.parent / f"{tmp_path.name}-elsewhere", 400)
    (tmp_path / "linked.windows").symlink_to(elsewhere, target_is_directory=True)
    report = make().report
    assert "the windows of a run that was ended long ago were deleted: gone.mp4.windows" in report["notes"]
    assert not gone.exists() and recent.is_dir() and other.is_dir()
    assert len(list(strange.iterdir())) == 3 and len(list(elsewhere.iterdir())) == 2
    forever = old(tmp_path / "gone.mp4.windows", 400)
    monkeypatch.setenv(kept.DAYS, "0")
    make()
    assert forever.is_dir()


def test_the_room_for_windows_is_a_setting(
    make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kept.ROOM, "0.00001")
    with pytest.raises(
        InputError, match=r"^windows: those of this film would take .* LTX_A2V_WINDOWS_GB allows .* raise"
    ):
        make()
    monkeypatch.setenv(kept.ROOM, "0")
    with pytest.raises(KeyboardInterrupt):
        make(stop=lambda phase, done: phase == "decode")
    assert not (tmp_path / "film.mp4.windows").exists(), "0 keeps none"
    for text in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv(kept.ROOM, text)
        with pytest.raises(InputError, match=r"^LTX_A2V_WINDOWS_GB is .*: give a number, for instance 20\.$"):
            make()


def test_windows_of_earlier_seeds_give_way(ended: None, make: Callable[..., Made], tmp_path: Path, monkeypatch) -> None:
    """Oldest first, none of this run, and only as many as needed."""
    folder = tmp_path / "film.mp4.windows"
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    monkeypatch.setattr(kept, "limit", lambda: 2 * stored)
    with pytest.raises(KeyboardInterrupt):
        make({"seed": 3}, stop=lambda phase, done: phase == "decode")
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert sum(sizes) <= 2 * stored and 8 < len(sizes) < 14
    assert make({"seed": 3}, resume=True).sampled == []


def test_what_is_kept_needs_no_more_room(
    ended: None, make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that a full disk ended has room for the windows that it lacks, and writing what is there keeps no more."""
    usage, free = namedtuple("usage", "total used free"), 0
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda folder: usage(10**12, 0, free))
    for room in ("0", "0.00001", "20"):
        monkeypatch.setenv(kept.ROOM, room)
        assert make(resume=AS_FAR_AS_IT_IS).report["used"]["frames"] == 49
    with pytest.raises(InputError, match="the windows of this film take"):
        make()
    assert len(make(resume=True).sampled) == 2  # so small windows take more than is forecast, so that none is needed
    free = 40 * 10**6
    kept.check_room(tmp_path, 100 * 10**6, 60 * 10**6)
    with pytest.raises(InputError, match="take 61 MB there until it is written, but 40 MB are free"):
        kept.check_room(tmp_path, 100 * 10**6, 39 * 10**6)


# Before anything is loaded.


def test_refused_before_sampling(make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--resume: only a film in windows"):
        make({"windows": None}, resume=True)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda folder: usage(10, 10, 1000))
    with pytest.raises(InputError, match=r"the windows of this film take .* MB there until .* delete files"):
        make()
    assert list(tmp_path.iterdir()) == []


def track(seconds: float) -> Track:
    """Silence of so few samples that 45 minutes are looked through in a moment."""
    return Track(torch.zeros(1, 1).expand(2, round(seconds * 1000)), 1000)


def test_the_audio_sets_the_length() -> None:
    asked = {"prompt": "x", "windows": True}
    film = plan(parse(asked), track(60))
    assert (film.frames, len(film.windows), film.notes) == (1441, 14, ())
    assert plan(parse({"prompt": "x"}), track(60)).frames == 481, "the endpoint's cut stays"
    assert len(plan(parse({"prompt": "x"}), track(60)).windows) == 1
    assert plan(parse(asked), track(LONGEST - 1)).frames == 64777
    assert plan(parse(asked), track(LONGEST - 0.01)).frames == 64801, "rounded up beyond the end"
    for seconds in (LONGEST, LONGEST + 60):
        with pytest.raises(InputError, match="audio: it lasts 45 minutes or more"):
            plan(parse(asked), track(seconds))
    with pytest.raises(InputError, match=f"{LONGEST} s is the most"):
        plan(parse({**asked, "match_audio_length": False, "num_frames": 65000}), track(60))
    with pytest.raises(InputError, match="600 s is the most"):
        plan(parse({"prompt": "x", "match_audio_length": False, "num_frames": 60000}), track(60))


# Memory and disk.


def forecast(tiny: TinyFiles, media: Path, frames: int, windows: Any = FILM["windows"]) -> Forecast:
    files = {name: str(value) for name, value in vars(files_of(tiny, media, media / "x.mp4")).items() if value}
    files.pop("loras", None)
    request = {"prompt": "x", "match_audio_length": False, "num_frames": frames, "windows": windows}
    request |= {"video_size": (256, 256)}
    return estimate(job_of({"files": files, "request": request, "dtype": "float32"}), Compute(torch.float32))


@pytest.mark.soak
def test_the_forecast_is_flat_beside_the_latents(tiny: TinyFiles, media: Path) -> None:
    short, long = (forecast(tiny, media, frames) for frames in (81, 561))
    clip = forecast(tiny, media, 33, None)
    latents = 60 * 128 * 4 * 64
    for a, b, c in zip(short.phases, long.phases, clip.phases, strict=True):
        assert a.name == b.name == c.name
        if a.name in ("first stage", "second stage"):
            share = {"first stage": 4, "second stage": 1}[a.name]
            assert b.work - a.work == latents // share
            assert a.work - c.work == 11 * 128 * 4 * 64 // share, "a window takes what a clip of its length takes"
    assert "4 windows of 33 frames: 1 MB on the disk until the film is written" in short.lines()
    assert clip.windows == "" and len(clip.lines()) == len(short.lines()) - 1


def test_the_disk_is_as_forecast(make: Callable[..., Made], tmp_path: Path) -> None:
    def last(phase: str, done: int) -> bool:
        return phase == "decode"

    with pytest.raises(KeyboardInterrupt):
        make(stop=last)
    stored = sum(file.stat().st_size for file in (tmp_path / "film.mp4.windows").glob("*.safetensors"))
    film = plan(parse(FILM), track(4))
    needed = kept.disk_needed(film.windows, *film.sizes)
    assert needed == (11 + COUNT) * 128 * 4 * (1 + 4), "and the latent 0 of each window"
    assert needed < stored < needed + 8 * 6000, "and the state of the noise in each file"


# Sections.

SONG = """
0:00 a woman sings
0:01 chorus: she dances in the rain
0:02 [cut] verse: a close view
0:02.9 [seed 5] chorus:
"""


class Sung(Made):
    """A film with a context for each section."""

    def __init__(self, files: Files, request: dict[str, Any], **more: Any) -> None:
        sections = parse(request).sections
        contexts = {each.prompt: text(10 + n) for n, each in enumerate(sections)}
        found = tuple((each.prompt, contexts[each.prompt]) for each in sections)
        super().__init__(files, request, prompts=Prompts(sections[0].prompt, found[0][1], text(2), (), found), **more)


@pytest.fixture
def sing(tiny: TinyFiles, media: Path, tmp_path: Path) -> Callable[..., Made]:
    def run(timeline: str, name: str = "film", **more: Any) -> Made:
        files = replace(files_of(tiny, media, tmp_path / f"{name}.mp4"), sections=media)
        return Sung(files, {**FILM, "timeline": timeline, **more.pop("request", {})}, **more)

    return run


def test_sections_begin_windows(sing: Callable[..., Made]) -> None:
    film = sing(SONG)
    told = film.report["used"]["sections"]
    assert [(each["frame"], each["name"], each["cut"]) for each in told] == [
        (0, "", False), (25, "chorus", False), (49, "verse", True), (73, "chorus", False),
    ]  # fmt: skip
    assert told[3]["prompt"] == told[1]["prompt"] == "she dances in the rain" and told[3]["seed"] == 5
    assert [each["seed"] for each in told[:3]] == [21, 21, 21 + 2 * SECTION_SEED]
    windows = plan(parse({**FILM, "timeline": SONG}), track(4)).windows
    assert [(w.new.start, w.given) for w in windows] == [(0, 0), (4, 3), (6, 3), (7, 1), (10, 3)]
    assert film.trace["final/frames_u8"].shape[0] == FRAMES


def test_nothing_goes_over_a_hard_cut(sing: Callable[..., Made]) -> None:
    usual = sing(SONG).trace["final/video_latent"]

    def changed(old: str, new: str) -> list[int]:
        other = sing(SONG.replace(old, new), "other").trace["final/video_latent"]
        return [k for k in range(11) if not torch.equal(usual[:, :, k], other[:, :, k])]

    assert changed("[seed 5]", "[seed 6]") == [7, 8, 9, 10], "the upscaler looks ahead within what is not cut"
    assert changed("[cut]", "[cut, image last.png]") == [7, 8, 9, 10]
    assert changed("0:00 a", "0:00 [seed 4] a") == [0, 1, 2, 3, 4, 5, 6]


def test_a_section_is_made_again_alone(sing: Callable[..., Made]) -> None:
    """With another seed behind a hard cut, what was kept before it is used again."""
    with pytest.raises(KeyboardInterrupt):
        sing(SONG, stop=lambda phase, done: phase == "decode")
    again = sing(SONG.replace("[cut]", "[cut, seed 3]"), resume=True)
    assert again.sampled == [f"{stage} stage, window {n} of 5" for stage in ("first", "second") for n in (4, 5)]


@pytest.mark.parametrize(
    ("timeline", "request_", "words"),
    [
        ("0:10 later", {}, "section 0:10.0 begins after the end of the film at 3.4 s"),
        ("0:01 a\n0:01.1 b", {}, "section 0:01.1 is less than eight frames away from 0:01.0"),
        ("0:03.37 a", {}, "section 0:03.4 is less than eight frames away"),
        ("0:00 a\n0:00.02 b", {"fps": 50}, "section 0:00.0 is less than eight frames away from 0:00.0"),
        ("0:01 [image no.png] a", {}, "no.png"),
        ("0:01 a", {"windows": False}, "timeline: a film with sections needs windows"),
        ("rain", {}, "timeline: line 1"),
    ],
)
def test_sections_that_cannot_be(
    tiny: TinyFiles, media: Path, tmp_path: Path, timeline: str, request_: dict[str, Any], words: str
) -> None:
    files = replace(files_of(tiny, media, tmp_path / "film.mp4"), sections=media)
    with pytest.raises(InputError) as refused:
        Made(files, {**FILM, "timeline": timeline, **request_})
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_two_first_images_are_refused(tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    files = replace(files_of(tiny, media, tmp_path / "film.mp4", images=True), sections=media)
    with pytest.raises(InputError, match="and so has the film"):
        Made(files, {**FILM, "timeline": "0:00 [image last.png] a"})


@pytest.mark.soak
def test_a_window_is_made_again_alone(make: Callable[..., Made], tmp_path: Path) -> None:
    """With a seed of its own; in the first stage, what is before it is used again."""
    with pytest.raises(KeyboardInterrupt):
        make(stop=lambda phase, done: phase == "decode")
    size = {**FILM["windows"], "seeds": {"3": 5}}
    again = make({"windows": size}, resume=True)
    assert again.sampled[:2] == ["first stage, window 3 of 4", "first stage, window 4 of 4"]
    assert again.report["asked"]["windows"]["seeds"] == ((3, 5),)
    whole = make({"windows": size}, "whole")
    assert torch.equal(whole.trace["final/frames_u8"], again.trace["final/frames_u8"])
    assert len(whole.sampled) == 8
    with pytest.raises(InputError, match="seed for window 5, but the film has 4"):
        make({"windows": {**size, "seeds": {"5": 5}}})


@pytest.mark.soak
def test_anchor_and_drift_act_from_the_second_window_on(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_windows, "DIFFERENT", 100.0)  # untrained windows show nothing alike
    usual = make().trace["up/in"]
    for change in ({"anchor": 0}, {"drift": 0.5}):
        other = make({"windows": {**FILM["windows"], **change}}, "other").trace["up/in"]
        assert torch.equal(usual[:, :, :5], other[:, :, :5]), change
        assert not any(torch.equal(usual[:, :, k], other[:, :, k]) for k in range(5, 11)), change


def test_each_section_has_its_own_context(tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    """From the text encoder itself; a prompt that two sections share is encoded once."""
    recorder, told = Recorder(), []
    request = parse({**FILM, "timeline": SONG})
    job = prepare(files_of(tiny, media, tmp_path / "film.mp4"), request)
    prompts = encode_prompts(job, Compute(torch.float32), recorder, lambda *each: told.append(each))
    assert told[-1] == ("encode text", 4, 4)
    assert prompts.sections[1][1] is prompts.sections[3][1]
    for number, section in enumerate((0, 1, 2)):
        assert torch.equal(recorder.tensors[f"prompt/{number}/video_enc"], prompts.sections[section][1].video)
    assert not torch.equal(prompts.sections[0][1].video, prompts.sections[1][1].video)
    assert torch.equal(recorder.tensors["prompt/3/video_enc"], prompts.negative.video)


# SIGKILL, from a shell's point of view.


def start(line: list[str]) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "ltx", *line], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


def command(tiny: TinyFiles, media: Path, folder: Path, name: str, *flags: str) -> list[str]:
    request = {**FILM, "num_frames": 161, "use_multiscale": False}  # nine windows
    (folder / "request.json").write_text(json.dumps(request))
    named = {
        "checkpoint": tiny.checkpoint, "text-encoder": tiny.gemma, "audio": media / "song.wav", "dtype": "float32",
        "request": folder / "request.json", "output": folder / f"{name}.mp4", "device": "cpu",
    }  # fmt: skip
    return [*(str(part) for flag, value in named.items() for part in (f"--{flag}", value)), *flags]


def finished(line: list[str]) -> str:
    with start(line) as program:
        _, error = program.communicate(timeout=300)
    assert program.returncode == 0, error
    return error


def read_until(program: subprocess.Popen[str], text: str) -> str:
    """What the program says until that text is there."""
    seen = ""
    while text not in seen:
        character = program.stderr.read(1)
        assert character, seen
        seen += character
    return seen


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.soak
def test_killed_in_window_5_of_9(tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    finished(command(tiny, media, tmp_path, "whole"))
    with start(command(tiny, media, tmp_path, "film")) as program:
        seen = read_until(program, "window 5 of 9")
        program.send_signal(signal.SIGKILL)
        program.communicate()
    assert "9 windows of 33 frames: " in seen, "the disk is told before"
    left = kept.KeptWindows(tmp_path / "film.mp4.windows").count()
    assert 4 <= left < 9 and not (tmp_path / "film.mp4").exists()
    error = finished(command(tiny, media, tmp_path, "film", "--resume"))
    assert re.search(rf"note: {left} windows of an earlier run were used again", error)
    assert "window 4 of 9" not in error and "window 9 of 9" in error
    assert not (tmp_path / "film.mp4.windows").exists()
    film, whole = ((tmp_path / f"{name}.mp4") for name in ("film", "whole"))
    assert pictures(film) == pictures(whole)


def pictures(path: Path) -> bytes:
    """The encoded pictures and the sound, without the report beside them."""
    return subprocess.run(
        ["ffmpeg", "-v", "error", "-i", path, "-map", "0", "-c", "copy", "-f", "md5", "-"],
        capture_output=True,
        check=True,
    ).stdout


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.soak
def test_ctrl_c_tells_what_is_kept(tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    with start(command(tiny, media, tmp_path, "film")) as program:
        read_until(program, "window 3 of 9")
        program.send_signal(signal.SIGINT)
        _, error = program.communicate(timeout=60)
    assert program.returncode == 130
    last = error.strip().splitlines()[-1]
    assert re.fullmatch(
        r"interrupted; [2-9] windows are kept in \S+film\.mp4\.windows; --resume goes on from them, and "
        r"--as-far-as-it-is writes them as a film",
        last,
    ), error
