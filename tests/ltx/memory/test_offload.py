"""Models whose blocks wait in host memory give the numbers of models that are whole on the device, to the bit.

The device is simulated (tests/nodes/devices.py): an operation that mixes devices fails there as it does on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, TextContext
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.grid import audio_length
from a2v.ltx.latents import Noise
from a2v.ltx.memory import offload as offloading
from a2v.ltx.memory.offload import (
    Offload,
    Placement,
    offload_gemma,
    offload_transformer,
    on_device,
    pins,
    residents,
    waiting,
)
from a2v.ltx.memory.rehearsal import weights
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


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("deep"), layers=6)


@pytest.mark.parametrize("resident", [0, 3, 6, *(pytest.param(number, marks=pytest.mark.soak) for number in (1, 4))])
def test_resident_blocks_are_not_fetched(deep: TinyFiles, resident: int) -> None:
    """A step fetches each of the others once, whatever its number of passes."""
    checkpoint = load_checkpoint(deep.checkpoint)
    expected = two_steps(checkpoint.transformer(torch.float32), "cpu")
    model, most = checkpoint.transformer(torch.float32), []
    with simulated(), offload_transformer(model, DEVICE, Placement(resident)) as offload:
        assert away(model) == resident
        for block in model.transformer_blocks:
            block.register_forward_pre_hook(lambda *_: most.append(away(model) + len(offload._coming)))
        assert torch.equal(two_steps(model, DEVICE), expected)
        others = len(model.transformer_blocks) - resident
        # The next step's first one is on its way.
        assert offload.fetched == 2 * others + (others > 1)
        assert max(most) == resident + min(2, others)
        offload.rest()
        assert away(model) == resident


def test_waiting_blocks_are_spread_and_as_few_as_possible() -> None:
    """Between two that wait, as many resident ones compute as between any other two, or one more."""
    for blocks in range(1, 50):
        for stay in range(blocks + 1):
            found = waiting(blocks, stay)
            assert len(found) == len(set(found)) == blocks - stay and set(found) <= set(range(blocks))
            gaps = [(after - number) % blocks for number, after in zip(found, found[1:] + found[:1], strict=True)]
            assert len(found) < 2 or max(gaps) - min(gaps) <= 1
    sizes = [5, 1, 1, 3, 1, 1]
    for room in range(14):
        stay = residents(sizes, room)
        assert on_device(sizes, stay) <= room or stay == 0
        assert all(on_device(sizes, more) > room for more in range(stay + 1, 7))
    assert on_device(sizes, 0) == 8 and on_device(sizes, 6) == sum(sizes) == 12 and residents(sizes, 12) == 6
    assert residents([10] * 48, 125) == 10  # and two in flight


class Copying:
    """Stands for the stream of a GPU. It counts, and refuses what is not page-locked."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.finished = device, 0

    def copies(self, tensors: Iterable[Tensor]) -> tuple[list[Tensor], Any]:
        copies = []
        for tensor in tensors:
            assert tensor.is_pinned()
            copies.append(tensor.to(self.device))
        return copies, self

    def expect(self, copied: Any) -> None:
        assert copied is self

    def finish(self) -> None:
        self.finished += 1


