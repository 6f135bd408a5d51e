"""Models under ComfyUI's memory management: exact whole, in part, with LoRAs, and back.

The second device is simulated (devices.py): an operation that mixes devices fails there as it does on a GPU.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import comfy.model_management as management
from a2v.ltx.diffusion import decode, encode, sound
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, Guide, TextContext
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.diffusion.upscale import upscale
from a2v.ltx.errors import InputError
from a2v.ltx.grid import audio_length
from a2v.ltx.latents import Noise
from a2v.ltx.media import audio
from a2v.ltx.prompt.gemma import Gemma, load_gemma
from a2v.ltx.prompt.text import encode_text, hidden_states
from a2v.ltx.weights import lora
from a2v.ltx.weights.checkpoint import load_checkpoint, load_upscaler
from a2v.nodes import fetching, memory, progress
from a2v.nodes.progress import INTERRUPTS
from a2v.tests import layouts
from a2v.tests.nodes.devices import DEVICE, Elsewhere, simulated
from a2v.tests.tiny import TinyFiles, write_tiny
from comfy_execution.utils import CurrentNodeContext

pytestmark = pytest.mark.usefixtures("inference")

CPU = torch.device("cpu")
FPS, FRAMES = Fraction(24), 9


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    files = write_tiny(tmp_path_factory.mktemp("tiny"), layers=2, vae_width=4, gemma_layers=1)
    layouts.write_fp8(files.checkpoint, files.checkpoint.with_name("fp8.safetensors"), "rows")
    layouts.write_gguf(files.checkpoint, files.checkpoint.with_name("q8.gguf"), "Q8_0")
    for kind in filter(layouts.can_write, ("nvfp4", "convrot")):
        layouts.write_blocks(files.checkpoint, files.checkpoint.with_name(f"{kind}.safetensors"), kind)
    return files


def transformer(files: TinyFiles, dtype: torch.dtype, name: str) -> nn.Module:
    return load_checkpoint(files.checkpoint.with_name(name)).transformer(dtype)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def run_transformer(model: nn.Module, device: torch.device) -> Tensor:
    """One step with guidance, a first image and a keyframe."""
    widths = model.config.cross_attention_dim, model.config.audio_cross_attention_dim
    conditions = Conditions(
        TextContext(noise(1, 6, widths[0]), noise(1, 6, widths[1])),
        AudioCondition(noise(1, 8, audio_length(FRAMES, FPS), 16), FRAMES, FPS),
        guides=tuple(Guide(noise(1, 128, 1, 2, 3), frame, 0.8) for frame in (0, FRAMES - 1)),
    )
    steering = Steering(torch.tensor([0.9, 0.4]), Guidance(stg=1.0))
    latent, *_ = sample(model, torch.zeros(1, 128, 2, 2, 3), conditions, steering, Noise(1), device=device)
    return latent.cpu()


def run_video_vae(vae: nn.Module, device: torch.device) -> Tensor:
    latent = encode.encode_image(vae, noise(1, 3, 1, 64, 64).clamp(-1, 1)).cpu()
    frames = torch.cat(list(decode.decode_video(vae, torch.cat([latent, latent], dim=2))))
    return torch.cat([latent.flatten(), frames.flatten()])


def run_audio_vae(vae: nn.Module, device: torch.device) -> Tensor:
    return sound.encode_audio(vae, audio.Track(noise(1, 8000).clamp(-1, 1), 16000), FRAMES, FPS).cpu()


def run_gemma(model: nn.Module, device: torch.device) -> Tensor:
    folder = Path(model.config._name_or_path)
    states, _ = hidden_states(Gemma(model, AutoTokenizer.from_pretrained(folder), folder), "a person speaks")
    return states.cpu()


@dataclass(frozen=True)
class Part:
    """A model, how to load it, and something it computes: (module, device) → a tensor on the CPU."""

    load: Callable[[TinyFiles, torch.dtype], nn.Module]
    run: Callable[[nn.Module, torch.device], Tensor]


PARTS = {
    "transformer": Part(lambda f, t: load_checkpoint(f.checkpoint).transformer(t), run_transformer),
    "fp8 transformer": Part(lambda f, t: transformer(f, t, "fp8.safetensors"), run_transformer),
    "GGUF transformer": Part(lambda f, t: transformer(f, t, "q8.gguf"), run_transformer),
    "NVFP4 transformer": Part(lambda f, t: transformer(f, t, "nvfp4.safetensors"), run_transformer),
    "int8 transformer": Part(lambda f, t: transformer(f, t, "convrot.safetensors"), run_transformer),
    "video VAE": Part(lambda f, t: load_checkpoint(f.checkpoint).video_vae(t), run_video_vae),
    "audio VAE": Part(lambda f, t: load_checkpoint(f.checkpoint).audio_vae(t), run_audio_vae),
    "Gemma": Part(lambda f, t: load_gemma(f.gemma, t).model, run_gemma),
}


@pytest.fixture(params=list(PARTS))
def part(request: pytest.FixtureRequest) -> Part:
    kind = {"NVFP4 transformer": "nvfp4", "int8 transformer": "convrot"}.get(request.param)
    if kind is not None and not layouts.can_write(kind):
        pytest.skip(f"there is no comfy-kitchen that writes {kind}")
    return PARTS[request.param]


def held(module: nn.Module, device: torch.device = CPU) -> memory.Handle:
    return memory.Handle(memory.hold(module, device, CPU))


def adapted(module: nn.Module, device: torch.device = CPU) -> memory.Adapted:
    patcher = memory.hold(module, device, CPU)
    return memory.Adapted(patcher, patcher)


def fetches(layer: nn.Module) -> bool:
    """Whether ComfyUI may leave the layer's weights behind."""
    return hasattr(layer, "comfy_cast_weights")


