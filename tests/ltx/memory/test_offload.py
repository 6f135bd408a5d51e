"""Models whose blocks wait in host memory give the numbers of models that are whole on the device, to the bit.

The device is simulated (tests/nodes/devices.py): an operation that mixes devices fails there as it does on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, TextContext
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.latents import Noise, audio_length
from a2v.ltx.memory.offload import Offload, offload_gemma, offload_transformer
from a2v.ltx.prompt.gemma import Gemma, load_gemma
from a2v.ltx.prompt.text import hidden_states
from a2v.ltx.weights import lora
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests import layouts
from a2v.tests.nodes.devices import DEVICE, Elsewhere, simulated
from a2v.tests.tiny import TinyFiles, write_tiny
from safetensors.torch import save_file
from torch import Tensor, nn

FPS, FRAMES = Fraction(24), 9
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def two_steps(model: nn.Module, device: torch.device | str, room: float = 0.0) -> Tensor:
    """With the four passes of guidance, one after the other through each block, or in one batch."""
    widths = model.config.cross_attention_dim, model.config.audio_cross_attention_dim
    positive, negative = (TextContext(noise(1, 6, w), noise(1, 6, v)) for w, v in (widths, widths))
    audio = AudioCondition(noise(1, 8, audio_length(FRAMES, FPS), 16), FRAMES, FPS)
    guidance = Guidance(cfg=3.0, stg=1.0, modality=3.0, stg_blocks=(2,))
    latent, *_ = sample(
        model,
        torch.zeros(1, 128, 2, 2, 3),
        Conditions(positive, audio, negative),
        Steering(torch.tensor([0.9, 0.4, 0.0]), guidance),
        Noise(1),
        device=device,
        room=room,
    )
    return latent.cpu()


def away(module: nn.Module) -> int:
    """Blocks that are on the device."""
    return sum(isinstance(next(block.parameters()), Elsewhere) for block in module.transformer_blocks)


@pytest.mark.parametrize("room", [0.0, 1e12], ids=["one by one", "batched"])
def test_the_transformer_gives_the_same(tiny: TinyFiles, room: float) -> None:
    checkpoint = load_checkpoint(tiny.checkpoint)
    expected = two_steps(checkpoint.transformer(torch.float32), "cpu", room)
    model = checkpoint.transformer(torch.float32)
    before = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    with simulated():
        with offload_transformer(model, DEVICE) as offload:
            assert away(model) == 0 and isinstance(model.proj_in.weight, Elsewhere)
            assert next(model.parameters()).device == DEVICE
            assert torch.equal(two_steps(model, DEVICE, room), expected)
            assert away(model) == 1
            # A block comes once a step, however many passes call it; and the next step's first one is on its way.
            assert offload.fetched == 2 * len(model.transformer_blocks) + 1
        assert away(model) == 0
        again = {name: tensor for name, tensor in model.named_parameters() if "transformer_blocks" in name}
        assert again and all(tensor.data_ptr() == before[name] for name, tensor in again.items())
        with pytest.raises(RuntimeError, match="same device"):  # the hooks are gone
            two_steps(model, DEVICE, room)


def test_loras_are_merged_between_two_passes(tiny: TinyFiles) -> None:
    checkpoint = load_checkpoint(tiny.checkpoint)
    loaded = lora.load_lora(tiny.distilled_lora)
    blocks = {slot: pair for slot, pair in loaded.changes.items() if "transformer_blocks" in slot[0]}
    assert blocks  # the rest is on the device, and the simulation cannot write there
    pairs = [[(replace(loaded, changes=blocks), strength)] for strength in (0.2, 0.5)]
    whole = checkpoint.transformer(torch.float32)
    merger = lora.Merger(whole, checkpoint.transformer_weight)
    expected = []
    for pair in pairs:
        merger.set(pair)
        expected.append(two_steps(whole, "cpu"))
    assert not torch.equal(*expected)
    model = checkpoint.transformer(torch.float32)
    merger = lora.Merger(model, checkpoint.transformer_weight, "cpu")
    merger.set(pairs[0])  # before there are hooks
    with simulated():
        offload = offload_transformer(model, DEVICE)
        assert torch.equal(two_steps(model, DEVICE), expected[0])
        offload.rest()
        assert away(model) == 0
    merger.set(pairs[1])
    with simulated():
        assert torch.equal(two_steps(model, DEVICE), expected[1])
        offload.release()


def test_quantised_layers_stay_as_they_are_stored(tiny: TinyFiles) -> None:
    checkpoint = load_checkpoint(tiny.checkpoint)
    expected = two_steps(checkpoint.transformer(torch.float32, fp8=True), "cpu")
    model = checkpoint.transformer(torch.float32, fp8=True)
    assert any(parameter.dtype == torch.uint8 for parameter in model.parameters())
    with simulated(), offload_transformer(model, DEVICE):
        assert torch.equal(two_steps(model, DEVICE), expected)


@pytest.mark.parametrize(
    "kind", ["nvfp4", pytest.param("mxfp8", marks=pytest.mark.soak), pytest.param("convrot", marks=pytest.mark.soak)]
)
def test_scales_come_with_their_block(tiny: TinyFiles, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("comfy_kitchen")
    layouts.write_blocks(tiny.checkpoint, tmp_path / "small.safetensors", kind)
    checkpoint = load_checkpoint(tmp_path / "small.safetensors")
    expected = two_steps(checkpoint.transformer(torch.float32), "cpu")
    model = checkpoint.transformer(torch.float32)
    with simulated(), offload_transformer(model, DEVICE):
        assert torch.equal(two_steps(model, DEVICE), expected)


def test_changes_of_quantised_layers_are_the_same(tiny: TinyFiles, tmp_path: Path) -> None:
    """A DoRA is computed from the decoded weight at each call, wherever the block is."""
    checkpoint, layer = load_checkpoint(tiny.checkpoint), "transformer_blocks.1.attn1.to_q"
    model = checkpoint.transformer(torch.float32, fp8=True)
    size = model.get_submodule(layer).out_features
    pair = {f"{layer}.lora_A.weight": noise(2, size), f"{layer}.lora_B.weight": noise(size, 2)}
    save_file({**pair, f"{layer}.dora_scale": 1 + noise(size, 1).abs()}, tmp_path / "dora.safetensors")
    plain = two_steps(model, "cpu")
    with lora.applied(model, [(lora.load_lora(tmp_path / "dora.safetensors"), 0.7)], checkpoint.transformer_weight):
        expected = two_steps(model, "cpu")
        assert not torch.equal(expected, plain)
        with simulated(), offload_transformer(model, DEVICE):
            assert torch.equal(two_steps(model, DEVICE), expected)
    assert not model.get_submodule(layer).branches


def test_gemma_gives_the_same_and_shares_what_it_shared(tiny: TinyFiles) -> None:
    gemma = load_gemma(tiny.gemma, torch.float32)
    expected, _ = hidden_states(gemma, "a person speaks")
    tied = gemma.model.lm_head.weight is gemma.model.model.language_model.embed_tokens.weight
    with simulated(), offload_gemma(gemma.model, DEVICE) as offload:
        assert (gemma.model.lm_head.weight is gemma.model.model.language_model.embed_tokens.weight) == tied
        moved = Gemma(gemma.model, gemma.tokenizer, gemma.path)
        states, _ = hidden_states(moved, "a person speaks")
        assert isinstance(states, Elsewhere) and torch.equal(states.cpu(), expected)
        assert offload.fetched == len(gemma.model.model.language_model.layers) + 1


def test_a_block_called_out_of_turn_is_fetched(tiny: TinyFiles) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    whole, x = nn.ModuleList(layers), noise(2, 4)
    expected = [layer(x) for layer in layers]
    with simulated(), Offload(whole, layers, DEVICE):
        for number in (2, 0, 0, 1, 1, 0, 2):
            assert torch.equal(layers[number](x.to(DEVICE)).cpu(), expected[number])


@CUDA
@pytest.mark.parametrize("pinned", [False, True])
def test_on_cuda_the_numbers_are_the_same_and_two_blocks_are_there(
    tiny: TinyFiles, pinned: bool, tmp_path: Path
) -> None:
    wide = write_tiny(tmp_path, layers=12, heads=16, head_dim=64, seed=1)
    checkpoint = load_checkpoint(wide.checkpoint)
    model = checkpoint.transformer(torch.bfloat16, "cuda")
    expected = two_steps(model, "cuda")
    block = sum(p.nbytes for p in model.transformer_blocks[0].parameters())
    total = sum(p.nbytes for p in model.parameters())
    del model
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with offload_transformer(checkpoint.transformer(torch.bfloat16), "cuda", pinned=pinned) as offload:
        assert torch.equal(two_steps(offload.module, "cuda"), expected)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < total - 9 * block  # three blocks at most, and what computing takes
