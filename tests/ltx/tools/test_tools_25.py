"""doctor and download know LTX-2.5: its files by their published names, and which of them a job still needs."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from a2v.ltx.models import LTX_25, MODELS, SETS, V25, size
from a2v.ltx.tools import doctor, download
from a2v.tests.tiny25 import Tiny25Files, write_tiny25
from a2v.tests.tiny_chat import write_chat_file, write_chat_gemma

from .test_doctor import line_with, told

pytest.importorskip("transformers", minversion="5.10.1")
PUBLISHED = {
    "transformer": "dev-2.5",
    "text_encoder": "text-encoder-2.5",
    "video_vae": "video-vae-2.5",
    "audio_vae": "audio-vae-2.5",
    "upscaler": "upscaler-2.5",
    "distilled_lora": "distilled-lora-2.5",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Tiny25Files:
    return write_tiny25(tmp_path_factory.mktemp("tiny25"), layers=2)


@pytest.fixture
def placed(files: Tiny25Files, tmp_path: Path) -> dict[str, Path]:
    """The tiny set under the published names, in the published folders."""
    at = {}
    for field in fields(files):
        if key := PUBLISHED.get(field.name):
            at[field.name] = tmp_path / "models" / MODELS[key].folder / MODELS[key].name
            at[field.name].parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(getattr(files, field.name), at[field.name])
    return at


def test_a_complete_set_can_run(placed: dict[str, Path], tmp_path: Path) -> None:
    chat = write_chat_gemma(tmp_path / "models" / "text_encoders" / "gemma-4-E2B-it")
    single = write_chat_file(chat, chat.with_name(MODELS["expander-int8"].name))
    status, lines = told(tmp_path)
    assert status == 0, lines
    checkpoint = line_with(lines, "checkpoint", placed["transformer"])
    assert placed["video_vae"].name in checkpoint and placed["audio_vae"].name in checkpoint
    for name in ("text_encoder", "upscaler", "distilled_lora"):
        assert line_with(lines, placed[name]).startswith(doctor.OK)
    assert line_with(lines, "expander of prompts", f"{chat} (").startswith(doctor.OK)
    assert line_with(lines, "expander of prompts", single).startswith(doctor.OK)
    assert not any("cannot be used" in line for line in lines)
    assert "first stage" in line_with(lines, "first stage", "transformer")


@pytest.mark.parametrize("gone", ["text_encoder", "video_vae", "audio_vae", "upscaler", "distilled_lora"])
def test_what_is_missing_is_2_5_s(placed: dict[str, Path], tmp_path: Path, gone: str) -> None:
    key = PUBLISHED[gone]
    placed[gone].unlink()
    status, lines = told(tmp_path)
    assert status == 1
    line = line_with(lines, MODELS[key].name, size(MODELS[key].size), MODELS[key].url)
    assert line.startswith(doctor.BAD) and f"/resolve/main/{MODELS[key].folder}/" in MODELS[key].url
    assert f"python -m ltx download {key} --models" in line_with(lines, "python -m ltx download", key)
    assert sum("accept its terms" in line for line in lines) == 1
    assert not any("ltx-2.3" in line or "gemma_3" in line for line in lines)


def test_the_set_is_what_a_job_loads() -> None:
    keys = SETS["2.5"]
    assert keys == V25.default and set(keys) == set(PUBLISHED.values())
    assert all(MODELS[key].repository == LTX_25 and MODELS[key].terms for key in keys)
    help_text = " ".join(download.parser().format_help().split())
    assert "2.5 (dev-2.5" in help_text and "distilled-2.5" in help_text and "expander" in help_text
    assert MODELS["expander"].name == "gemma-4-E2B-it" and not MODELS["expander"].file
    single = MODELS["expander-int8"]
    assert not single.terms and single.url == (
        "https://huggingface.co/Comfy-Org/gemma-4/resolve/main/text_encoders/gemma4_e2b_it_int8_convrot.safetensors"
    )
