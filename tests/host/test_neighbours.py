"""Beside other packs' nodes on the real server: what they hand over is read or refused before anything is sampled.

A few kinds run in the usual suite. `make soak` runs every kind of tests/robust/odd_nodes and prints the outcomes.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from a2v.ltx.media.audio import load_track
from a2v.tests.host.api import APP, SMALL, client_of
from a2v.tests.host.browser import Frontend
from a2v.tests.host.comfy import Comfy, Prompt, PromptRejected, Run
from a2v.tests.host.graph import audio_to_video
from a2v.tests.host.test_graph import FAST, frames_of, sound_only, video_of
from a2v.tests.ltx.media.test_audio import wav
from a2v.tests.robust.odd_nodes import values
from a2v.tests.tiny import TinyFiles
from PIL import Image

RATE, SECONDS = 48000, 0.375  # as long as 9 frames
NOTHING_SAMPLED = {"first", "second", "upscale", "decode"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("neighbours")


def signal(channels: int) -> np.ndarray:
    """Tones, another level in each channel: float32 [channels, samples]."""
    time_ = np.arange(round(SECONDS * RATE)) / RATE
    levels = np.linspace(0.1, 0.3, channels)[:, None]
    return (levels * np.sin(2 * np.pi * 330 * time_)).astype(np.float32)


def write(path: Path, channels: int) -> Path:
    path.write_bytes(wav(signal(channels).T.tobytes(), 3, channels, RATE, 32))
    return path


@pytest.fixture(scope="module")
def stereo(comfy: Comfy, folder: Path) -> str:
    return comfy.upload(write(folder / "stereo.wav", 2))


@pytest.fixture(scope="module")
def picture(comfy: Comfy, folder: Path) -> str:
    Image.new("RGB", (80, 60), (200, 30, 60)).save(folder / "plain.png")
    return comfy.upload(folder / "plain.png")


def between(prompt: Prompt, source: list[Any], kind: str, change: str) -> Prompt:
    """The graph with another pack's node behind that output: everything that took it takes the changed value."""
    for node in prompt.values():
        node["inputs"] = {name: ["odd", 0] if value == source else value for name, value in node["inputs"].items()}
    prompt["odd"] = {"class_type": f"Odd{kind}", "inputs": {"value": source, "change": change}}
    return prompt


def instead(prompt: Prompt, source: list[Any], kind: str, choice: str) -> Prompt:
    for node in prompt.values():
        node["inputs"] = {name: ["odd", 0] if value == source else value for name, value in node["inputs"].items()}
    prompt["odd"] = {"class_type": f"Odd{kind}", "inputs": {"choice": choice}}
    return prompt


def graph(models: TinyFiles, sound: str, picture: str | None, kind: str, choice: str) -> Prompt:
    """The whole graph with one odd value in it, in ProRes, whose sound is lossless."""
    prompt = audio_to_video(models, sound, image=picture, output={"format": "PRORES4444 (.mov)"}, **FAST)
    if kind == "Audio":
        return between(prompt, ["audio", 0], kind, choice)
    if kind == "Image":
        return between(prompt, ["image", 0], kind, choice)
    if kind == "Latent":
        return between(prompt, ["size", 0], kind, choice)
    return instead(prompt, {"Sigmas": ["sigmas", 0], "Noise": ["noise", 0]}[kind], kind, choice)


def refused(run: Run, words: str) -> bool:
    """Whether it ended in that one sentence before anything was sampled, and no file was written."""
    told = run.error is not None and run.error["exception_type"].endswith("InputError") and "\n" not in run.message
    sampled = [e for e in run.events if e.type == "progress" and e.data["node"] in NOTHING_SAMPLED and e.data["value"]]
    return told and bool(re.search(words, run.message)) and not sampled and "save" not in run.outputs


def sound_of(comfy: Comfy, run: Run) -> tuple[np.ndarray, int]:
    track = load_track(video_of(comfy, run))
    return track.waveform.numpy(), track.rate


def right(comfy: Comfy, run: Run, kind: str, choice: str) -> bool:
    """Whether the video is whole, and its sound is the one that was meant, in length and level."""
    if run.error is not None or frames_of(video_of(comfy, run)).shape != (9, 64, 64, 3):
        return False
    wanted, rate = torch.from_numpy(signal(2)), RATE
    if kind == "Audio":
        wanted, rate = values.AUDIO[choice][1](wanted, rate)
        if len(wanted) > 8:  # mixed down
            wanted = wanted.mean(0, keepdim=True).expand(2, -1)
        wanted = wanted.clamp(-1, 1)
    heard, heard_rate = sound_of(comfy, run)
    length = min(wanted.shape[1], round(SECONDS * rate))
    return heard_rate == rate and heard.shape == (len(wanted), length) and bool(
        np.abs(heard - wanted[:, :length].numpy()).max() < 1e-4
    )  # fmt: skip


