"""Files that people have in place of weights: each is told by its kind, wherever it is opened, and `doctor` says what a
run says."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media.safety import load_checker
from a2v.ltx.prompt.gemma import check_gemma, load_gemma
from a2v.ltx.tools import doctor
from a2v.ltx.weights.checkpoint import load_checkpoint, load_upscaler
from a2v.ltx.weights.lora import load_lora
from a2v.tests import layouts
from a2v.tests.tiny import TinyFiles, write_gemma_file
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 46149345334\n"
CONTENTS = {  # content, words of the sentence
    "lfs": (LFS, "is a Git LFS pointer", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>", "is a web page", "accept the terms"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page", "log in"),
    "pickle": (pickle.dumps({"state_dict": {}}, 2), "is a pickle", "never read"),
    "zip": (b"PK\x03\x04" + bytes(200), "is a pickle or an archive", "never read"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(200), "is a GGUF file", "must end in .gguf"),
    "message": (b'{"error": "Repository not found"}', "is a JSON text", "a server's message"),
    "zeros": (bytes(4096), "only zeros", "its download did not end"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_each_has_its_own_sentence_wherever_it_is_opened(
    tmp_path: Path, tiny_default: TinyFiles, refusal: Callable, kind: str
) -> None:
    content, *words = CONTENTS[kind]
    path = tmp_path / "ltx-2.3-file.safetensors"
    path.write_bytes(content)
    openers = [load_checkpoint, load_upscaler, load_lora, check_gemma, load_gemma]
    openers += [lambda path: load_checkpoint(tiny_default.checkpoint, video_vae=path)]
    for opener in openers:
        with refusal(path, *words):
            opener(path)
    folder = shutil.copytree(tiny_default.gemma, tmp_path / "gemma")
    (folder / "model.safetensors").write_bytes(content)
    with refusal(folder / "model.safetensors", *words):
        check_gemma(folder)
    if kind not in ("gguf", "message"):
        (tmp_path / "x.gguf").write_bytes(content)
        with refusal(tmp_path / "x.gguf", *words):
            load_checkpoint(tmp_path / "x.gguf")
        if kind != "zeros":
            (folder / "tokenizer.json").write_bytes(content)
            with refusal(folder / "tokenizer.json", *words):
                check_gemma(folder)


def test_a_file_that_may_not_be_read(tmp_path: Path, refusal: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is whole, so downloading it again would be no remedy."""

    def denied(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    for name in ("ltx-2.3.safetensors", "ltx-2.3.gguf"):
        (tmp_path / name).touch()
        with refusal(tmp_path / name, "cannot be read (Permission denied)", "check its permissions"):
            load_checkpoint(tmp_path / name)


def test_a_safety_checkers_files(tmp_path: Path, refusal: Callable) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(LFS)
    with refusal(tmp_path / "model.safetensors", "Git LFS pointer"):
        load_checker(tmp_path)


def test_configurations_of_a_folder(tmp_path: Path, tiny_default: TinyFiles, refusal: Callable) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_bytes(LFS)
    with refusal(tmp_path / "transformer" / "config.json", "Git LFS pointer"):
        load_checkpoint(tmp_path)


def inside(name: str, tensor: Tensor) -> bool:
    return layouts.block_layer(name) and not any(size % 16 for size in tensor.shape)


def noted(kind: str) -> Callable[[str, Tensor], Tensors]:
    """INT8 weights with a note beside each that names a format."""
    note = torch.frombuffer(bytearray(json.dumps({"format": kind}).encode()), dtype=torch.uint8)
    return lambda layer, weight: {
        f"{layer}.weight": weight.to(torch.int8),
        f"{layer}.weight_scale": torch.ones(len(weight), 1),
        f"{layer}.comfy_quant": note.clone(),
    }


def marked(layer: str, weight: Tensor) -> Tensors:
    return {f"{layer}.weight": weight.to(torch.float8_e4m3fn), f"{layer}.weight_scale": torch.ones(())}


QUANTIZED: dict[str, tuple[Callable[[str, Tensor], Tensors], str]] = {
    "w4a4": (noted("convrot_w4a4"), "convrot_w4a4"),
    "w4a8": (
        lambda n, w: {f"{n}.weight": w.to(torch.int8), f"{n}.weight_s_rel": torch.ones(len(w), 1)},
        "W4A8 of ComfyUI",
    ),
    "blockwise": (noted("int8_blockwise"), "int8_blockwise"),
    "awq": (lambda n, w: {f"{n}.weight": w, f"{n}.pre_quant_scale": torch.ones(w.shape[1])}, "AWQ"),
    "quanto": (
        lambda n, w: {f"{n}.weight._data": w.to(torch.int8), f"{n}.weight._scale": torch.ones(len(w), 1)},
        "quanto's format",
    ),
    "nf4": (
        lambda n, w: {
            f"{n}.weight": torch.zeros(w.numel() // 2, 1, dtype=torch.uint8),
            f"{n}.weight.absmax": torch.ones(8),
            f"{n}.weight.quant_map": torch.ones(16),
            f"{n}.weight.quant_state.bitsandbytes__nf4": torch.zeros(8, dtype=torch.uint8),
        },
        "NF4 of bitsandbytes",
    ),
    "llm-int8": (
        lambda n, w: {f"{n}.weight": w.to(torch.int8), f"{n}.SCB": torch.ones(len(w))},
        "INT8 of bitsandbytes",
    ),
    "gptq": (lambda n, w: {f"{n}.qweight": torch.zeros(4, 4, dtype=torch.int32)}, "GPTQ, AWQ or SVDQuant"),
    "listed": (marked, "a_format_of_tomorrow"),
}


@pytest.fixture
def told(tiny_default: TinyFiles, tmp_path: Path) -> Callable[[Path], str]:
    """What doctor says of a file in models/checkpoints."""
    for kind in ("checkpoints", "text_encoders"):
        (tmp_path / "models" / kind).mkdir(parents=True)

    def say(path: Path) -> str:
        lines: list[str] = []
        doctor.main(["--models", str(tmp_path / "models")], lines.append)
        (line,) = [line for line in lines if str(path) in line]
        return line.removeprefix(doctor.NOTE)

    return say


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_formats_are_named_by_doctor_as_by_a_run(
    tiny_default: TinyFiles, tmp_path: Path, told: Callable, kind: str
) -> None:
    write, name = QUANTIZED[kind]
    tensors, metadata = layouts.read(tiny_default.checkpoint)
    written: Tensors = {}
    for key, tensor in tensors.items():
        written |= write(key.removesuffix(".weight"), tensor) if inside(key, tensor) else {key: tensor}
    if kind == "listed":
        metadata |= {"_quantization_metadata": json.dumps({"layers": {"x": {"format": name}}})}
    path = tmp_path / "models" / "checkpoints" / f"ltx-2.3-22b-dev-{kind}.safetensors"
    save_file(written, path, metadata)
    with pytest.raises(InputError, match=f"its weights are stored in {name}, which is not supported") as caught:
        load_checkpoint(path).transformer()
    assert told(path) == f"cannot be used: {caught.value}"


DAMAGED: dict[str, Callable[[Tensors], object]] = {
    "missing": lambda t: t.pop("model.diffusion_model.transformer_blocks.1.attn1.to_q.weight"),
    "unknown": lambda t: t.update({"model.diffusion_model.extra.weight": torch.zeros(2)}),
    "shape": lambda t: t.update({"model.diffusion_model.proj_out.weight": torch.zeros(2, 2)}),
    "dtype": lambda t: t.update({"vae.decoder.conv_in.conv.bias": torch.zeros(512, dtype=torch.int16)}),
    "vocoder": lambda t: t.pop(next(key for key in t if key.startswith("vocoder."))),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_doctor_says_what_a_run_says_of_a_damaged_file(
    tiny_default: TinyFiles, tmp_path: Path, told: Callable, kind: str
) -> None:
    tensors, metadata = layouts.read(tiny_default.checkpoint)
    DAMAGED[kind](tensors)
    path = tmp_path / "models" / "checkpoints" / "ltx-2.3-damaged.safetensors"
    save_file(tensors, path, metadata)
    opened = load_checkpoint(path)
    with pytest.raises(InputError) as caught:
        for part in ("transformer", "connectors", "video_vae", "audio_vae", "vocoder"):
            getattr(opened, part)()
    assert told(path) == f"cannot be used: {caught.value}"
    with pytest.raises(InputError) as early:
        opened.inspect()
    assert str(early.value) == str(caught.value)


def test_a_pickle_beside_the_checkpoints_is_told(tmp_path: Path, told: Callable) -> None:
    path = tmp_path / "models" / "checkpoints" / "ltx-2.3-22b-dev.ckpt"
    torch.save({}, path)
    assert told(path).startswith(f"cannot be used: {path}: is a pickle")


def test_inspecting_casts_and_moves_nothing(tiny_default: TinyFiles, tmp_path: Path) -> None:
    """The tensors still map the file, also where dtypes are mixed."""
    tensors, metadata = layouts.read(tiny_default.checkpoint)
    key = "model.diffusion_model.proj_out.weight"
    tensors[key] = tensors[key].half()
    save_file(tensors, tmp_path / "mixed.safetensors", metadata)
    opened = load_checkpoint(tmp_path / "mixed.safetensors")
    assert {p.dtype for p in opened.inspect().parameters()} == {torch.float32, torch.float16, torch.bfloat16} & {
        t.dtype for k, t in tensors.items() if layouts.transformer_only(k)
    }


# Gemma.


def gemma_file(tiny: TinyFiles, path: Path, change: Callable[[Tensors], object], precision: str = "bf16") -> Path:
    write_gemma_file(tiny.gemma, path, precision)
    tensors, metadata = layouts.read(path)
    change(tensors)
    save_file(tensors, path, metadata)
    return path


LAYER = "model.layers.0.mlp.up_proj"
GEMMA: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "int8": (lambda t: t.update({f"{LAYER}.weight": t[f"{LAYER}.weight"].to(torch.int8)}), "no scale"),
    "marked": (
        lambda t: t.update(
            {f"{LAYER}.comfy_quant": torch.frombuffer(bytearray(b'{"format": "int8_blockwise"}'), dtype=torch.uint8)}
        ),
        "int8_blockwise",
    ),
    "missing": (lambda t: t.pop(f"{LAYER}.weight"), "lacks"),
    "unknown": (lambda t: t.update({"model.layers.0.extra.weight": torch.zeros(2)}), "Gemma 3 does not have"),
}


@pytest.mark.parametrize("kind", GEMMA)
def test_a_gemma_file_is_refused_before_it_loads(
    tiny_default: TinyFiles, tmp_path: Path, told: Callable, refusal: Callable, kind: str
) -> None:
    change, word = GEMMA[kind]
    path = gemma_file(tiny_default, tmp_path / "models" / "text_encoders" / "gemma_3.safetensors", change)
    with pytest.raises(InputError, match=word) as caught:
        load_gemma(path)
    with refusal(path, word):
        check_gemma(path)
    assert told(path) == f"cannot be used: {caught.value}"


def test_a_gemma_file_that_is_whole_passes(tiny_default: TinyFiles, tmp_path: Path) -> None:
    for precision in ("bf16", "fp8", "fp4_mixed"):
        check_gemma(gemma_file(tiny_default, tmp_path / "gemma.safetensors", lambda tensors: None, precision))


def test_a_quantized_gemma_folder_is_refused(tiny_default: TinyFiles, tmp_path: Path, refusal: Callable) -> None:
    folder = shutil.copytree(tiny_default.gemma, tmp_path / "gemma")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))
    with refusal(folder / "config.json", "quantized by 'bitsandbytes'"):
        check_gemma(folder)
