"""The tiny files that the other tests run on: the layout of the reference set, loadable whole, and not degenerate."""

from __future__ import annotations

import ast
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from a2v.ltx.weights.checkpoint import load_checkpoint, load_upscaler
from a2v.tests import tiny as maker
from a2v.tests.ltx.goldens import relative
from a2v.tests.tiny import TinyFiles, write_dummy_checkpoint, write_tiny
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer

PARTS = {
    "checkpoint": "ltx-2.3-tiny.safetensors",
    "upscaler": "ltx-2.3-tiny-upscaler-x2.safetensors",
    "distilled_lora": "ltx-2.3-tiny-distilled-lora.safetensors",
    "camera_lora": "ltx-2.3-tiny-camera-lora.safetensors",
    "gemma": "gemma/model.safetensors",
}
OTHER = {"layers": 2, "heads": 2, "head_dim": 32, "connector_layers": 3, "vae_width": 8, "gemma_width": 64}
BUILDERS = "transformer vae_encoder vae_decoder audio_encoder audio_decoder vocoder embeddings_processor upsampler"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """Of the sizes that it has by itself; those of the other tests have a narrow decoder."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("other"), seed=1, **OTHER)


def header(path: Path) -> tuple[dict[str, tuple[str, list[int]]], dict[str, object]]:
    with safe_open(path, "pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        shapes = {key: (part.get_dtype(), part.get_shape()) for key, part in slices.items()}
        metadata = {k: json.loads(v) if k == "config" else v for k, v in (file.metadata() or {}).items()}
    return shapes, metadata


@pytest.mark.parametrize("part", PARTS)
def test_same_layout_as_the_reference(oracle: Path, tiny: TinyFiles, part: str) -> None:
    """Every key, dtype, shape and every entry of the metadata."""
    path = getattr(tiny, part)
    assert header(path / "model.safetensors" if part == "gemma" else path) == header(oracle / "tiny" / PARTS[part])


def test_same_filters_and_bases_as_the_reference(oracle: Path, tiny: TinyFiles) -> None:
    names = 0
    with safe_open(tiny.checkpoint, "pt") as ours, safe_open(oracle / "tiny" / PARTS["checkpoint"], "pt") as theirs:
        for key in ours.keys():  # noqa: SIM118
            if key.endswith(("filter", "_basis")):
                x, reference = ours.get_tensor(key).float(), theirs.get_tensor(key).float()
                assert relative(x, reference) < 5e-4, key  # a bfloat16 step is 4e-3
                names += 1
    assert names == 3 + 2 * (6 * 3 * 6 + 1) + 2 * (5 * 3 * 6 + 1)


def test_same_gemma_folder_as_the_reference(oracle: Path, tiny: TinyFiles) -> None:
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        ours, theirs = (json.loads((p / name).read_text()) for p in (tiny.gemma, oracle / "tiny" / "gemma"))
        ours.pop("chat_template", None), theirs.pop("chat_template", None)
        assert ours == theirs, name


@pytest.mark.parametrize("which", ["tiny", "other"])
def test_ltx_core_loads_it_whole(request: pytest.FixtureRequest, which: str) -> None:
    """ltx-core 1.0.0's own builders: no tensor missing, none left over."""
    ledger_module = pytest.importorskip("ltx_pipelines.utils.model_ledger")
    tiny: TinyFiles = request.getfixturevalue(which)
    ledger = ledger_module.ModelLedger(
        torch.float32, torch.device("cpu"), str(tiny.checkpoint), None, str(tiny.upscaler)
    )
    for name in BUILDERS.split():
        builder = getattr(ledger, f"{name}_builder")
        model = builder.meta_model(builder.model_config(), builder.module_ops)
        paths, ops = [builder.model_path], builder.model_sd_ops
        state = builder.load_sd(paths, registry=builder.registry, device=torch.device("cpu"), sd_ops=ops).sd
        if name == "transformer":  # its prefix takes in the connectors, which another builder reads
            state = {key: value for key, value in state.items() if "embeddings_connector" not in key}
        if name == "embeddings_processor":  # 49 states of width 3840 are fixed in its code
            for stream in ("video", "audio"):
                key = f"feature_extractor.{stream}_aggregate_embed"
                out, states = state[f"{key}.weight"].shape
                setattr(model.feature_extractor, f"{stream}_aggregate_embed", torch.nn.Linear(states, out))
        model.load_state_dict(state, strict=True, assign=True)
        assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())), name


