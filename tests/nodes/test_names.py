"""Names of saved files: %…% as ComfyUI's editor fills it in, and what can be no name is told before anything runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import folder_paths
from a2v.ltx import characters
from a2v.ltx.errors import InputError
from a2v.nodes import files, loaders, loras, names, output, pictures
from a2v.nodes.audio import LoadAudio
from a2v.nodes.destination import check_prefix, destination

MOMENT = time.struct_time((2026, 3, 7, 4, 5, 9, 5, 66, 0))
PROMPT = {
    "3:12": {
        "class_type": "KSampler",
        "inputs": {"seed": 42, "cfg": 3.0, "big": 2e6, "model": ["1", 0]},
        "_meta": {"title": "One"},
    },
    "5": {"class_type": "KSampler", "inputs": {"seed": 43}, "_meta": {"title": "Two"}},
    "6": {"class_type": "RandomNoise", "inputs": {"noise_seed": 2**63}, "_meta": {"title": "My noise"}},
    "7": {"class_type": "Text", "inputs": {"text": 'a/b\\c:d*e?"f<g>h|i\n', "on": True, "half": 2.5, "none": None}},
}
EXTRA = {
    "workflow": {
        "nodes": [{"id": 5, "properties": {"Node name for S&R": "chosen"}}],
        "definitions": {"subgraphs": [{"nodes": [{"id": 12, "properties": {"Node name for S&R": "inner"}}]}]},
    }
}


@pytest.mark.parametrize(
    ("prefix", "filled"),
    [
        ("plain", "plain"),
        ("%date:yyyy-MM-dd%", "2026-03-07"),
        ("%date:yyyy-MM-dd%/%date:hhmmss%_x", "2026-03-07/040509_x"),
        ("%date:yy.M.d h-m-s%", "26.3.7 4-5-9"),
        ("%date:yyy%", "yyy"),  # as in the editor
        ("%year%-%month%-%day%_%hour%%minute%%second%", "2026-03-07_040509"),
        ("%width%x%height%", "64x32"),
        ("%KSampler.seed%", "42"),  # the first of that type
        ("%chosen.seed%-%inner.seed%", "43-42"),
        ("%Two.seed%", "43"),
        ("%My noise.noise_seed%", str(2**63)),
        ("%KSampler.cfg%_%KSampler.big%", "3_2000000"),
        ("%Text.on%_%Text.half%_%Text.none%_", "true_2.5__"),
        ("%Text.text%", "a_b_c_d_e__f_g_h_i_"),
        ("%KSampler.model%", "%KSampler.model%"),  # a link is no widget
        ("%Nothing.seed%", "%Nothing.seed%"),
        ("%nothing%", "%nothing%"),
        ("100%", "100%"),
        (r"sub\clip", "sub/clip"),
    ],
)
def test_a_prefix_is_filled_in_as_the_editor_does(monkeypatch: pytest.MonkeyPatch, prefix: str, filled: str) -> None:
    monkeypatch.setattr(names.time, "localtime", lambda: MOMENT)
    assert names.fill_in(prefix, 64, 32, PROMPT, EXTRA) == filled


@pytest.mark.parametrize("hidden", [None, {}, {"workflow": None}, {"workflow": {"nodes": None}}, {"workflow": []}])
def test_a_prompt_without_its_workflow_is_enough(hidden: Any) -> None:
    assert names.fill_in("%KSampler.seed%", 1, 1, PROMPT, hidden) == "42"
    assert names.fill_in("%KSampler.seed%", 1, 1, None, hidden) == "%KSampler.seed%"


BAD = {
    "a:b": "has ':'",
    "%date:hh:mm%": "has ':'",
    "C:\\videos\\clip": "has ':'",
    "what?": r"has '\?'",
    "a*": r"has '\*'",
    'the "clip"': "has '\"'",
    "<a>": "has '<'",
    "a|b": r"has '\|'",
    "line\nbreak": r"has '\\n'",
    "zero\0": r"has '\\x00'",
    "clip.": "ends with a dot or a blank",
    "folder./clip": "ends with a dot or a blank",
    "folder /clip": "ends with a dot or a blank",
    "CON": "'CON', which is a device on Windows",
    "nul/clip": "'nul', which is a device on Windows",
    "a/com1.x": "'com1.x', which is a device on Windows",
    "conin$": r"'conin\$', which is a device on Windows",
    "CONOUT$.x/clip": r"'CONOUT\$.x', which is a device on Windows",
    "com¹": "'com¹', which is a device on Windows",
    "LPT².mp4": "'LPT².mp4', which is a device on Windows",
    "nul .x": "'nul .x', which is a device on Windows",
    "x" * 300: "300 characters in one name",
    "x" * 250: "250 characters in one name",
    "y" * 300 + "/clip": "300 characters in one name",
    "é" * 150: "150 characters in one name",
    "/".join(["x" * 200] * 25): "the whole path has",
    "half \ud83d": "half a character",
    "": "names no file",
    ".": "names no file",
    "a/..": "names no file",
    "../x": "leads out of the output folder",
    "..\\x": "leads out of the output folder",
    "/tmp/x": "leads out of the output folder",
}


@pytest.mark.parametrize("prefix", BAD, ids=lambda prefix: ascii(prefix[:20]))
@pytest.mark.parametrize("node", [output.SaveVideo, output.SaveLatentVideo])
def test_a_name_that_cannot_be_written_is_told_before_anything_runs(node: type, prefix: str) -> None:
    refused = node.validate_inputs(filename_prefix=prefix)
    assert isinstance(refused, str) and refused.startswith("filename_prefix: ")
    with pytest.raises(InputError, match=BAD[prefix]) as error:
        check_prefix(prefix)
    assert str(error.value) == refused and len(refused) < 300


@pytest.mark.parametrize(
    "prefix",
    [
        "video/ltx-a2v",
        "日本語/клип",
        "a b/c.d",
        "x" * 240,
        "conduct",
        "com¹⁰",
        "console$",
        "é" * 120,
        "😀" * 60,
        "%KSampler.seed%",
        "a/./b",
        "..a",
    ],
)
def test_usual_names_and_the_longest_are_written(base: Path, prefix: str) -> None:
    node = type(
        "Save", (output.SaveVideo,), {"hidden": SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)}
    )
    assert node.validate_inputs(filename_prefix=prefix) is True
    made = node.execute(torch.zeros(1, 64, 64, 3), 24.0, prefix).ui["report"][0]
    assert (base / "output" / made["subfolder"] / made["filename"]).stat().st_size == made["size"]


def test_a_path_has_room_for_the_unfinished_file(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is longer. Otherwise writing fails after hours of sampling, on Windows at 259 characters."""
    path = os.fsencode(base.resolve() / "output" / f"clip{names.ENDING}")
    monkeypatch.setattr(characters, "LONGEST_PATH", len(path) + 18)
    assert check_prefix("clip") == "clip"
    monkeypatch.setattr(characters, "LONGEST_PATH", len(path) + 17)
    with pytest.raises(InputError, match=r"^filename_prefix: the whole path has .* while the file is written"):
        check_prefix("clip")


