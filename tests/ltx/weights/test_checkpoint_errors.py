"""Checkpoint files that are not what they should be, each refused in one sentence; what loading takes of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx.weights import checkpoint as reader
from a2v.ltx.weights.checkpoint import WANTED, WANTED_UPSCALER, load_checkpoint, load_upscaler
from a2v.tests.tiny import TinyFiles, write_dummy_checkpoint
from safetensors.torch import save_file
from torch import Tensor

PREFIX = "model.diffusion_model."
PARTS = ("transformer", "connectors", "video_vae", "audio_vae", "vocoder")
OF_23 = "ltx-2.3-22b-dev.safetensors."  # the sentence ends there, because the files of 2.5 have other parts


@pytest.fixture(scope="module")
def stored(tiny_default: TinyFiles, read: Callable) -> tuple[dict[str, Tensor], dict[str, str]]:
    return read(tiny_default.checkpoint)


@pytest.mark.parametrize(("load", "wanted"), [(load_checkpoint, WANTED), (load_upscaler, WANTED_UPSCALER)])
@pytest.mark.parametrize("content", [None, b"", b"not safetensors " * 50, "truncated", "half a header"])
def test_no_complete_file(
    tiny_default: TinyFiles, tmp_path: Path, load: Callable, wanted: str, content: object, refusal: Callable
) -> None:
    path = tmp_path / "file.safetensors"
    if isinstance(content, str):
        whole = tiny_default.upscaler.read_bytes()
        content = whole[: -1000 if content == "truncated" else 60]
    if content is not None:
        path.write_bytes(content)
    with refusal(path, wanted):
        load(path)


def test_another_models_file(tiny_default: TinyFiles, refusal: Callable) -> None:
    for path in (tiny_default.distilled_lora, tiny_default.upscaler, tiny_default.gemma / "model.safetensors"):
        with refusal(path, WANTED, "no LTX transformer"):
            load_checkpoint(path)
    for path in (tiny_default.distilled_lora, tiny_default.checkpoint):
        with refusal(path, WANTED_UPSCALER):
            load_upscaler(path)


@pytest.mark.parametrize("version", ["2.0", "2.0.0", "2.6", "2.30", "2", "12.3", "x2.3", "0.9.8"])
def test_wrong_version(stored: tuple, tmp_path: Path, version: str, refusal: Callable) -> None:
    path = tmp_path / "other.safetensors"
    save_file(stored[0], path, {**stored[1], "model_version": version})
    with refusal(path, WANTED, f"version {version}", "2.3"):
        load_checkpoint(path)


def test_version_by_keys(stored: tuple, tmp_path: Path, refusal: Callable) -> None:
    tensors, metadata = stored
    path = tmp_path / "unnamed.safetensors"
    for version in ("2.3", "2.3.1", "2.3-dev"):
        save_file({PREFIX + "x": torch.zeros(1)}, path, {"model_version": version})
        assert load_checkpoint(path).version == version
    save_file(tensors, path, {"config": metadata["config"]})
    assert load_checkpoint(path).transformer().config.num_layers == 4
    save_file({k: t for k, t in tensors.items() if "prompt_adaln" not in k}, path, {"config": metadata["config"]})
    with refusal(path, WANTED, "2.0"):
        load_checkpoint(path)


KEYS = {
    "transformer": PREFIX + "transformer_blocks.1.attn1.to_q.weight",
    "connectors": PREFIX + "video_embeddings_connector.learnable_registers",
    "video_vae": "vae.decoder.conv_in.conv.weight",
    "audio_vae": "audio_vae.encoder.conv_in.conv.bias",
    "vocoder": "vocoder.bwe_generator.conv_post.weight",
}


@pytest.mark.parametrize("part", KEYS)
@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "int8", "part missing"])
def test_tensors_do_not_fit(stored: tuple, tmp_path: Path, part: str, fault: str, refusal: Callable) -> None:
    tensors, path, key = dict(stored[0]), tmp_path / "bad.safetensors", KEYS[part]
    if fault == "missing":
        del tensors[key]
    elif fault == "unknown":
        tensors[key.rsplit(".", 1)[0] + ".other"] = torch.zeros(1)
    elif fault == "shape":
        tensors[key] = torch.zeros(2, *tensors[key].shape, dtype=torch.bfloat16)
    elif fault == "int8":  # only transformers are read so, and they need a scale
        tensors[key] = tensors[key].to(torch.int8)
        if part != "transformer":
            tensors[key + "_scale"] = torch.ones(())
    else:
        tensors = {k: t for k, t in tensors.items() if not k.startswith(key[: len(PREFIX) + 5])}
        tensors = {k: t for k, t in tensors.items() if "embed" not in k or part != "connectors"}
        tensors[PREFIX + "prompt_adaln_single.linear.weight"] = torch.zeros(1)
    save_file(tensors, path, stored[1])
    with refusal(path, WANTED.partition(" ")[0] if fault == "int8" else OF_23):  # the format is read before the version
        getattr(load_checkpoint(path), part)()


ODD = {
    "transformer": [[], None, 7, {"num_layers": "many"}, {"num_layers": None}, {"num_attention_heads": 0},
                    {"positional_embedding_max_pos": 20}, {"positional_embedding_max_pos": []}],
    "connectors": [[], {"caption_channels": 0}, {"connector_num_layers": "x"}, {"caption_channels": 5}],
    "video_vae": [[], {"encoder_blocks": 3}, {"encoder_blocks": []}, {"decoder_blocks": [["res_x", 1]]},
                  {"decoder_blocks": [["attn", {}]]}, {"decoder_base_channels": "8"}],
    "audio_vae": [[], {"model": []}, {"model": {"params": {"ddconfig": 1}}}, {"preprocessing": {"stft": []}}],
    "vocoder": [[], {"bwe": 1}, {"vocoder": {"upsample_rates": 5}}, {"vocoder": {"upsample_initial_channel": None}}],
}  # fmt: skip


@pytest.mark.parametrize(("part", "value"), [(part, value) for part, values in ODD.items() for value in values])
def test_odd_configuration(stored: tuple, tmp_path: Path, part: str, value: object, refusal: Callable) -> None:
    entry = {"connectors": "transformer", "video_vae": "vae"}.get(part, part)
    config = json.loads(stored[1]["config"])
    config[entry] = {**config[entry], **value} if isinstance(value, dict) else value
    path = tmp_path / "odd.safetensors"
    save_file(stored[0], path, {**stored[1], "config": json.dumps(config)})
    with refusal(path, OF_23):
        getattr(load_checkpoint(path), part)()


@pytest.mark.parametrize("value", [[1], "x", 7, True])
def test_odd_configuration_of_an_unnamed_version(
    stored: tuple, tmp_path: Path, value: object, refusal: Callable
) -> None:
    config = {**json.loads(stored[1]["config"]), "transformer": value}
    path = tmp_path / "odd.safetensors"
    save_file(stored[0], path, {"config": json.dumps(config)})
    with refusal(path, OF_23):
        load_checkpoint(path).transformer()


@pytest.mark.parametrize("note", [torch.zeros((), dtype=torch.bfloat16), torch.ones(3), torch.zeros(0)])
def test_a_note_that_is_no_text(stored: tuple, tmp_path: Path, note: Tensor, refusal: Callable) -> None:
    path = tmp_path / "noted.safetensors"
    save_file({**stored[0], KEYS["transformer"].replace("weight", "comfy_quant"): note}, path, stored[1])
    with refusal(path, "notes on the weights' formats are not JSON"):
        load_checkpoint(path)


@pytest.mark.parametrize("endings", [("lokr_w1", "lokr_w2"), ("diff", "diff_b"), ("lora_A.weight", "alpha")])
@pytest.mark.parametrize("metadata", [{}, {"model_version": "2.3.0"}])
def test_a_lora_of_any_kind_is_no_checkpoint(
    tmp_path: Path, endings: tuple[str, ...], metadata: dict, refusal: Callable
) -> None:
    path = tmp_path / "lora.safetensors"
    layer = "diffusion_model.transformer_blocks.1.attn1.to_q"
    save_file({f"{layer}.{ending}": torch.ones(2, 2) for ending in endings}, path, metadata)
    with refusal(path, WANTED, "no LTX transformer"):
        load_checkpoint(path)


@pytest.mark.parametrize("config", ["{", "", "[]", "null", "7", "[" * 100_000])
def test_configuration_is_no_object(
    tiny_default: TinyFiles, stored: tuple, tmp_path: Path, config: str, refusal: Callable
) -> None:
    for path, load in ((tmp_path / "c.safetensors", load_checkpoint), (tmp_path / "u.safetensors", load_upscaler)):
        save_file({PREFIX + "x": torch.zeros(1)}, path, {"config": config, "model_version": "2.3"})
        with refusal(path, "config"):
            load(path)


@pytest.mark.parametrize(
    "change",
    [{"spatial_scale": 1.5}, {"temporal_upsample": True}, {"num_blocks_per_stage": None}, {"mid_channels": 33}],
)
def test_another_upscaler(
    tiny_default: TinyFiles, tmp_path: Path, change: dict, read: Callable, refusal: Callable
) -> None:
    tensors, metadata = read(tiny_default.upscaler)
    config = {**json.loads(metadata["config"]), **change}
    path = tmp_path / "upscaler.safetensors"
    save_file(tensors, path, {"config": json.dumps(config)})
    with refusal(path, WANTED_UPSCALER):
        load_upscaler(path)


# Memory.

LOAD = """
import sys, types
alias = types.ModuleType("a2v")
alias.__path__ = [sys.argv[1]]
sys.modules["a2v"] = alias
import torch
from a2v.ltx.weights.checkpoint import load_checkpoint

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

before = peak()
for dtype in (None, torch.bfloat16):
    checkpoint = load_checkpoint(sys.argv[2])
    parts = [getattr(checkpoint, name)(dtype) for name in sys.argv[3:]]
    loaded = peak()
    total = sum(float(p.sum()) for part in parts for p in part.parameters())
    print(loaded - before, peak() - before, total)
    del checkpoint, parts
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.soak
def test_loading_makes_no_copy(tmp_path: Path) -> None:
    """A 2 GB file: next to nothing until its weights are read, its own size when all of them are, whatever is asked."""
    path = write_dummy_checkpoint(tmp_path / "large.safetensors", 2.0)
    size = path.stat().st_size
    command = [sys.executable, "-c", LOAD, str(Path(reader.__file__).resolve().parents[2]), str(path), *PARTS]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    path.unlink()
    stored, asked = (tuple(map(float, line.split())) for line in output.splitlines())
    assert stored[0] < 0.15 * size, f"{stored[0] / size:.2f} of the file before any weight is read"
    assert stored[2] == asked[2] == 0
    assert 0.5 * size < stored[1] <= asked[1] < 1.15 * size, f"{stored[1] / size:.2f}, {asked[1] / size:.2f}"