@pytest.mark.parametrize("which", ["tiny", "other"])
def test_activations_are_of_unit_size(request: pytest.FixtureRequest, which: str) -> None:
    """Through the checkpoint reader: every part runs, nothing vanishes or explodes, the picture is not flat."""
    tiny: TinyFiles = request.getfixturevalue(which)
    checkpoint = load_checkpoint(tiny.checkpoint)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        vae = checkpoint.video_vae(torch.float32, "cpu")
        latent = torch.randn(1, 128, 2, 2, 3, generator=generator)
        video = vae.decode(latent, return_dict=False)[0]
        assert video.shape == (1, 3, 9, 64, 96)
        pixels = torch.rand(1, 3, 9, 64, 96, generator=generator) * 2 - 1
        sound = checkpoint.audio_vae(torch.float32, "cpu")
        mel = sound.decode(torch.randn(1, 8, 9, 16, generator=generator), return_dict=False)[0]
        results = {
            "video": video,
            "latent": vae.encode(pixels).latent_dist.mode(),
            "mel": mel,
            "audio latent": sound.encode(torch.randn(1, 2, 33, 64, generator=generator)).latent_dist.mode(),
            "waveform": checkpoint.vocoder(torch.float32, "cpu")(mel),
            "upscaled": load_upscaler(tiny.upscaler, torch.float32, "cpu")(latent),
        }
        connectors = checkpoint.connectors(torch.float32, "cpu")
        width, layers = connectors.config.caption_channels, connectors.config.text_proj_in_factor
        states = torch.randn(1, 128, width, layers, generator=generator)
        text = connectors(states, torch.ones(1, 128, dtype=torch.long))
        results |= {"video text": text[0], "audio text": text[1]}
        results |= transformer(checkpoint.transformer(torch.float32, "cpu"), text, generator)
    for name, x in results.items():
        assert x.isfinite().all(), name
        assert 0.02 < x.std() < 5, f"{name} {x.std()}"
    assert video.clamp(-1, 1).var(dim=(2, 3, 4)).min() > 0.01


def transformer(model: torch.nn.Module, text: tuple[torch.Tensor, ...], generator: torch.Generator) -> dict:
    """Both velocities at sigma 0.7 for 12 video and 9 audio tokens."""
    sigma = torch.tensor([700.0])
    video, audio = model(
        hidden_states=torch.randn(1, 12, 128, generator=generator),
        audio_hidden_states=torch.randn(1, 9, 128, generator=generator),
        encoder_hidden_states=text[0],
        audio_encoder_hidden_states=text[1],
        timestep=sigma.expand(1, 12),
        audio_timestep=sigma.expand(1, 9),
        sigma=sigma,
        audio_sigma=sigma,
        num_frames=2,
        height=2,
        width=3,
        fps=24.0,
        audio_num_frames=9,
        return_dict=False,
    )
    return {"video velocity": video, "audio velocity": audio}


def test_seed_and_sizes(tiny: TinyFiles, other: TinyFiles, tmp_path: Path) -> None:
    first, again, third = (
        load_file(part.checkpoint) for part in (tiny, write_tiny(tmp_path / "a"), write_tiny(tmp_path / "b", seed=2))
    )
    random = "model.diffusion_model.proj_out.weight"
    assert all(torch.equal(first[key], again[key]) for key in first) and not torch.equal(first[random], third[random])
    config = header(other.checkpoint)[1]["config"]["transformer"]
    assert (config["num_layers"], config["cross_attention_dim"], config["audio_cross_attention_dim"]) == (2, 64, 32)
    version = write_tiny(tmp_path / "c", layers=1, version="2.0.0")
    assert header(version.checkpoint)[1]["model_version"] == "2.0.0"


def test_tokenizer_and_processor(tiny: TinyFiles) -> None:
    """Gemma's special tokens where Gemma has them; any text survives a round trip."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.gemma, local_files_only=True)
    assert tokenizer.convert_tokens_to_ids(list(maker.SPECIAL)) == list(range(9))
    text = "A woman speaks, 你好 … “ok”\n  twice"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == 2 and 3 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer(" the woman").input_ids) == 3, "words are merged"
    processor = AutoProcessor.from_pretrained(tiny.gemma, local_files_only=True)
    inputs = processor(text="<start_of_image> a man", images=torch.zeros(3, 80, 60), return_tensors="pt")
    assert (inputs["input_ids"] == 8).sum() == 4 and inputs["pixel_values"].shape == (1, 3, 56, 56)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"


def test_dummy_is_large_and_costs_nothing(tmp_path: Path) -> None:
    path = write_dummy_checkpoint(tmp_path / "large.safetensors", 2.0)
    assert path.stat().st_size >= 2e9
    if hasattr(path.stat(), "st_blocks"):
        assert path.stat().st_blocks * 512 < 1e7, "not sparse"
    layers = header(path)[1]["config"]["transformer"]["num_layers"]
    model = load_checkpoint(path).transformer(None, "cpu")
    assert len(model.transformer_blocks) == layers
    # The published model: 18.99B in 48 blocks, so two of them are about 0.79B.
    block = sum(p.numel() for p in model.transformer_blocks[0].parameters())
    assert math.isclose(48 * block, 18.99e9, rel_tol=0.03)


@pytest.mark.soak
def test_script_needs_only_third_party_packages(tiny: TinyFiles, tmp_path: Path) -> None:
    source = Path(maker.__file__)
    imports = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imports - sys.stdlib_module_names == {"torch", "safetensors", "tokenizers"}
    subprocess.run([sys.executable, str(source), str(tmp_path)], check=True, cwd=os.sep)
    for path in asdict(tiny).values():
        assert (tmp_path / path.name).exists()
