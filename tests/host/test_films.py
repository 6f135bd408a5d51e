"""Films in windows in the graph: the command's frames to the bit, nothing finished lost, one sentence for mistakes."""

from __future__ import annotations

import re
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from a2v.ltx.media import audio, probe
from a2v.tests.host import graph
from a2v.tests.host.comfy import ROOT, Comfy, Event, PromptRejected, Run
from a2v.tests.host.command import REQUEST, command_files, run_command
from a2v.tests.ltx.media.test_safety import write as write_classifier
from a2v.tests.tiny import TinyFiles
from PIL import Image

SPEECH = ROOT / "assets" / "speech.opus"
FRAMES = 65
WINDOWS = {"window_frames": 33, "overlap": 2}
TIMELINE = """0:00 a woman sings in a studio
0:00.8 chorus: she dances in the rain
0:01.6 [cut, seed 77, image close.png] verse 2: a close view of her face
0:02.2 [cut] chorus:"""


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[tuple[Path, Path, Path]]:
    """first.png, end.png and close.png, which a timeline names."""
    generator = torch.Generator().manual_seed(3)
    paths = []
    for name, size in (("first.png", (90, 130)), ("end.png", (201, 77)), ("close.png", (128, 100))):
        small = torch.randint(0, 256, (6, 8, 3), generator=generator, dtype=torch.uint8).numpy()
        paths.append(tmp_path / name)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return tuple(paths)


@pytest.fixture
def unkept(comfy: Comfy) -> None:
    """No window of another test is there."""
    for file in kept(comfy):
        file.unlink()


def kept(comfy: Comfy) -> list[Path]:
    return sorted((comfy.base / "output" / "ltx_a2v_windows").glob("*.safetensors"))


CASES: dict[str, dict[str, Any]] = {
    "one window": {"frames": 17, "windows": {"window_frames": 33, "overlap": 2}, "seed": 5},
    "several windows": {"seed": 6, "images": True, "restart": {}},
    "a timeline with hard cuts": {"seed": 2**40 + 1, "timeline": TIMELINE, "images": True},
    "renewed sound": {"seed": 7, "audio_strength": 0.6},
    "renewed sound behind a cut": {"seed": 8, "audio_strength": 0.5, "timeline": "0:00 a man\n0:01.3 [cut] a tree"},
    "one stage": {"seed": 9, "two_passes": False},
    "all that windows have": {
        "seed": 10,
        "windows": {**WINDOWS, "anchor": 0.4, "drift": 0.3, "pauses": False, "window_seeds": "2: 99"},
        "images": True,
        "timeline": "0:00 a man\n0:01.3 [cut, seed 5] a tree",
    },
}
NAMES = {"window_frames": "frames", "window_seeds": "seeds"}
SEEDS: dict[Any, Any] = {"2: 99": {"2": 99}}
USUAL = ("all that windows have",)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=name, marks=[pytest.mark.soak] * (name not in USUAL)) for name, c in CASES.items()]
)
def test_graph_and_command_give_the_same_film(
    case: dict[str, Any], comfy: Comfy, models: TinyFiles, pictures: tuple[Path, ...], tmp_path: Path, unkept: None
) -> None:
    case = {"frames": FRAMES, "windows": WINDOWS, **case}
    names = [comfy.upload(path) for path in pictures]
    images, timeline = pictures[:2] if case.get("images") else (), case.get("timeline")
    strength = case.get("audio_strength", 1.0)
    prompt = film(
        models,
        comfy,
        seed=case["seed"],
        frames=case["frames"],
        windows=case["windows"],
        timeline=None if timeline is None else timeline.replace("close.png", names[2]),
        image=names[0] if images else None,
        end_image=names[1] if images else None,
        audio_strength=strength,
        audio_guidance={} if strength < 1 else None,
        restart=case.get("restart"),
        two_passes=case.get("two_passes", True),
    )
    done = comfy.run(prompt)
    assert done.message is None
    drawn = frames(comfy, done)
    request = {
        "seed": case["seed"],
        "num_frames": case["frames"],
        "video_size": {"width": 128, "height": 128},
        "num_inference_steps": 2,
        "audio_strength": strength,
        "windows": {NAMES.get(name, name): SEEDS.get(value, value) for name, value in case["windows"].items()},
        "use_restart_sampling": "restart" in case,
        "use_multiscale": case.get("two_passes", True),
        **({} if timeline is None else {"timeline": timeline}),
    }
    expected, video = run_command(tmp_path, request, command_files(models), *images)
    assert np.array_equal(drawn, expected)
    saved = comfy.path(done.outputs["save"]["images"][0])
    ours, theirs = probe.probe(saved), probe.probe(video)
    assert (ours.width, ours.height, ours.frames, ours.fps) == (theirs.width, theirs.height, theirs.frames, theirs.fps)
    assert torch.equal(audio.load_track(saved).waveform, audio.load_track(video).waveform)