def on_device(module: nn.Module) -> list[bool]:
    """Of every layer that ComfyUI may leave behind: whether it is on the simulated device."""
    return [isinstance(m.weight, Elsewhere) for m in module.modules() if fetches(m)]


def assert_same_weights(module: nn.Module, other: nn.Module) -> None:
    """Bit for bit, and on the CPU."""
    weights = module.state_dict()
    assert not any(isinstance(tensor, Elsewhere) for tensor in weights.values())
    for name, tensor in other.state_dict().items():
        assert torch.equal(weights[name], tensor), name


Room = Callable[..., None]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    """(share, *handles): how much of these models ComfyUI finds room for on the simulated device, beside computing."""
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(management, "soft_empty_cache", lambda force=False: None)

    def set_share(share: float, *handles: memory.Handle) -> None:
        weights = share * sum(handle.patcher.model_size() for handle in handles)
        total = management.minimum_inference_memory() + weights

        def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
            free = total - sum(handle.patcher.loaded_size() for handle in handles)
            return (free, 0) if torch_free_too else free

        monkeypatch.setattr(management, "get_free_memory", get_free_memory)

    return set_share


def test_the_number_is_the_same_in_comfyuis_layers(part: Part, files: TinyFiles) -> None:
    expected = part.run(part.load(files, torch.float32), CPU)
    handle = held(part.load(files, torch.float32))
    (module,) = memory.use(handle)
    assert on_device(module) and not any(on_device(module))
    assert torch.equal(part.run(module, CPU), expected)


def test_a_model_that_does_not_fit_is_loaded_in_part_and_gives_the_same(
    part: Part, files: TinyFiles, room: Room
) -> None:
    expected = part.run(part.load(files, torch.float32), CPU)
    handle = held(part.load(files, torch.float32), DEVICE)
    size = handle.get_ram_usage()
    with simulated():
        shares = []
        for share in (0.3, 0.7, 0.5):  # more room than before, then less
            room(share, handle)
            (module,) = memory.use(handle)
            assert module.device == DEVICE
            assert torch.equal(part.run(module, DEVICE), expected)
            shares.append(handle.patcher.loaded_size() / size)
            placed = on_device(module)
            assert not all(placed) and (any(placed) or share < 0.7)
        assert 0 < shares[0] < shares[2] <= shares[1] < 0.7
        handle.patcher.detach()
    assert_same_weights(module, part.load(files, torch.float32))