def test_a_file_in_the_place_of_a_folder_is_told(base: Path) -> None:
    (base / "output").mkdir(exist_ok=True)
    (base / "output" / "taken").touch()
    try:
        assert "'taken' in 'taken/clip' is a file" in output.SaveVideo.validate_inputs(filename_prefix="taken/clip")
    finally:
        (base / "output" / "taken").unlink()


def test_a_linked_prefix_is_checked_before_the_frames_are_asked_for() -> None:
    """The frames are lazy: ComfyUI samples only after this."""
    hidden = SimpleNamespace(unique_id="1", prompt=PROMPT, extra_pnginfo=None)
    node = type("Save", (output.SaveVideo,), {"hidden": hidden})
    good = {"format": "X264 (.mp4)", "quality": "high", "write_mode": "fast", "fps": 24.0, "images": None}
    good |= {"filename_prefix": "%KSampler.seed%", "report": None}
    assert node.check_lazy_status(**good) == ["images", "report"]
    assert node.check_lazy_status(**{**good, "images": torch.zeros(1, 64, 64, 3), "report": "x"}) == []
    del good["report"]
    assert node.check_lazy_status(**good) == ["images"], "what is not connected is not asked for"
    for bad in (
        {"filename_prefix": "a:b"},
        {"audio": {"waveform": torch.full((1, 1, 9), float("nan")), "sample_rate": 8000}},
        {"format": "AVI"},
        {"quality": "best"},
        {"write_mode": "slow"},
        {"fps": 0.0},
    ):
        with pytest.raises(InputError):
            node.check_lazy_status(**{**good, **bad})