def film(models: TinyFiles, comfy: Comfy, **given: Any) -> dict[str, Any]:
    values = {"frames": FRAMES, "windows": WINDOWS, "seed": 11, "prefix": "film", **given}
    prompt = graph.audio_to_video(
        models, comfy.upload(SPEECH), prompt=REQUEST["prompt"], negative=REQUEST["negative_prompt"], **values
    )
    if "decode" in prompt:
        prompt["png"] = {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "film"}}
    return prompt


def frames(comfy: Comfy, done: Run) -> np.ndarray:
    return np.stack([np.asarray(Image.open(comfy.path(result))) for result in done.outputs["png"]["images"]])


def texts(events: list[Event], node: str) -> list[str]:
    return [event.data["text"] for event in events if event.type == "ltx_a2v_text" and event.data["node"] == node]


@pytest.mark.soak  # test_api_films.py cancels one and goes on
def test_an_interrupted_film_goes_on_from_its_last_window(comfy: Comfy, models: TinyFiles, unkept: None) -> None:
    """Cancel in the second stage's third window, and the same graph again gives the film that was never cancelled."""
    prompt = film(models, comfy, steps=3)
    stopped: list[Event] = []

    def stop(event: Event) -> None:
        if event.type == "progress" and event.data["node"] == "second" and event.data["value"] == 8:
            comfy.interrupt()
        stopped.append(event)

    first = comfy.run(prompt, stop)
    assert first.interrupted and not first.error
    steps = [event.data["value"] for event in stopped if event.type == "progress" and event.data["node"] == "second"]
    assert max(steps) <= 9, "it stopped within a step"
    assert len(kept(comfy)) == 5
    before = {path.name for path in kept(comfy)}

    # ComfyUI forgets the first stage, too
    comfy.free()
    again = comfy.run(prompt)
    assert again.message is None and before < {path.name for path in kept(comfy)}
    for node, count in (("first", 3), ("second", 2)):
        assert f"{count} windows of an earlier run were used again" in texts(again.events, node)[-1]

    for path in kept(comfy):
        path.unlink()
    comfy.free()
    whole = comfy.run(prompt)
    assert np.array_equal(frames(comfy, again), frames(comfy, whole))
    assert "earlier run" not in texts(whole.events, "second")[-1]


def test_the_node_says_which_window_it_is_at(comfy: Comfy, models: TinyFiles, unkept: None) -> None:
    events: list[Event] = []
    done = comfy.run(film(models, comfy, stream=True, seed=12), events.append)
    assert done.message is None
    said = texts(events, "first")
    assert re.fullmatch(r"window 1 of 3, about \d+ s left", said[0])
    assert re.fullmatch(r"window 3 of 3, about \d+ s left", said[-2])
    assert "3 windows of up to 33 frames" in said[-1]
    totals = {event.data["max"] for event in events if event.type == "progress" and event.data["node"] == "first"}
    assert totals == {6}
    assert probe.probe(comfy.path(done.outputs["save"]["images"][0])).frames == FRAMES


@pytest.mark.soak
def test_a_film_as_long_as_its_sound(comfy: Comfy, models: TinyFiles, tmp_path: Path, unkept: None) -> None:
    """Over 481 frames, by the sound alone."""
    prompt = film(models, comfy, frames=None, fps=100.0, windows={"window_frames": 233}, size=(64, 64), stream=True)
    done = comfy.run(prompt)
    assert done.message is None
    made = probe.probe(comfy.path(done.outputs["save"]["images"][0]))
    assert made.frames == 553 and float(made.duration) == pytest.approx(5.53, abs=0.02)


