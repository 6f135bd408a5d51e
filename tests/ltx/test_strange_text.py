"""Text that nothing can write, requests in the encodings of editors, and folders with an encoder of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from a2v.api.applications.inputs import HALF_TEXT, Invalid, read_json
from a2v.ltx import __main__ as command
from a2v.ltx.encoding import encode_prompts
from a2v.ltx.errors import InputError
from a2v.ltx.job import Compute, Files, Job, prepare
from a2v.ltx.models import PACK
from a2v.ltx.prompt.expand import expand
from a2v.ltx.prompt.gemma import check_gemma, load_gemma
from a2v.ltx.prompt.sentencepiece import CHAT
from a2v.ltx.report import describe
from a2v.ltx.request import PARAMETERS, parse
from a2v.ltx.terminal import ENDING
from a2v.ltx.tools import doctor
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests import layouts
from a2v.tests.tiny import TinyFiles
from safetensors.torch import load_file, save_file

SPEECH = PACK / "assets" / "speech.opus"
SMALL = {
    "prompt": "a woman speaks", "negative_prompt": "light", "seed": 5, "use_multiscale": False, "num_frames": 9,
    "video_size": {"width": 64, "height": 64}, "match_audio_length": False, "enable_prompt_expansion": False,
    "enable_safety_checker": False,
}  # fmt: skip
HALVES = ("\ud83d", "a face \udc00", "\udcff")


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", [name for name, parameter in PARAMETERS.items() if parameter.kind == "text"])
def test_half_a_character_in_a_text_is_one_sentence(name: str, half: str) -> None:
    with pytest.raises(
        InputError, match=rf"^{name}: character \d+ is half of a character .*; write it whole"
    ) as caught:
        parse({"prompt": "x", name: half})
    str(caught.value).encode()
    assert parse({"prompt": "x", name: "0:00 a face 😀"})


def test_half_a_character_in_a_body_is_one_sentence() -> None:
    for body in (b'{"prompt": "\\ud83d"}', b'{"\\udc00": 1}', b'["\\ud83d\\ud83d"]'):
        with pytest.raises(Invalid) as caught:
            read_json(body)
        assert [part["msg"] for part in caught.value.detail] == [HALF_TEXT]
    assert read_json(b'{"prompt": "\\ud83d\\ude00"}') == {"prompt": "😀"}


def line(tiny: TinyFiles, folder: Path, request: bytes, **flags: object) -> list[str]:
    (folder / "request.json").write_bytes(request)
    values = {
        "checkpoint": tiny.checkpoint, "text-encoder": tiny.gemma, "audio": SPEECH, "request": folder / "request.json",
        "output": folder / "out.mp4", **flags,
    }  # fmt: skip
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


RESULT = SimpleNamespace(report={"notes": [], "used": {}}, video=SimpleNamespace(path="out.mp4"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_request_in_any_unicode(tiny_default: TinyFiles, tmp_path: Path, encoding: str) -> None:
    seen = []
    text = json.dumps({**SMALL, "prompt": "ein Gesicht 😀 über"}, ensure_ascii=False)
    argv = line(tiny_default, tmp_path, text.encode(encoding))
    assert command.main(argv, lambda files, request, *_, **__: seen.append(request) or RESULT) == 0
    assert seen[0].prompt == "ein Gesicht 😀 über"


@pytest.mark.parametrize(
    ("request_file", "sentence"),
    [
        (b'{"prompt": "\\ud83d"}', "prompt: character 1 is half of a character (\\ud83d, a lone surrogate)"),
        ('{"prompt": "x"}'.encode("utf-16")[:-1], "is not JSON"),
        (b"\xff\xfe\0", "is not JSON"),
    ],
)
def test_a_request_that_is_no_text(
    tiny_default: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], request_file: bytes, sentence: str
) -> None:
    assert command.main(line(tiny_default, tmp_path, request_file)) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_file_name_that_is_no_text(
    tiny_default: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Linux has them: bytes that are no UTF-8."""
    name = os.fsdecode(b"caf\xe9.opus")
    for flags in ({"audio": tmp_path / name}, {"output": tmp_path / f"{name}.mp4"}, {"lora": f"{tmp_path / name}:0.5"}):
        assert command.main(line(tiny_default, tmp_path, json.dumps(SMALL).encode(), **flags)) == 2
        error = capsys.readouterr().err
        (flag,) = flags
        assert error.startswith(f"--{flag}: the file name ") and "is no valid text; rename" in error
        assert len(error.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_doctor_says_names_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = {number: signal.getsignal(number) for number in ENDING}
    folder = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / os.fsdecode(b"ltx-caf\xe9.safetensors")).write_bytes(b"")
    try:
        assert command.command("doctor", ["--models", str(tmp_path / "models")]) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "ltx-caf\\udce9.safetensors: not a complete safetensors file" in capsys.readouterr().out


def prepared(tiny: TinyFiles, **files: object) -> Job:
    values = {"checkpoint": tiny.checkpoint, "text_encoder": tiny.gemma, "audio": SPEECH, "output": Path("x.mp4")}
    return prepare(Files(**{**values, **files}), parse(SMALL))


