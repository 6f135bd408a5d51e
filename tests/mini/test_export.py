"""What is exported in the original layout loads through the pack's own reader and computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from a2v.ltx.weights.checkpoint import load_checkpoint, load_upscaler
from a2v.ltx.weights.lora import load_lora, match
from a2v.mini import export, sizes

PARTS = ("transformer", "connectors", "vae", "audio_vae", "vocoder")


@pytest.fixture(scope="module")
def modules() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    made = {name: sizes.module(name) for name in PARTS}
    with torch.no_grad():  # what bfloat16 can hold, so that nothing is lost on the way
        for module in made.values():
            for tensor in module.state_dict().values():
                tensor.copy_(tensor.to(torch.bfloat16))
    return made


def test_every_weight_comes_back_under_its_name(modules: dict[str, torch.nn.Module], tmp_path: Path) -> None:
    opened = load_checkpoint(export.export_checkpoint(tmp_path / "mini.safetensors", modules))
    loaded = {
        "transformer": opened.transformer(torch.float32),
        "connectors": opened.connectors(torch.float32),
        "vae": opened.video_vae(torch.float32),
        "audio_vae": opened.audio_vae(torch.float32),
        "vocoder": opened.vocoder(torch.float32),
    }
    for name, module in loaded.items():
        made, read = ({k: v for k, v in each.config.items() if k[0] != "_"} for each in (modules[name], module))
        assert json.loads(json.dumps(read)) == json.loads(json.dumps(made)), name  # a tuple may be a list
        ours, theirs = modules[name].state_dict(), module.state_dict()
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(theirs[key], value, rtol=0, atol=0)


def test_the_loaded_vae_computes_what_the_trained_one_did(modules: dict[str, torch.nn.Module], tmp_path: Path) -> None:
    opened = load_checkpoint(export.export_checkpoint(tmp_path / "mini.safetensors", modules))
    pixels = torch.rand(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        latents = [
            vae.eval().encode(pixels).latent_dist.mode() for vae in (modules["vae"], opened.video_vae(torch.float32))
        ]
        videos = [vae.decode(latents[0]).sample for vae in (modules["vae"], opened.video_vae(torch.float32))]
    torch.testing.assert_close(*latents, rtol=0, atol=0)
    torch.testing.assert_close(*videos, rtol=0, atol=0)
    assert latents[0].shape == (1, sizes.LATENT, 2, 2, 2) and float(latents[0].std()) > 0


def test_the_set_stays_within_its_size(modules: dict[str, torch.nn.Module]) -> None:
    parameters = {name: sum(v.numel() for v in module.state_dict().values()) for name, module in modules.items()}
    assert 2 * sum(parameters.values()) <= 15 * 2**20, parameters
    upscaler = sum(v.numel() for v in sizes.module("upscaler").state_dict().values())
    assert 2 * (sum(parameters.values()) + upscaler) <= 17.2e6, parameters  # the rest: LoRAs and the text encoder


def test_upscaler_and_lora_are_read_by_the_pack(modules: dict[str, torch.nn.Module], tmp_path: Path) -> None:
    upscaler = sizes.module("upscaler")
    loaded = load_upscaler(export.export_upscaler(tmp_path / "up.safetensors", upscaler))
    assert loaded.state_dict().keys() == upscaler.state_dict().keys()
    transformer = modules["transformer"]
    names = [n for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)]
    factors = {
        n: (
            torch.randn(2, transformer.get_submodule(n).in_features),
            torch.randn(transformer.get_submodule(n).out_features, 2),
        )
        for n in names
    }
    lora = load_lora(export.export_lora(tmp_path / "lora.safetensors", factors))
    found = match(lora, transformer)
    assert found.warning is None if not callable(found.warning) else found.warning() is None
