"""Widgets' values become paths only where a person may read; what is missing is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import folder_paths
from a2v.ltx.errors import InputError
from a2v.ltx.media.suffixes import FILM, SOUND
from a2v.nodes import files, loaders, loras

OUTSIDE = ["../../etc/passwd", "../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors", "", ".", ".."]


@pytest.fixture(autouse=True)
def folders(base: Path, fresh_lists: None) -> Iterator[None]:
    """A model of each kind, an upload, and a secret beside them."""
    for name in ("checkpoints/sub/a.safetensors", "loras/b.safetensors", "loras/c.ckpt", "secret.safetensors"):
        path = base / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("text_encoders/gemma/config.json", "text_encoders/gemma/shards/config.json", "text_encoders/x/readme"):
        path = base / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("input/sub/x.wav", "input/y.mp4", "input/z.txt", "output/made.wav", "secret.wav"):
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    yield


def test_a_model_file_is_found_by_the_name_that_is_offered(base: Path) -> None:
    (name,) = files.model_files("checkpoints")
    assert files.model_file("checkpoints", name, "") == base / "models" / "checkpoints" / "sub" / "a.safetensors"
    assert files.model_files("loras") == ["b.safetensors"], "pickles are not offered"


@pytest.mark.parametrize("name", [*OUTSIDE, "c.ckpt", "missing.safetensors"])
def test_any_other_name_is_refused_with_what_to_get(name: str) -> None:
    with pytest.raises(InputError, match=r"models/loras: get the file\.$"):
        files.model_file("loras", name, "get the file")


def test_a_model_folder_is_found_by_its_mark(base: Path) -> None:
    assert files.model_folders("text_encoders", "config.json") == ["gemma"]
    assert (
        files.model_folder("text_encoders", "gemma", "config.json", "") == base / "models" / "text_encoders" / "gemma"
    )


@pytest.mark.parametrize("name", [*OUTSIDE, "x", "gemma/../../checkpoints", "gemma/shards"])
def test_any_other_folder_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"models/text_encoders: put it there\.$"):
        files.model_folder("text_encoders", name, "config.json", "put it there")


def test_a_model_may_be_a_link_to_another_disk(base: Path, tmp_path: Path) -> None:
    (tmp_path / "big.safetensors").touch()
    link = base / "models" / "loras" / "linked.safetensors"
    link.symlink_to(tmp_path / "big.safetensors")
    try:
        folder_paths.filename_list_cache.clear()
        assert files.model_file("loras", "linked.safetensors", "") == link
    finally:
        link.unlink()


def test_uploads_are_sound_and_video() -> None:
    assert files.uploads("audio", SOUND | FILM) == ["y.mp4"]


@pytest.mark.parametrize(
    ("name", "path"),
    [("y.mp4", "input/y.mp4"), ("sub/x.wav", "input/sub/x.wav"), ("made.wav [output]", "output/made.wav")],
)
def test_an_upload_is_found(base: Path, name: str, path: str) -> None:
    assert files.upload(name) == (base / path).resolve()


@pytest.mark.parametrize("name", ["../secret.wav", "/etc/passwd", "sub/../../secret.wav", "../secret.wav [output]"])
def test_an_upload_outside_its_folder_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="outside"):
        files.upload(name)


def test_an_upload_that_links_out_of_its_folder_is_refused(base: Path) -> None:
    link = base / "input" / "link.wav"
    link.symlink_to(base / "secret.wav")
    try:
        with pytest.raises(InputError, match="outside"):
            files.upload("link.wav")
    finally:
        link.unlink()


@pytest.mark.parametrize("name", ["nothing.wav", "", "sub"])
def test_an_upload_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match="upload it first"):
        files.upload(name)


@pytest.mark.parametrize(
    ("node", "field"),
    [
        (loaders.ModelLoader, "checkpoint"),
        (loaders.TextEncoderLoader, "folder"),
        (loaders.UpscalerLoader, "file"),
        (loras.DistilledLora, "lora"),
        (loras.LoraLoader, "lora"),
    ],
)
def test_loaders_refuse_before_anything_runs(node: type, field: str) -> None:
    for name in ("../../etc/passwd", "not-there.safetensors"):
        verdict = node.validate_inputs(**{field: name})
        assert isinstance(verdict, str) and name in verdict and "models/" in verdict
    assert node.validate_inputs(**{field: None}) is True, "a linked value is not known yet"


def test_a_file_that_is_no_model_is_refused_before_anything_runs() -> None:
    verdict = loaders.ModelLoader.validate_inputs(checkpoint=os.path.join("sub", "a.safetensors"))
    assert isinstance(verdict, str) and "not a complete safetensors file" in verdict


def test_a_stamp_changes_with_the_file_and_tells_no_path(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"1")
    first = files.stamp(file)
    file.write_bytes(b"12")
    assert files.stamp(file) != first and str(tmp_path) not in first


def test_a_folder_s_stamp_changes_with_each_of_its_files(tmp_path: Path) -> None:
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for folder in (model / ".cache", elsewhere):
        folder.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (elsewhere / "part.safetensors").write_bytes(b"one")
    (model / "linked").symlink_to(elsewhere)
    found = [files.stamp(model)]
    for path in (elsewhere / "part.safetensors", model / "config.json", model / "new.model"):
        path.write_bytes(b"changed")
        found.append(files.stamp(model))
    (model / "new.model").rename(model / "renamed.model")
    found.append(files.stamp(model))
    assert len(set(found)) == len(found) and not any(str(tmp_path) in each for each in found)
    (model / ".cache" / "download.lock").touch()
    assert files.stamp(model) == found[-1]