def test_the_lips_follow_a_voice_and_the_film_keeps_the_song(
    comfy: Comfy, models: TinyFiles, tmp_path: Path, unkept: None
) -> None:
    """What a separator parts from a song goes to the conditioning alone, by one link: here another file's sound."""
    voice = audio.load_track(SPEECH)
    path = tmp_path / "voice.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, voice.rate, 0, "NONE", ""))
        file.writeframes((voice.waveform[0].flip(0) * 32767).short().numpy().tobytes())
    uploaded = comfy.upload(path)
    song = film(models, comfy, frames=17, two_passes=False)
    parted = film(models, comfy, frames=17, two_passes=False)
    parted["voice"] = {"class_type": "LTXA2VLoadAudio", "inputs": {"audio": uploaded}}
    parted["sound"]["inputs"]["audio"] = ["voice", 0]
    alone = film(models, comfy, frames=17, two_passes=False)
    alone["audio"]["inputs"]["audio"] = uploaded
    runs = [comfy.run(each) for each in (song, parted, alone)]
    seen = [frames(comfy, run) for run in runs]
    assert np.array_equal(seen[1], seen[2]) and not np.array_equal(seen[1], seen[0])
    heard = [audio.load_track(comfy.path(run.outputs["save"]["images"][0])).waveform for run in runs]
    assert torch.equal(heard[1], heard[0]) and not torch.equal(heard[1], heard[2])


@pytest.mark.soak
def test_nothing_is_kept_of_a_film_that_was_flagged(comfy: Comfy, models: TinyFiles, unkept: None) -> None:
    folder = comfy.base / "models" / "safety_checker"
    write_classifier(folder / "bright")
    comfy.run(film(models, comfy, stream=True, seed=15))
    others = kept(comfy)
    try:
        for threshold, count in ((1.0, 6), (0.01, 0)):
            safety = {"checker": "bright", "threshold": threshold, "action": "replace"}
            done = comfy.run(film(models, comfy, stream=True, seed=14, safety=safety))
            assert done.message is None and len(kept(comfy)) == len(others) + count
        assert kept(comfy) == others, "another film's stay"
    finally:
        shutil.rmtree(folder)


BAD = {
    "a seed for no window": ("windows", {"window_seeds": "9: 1"}, "there is a seed for window 9, but the film has 3"),
    "seeds that are none": ("windows", {"window_seeds": "two"}, "'two' is no window with its seed"),
    "an overlap as long as the window": ("windows", {"window_frames": 17, "overlap": 2}, "leaves nothing new in 17"),
    "a window that is no 8k+1": ("windows", {"window_frames": 32}, "32 frames is not one more than a multiple of 8"),
    "sections out of order": ("timeline", "0:01 a\n0:00.5 b", "line 2, '0:00.5 b', does not begin after"),
    "a section beyond the track": ("timeline", "0:00 a\n0:30 b", "section 0:30.0 begins after the end of the film"),
    "two sections at one place": ("timeline", "0:00 a\n0:01 b\n0:01.1 c", "is less than eight frames away"),
    "no time": ("timeline", "a woman sings", "begins before any section"),
    "a time that is none": ("timeline", "0:00 a\n0:75 b", "does not begin with a time"),
    "an option that is none": ("timeline", "0:00 a\n0:01 [zoom] b", "has an unknown option"),
    "a section without a prompt": ("timeline", "0:00 a\n0:01 chorus:", "has no prompt"),
    "a picture that is not there": ("timeline", "0:00 a\n0:01 [image none.png] b", "'none.png' is not in ComfyUI's"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_sentence_before_sampling(name: str, comfy: Comfy, models: TinyFiles) -> None:
    which, value, sentence = BAD[name]
    prompt = film(models, comfy, seed=13, **{which: value})
    try:
        done = comfy.run(prompt)
    except PromptRejected as error:
        assert sentence in str(error)
        return
    assert sentence in (done.message or ""), done.message
    assert "\n" not in done.message and not {"first", "sound", "positive"} & set(done.executed)
    assert done.error["node_type"] == {"windows": "LTXA2VWindow", "timeline": "LTXA2VTimeline"}[which]
