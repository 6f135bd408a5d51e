"""Under ComfyUI's dynamic memory, which newer versions use on NVIDIA cards: what it pages, and the numbers.

The loader and the fetching are ComfyUI's own. The card is simulated (devices.py), and so is comfy-aimdo's allocator,
which needs a driver: here are pages that count who holds them. What finds no room is fetched into one buffer, which the
next one overwrites, as in a stream of ComfyUI's.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import comfy.model_management as management
import comfy.model_patcher as patcher
from a2v.ltx.weights import lora
from a2v.ltx.weights.adapters import Adapter, Decomposed, Leaf, LowRank
from a2v.ltx.weights.quantized import QuantizedLinear, beside, factor, to_float8
from a2v.nodes import memory
from a2v.tests.nodes.devices import DEVICE, Elsewhere, simulated

pytestmark = pytest.mark.skipif(
    not hasattr(patcher, "ModelPatcherDynamic"), reason="this ComfyUI has no dynamic memory"
)
CPU = torch.device("cpu")
TINY = 16 * 1024  # bytes; ComfyUI puts smaller layers onto the card at once, because paging them costs more
WIDTH, RANK = 256, 80


class Pages:
    """In place of comfy-aimdo's address space of a model. Of its blocks each one in `room` finds none on the card."""

    made: list[Pages]
    room: int

    def __init__(self, size: int, device: int | None) -> None:
        self.blocks: list[Tensor] = []
        self.held: list[int] = []  # by block: how many calls use it now
        Pages.made.append(self)

    def prioritize(self) -> None:
        pass

    def alloc(self, size: int) -> tuple[Pages, int, int]:
        self.blocks.append(torch.empty(size, dtype=torch.uint8, device=DEVICE))
        self.held.append(0)
        return self, len(self.blocks) - 1, size

    def loaded_size(self) -> int:
        return 0

    def free_memory(self, size: int) -> int:
        return 0

    def fault(self, number: int) -> bytes | None:
        if Pages.room and number % Pages.room == Pages.room - 1:
            return None
        self.held[number] += 1
        return b"resident"

    def unpin(self, number: int) -> None:
        self.held[number] -= 1


class Stream:
    """In place of a stream of the card, with the one buffer that it fetches into."""

    memory: Tensor

    def get(self, size: int, offset: int) -> tuple[Stream, int, int]:
        return self, offset, size

    def size(self) -> int:
        return self.memory.numel()

    def as_context(self, stream: Stream) -> Any:
        return nullcontext()

    def wait_stream(self, stream: Any) -> None:
        pass

    @property
    def blocks(self) -> Stream:
        return self

    def __getitem__(self, offset: int) -> Tensor:
        return self.memory[offset:]


class Buffer:
    """In place of comfy-aimdo's pinned memory, which this run leaves unused."""

    def __init__(self, *sizes: int) -> None:
        self.size = 0

    def truncate(self, size: int, do_unregister: bool = True) -> None:
        self.size = size


@pytest.fixture
def dynamic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ComfyUI as its main.py makes it on NVIDIA before it loads packs, and nodes in inference mode."""
    import comfy.memory_management
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch
    from comfy.cli_args import args

    Pages.made = []
    monkeypatch.setattr(comfy_aimdo.model_vbar, "ModelVBAR", Pages)
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_fault", lambda block: block[0].fault(block[1]))
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_unpin", lambda block: block and block[0].unpin(block[1]))
    monkeypatch.setattr(comfy_aimdo.host_buffer, "HostBuffer", Buffer)
    stream = Stream()
    monkeypatch.setattr(management, "get_offload_stream", lambda device: stream)
    monkeypatch.setattr(management, "get_aimdo_cast_buffer", lambda stream, device: stream)
    monkeypatch.setattr(management, "sync_stream", lambda device, stream: None)
    monkeypatch.setattr(management, "current_stream", lambda device: None)
    monkeypatch.setattr(comfy_aimdo.torch, "aimdo_to_tensor", lambda taken, _: taken[0].blocks[taken[1]][: taken[2]])
    monkeypatch.setattr(args, "disable_pinned_memory", True)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(patcher, "CoreModelPatcher", patcher.ModelPatcherDynamic)
    monkeypatch.setattr(
        management, "get_free_memory", lambda dev=None, torch_free_too=False: (2**40, 0) if torch_free_too else 2**40
    )
    monkeypatch.setattr(management, "soft_empty_cache", lambda force=False: None)
    # as if its base had been that class when it was imported
    monkeypatch.setattr(memory, "Patcher", type("Patcher", (memory.Patcher, patcher.ModelPatcherDynamic), {}))
    with torch.inference_mode(), simulated():
        stream.memory = torch.empty(2**20, dtype=torch.uint8, device=DEVICE)
        yield
        management.current_loaded_models.clear()
        gc.collect()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


def quantized() -> nn.Module:
    """Two layers in fp8 with biases: one for a plain pair, one for a change of the decoded weight."""
    layers = (QuantizedLinear(to_float8(noise(WIDTH, WIDTH)), nn.Parameter(noise(WIDTH))) for _ in range(2))
    model = nn.Sequential(*layers)
    return model.requires_grad_(False)


def fit() -> lora.Match:
    pair = LowRank(noise(RANK, WIDTH), noise(WIDTH, RANK), 0.02)
    changes: dict[str, Adapter] = {
        "0.weight": LowRank(pair.down.bfloat16(), pair.up.bfloat16(), pair.scale),
        "1.weight": Decomposed(pair, 1 + noise(WIDTH).abs()),
    }
    return lora.Match(lora.Lora(Path("lora.safetensors"), {}), changes, frozenset(), {})


def paged(part: nn.Module) -> bool:
    return hasattr(part, "_v") and not isinstance(part.weight, Elsewhere)


@pytest.mark.usefixtures("dynamic")
@pytest.mark.parametrize("room", [0, 3, 1], ids=["room for all", "for two thirds", "for none"])
def test_each_tensor_of_a_lora_beside_quantized_weights_is_paged(room: int) -> None:
    """As any layer is: it stays in host memory, and a call finds it in its pages or copies it for this call."""
    Pages.room = room
    change, x, expected = fit(), noise(3, WIDTH), []
    for strength in (0.2, 0.5):
        model = quantized()
        for layer, adapter in zip(model, change.changes.values(), strict=True):
            layer.branches = ((beside(adapter), factor(adapter, strength)),)
        expected.append(model(x))
    assert not torch.equal(*expected)

    whole = memory.hold(quantized(), DEVICE, CPU)
    stages = [memory.Model(whole, whole).with_lora(change, strength) for strength in (0.2, 0.5)]
    for stage, wanted in zip((*stages, stages[0]), (*expected, expected[0]), strict=True):
        (module,) = memory.use(stage)
        assert torch.equal(module(x.to(DEVICE)).cpu(), wanted)

    models = stages[0].get_models()
    assert len(models) == 2 and all(each.is_dynamic() for each in models)
    leaves = [part for part in models[1].model.modules() if isinstance(part, Leaf)]
    assert len(leaves) == 5
    for leaf in leaves:
        assert paged(leaf) == (leaf.weight.nbytes > TINY), "loaded whole onto the card"
    small = sum(leaf.weight.nbytes for leaf in leaves if leaf.weight.nbytes <= TINY)
    assert models[1].model.model_loaded_weight_memory == small < TINY
    held = [count for pages in Pages.made for count in pages.held]
    assert len(held) > 5 and not any(held), "a call has not released its pages"