class Locking:
    """Page-locked memory on a host without a GPU. calls: bytes of each call of `pin_memory`; most: how many there may
    be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int | None = None) -> None:
        self.calls: list[int] = []
        self.most, self.locked = most, {}
        monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: tensor.data_ptr() in self.locked)
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: self.pin(tensor))
        monkeypatch.setattr(offloading, "CopyStream", Copying)

    def pin(self, tensor: Tensor) -> Tensor:
        if len(self.calls) == self.most:
            raise RuntimeError("CUDA error: out of memory")
        self.calls.append(tensor.nbytes)
        copy = tensor.clone()
        self.locked[copy.data_ptr()] = copy  # which keeps the address from being used again
        return copy


def on_gpu(model: nn.Module, placement: Placement) -> Offload:
    """Offloads to the simulated device as to a GPU, with a stream of its own."""
    offload = offload_transformer(model, DEVICE, placement)
    offload._copying = offloading.CopyStream(DEVICE)
    return offload


@pytest.mark.parametrize("pinned", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_block_is_page_locked_once_and_not_once_a_fetch(
    deep: TinyFiles, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    checkpoint = load_checkpoint(deep.checkpoint)
    expected = two_steps(checkpoint.transformer(torch.float32), "cpu")
    model = checkpoint.transformer(torch.float32)
    locking, tensors = Locking(monkeypatch), [len(block.state_dict()) for block in model.transformer_blocks]
    with simulated():
        offload = on_gpu(model, Placement(2, pinned))
        for _ in range(2):
            assert torch.equal(two_steps(model, DEVICE), expected)
        counts = [tensors[number] for number in waiting(6, 2)]
        assert offload.fetched == 4 * len(counts) + 1
        assert len(locking.calls) == (sum(counts) if pinned else 4 * sum(counts) + counts[0])
        offload.release()
    blocks = [model.transformer_blocks[number] for number in waiting(6, 2)]
    assert offload._copying.finished == 1, "weights change only when nothing is copied"
    if pinned:
        assert sum(locking.calls) == sum(map(weights, blocks))
        assert all(tensor.is_pinned() for block in blocks for tensor in block.state_dict().values())


def test_a_host_that_locks_no_more_copies_as_it_can(deep: TinyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load_checkpoint(deep.checkpoint)
    expected = two_steps(checkpoint.transformer(torch.float32), "cpu")
    model = checkpoint.transformer(torch.float32)
    locking, refused = Locking(monkeypatch, most=30), []

    def copies(self: Copying, tensors: Iterable[Tensor]) -> tuple[list[Tensor], Any]:
        tensors = list(tensors)
        refused.append(sum(not tensor.is_pinned() for tensor in tensors))
        return [tensor.to(DEVICE) for tensor in tensors], self

    monkeypatch.setattr(Copying, "copies", copies)
    with simulated():
        offload = on_gpu(model, Placement(0, True))
        assert torch.equal(two_steps(model, DEVICE), expected)
        offload.release()
    assert len(locking.calls) == 30 and not offload.pinned and sum(refused) > 30


@pytest.mark.soak
def test_merging_changes_page_locked_weights_in_place(deep: TinyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a stage with other LoRAs locks nothing anew, and the original weights come back exactly."""
    checkpoint = load_checkpoint(deep.checkpoint)
    loaded = lora.load_lora(deep.distilled_lora)
    blocks = {slot: pair for slot, pair in loaded.changes.items() if "transformer_blocks" in slot[0]}
    pairs = [[(replace(loaded, changes=blocks), 0.5)], []]
    whole = checkpoint.transformer(torch.float32)
    before = two_steps(whole, "cpu")
    merger = lora.Merger(whole, checkpoint.transformer_weight)
    merger.set(pairs[0])
    merged = two_steps(whole, "cpu")
    assert not torch.equal(before, merged)
    locking = Locking(monkeypatch)
    model = checkpoint.transformer(torch.float32)
    merger = lora.Merger(model, checkpoint.transformer_weight, "cpu")
    with simulated():
        offload = on_gpu(model, Placement(0, True))
        assert torch.equal(two_steps(model, DEVICE), before)
        locked = len(locking.calls)
        for pair, expected in zip(pairs, (merged, before), strict=True):
            offload.rest()
            merger.set(pair)
            assert torch.equal(two_steps(model, DEVICE), expected)
        offload.release()
    assert len(locking.calls) == locked
    assert offload._copying.finished == 3


def test_the_host_keeps_a_quarter_of_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pins(75, 100) and not pins(76, 100) and not pins(1, 0)
    monkeypatch.delattr(torch._C, "_host_emptyCache", raising=False)
    assert not pins(1, 100), "what is locked could not be given back"


@pytest.mark.parametrize("resident", [2, *(pytest.param(number, marks=pytest.mark.soak) for number in (0, 6))])
def test_stages_with_other_loras_restore_resident_blocks(deep: TinyFiles, resident: int) -> None:
    checkpoint = load_checkpoint(deep.checkpoint)
    loaded = lora.load_lora(deep.distilled_lora)
    blocks = {slot: pair for slot, pair in loaded.changes.items() if "transformer_blocks" in slot[0]}
    stages = [[(replace(loaded, changes=blocks), strength)] for strength in (0.2, 0.5)] + [[]]
    whole = checkpoint.transformer(torch.float32)
    merger, expected = lora.Merger(whole, checkpoint.transformer_weight), []
    for stage in stages:
        merger.set(stage)
        expected.append(two_steps(whole, "cpu"))
    model = checkpoint.transformer(torch.float32)
    merger = lora.Merger(model, checkpoint.transformer_weight, "cpu")
    merger.set(stages[0])
    with simulated():
        offload = offload_transformer(model, DEVICE, Placement(resident))
        for stage, result in zip(stages, expected, strict=True):
            offload.rest()
            merger.set(stage)
            assert away(model) == resident
            assert torch.equal(two_steps(model, DEVICE), result)
        offload.rest()
        original = checkpoint.transformer(torch.float32).state_dict()
        found = {name: value for name, value in model.state_dict().items() if "transformer_blocks" in name}
        assert found and all(torch.equal(value.cpu(), original[name]) for name, value in found.items())
        offload.release()


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
@pytest.mark.parametrize("placement", [Placement(), Placement(pinned=True), Placement(4, True)], ids=str)
def test_on_cuda_the_numbers_are_the_same_and_two_blocks_are_there(
    tiny: TinyFiles, placement: Placement, tmp_path: Path
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
    with offload_transformer(checkpoint.transformer(torch.bfloat16), "cuda", placement) as offload:
        assert torch.equal(two_steps(offload.module, "cuda"), expected)
        offload.rest()
        home = [offload.blocks[number] for number in waiting(12, placement.resident)]
        assert {tensor.is_pinned() for part in home for tensor in part.parameters()} == {placement.pinned}
    peak = torch.cuda.max_memory_allocated() - before
    # Three blocks at most beside the resident ones, and what computing takes.
    assert peak < total - (9 - placement.resident) * block