def test_the_prompt_of_the_run_fills_in_the_name(base: Path) -> None:
    hidden = SimpleNamespace(prompt=PROMPT, extra_pnginfo=None)
    folder, name, _ = destination("by/%My noise.noise_seed%", 64, 32, hidden=hidden)
    assert (folder, name) == (base / "output" / "by", f"{2**63}_00001_.mp4")


# Names of files that a graph from Windows brings


@pytest.fixture
def place(base: Path, fresh_lists: None) -> Iterator[Callable[[str], Path]]:
    """Makes empty files in ComfyUI's folders, and takes them away again: other tests count what is there."""
    made: list[Path] = []

    def touch(name: str) -> Path:
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        made.append(path)
        return path

    yield touch
    for path in made:
        path.unlink()
        for folder in path.parents:
            if folder.parent in (base, base / "models") or any(folder.iterdir()):
                break
            folder.rmdir()


@pytest.mark.parametrize("kind", ["checkpoints", "loras"])
def test_a_model_is_found_by_its_windows_name(place: Callable[[str], Path], kind: str) -> None:
    path = place(f"models/{kind}/deep/er/{kind}.safetensors")
    folder_paths.filename_list_cache.clear()
    assert files.model_file(kind, f"deep\\er\\{kind}.safetensors", "") == path
    assert files.model_file(kind, f"deep/er/{kind}.safetensors", "") == path
    finder = {"checkpoints": loaders._checkpoint_path, "loras": loras._lora_path}[kind]
    assert finder(f"deep\\er\\{kind}.safetensors") == path
    for name in (f"..\\{kind}\\deep\\er\\{kind}.safetensors", f"deep\\{kind}.safetensors", 7):
        with pytest.raises(InputError):
            files.model_file(kind, name, "get it")


def test_a_gemma_folder_is_found_by_its_windows_name(place: Callable[[str], Path]) -> None:
    config = place("models/text_encoders/google/gemma/config.json")
    assert loaders.gemma_path("google\\gemma") == config.parent


def test_an_upload_is_found_by_its_windows_name(place: Callable[[str], Path]) -> None:
    path = place("input/pasted/x.wav")
    assert files.upload("pasted\\x.wav") == path.resolve()
    assert LoadAudio.validate_inputs(audio="pasted\\x.wav") is True
    with pytest.raises(InputError, match="outside"):
        files.upload("..\\..\\etc\\hostname")


def test_the_loaders_offer_what_can_be_read(place: Callable[[str], Path]) -> None:
    sounds = "a.mka a.m4b a.caf a.w64 a.wv a.ape a.tta a.dsf a.weba a.ts a.m2ts a.mts a.vob a.mxf a.MP3 a.opus a.rmvb"
    images = "a.png a.HEIC a.avif a.webp a.jxl a.tga a.psd"
    for name in f"{sounds} {images} a.srt a.json a.safetensors".split():
        place(f"input/{name}")
    inputs = (*LoadAudio.define_schema().inputs, *pictures.LoadImage.define_schema().inputs)
    offered = {each.id: each.options for each in inputs if hasattr(each, "options")}
    assert set(sounds.split()) <= set(offered["audio"]) and not {"a.srt", "a.json", "a.png"} & set(offered["audio"])
    assert {"a.png", "a.HEIC", "a.avif", "a.webp", "a.tga", "a.psd"} <= set(offered["image"])
    assert not {"a.mka", "a.json"} & set(offered["image"])