def test_the_text_encoder_in_part(files: TinyFiles) -> None:
    gemma, connectors = load_gemma(files.gemma, torch.float32), load_checkpoint(files.checkpoint).connectors()
    expected = encode_text(gemma, connectors, "a person speaks")
    with simulated():
        patcher = memory.hold(gemma.model, DEVICE, CPU)
        encoder = memory.TextEncoder(patcher, gemma, adapted(connectors, DEVICE))
        assert encoder.get_models() == [patcher, encoder.connectors.patcher]
        for each in encoder.get_models():
            each.partially_load(DEVICE, each.model_size() // 2)
            memory.settle(each.model, DEVICE)
        context = encode_text(encoder.gemma, encoder.connectors.module, "a person speaks")
        for module in (gemma.model, connectors):
            assert any(on_device(module)) and not all(on_device(module))
        assert isinstance(context.video, Elsewhere), "it was not computed on the device"
        assert torch.equal(context.video.cpu(), expected.video) and torch.equal(context.audio.cpu(), expected.audio)


def test_the_upscaler_in_part(files: TinyFiles, room: Room) -> None:
    vae, latent = load_checkpoint(files.checkpoint).video_vae(), noise(1, 128, 2, 2, 2)
    expected = upscale(load_upscaler(files.upscaler, torch.float32), vae, latent)
    handle = held(load_upscaler(files.upscaler, torch.float32), DEVICE)
    with simulated():
        room(0.5, handle)
        (module,) = memory.use(handle)
        result = upscale(module, vae, latent)
        assert any(on_device(module)) and not all(on_device(module))
        assert torch.equal(result.cpu(), expected)


@pytest.fixture
def loras(files: TinyFiles) -> list[lora.Lora]:
    return [lora.load_lora(path) for path in (files.distilled_lora, files.camera_lora)]


@pytest.mark.parametrize(
    ("dtype", "share"),
    [
        pytest.param(torch.bfloat16, 1.5, marks=pytest.mark.soak),
        (torch.bfloat16, 0.5),
        pytest.param(torch.float32, 0.5, marks=pytest.mark.soak),
    ],
    ids=str,
)
def test_loras_are_merged_as_the_engine_merges_them(
    files: TinyFiles, loras: list[lora.Lora], room: Room, dtype: torch.dtype, share: float
) -> None:
    checkpoint = load_checkpoint(files.checkpoint)
    module = checkpoint.transformer(dtype)
    strengths = (0.2, 0.5)
    expected = []
    for strength in strengths:
        with lora.applied(module, [(loras[1], 0.7), (loras[0], strength)], checkpoint.transformer_weight):
            expected.append(run_transformer(module, CPU))
    plain = run_transformer(module, CPU)
    assert not torch.equal(expected[0], expected[1]) and not torch.equal(expected[0], plain)

    patcher = memory.hold(checkpoint.transformer(dtype), DEVICE, CPU)
    model = memory.Model(patcher, patcher)
    fits = [lora.match(each, model.module) for each in loras]
    camera = model.with_lora(fits[1], 0.7)
    stages = [camera.with_lora(fits[0], strength) for strength in strengths]
    with simulated():
        for handle, wanted in ((stages[0], expected[0]), (stages[1], expected[1]), (stages[0], expected[0])):
            room(share, handle)
            memory.use(handle)
            assert torch.equal(run_transformer(handle.module, DEVICE), wanted)
            assert all(on_device(handle.module)) == (share > 1)
        room(share, model)
        memory.use(model)
        assert torch.equal(run_transformer(model.module, DEVICE), plain)
        stages[0].patcher.detach()
    assert_same_weights(model.module, checkpoint.transformer(dtype))


def test_a_merge_is_rounded_once_whatever_comfyui_hands_over(
    files: TinyFiles, loras: list[lora.Lora], room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since 2026 it gives float16 where a GPU has that; here as of then."""
    cast = management.cast_to_device
    monkeypatch.setattr(management, "cast_to_device", lambda w, device, *_, **__: cast(w, device, torch.float16))
    checkpoint = load_checkpoint(files.checkpoint)
    patcher = memory.hold(checkpoint.transformer(torch.bfloat16), DEVICE, CPU)
    plain = memory.Model(patcher, patcher)
    model = plain.with_lora(lora.match(loras[0], plain.module), 0.5)
    expected = checkpoint.transformer(torch.bfloat16)
    with simulated(), lora.applied(expected, [(loras[0], 0.5)], checkpoint.transformer_weight):
        room(1.5, model)
        memory.use(model)
        for name, weight in expected.state_dict().items():
            assert torch.equal(model.module.state_dict()[name].cpu(), weight), name
        model.patcher.detach()
    assert_same_weights(plain.module, checkpoint.transformer(torch.bfloat16))


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("fp8.safetensors", 0.5),
        ("q8.gguf", 1.5),
        pytest.param("fp8.safetensors", 1.5, marks=pytest.mark.soak),
        pytest.param("q8.gguf", 0.5, marks=pytest.mark.soak),
    ],
)
def test_loras_on_quantized_weights(
    files: TinyFiles, loras: list[lora.Lora], room: Room, name: str, share: float
) -> None:
    """Branches: what the engine gives, the same pairs in both stages, and gone from the model without."""
    checkpoint = load_checkpoint(files.checkpoint.with_name(name))
    module, expected = checkpoint.transformer(torch.float32), []
    for strength in (0.2, 0.5):
        with lora.applied(module, [(loras[1], 0.7), (loras[0], strength)], checkpoint.transformer_weight):
            expected.append(run_transformer(module, CPU))
    plain = run_transformer(module, CPU)
    assert not torch.equal(expected[0], expected[1]) and not torch.equal(expected[0], plain)

    patcher = memory.hold(checkpoint.transformer(torch.float32), DEVICE, CPU)
    model = memory.Model(patcher, patcher)
    fits = [lora.match(each, model.module) for each in loras]
    camera = model.with_lora(fits[1], 0.7)
    stages = [camera.with_lora(fits[0], strength) for strength in (0.2, 0.5)]
    assert len(stages[0].get_models()) == 3 and stages[0].get_models()[1:] == stages[1].get_models()[1:]
    assert model.get_models() == [patcher]
    assert camera.with_lora(fits[0], 0.0).get_models()[1:] == camera.get_models()[1:]
    # ComfyUI from 0.8.0 on reads both of every layer that fetches its weights.
    layers = [layer for each in stages[0].get_models() for layer in each.model.modules() if fetches(layer)]
    assert layers and all(hasattr(layer, "weight") and hasattr(layer, "bias") for layer in layers)
    with simulated():
        for handle, wanted in ((stages[0], expected[0]), (stages[1], expected[1]), (model, plain)):
            room(share, *(memory.Handle(each) for each in handle.get_models()))
            memory.use(handle)
            assert torch.equal(run_transformer(handle.module, DEVICE), wanted)
        for each in stages[0].get_models():
            each.detach()
    assert_same_weights(model.module, checkpoint.transformer(torch.float32))


def test_branches_go_when_their_lora_goes(files: TinyFiles, loras: list[lora.Lora]) -> None:
    patcher = memory.hold(transformer(files, torch.float32, "q8.gguf"), CPU, CPU)
    model = memory.Model(patcher, patcher)
    merged = model.with_lora(lora.match(loras[0], model.module), 0.5)
    pairs = weakref.ref(merged.branches[merged.loras[0][0]].module)
    assert pairs() is not None
    del merged
    gc.collect()
    assert pairs() is None and not model.branches


def test_fp8_of_a_bfloat16_file(files: TinyFiles) -> None:
    """The loader's choice: the blocks' weights in a byte each; the rest computes as with auto, float32 on this CPU."""
    model = memory.hold_transformer(load_checkpoint(files.checkpoint).transformer, "fp8", "tiny")
    assert isinstance(model.module.transformer_blocks[0].attn1.to_q, fetching.FetchingLinear)
    assert model.module.proj_in.weight.dtype == torch.float32
    memory.use(model)
    expected = load_checkpoint(files.checkpoint).transformer(torch.float32, fp8=True)
    assert torch.equal(run_transformer(model.module, CPU), run_transformer(expected, CPU))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems end no program that asks for too much")
@pytest.mark.parametrize("dtype", ["float32", "fp8"])
def test_weights_that_host_memory_cannot_hold_are_refused(
    files: TinyFiles, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Linux would end ComfyUI while they are cast or rounded. Weights that map their file need no room."""
    load = load_checkpoint(files.checkpoint).transformer
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    monkeypatch.setattr(memory, "free_swap", lambda: 0)
    with pytest.raises(InputError, match=r"^ltx\.safetensors: .* of host memory, and 0 MB are free; set .* bfloat16"):
        memory.hold_transformer(load, dtype, "ltx.safetensors")
    assert memory.hold_transformer(load, "bfloat16", "ltx.safetensors").module.dtype == torch.bfloat16
    monkeypatch.setattr(memory, "free_swap", lambda: 2**40)
    assert memory.hold_transformer(load, dtype, "ltx.safetensors").module.config.num_layers > 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems end no program that asks for too much")
def test_a_merge_that_host_memory_cannot_hold_is_refused(
    files: TinyFiles, loras: list[lora.Lora], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU each changed weight is made anew beside the file that it maps. What is merged already goes before."""
    patcher = memory.hold(load_checkpoint(files.checkpoint).transformer(torch.bfloat16), CPU, CPU)
    model = memory.Model(patcher, patcher)
    fit = lora.match(loras[0], model.module)
    made = sum(model.module.get_parameter(name).nbytes for name in fit.changes)
    monkeypatch.setattr(memory, "free_swap", lambda: 0)
    monkeypatch.setattr(memory, "free_memory", lambda device: made - 1)
    with pytest.raises(
        InputError, match=rf"^{loras[0].path.name}: merged on the CPU, .* host memory, .* choose a check"
    ):
        model.with_lora(fit, 0.5)
    assert model.with_lora(fit, 0.0).merged_on_host == 0, "it is off"
    monkeypatch.setattr(memory, "free_memory", lambda device: made)
    first = model.with_lora(fit, 0.5)
    assert first.merged_on_host == made
    memory.use(first)
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    assert model.with_lora(fit, 0.2).merged_on_host == made
    first.patcher.detach()
    with pytest.raises(InputError, match="of host memory"):
        model.with_lora(fit, 0.2)
    elsewhere = memory.hold(load_checkpoint(files.checkpoint).transformer(torch.bfloat16), DEVICE, CPU)
    assert memory.Model(elsewhere, elsewhere).with_lora(fit, 0.5).merged_on_host == 0, "a GPU holds copies anyway"


@pytest.mark.parametrize("error", [*INTERRUPTS, KeyboardInterrupt], ids=lambda error: error.__name__)
def test_a_merge_can_be_interrupted(
    files: TinyFiles, loras: list[lora.Lora], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Between two weights. Nothing of it stays: the next model is merged as if it had not begun."""
    checkpoint = load_checkpoint(files.checkpoint)
    patcher = memory.hold(checkpoint.transformer(torch.float32), CPU, CPU)
    model = memory.Model(patcher, patcher)
    fit = lora.match(loras[0], model.module)
    stages = [model.with_lora(fit, strength) for strength in (0.2, 0.5)]
    asked: list[None] = []

    def interrupted() -> None:
        asked.append(None)
        if len(asked) == len(fit.changes) // 2:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(management, "throw_exception_if_processing_interrupted", interrupted)
        with pytest.raises(error):
            memory.use(stages[0])
    assert len(asked) == len(fit.changes) // 2 > 1
    assert_same_weights(model.module, checkpoint.transformer(torch.float32))
    memory.use(stages[1])
    merged = checkpoint.transformer(torch.float32)
    with lora.applied(merged, [(loras[0], 0.5)], checkpoint.transformer_weight):
        assert_same_weights(model.module, merged)
    stages[1].patcher.detach()


def test_a_long_merge_is_shown_on_the_node_that_runs(
    files: TinyFiles, loras: list[lora.Lora], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, str]] = []
    monkeypatch.setattr(progress, "show_text", lambda node, text: shown.append((node, text)))
    patcher = memory.hold(load_checkpoint(files.checkpoint).transformer(), CPU, CPU)
    model = memory.Model(patcher, patcher)
    fit = lora.match(loras[0], model.module)
    with CurrentNodeContext("prompt", "7"):
        memory.use(model.with_lora(fit, 0.2))
        assert not shown, "it took no second"
        monkeypatch.setattr(progress.Merging, "EVERY", 0.0)
        handle = model.with_lora(fit, 0.5)
        memory.use(handle)
    count = len(fit.changes)
    words = [f"merging LoRAs, weight {number} of {count}" for number in range(1, count + 1)]
    assert shown == [("7", text) for text in (*words, "LoRAs are merged")]
    handle.patcher.detach()


def test_a_merge_can_be_made_again_from_its_tensors(files: TinyFiles, loras: list[lora.Lora]) -> None:
    """As ComfyUI of 2026 does when it has moved them (`prefetch_prepared_value` in its comfy/lora.py)."""
    patcher = memory.hold(load_checkpoint(files.checkpoint).transformer(), CPU, CPU)
    model = memory.Model(patcher, patcher).with_lora(lora.match(loras[0], patcher.model.module), 0.5)
    name, ((strength, merge, *_),) = next(iter(model.patcher.patches.items()))
    again = type(merge)(merge.loaded_keys, tuple(tuple(value for value in term) for term in merge.weights))
    weight = model.patcher.model.state_dict()[name]
    assert strength == 1
    assert torch.equal(again.calculate_weight(weight, name), merge.calculate_weight(weight, name))
    assert not torch.equal(merge.calculate_weight(weight, name), weight)


def test_a_lora_at_strength_0_changes_nothing(files: TinyFiles, loras: list[lora.Lora]) -> None:
    patcher = memory.hold(load_checkpoint(files.checkpoint).transformer(), CPU, CPU)
    model = memory.Model(patcher, patcher)
    assert not model.with_lora(lora.match(loras[0], model.module), 0.0).patcher.patches


def test_a_model_goes_when_its_handle_goes(files: TinyFiles) -> None:
    handle = held(load_checkpoint(files.checkpoint).audio_vae())
    memory.use(handle)
    assert handle.get_ram_usage() == sum(t.nbytes for t in handle.module.state_dict().values())
    module = weakref.ref(handle.module)
    del handle
    gc.collect()
    assert module() is None
    management.cleanup_models()
    assert all(loaded.real_model() is not None for loaded in management.current_loaded_models)


def test_auto_is_float32_on_the_cpu_and_bfloat16_where_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.dtype_for("auto", CPU) is torch.float32
    monkeypatch.setattr(management, "should_use_bf16", lambda device: True)
    assert memory.dtype_for("auto", CPU) is torch.bfloat16
    assert memory.dtype_for("float32", CPU) is torch.float32
    with pytest.raises(ValueError, match="dtype"):
        memory.dtype_for("../float8", CPU)