USUAL = [
    ("Audio", "copied, mono"),
    ("Audio", "none"),
    ("Image", "batch of none"),
    ("Latent", "mask of frames"),
    ("Sigmas", "rising"),
    ("Noise", "coloured"),
]


def outcome(
    comfy: Comfy, models: TinyFiles, sound: str, picture: str, kind: str, choice: str
) -> tuple[str, str | None]:
    """ "read" or "refused" as it must be, "wrong" otherwise, and what was said."""
    known: dict[str, tuple[Any, Any]] = getattr(values, kind.upper())
    expected = known[choice][1]
    run = comfy.run(graph(models, sound, picture if kind == "Image" else None, kind, choice))
    if isinstance(expected, str):
        return ("refused" if refused(run, expected) else "wrong"), run.message
    return ("read" if right(comfy, run, kind, choice) else "wrong"), run.message


@pytest.mark.parametrize(("kind", "choice"), USUAL)
def test_a_value_of_another_pack(
    comfy: Comfy, models: TinyFiles, stereo: str, picture: str, kind: str, choice: str
) -> None:
    came, said = outcome(comfy, models, stereo, picture, kind, choice)
    assert came != "wrong", said


@pytest.mark.soak
def test_every_value_of_another_pack(
    comfy: Comfy, models: TinyFiles, stereo: str, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: dict[str, Counter[str]] = {}
    wrong = []
    for kind in ("Audio", "Image", "Latent", "Sigmas", "Noise"):
        for choice in getattr(values, kind.upper()):
            came, said = outcome(comfy, models, stereo, picture, kind, choice)
            counts.setdefault(kind, Counter())[came] += 1
            wrong += [f"{kind}, {choice}: {said}"] if came == "wrong" else []
    with capsys.disabled():
        print(f"\n{'value':<10}{'read':>8}{'refused':>9}{'wrong':>7}")
        for kind, row in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
            print(f"{kind:<10}{row['read']:>8}{row['refused']:>9}{row['wrong']:>7}")
    assert not wrong


def test_many_channels_are_mixed_down_and_the_report_says_so(comfy: Comfy, folder: Path) -> None:
    run = comfy.run(sound_only(comfy.upload(write(folder / "nine.wav", 9))))
    (report,) = run.outputs["save"]["report"]
    assert report["audio_channels"] == 2
    assert (
        "the sound was mixed down from 9 channels to stereo, because X264 (.mp4) has no such layout" in report["notes"]
    )
    heard, _ = sound_of(comfy, run)
    level = np.sqrt(np.square(heard).mean() / np.square(signal(9).mean(0)).mean())
    assert abs(20 * np.log10(level)) < 0.5


def test_a_linked_name_is_told_before_anything_is_sampled(comfy: Comfy, models: TinyFiles, stereo: str) -> None:
    """A name that another node makes is not known when the graph is queued; frames are lazy, so it is known in time."""
    prompt = audio_to_video(models, stereo, seed=5150, **FAST)
    prompt["name"] = {"class_type": "StringConcatenate",
                      "inputs": {"string_a": "take", "string_b": "1", "delimiter": ":"}}  # fmt: skip
    prompt["save"]["inputs"]["filename_prefix"] = ["name", 0]
    run = comfy.run(prompt)
    assert run.error is not None and run.error["node_id"] == "save"
    assert refused(run, "filename_prefix: 'take:1' has ':'")


@pytest.mark.parametrize("prefix", ["x" * 300, "a:b", "clip.", "CON", "../x"])
def test_a_name_that_cannot_be_written_is_not_queued(comfy: Comfy, stereo: str, prefix: str) -> None:
    with pytest.raises(PromptRejected, match="filename_prefix: "):
        comfy.queue(sound_only(stereo, prefix=prefix))


def test_names_are_filled_in_for_the_api(comfy: Comfy, stereo: str) -> None:
    prompt = sound_only(stereo, prefix="%date:yyyy%\\%LTXA2VFrameCount.frame_rate%_%grey.color%_%width%")
    prompt["grey"]["_meta"] = {"title": "grey"}
    path = video_of(comfy, comfy.run(prompt))
    assert path == comfy.base / "output" / time.strftime("%Y") / "24_8421504_32_00001_.mp4"


@pytest.mark.soak
def test_the_editor_fills_names_in_as_for_its_own_nodes(comfy: Comfy, chromium: str) -> None:
    prefix = "%date:yyyy-MM%/%noisy.noise_seed%"
    widgets = {"SaveImage": [prefix], "LTXA2VSaveVideo": [24, prefix, "X264 (.mp4)", "high", "balanced"]}
    nodes = [
        {"id": number, "type": kind, "pos": [0, 200 * number], "size": [200, 100], "flags": {}, "order": number,
         "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": given}
        for number, (kind, given) in enumerate(widgets.items(), 1)
    ]  # fmt: skip
    nodes.append({**nodes[0], "id": 3, "type": "RandomNoise", "title": "noisy", "widgets_values": [77, "fixed"]})
    workflow = {"last_node_id": 3, "last_link_id": 0, "nodes": nodes, "links": [], "groups": [], "config": {},
                "extra": {}, "version": 0.4}  # fmt: skip
    with Frontend(comfy.url, chromium) as frontend:
        assert frontend.load(workflow) == []
        made = {node["class_type"]: node["inputs"].get("filename_prefix") for node in frontend.prompt().values()}
        kept = {node["type"]: node["widgets_values"] for node in frontend.serialize()["nodes"]}
    assert made["LTXA2VSaveVideo"] == made["SaveImage"] == time.strftime("%Y-%m") + "/77"
    assert kept["LTXA2VSaveVideo"][1] == prefix, "the saved graph has the name as it was typed"


def test_a_graph_from_windows_finds_its_models(comfy: Comfy, models: TinyFiles) -> None:
    inside = models.upscaler.parent / "sub" / "deeper" / models.upscaler.name
    inside.parent.mkdir(parents=True)
    inside.symlink_to(models.upscaler)
    name = f"sub\\deeper\\{inside.name}"
    prompt = {
        "upscaler": {"class_type": "LTXA2VUpscalerLoader", "inputs": {"file": name, "dtype": "float32"}},
        "seen": {"class_type": "PreviewAny", "inputs": {"source": ["upscaler", 0]}},
    }
    run = comfy.run(prompt)
    assert run.error is None and "seen" in run.outputs, run.message


def clear(path: Path) -> Path:
    """A picture whose left half is transparent, with white hidden under it."""
    pixels = np.full((64, 64, 4), 255, np.uint8)
    pixels[:, 32:, :3], pixels[:, :32, 3] = (200, 100, 50), 0
    Image.fromarray(pixels).save(path)
    return path


def test_a_transparent_picture_is_black_there_in_the_graph(comfy: Comfy, folder: Path) -> None:
    name = comfy.upload(clear(folder / "clear.png"))
    prompt = {
        "picture": {"class_type": "LTXA2VLoadImage", "inputs": {"image": name}},
        "seen": {"class_type": "SaveImage", "inputs": {"images": ["picture", 0], "filename_prefix": "clear"}},
    }
    run = comfy.run(prompt)
    seen = np.asarray(Image.open(comfy.path(run.outputs["seen"]["images"][0])))
    assert (seen[:, :32] == 0).all() and (seen[:, 32:] == (200, 100, 50)).all()


@pytest.mark.soak
def test_many_channels_and_a_transparent_picture_over_http(server: Comfy, folder: Path) -> None:
    import fal_client

    sound, picture = write(folder / "eighteen.wav", 18), clear(folder / "clear-http.png")
    black = np.zeros((64, 64, 3), np.uint8)
    black[:, 32:] = (200, 100, 50)
    Image.fromarray(black).save(folder / "black.png")
    with client_of(server) as client:
        fal = client.SyncClient(key="any")
        request = {**SMALL, "audio_url": fal_client.encode_file(sound), "seed": 3}
        handle = fal.submit(APP, {**request, "image_url": fal_client.encode_file(picture)})
        made = handle.get()["video"]
        lines = [line["message"] for line in handle.status(with_logs=True).logs]
        same = fal.subscribe(APP, {**request, "image_url": fal_client.encode_file(folder / "black.png")})["video"]
    assert any("mixed down from 18 channels to stereo" in line for line in lines)
    output = server.base / "output"
    files = [next(output.rglob(video["file_name"])) for video in (made, same)]
    assert (frames_of(files[0]) == frames_of(files[1])).all()
    heard = load_track(files[0])
    level = np.sqrt(np.square(heard.waveform.numpy()).mean() / np.square(signal(18).mean(0)).mean())
    assert heard.waveform.shape[0] == 2 and abs(20 * np.log10(level)) < 0.5