def contexts(job: Job) -> list[torch.Tensor]:
    prompts = encode_prompts(job, Compute(torch.float32), None, lambda *_: None)
    return [tensor for each in (prompts.positive, prompts.negative) for tensor in (each.video, each.audio)]


def test_a_lora_for_connectors_and_transformer(tiny_default: TinyFiles, tmp_path: Path) -> None:
    """The prompts' contexts are those of a checkpoint with the changed weight; the cache keeps them apart; the report
    counts both parts; the camera LoRA changes the transformer alone, and says so."""
    tensors, _ = layouts.read(tiny_default.checkpoint)
    key = "text_embedding_projection.video_aggregate_embed"
    weight = tensors[f"{key}.weight"].float()
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, weight.shape[1], generator=generator), torch.randn(len(weight), 2, generator=generator)
    path = tmp_path / "both.safetensors"
    pairs = {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.alpha": torch.tensor(1.0)}
    camera = load_file(tiny_default.camera_lora)
    save_file({**camera, **pairs}, path)
    changed = layouts.write_meaning(
        tiny_default.checkpoint, tmp_path / "changed.safetensors", {f"{key}.weight": weight + 0.5 * 0.5 * up @ down}
    )
    job = prepared(tiny_default, loras=((path, 0.5),), contexts=tmp_path / "cache")
    assert not any("both.safetensors" in note for note in job.notes)
    (told,) = describe(job, "x", [])["used"]["loras"]
    layers = len(camera) // 2 + 1
    assert (told["layers"], told["kinds"]) == (layers, {"LoRA": layers})
    expected, found = contexts(prepared(tiny_default, checkpoint=changed)), contexts(job)
    plain = contexts(prepared(tiny_default, contexts=tmp_path / "cache"))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found[0], plain[0])
    assert all(map(torch.equal, contexts(job), found)), "from the cache"
    (note,) = (note for note in prepared(tiny_default, camera_lora=path).notes if "both.safetensors" in note)
    assert f"{layers - 1} layers applied" in note and "1 left out" in note and "text connectors" in note


@pytest.fixture(scope="module")
def whole(tiny_default: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with Gemma in text_encoder and tokenizer; without a chat template, as some have it."""
    folder = tmp_path_factory.mktemp("whole") / "LTX-2.3-Diffusers"
    file = load_checkpoint(tiny_default.checkpoint)
    parts = {"transformer": file.transformer, "connectors": file.connectors, "vae": file.video_vae}
    for name, load in {**parts, "audio_vae": file.audio_vae, "vocoder": file.vocoder}.items():
        load().save_pretrained(folder / name)
    for name in ("text_encoder", "tokenizer"):
        (folder / name).mkdir()
    for path in tiny_default.gemma.iterdir():
        weights = path.name.startswith(("model", "config", "generation"))
        shutil.copy(path, folder / ("text_encoder" if weights else "tokenizer") / path.name)
    for path in (folder / "tokenizer").glob("*chat_template*"):
        path.unlink()
    settings = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_diffusers_folders_own_encoder(tiny_default: TinyFiles, whole: Path, tmp_path: Path) -> None:
    """The folder itself and its text_encoder serve; the command takes it where none is named; doctor finds it."""
    expected = contexts(prepared(tiny_default))
    for path in (whole, whole / "text_encoder"):
        check_gemma(path)
        assert all(map(torch.equal, contexts(prepared(tiny_default, checkpoint=whole, text_encoder=path)), expected))
    seen = []
    argv = line(tiny_default, tmp_path, json.dumps(SMALL).encode(), **{"checkpoint": whole, "text-encoder": None})
    assert command.main(argv, lambda files, *_, **__: seen.append(files.text_encoder) or RESULT) == 0
    assert seen == [whole]
    (tmp_path / "models" / "diffusers").mkdir(parents=True)
    (tmp_path / "models" / "diffusers" / whole.name).symlink_to(whole)
    lines: list[str] = []
    doctor.main(["--models", str(tmp_path / "models")], lines.append)
    assert any("text encoder" in line and line.startswith(doctor.OK) and whole.name in line for line in lines)


def test_without_a_text_encoder_the_command_asks_for_one(
    tiny_default: TinyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(line(tiny_default, tmp_path, json.dumps(SMALL).encode(), **{"text-encoder": None})) == 2
    assert capsys.readouterr().err.startswith("--text-encoder: missing; name the folder or file")


def test_a_folder_without_a_chat_template_uses_gemmas(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3 knows one chat format; a prompt is written as with the template, also from an image."""
    gemma = load_gemma(whole, torch.float32)
    assert gemma.tokenizer.chat_template == CHAT
    monkeypatch.setattr("a2v.ltx.prompt.expand.NEW_TOKENS", 3)
    for image in (None, torch.zeros(20, 30, 3, dtype=torch.uint8)):
        expansion = expand(gemma, "a woman speaks", seed=1, image=image)
        assert expansion.reason is None or "no letters" in expansion.reason or "cut after 3 tokens" in expansion.reason
