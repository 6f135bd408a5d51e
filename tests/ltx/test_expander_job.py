"""Prompt expansion for LTX-2.5 in the command: `--expander`, its report, its cache and its forecast."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx import __main__ as command
from a2v.ltx import encoding
from a2v.ltx.job import Compute, Files, Job, prepare
from a2v.ltx.memory.forecast import estimate
from a2v.ltx.prompt import expand as module
from a2v.ltx.prompt.expand import Expansion, expand
from a2v.ltx.prompt.expander import load_expander
from a2v.ltx.request import parse
from a2v.tests.tiny25 import Tiny25Files, write_tiny25
from a2v.tests.tiny_chat import write_chat_file, write_chat_gemma
from safetensors.torch import load_file

pytest.importorskip("transformers", minversion="5.10.1")
PROMPT = "a woman speaks"
REQUEST = {
    "prompt": PROMPT, "video_size": {"width": 64, "height": 64}, "num_frames": 9, "match_audio_length": False,
    "num_inference_steps": 1, "use_multiscale": False, "video_stg_scale": 0, "enable_safety_checker": False, "seed": 3,
    "use_restart_sampling": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expander")
    with wave.open(str(folder / "sound.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(b"\1\0" * 16000)
    return folder


@pytest.fixture(scope="module")
def tiny25(folder: Path) -> Tiny25Files:
    return write_tiny25(folder / "tiny25")


@pytest.fixture(scope="module")
def chat(folder: Path) -> Path:
    return write_chat_gemma(folder / "gemma-4-E2B-it")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GREEDY_TOKENS", 8)


def files_of(tiny25: Tiny25Files, folder: Path, **more: Path | None) -> Files:
    return Files(
        checkpoint=tiny25.transformer,
        text_encoder=tiny25.text_encoder,
        audio=folder / "sound.wav",
        output=folder / "out.mp4",
        video_vae=tiny25.video_vae,
        audio_vae=tiny25.audio_vae,
        **more,
    )


@pytest.fixture
def job(tiny25: Tiny25Files, folder: Path) -> Callable[..., Job]:
    return lambda request=REQUEST, **more: prepare(files_of(tiny25, folder, **more), parse(request))


@pytest.mark.parametrize("single", [False, True], ids=["folder", "file"])
def test_the_command_writes_the_prompt_with_the_expander(
    tiny25: Tiny25Files, chat: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], single: bool
) -> None:
    if single:
        chat = write_chat_file(chat, tmp_path / "gemma4_e2b_it_bf16.safetensors")
    expected = expand(load_expander(chat, torch.float32), PROMPT, seed=0, greedy=True)
    assert expected.expanded and expected.prompt != PROMPT
    (tmp_path / "request.json").write_text(json.dumps(REQUEST))
    files = files_of(tiny25, folder)

    named = {"checkpoint", "text_encoder", "video_vae", "audio_vae", "audio"}
    words = [word for name in named for word in (f"--{name.replace('_', '-')}", getattr(files, name))]
    words += ["--request", tmp_path / "request.json", "--output", tmp_path / "out.mp4", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda *_: None)
        assert command.main([*map(str, words), "--expander", str(chat)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["prompt"] == expected.prompt and "used as written" not in said.err


def test_without_one_the_prompt_is_used_as_written(job: Callable[..., Job]) -> None:
    prompts = encoding.encode_prompts(job(), Compute(torch.float32), None, lambda *_: None)
    assert prompts.prompt == PROMPT
    (note,) = prompts.notes
    assert "used as written" in note and "choose an expander, for example google/gemma-4-E2B-it" in note


def test_a_kept_expansion_needs_no_expander_and_no_seed(
    job: Callable[..., Job], chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], encoding.load_expander
    monkeypatch.setattr(encoding, "load_expander", lambda *given, **more: loads.append(given) or load(*given, **more))
    prompts = []
    for request in (REQUEST, {**REQUEST, "seed": 4}, {**REQUEST, "prompt": "a man"}):
        opened = job(request, expander=chat, contexts=tmp_path / "cache")
        prompts.append(encoding.encode_prompts(opened, Compute(torch.float32), None, lambda *_: None).prompt)
    assert len(loads) == 2 and prompts[0] == prompts[1] != prompts[2]


def test_the_expander_is_loaded_once_for_all_sections(
    job: Callable[..., Job], chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], encoding.load_expander
    monkeypatch.setattr(encoding, "load_expander", lambda *given, **more: loads.append(given) or load(*given, **more))
    timeline = {
        "num_frames": 25,
        "timeline": "0:00 a man\n0:00.4 a woman\n0:00.7 a dog",
        "windows": {"frames": 17, "overlap": 1},
    }
    opened = job({**REQUEST, **timeline}, expander=chat)
    prompts = encoding.encode_prompts(opened, Compute(torch.float32), None, lambda *_: None)
    assert prompts.notes == ("Gemma's answer was cut after 8 tokens.",)
    assert len(prompts.sections) == 3 and len({prompt for prompt, _ in prompts.sections}) > 1 and len(loads) == 1


def test_a_note_on_a_prompt_names_its_section(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = {
        "num_frames": 25,
        "timeline": f"0:00 a man\n0:00.4 chorus: {'$' * 1100}\n0:00.7 a dog",
        "windows": {"frames": 17, "overlap": 1},
        "negative_prompt": "$" * 1100,
    }
    reasons = iter([None, None, "no room."])
    monkeypatch.setattr(encoding, "expand", lambda _, prompt, **__: Expansion(prompt, True, next(reasons)))
    opened = job({**REQUEST, **timeline})
    prompts = encoding.encode_prompts(opened, Compute(torch.float32), None, lambda *_: None)
    assert prompts.notes == (
        "prompt of section 0:00.7: no room.",
        "the prompt of section 0:00.4 chorus is longer than 1024 tokens and was cut",
        "the negative prompt is longer than 1024 tokens and was cut",
    )


def test_the_two_models_are_never_in_memory_at_once(
    job: Callable[..., Job], chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    held: list[weakref.ref] = []
    first, second = encoding.load_expander, encoding.load_gemma

    def expander(*given: Any, **more: Any) -> Any:
        gemma = first(*given, **more)
        held.append(weakref.ref(gemma.model))
        return gemma

    def encoder(*given: Any, **more: Any) -> Any:
        gc.collect()
        assert held and held[0]() is None
        return second(*given, **more)

    monkeypatch.setattr(encoding, "load_expander", expander)
    monkeypatch.setattr(encoding, "load_gemma", encoder)
    encoding.encode_prompts(job(expander=chat), Compute(torch.float32), None, lambda *_: None)


def test_the_forecast_counts_what_is_loaded(job: Callable[..., Job], chat: Path) -> None:
    """Its tower for sound is not."""
    first, second = estimate(job(expander=chat), Compute(torch.bfloat16)).phases[:2]
    assert (first.name, second.name) == ("expand prompt", "encode text")
    loaded = load_expander(chat, torch.bfloat16).model
    shared = {tensor.data_ptr(): tensor.nbytes for tensor in loaded.state_dict().values()}
    read = sum(t.nbytes for name, t in load_file(chat / "model.safetensors").items() if "audio" not in name)
    assert first.models[0].size == read == sum(shared.values())
    blocks = [sum(prod(p.shape) * 2 for p in layer.parameters()) for layer in loaded.model.language_model.layers]
    assert [*first.models[0].blocks] == pytest.approx(blocks, abs=4)
    assert first.work > 2 * 4 * (1024 + 512) * 32 * 2


def test_a_wrong_expander_is_told_before_anything_loads(
    job: Callable[..., Job], tiny25: Tiny25Files, tmp_path: Path, refusal: Callable
) -> None:
    with refusal(str(tmp_path / "none"), "not found", "gemma-4-E2B-it"):
        job(expander=tmp_path / "none")
    with refusal(tiny25.text_encoder.name, "not write them"):
        job(expander=tiny25.text_encoder)
