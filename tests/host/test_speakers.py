"""Who speaks, on the real server: the graph hears as the command does, in a clip and in a film."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from a2v.tests.host import graph
from a2v.tests.host.comfy import Comfy, Prompt
from a2v.tests.host.command import REQUEST
from a2v.tests.host.test_video_in import SPEECH, commanded, files, made, request, same, source, with_clip
from a2v.tests.ltx.media.clips import write_clip
from a2v.tests.tiny import TinyFiles
from PIL import Image

__all__ = ["source"]  # the fixture
WIDTH, HEIGHT = 128, 64
FILM = {"frames": 65, "windows": {"window_frames": 33, "overlap": 2}}


@dataclass(frozen=True)
class Cast:
    """Two people: the mask of each, and the voice of each alone."""

    masks: list[Path]
    voices: list[Path]


@pytest.fixture
def cast(tmp_path: Path) -> Cast:
    found = Cast([], [])
    for number in range(2):
        mask = np.zeros((90, 180), np.uint8)
        mask[20:, 90 * number : 90 * number + 70] = 255
        found.masks.append(tmp_path / f"speaker-{number}.png")
        Image.fromarray(mask).save(found.masks[-1])
        times = np.arange(48_000 * 3) / 48_000
        turn = (times % 0.8 < 0.4) == bool(number)
        tone = 0.3 * np.sin(2 * np.pi * 300 * times) * turn
        picture = np.zeros((72, 32, 32, 3), np.uint8)
        found.voices.append(write_clip(tmp_path / f"voice-{number}.mp4", picture, kind="h264.mp4", sound=(tone, 0.0)))
    return found


def turn(path: Path, number: int) -> Path:
    """A voice that speaks in the first second of a video, or else behind it."""
    times = np.arange(48_000 * 2) / 48_000
    tone = 0.3 * np.sin(2 * np.pi * 300 * times) * ((times >= 1) == bool(number))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes((tone * 32767).astype("<i2").tobytes())
    return path


def usual(comfy: Comfy, models: TinyFiles, **more: Any) -> Prompt:
    return graph.audio_to_video(
        models,
        comfy.upload(SPEECH),
        prompt=REQUEST["prompt"],
        negative=REQUEST["negative_prompt"],
        size=(WIDTH, HEIGHT),
        seed=4,
        prefix="speakers",
        stream=True,
        safety={"checker": "off"},
        **{"frames": 17, **more},
    )


def with_speakers(comfy: Comfy, prompt: Prompt, masks: list[Path], voices: list[Path]) -> Prompt:
    """The graph with a Speaker for each mask between the sound and the first sampler."""
    heard = ["sound", 0]
    for number, mask in enumerate(masks):
        inputs = {"audio": heard, "mask": [f"mask {number}", 0]}
        loaded = {"image": comfy.upload(mask), "channel": "red"}
        prompt[f"mask {number}"] = {"class_type": "LoadImageMask", "inputs": loaded}
        if voices:
            prompt[f"voice {number}"] = {
                "class_type": "LTXA2VLoadAudio",
                "inputs": {"audio": comfy.upload(voices[number])},
            }
            inputs |= {"voice": [f"voice {number}", 0], "audio_vae": ["model", 3]}
        prompt[f"speaker {number}"] = {"class_type": "LTXA2VSpeaker", "inputs": inputs}
        heard = [f"speaker {number}", 0]
    prompt["first"]["inputs"]["audio"] = heard
    return prompt


@pytest.mark.parametrize("film", [True, False])
@pytest.mark.soak
def test_each_hears_his_own_voice(comfy: Comfy, models: TinyFiles, cast: Cast, tmp_path: Path, film: bool) -> None:
    shape = FILM if film else {}
    saved = made(comfy, with_speakers(comfy, usual(comfy, models, **shape), cast.masks, cast.voices))
    cut = {"windows": {"frames": 33, "overlap": 2}} if film else {}
    asked = request(num_frames=65 if film else 17, match_audio_length=False, **cut)
    given = {**files(models, audio=SPEECH), "speaker": cast.masks, "voice": cast.voices}
    frames = same(saved, commanded(tmp_path, asked, given))
    everybody = same(*[made(comfy, usual(comfy, models, **shape))] * 2)
    assert (frames != everybody).any()


@pytest.mark.soak  # tests/ltx/test_speakers.py has voices and windows
def test_a_voice_begins_with_the_video_that_is_made_longer(
    comfy: Comfy, models: TinyFiles, cast: Cast, source: Path, tmp_path: Path
) -> None:
    """The model sees the last 9 of 22 frames; voices are counted from the video's beginning, not from there."""
    edit = {"extend": "forward", "context": 9, "renew": "picture"}

    def prompt(voices: list[Path]) -> Prompt:
        longer = with_clip(comfy, models, source, edit)
        longer["sound"]["inputs"] |= {"audio": ["retake", 1], "retake": ["retake", 0]}
        longer["save"]["inputs"]["audio"] = ["retake", 1]
        return with_speakers(comfy, longer, cast.masks, voices)

    voices = [turn(tmp_path / f"late-{number}.wav", number) for number in range(2)]
    given = {**files(models, video=source, audio=source), "speaker": cast.masks, "voice": voices}
    frames = same(made(comfy, prompt(voices)), commanded(tmp_path, request(edit, num_frames=25), given))
    assert len(frames) == 22 + 16
    everybody = same(*[made(comfy, prompt([]))] * 2)
    assert (frames != everybody).any()


def test_a_white_mask_changes_nothing_and_a_black_one_is_refused(
    comfy: Comfy, models: TinyFiles, cast: Cast, tmp_path: Path
) -> None:
    white, black = tmp_path / "white.png", tmp_path / "black.png"
    for path, level in ((white, 255), (black, 0)):
        Image.new("L", (40, 30), level).save(path)
    plain = made(comfy, usual(comfy, models))
    same(made(comfy, with_speakers(comfy, usual(comfy, models), [white], [])), plain)
    one = same(*[made(comfy, with_speakers(comfy, usual(comfy, models), cast.masks[:1], []))] * 2)
    assert (one != same(plain, plain)).any()
    run = comfy.run(with_speakers(comfy, usual(comfy, models), [black], []))
    assert "mask: it is black everywhere" in (run.message or "")


def test_the_node_says_that_it_is_an_experiment(comfy: Comfy) -> None:
    info = comfy.object_info()["LTXA2VSpeaker"]
    assert info["experimental"] is True and "experimental" in info["display_name"]
    assert info["input"]["required"].keys() == {"audio", "mask"}
    assert info["input"]["optional"].keys() == {"voice", "audio_vae"}
