"""What a small card fetches: a layer that waits in host memory comes to the card once a step, however many passes run.

The device is simulated (devices.py), and ComfyUI itself loads the model in part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import comfy.model_management as management
import comfy.ops
from a2v.ltx.diffusion import passes
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, TextContext
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.latents import Noise, audio_length
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.nodes import activations, fetching, memory
from a2v.tests import layouts
from a2v.tests.nodes.devices import DEVICE, Elsewhere, simulated
from a2v.tests.tiny import TinyFiles, write_tiny

pytestmark = pytest.mark.usefixtures("inference")

CPU, FPS, FRAMES = torch.device("cpu"), Fraction(24), 9


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    files = write_tiny(tmp_path_factory.mktemp("tiny"), layers=3)
    layouts.write_fp8(files.checkpoint, files.checkpoint.with_name("fp8.safetensors"), "rows")
    return files


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def one_step(model: nn.Module, device: torch.device, room: float) -> Tensor:
    """With all four passes of guidance. room: whether they run as one batch."""
    widths = model.config.cross_attention_dim, model.config.audio_cross_attention_dim
    positive, negative = (TextContext(noise(1, 6, w), noise(1, 6, v)) for w, v in (widths, widths))
    audio = AudioCondition(noise(1, 8, audio_length(FRAMES, FPS), 16), FRAMES, FPS)
    steering = Steering(torch.tensor([0.9, 0.0]), Guidance(cfg=3.0, stg=1.0, modality=3.0, stg_blocks=(1,)))
    latent = torch.zeros(1, 128, 2, 2, 3)
    return sample(model, latent, Conditions(positive, audio, negative), steering, Noise(1), device=device, room=room)[
        0
    ].cpu()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each layer's weight was copied from host memory to the device, by the layer's id."""
    counts: Counter[int] = Counter()
    usual = comfy.ops.cast_bias_weight

    def counted(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(layer.weight, Elsewhere):
            counts[id(layer)] += 1
        return usual(layer, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", counted)
    return counts


@pytest.fixture
def in_part(monkeypatch: pytest.MonkeyPatch) -> Callable[[memory.Model], nn.Module]:
    """Loads a model as ComfyUI does where a third of it finds room."""
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(management, "soft_empty_cache", lambda force=False: None)

    def load(model: memory.Model) -> nn.Module:
        total = management.minimum_inference_memory() + model.patcher.model_size() / 3

        def free(dev: Any = None, torch_free_too: bool = False) -> Any:
            left = total - model.patcher.loaded_size()
            return (left, 0) if torch_free_too else left

        monkeypatch.setattr(management, "get_free_memory", free)
        return memory.use(model)[0]

    return load


def held(files: TinyFiles, name: str) -> memory.Model:
    module = load_checkpoint(files.checkpoint.with_name(name)).transformer(torch.float32)
    patcher = memory.hold(module, DEVICE, CPU)
    return memory.Model(patcher, patcher)


@pytest.mark.parametrize("name", ["ltx-2.3-tiny.safetensors", "fp8.safetensors"])
@pytest.mark.parametrize("room", [1e12, 0.0], ids=["batched", "one by one"])
def test_each_layer_that_waits_is_fetched_once_a_step(
    files: TinyFiles, name: str, room: float, fetched: Counter[int], in_part: Callable
) -> None:
    """As one batch without help, one by one because the block stays."""
    expected = one_step(load_checkpoint(files.checkpoint.with_name(name)).transformer(torch.float32), CPU, room)
    model = held(files, name)
    with simulated():
        module = in_part(model)
        before = {id(p): p.device for p in module.parameters()}
        blocks = [each for each in module.transformer_blocks.modules() if hasattr(each, "comfy_cast_weights")]
        waiting = [layer for layer in blocks if not isinstance(layer.weight, Elsewhere)]
        assert waiting and len(waiting) < len(blocks)
        copied: Counter[int] = Counter()
        copy = fetching._copy

        def counted(parameter: Tensor, device: torch.device) -> Tensor:
            copied[id(parameter)] += 1
            return copy(parameter, device)

        fetching._copy = counted
        try:
            with fetching.blocks_stay(module.transformer_blocks, DEVICE, room == 0):
                assert torch.equal(one_step(module, DEVICE, room), expected)
        finally:
            fetching._copy = copy
        if room:
            assert not copied and {fetched[id(layer)] for layer in waiting if fetched[id(layer)]} == {1}
        else:
            assert not any(fetched[id(layer)] for layer in waiting), "a layer fetched what was there"
            assert {copied[id(layer.weight)] for layer in waiting} == {1}
        assert {id(p): p.device for p in module.parameters()} == before, "not everything is back at its place"
        model.patcher.detach()


def test_without_that_each_pass_fetches(files: TinyFiles, fetched: Counter[int], in_part: Callable) -> None:
    """Why a block stays."""
    model = held(files, "fp8.safetensors")
    with simulated():
        module = in_part(model)
        one_step(module, DEVICE, 0.0)
        assert max(fetched.values()) == 4
        model.patcher.detach()


def test_a_run_that_ends_leaves_nothing_behind(files: TinyFiles, in_part: Callable) -> None:
    model = held(files, "fp8.safetensors")
    with simulated():
        module = in_part(model)
        before = {id(p): p.device for p in module.parameters()}
        with pytest.raises(KeyboardInterrupt), fetching.blocks_stay(module.transformer_blocks, DEVICE):
            module.transformer_blocks[1].register_forward_hook(lambda *_: _raise()).__enter__()
            one_step(module, DEVICE, 0.0)
        assert {id(p): p.device for p in module.parameters()} == before
        model.patcher.detach()


def _raise() -> None:
    raise KeyboardInterrupt


def test_room_is_asked_for_only_where_weights_wait(files: TinyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    model = held(files, "fp8.safetensors")
    latent = torch.zeros(1, 128, 2, 2, 3)
    total = [1e12]
    monkeypatch.setattr(management, "get_total_memory", lambda *a: total[0])
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 0)
    single = activations.sampling_memory(model, latent, 1)
    assert single.room > 0 and not single.stay
    assert activations.sampling_memory(model, latent, 4) == single, "everything fits"
    monkeypatch.setattr(activations, "_step_memory", lambda *a: 1000)
    single, asked = activations.Sampling(1000), []
    total[0] = model.get_ram_usage() + single.room - 1
    monkeypatch.setattr(activations, "batch_memory", lambda *a: asked.append(a) or single.room + 7)
    assert activations.sampling_memory(model, latent, 4) == activations.Sampling(single.room + 7)
    tokens = 2 * 2 * 3 + activations.KEYFRAMES * 2 * 3 + audio_length(FRAMES, FPS)
    assert asked == [(model.module, tokens, 4)]
    free = passes.batch_memory(model.module, tokens, 4)
    assert passes.GPU_SHARE * free > 4 * passes.working_set(model.module, tokens), "the step would not batch"
    monkeypatch.setattr(activations, "batch_memory", lambda *a: total[0])
    blocks = model.module.transformer_blocks
    assert activations.sampling_memory(model, latent, 4) == activations.Sampling(
        single.room + fetching.largest(blocks), True
    )
    assert activations.sampling_memory(replace(model, compiled=True), latent, 4) == single
    assert activations.sampling_memory(model, latent, 1) == single
