"""A film that is made in parts, by hand in the graph: the frames of the whole, and one sentence for mistakes."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from a2v.ltx.media import audio
from a2v.tests.host.comfy import Comfy, PromptRejected, Run
from a2v.tests.ltx.media.test_safety import write as write_classifier
from a2v.tests.tiny import TinyFiles

from .test_films import film, frames, kept, texts, unkept

__all__ = ["unkept"]  # a fixture
TIMELINE = """0:00 a woman sings
0:00.7 [cut, seed 9] rain
0:01.1 chorus: she dances
0:02 [cut] chorus:"""
WINDOWS = {"window_frames": 25, "overlap": 2, "drift": 0.3, "window_seeds": "2: 99"}
PART = {"film": ["windows", 0], "part": 0, "parts": 3, "made": ""}
Prompt = dict[str, Any]


def whole(models: TinyFiles, comfy: Comfy, strength: float = 1.0, **more: Any) -> Prompt:
    guidance = {} if strength < 1 else None
    return film(models, comfy, seed=21, timeline=TIMELINE, windows=WINDOWS, audio_strength=strength, restart={},
                audio_guidance=guidance, **more)  # fmt: skip


def with_part(prompt: Prompt, **inputs: Any) -> Prompt:
    graph = copy.deepcopy(prompt)
    graph["part"] = {"class_type": "LTXA2VFilmPart", "inputs": {**PART, **inputs}}
    graph["sound"]["inputs"]["windows"] = ["part", 0]
    return graph


def part(prompt: Prompt, number: int) -> Prompt:
    """The graph of a machine that makes one part: it saves that in place of the film."""
    graph = with_part(prompt, part=number)
    outputs = {name: ["second", slot] for slot, name in enumerate(("latent", "noise", "audio"))}
    graph["save"] = {"class_type": "LTXA2VSaveFilmPart", "inputs": {**outputs, "filename_prefix": f"parts/p{number}"}}
    for name in ("png", "decode", "joined", "track"):
        graph.pop(name, None)
    return graph


def saved(done: Run) -> str:
    assert done.message is None, done.message
    (facts,) = done.outputs["save"]["report"]
    return f"{facts['subfolder']}/{facts['filename']}"


@pytest.mark.soak
@pytest.mark.parametrize("strength", [1.0, 0.6], ids=["sound", "renewed sound"])
def test_parts_make_the_same_film(comfy: Comfy, models: TinyFiles, unkept: None, strength: float) -> None:
    prompt = whole(models, comfy, strength)
    expected = comfy.run(prompt)
    assert expected.message is None
    made = []
    for number in (1, 2, 3):
        for path in kept(comfy):
            path.unlink()
        comfy.free()
        made.append(saved(comfy.run(part(prompt, number))))
        assert kept(comfy) == [], "what is in the part's file is not kept twice"
    sampled = []
    for files in (made, made[:1] + made[2:]):
        comfy.free()
        joined = comfy.run(with_part(prompt, made="\n".join(files)))
        assert joined.message is None, joined.message
        assert np.array_equal(frames(comfy, joined), frames(comfy, expected))
        sampled.append({e.data["node"] for e in joined.events if e.type == "progress"} & {"first", "second", "upscale"})
        ours, theirs = (audio.load_track(comfy.path(run.outputs["save"]["images"][0])) for run in (joined, expected))
        assert torch.equal(ours.waveform, theirs.waveform)
    assert sampled == [set(), {"first", "second", "upscale"}], "only what is missing is made"
    assert "were made in parts" in texts(joined.events, "second")[-1]


@pytest.mark.soak
def test_no_part_stays_of_a_film_that_was_flagged(comfy: Comfy, models: TinyFiles, unkept: None) -> None:
    made = saved(comfy.run(part(whole(models, comfy), 3)))
    path, folder = comfy.base / "output" / made, comfy.base / "models" / "safety_checker"
    write_classifier(folder / "bright")
    try:
        for threshold, stays in ((1.0, True), (0.01, False)):
            safety = {"checker": "bright", "threshold": threshold, "action": "replace"}
            done = comfy.run(with_part(whole(models, comfy, stream=True, safety=safety), made=made))
            assert done.message is None and path.is_file() == stays
    finally:
        shutil.rmtree(folder)


def test_a_file_of_another_film_is_refused(comfy: Comfy, models: TinyFiles) -> None:
    prompt = whole(models, comfy)
    name = saved(comfy.run(part(prompt, 3)))
    other = copy.deepcopy(prompt)
    other["timeline"]["inputs"]["timeline"] = TIMELINE.replace("0:02", "0:01.8")
    done = comfy.run(with_part(other, made=name))
    assert "is a part of another film, or of other windows; make it again." in (done.message or "")


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"part": 4}, "there is no part 4; a film with 2 hard cuts has 3 of them."),
        ({"made": "../../secret.safetensors"}, "is no .safetensors file in ComfyUI's output folder; copy it there."),
        ({"made": "/etc/passwd"}, "is no .safetensors file in ComfyUI's output folder; copy it there."),
        ({"made": "parts/broken.safetensors"}, "broken.safetensors is damaged; make that part again."),
    ],
)
def test_a_mistake_is_one_sentence(comfy: Comfy, models: TinyFiles, inputs: dict[str, Any], sentence: str) -> None:
    folder: Path = comfy.base / "output" / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "broken.safetensors").write_bytes(b"no tensors")
    try:
        done = comfy.run(with_part(whole(models, comfy), **inputs))
    except PromptRejected as error:
        assert sentence in str(error)
        return
    assert sentence in (done.message or "") and not {"first", "sound"} & set(done.executed), done.message
