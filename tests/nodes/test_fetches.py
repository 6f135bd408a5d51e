"""What a small card fetches: a layer that waits in host memory comes to the card once a step, however many passes run.

The device is simulated (devices.py), and ComfyUI itself loads the model in part.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import comfy.model_management as management
import comfy.ops
from a2v.ltx.diffusion import passes
from a2v.ltx.diffusion.acceleration import Acceleration
from a2v.ltx.diffusion.compiled import compile_blocks
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, TextContext
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.steering import RES_2S, Steering
from a2v.ltx.grid import audio_length
from a2v.ltx.latents import Noise
from a2v.ltx.memory.work import sound_like
from a2v.ltx.nag import Nag
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

        def counted(parameter: Tensor, place: Tensor) -> None:
            copied[id(parameter)] += 1
            copy(parameter, place)

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
    room = [1e12]
    monkeypatch.setattr(activations, "obtainable", lambda device: room[0])
    single = activations.sampling_memory(model, latent, 1)
    assert single.room > 0 and not single.stay
    assert activations.sampling_memory(model, latent, 4) == single, "everything fits"
    monkeypatch.setattr(activations, "_step_memory", lambda *a: 1000)
    single, asked = activations.Sampling(1000), []
    room[0] = model.get_ram_usage() + single.room - 1
    monkeypatch.setattr(activations, "batch_memory", lambda *a: asked.append(a) or single.room + 7)
    assert activations.sampling_memory(model, latent, 4) == activations.Sampling(single.room + 7)
    tokens = 2 * 2 * 3 + activations.KEYFRAMES * 2 * 3 + audio_length(FRAMES, FPS)
    assert asked == [(model.module, tokens, 4)]
    free = passes.batch_memory(model.module, tokens, 4)
    assert passes.GPU_SHARE * free > 4 * passes.working_set(model.module, tokens), "the step would not batch"
    monkeypatch.setattr(activations, "batch_memory", lambda *a: room[0])
    sizes = [sum(p.nbytes for p in block.parameters()) for block in model.module.transformer_blocks]
    staying = activations.Sampling(single.room + max(sizes), True)
    assert activations.sampling_memory(model, latent, 4) == staying and not staying.notes
    assert activations.sampling_memory(replace(model, compiled=True), latent, 4) == staying
    assert activations.sampling_memory(model, latent, 1) == single
    monkeypatch.setattr(fetching, "overlaps", lambda device: True)  # then the next block is there, too
    assert activations.sampling_memory(model, latent, 4) == activations.Sampling(single.room + 2 * max(sizes), True)


def test_voices_and_what_is_kept_between_steps_have_room(files: TinyFiles) -> None:
    """As in the forecast of the command."""
    model, latent = held(files, "fp8.safetensors"), torch.zeros(1, 128, 2, 8, 8)
    plain = activations.sampling_memory(model, latent, 1).room
    four = sound_like(FRAMES, FPS, voices=[True] * 4)
    assert activations.sampling_memory(model, latent, 1, heard=four).room > 1.1 * plain
    referred = sound_like(FRAMES, FPS, referred=500)
    assert activations.sampling_memory(model, latent, 1, heard=referred).room > 1.1 * plain
    assert activations.sampling_memory(replace(model, nag=Nag()), latent, 1).room > plain
    keeping = replace(model, acceleration=Acceleration(reuse=0.1))
    assert activations.sampling_memory(keeping, latent, 1).room > 1.1 * plain
    start = math.prod(latent.shape[1:]) * torch.float64.itemsize  # res_2s keeps a step's, and the first prediction
    assert activations.sampling_memory(model, latent, 1, sampler=RES_2S).room > plain + 2 * start


def test_where_comfyui_pages_the_weights_the_report_says_what_it_costs(
    files: TinyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer ComfyUI fetches and patches there itself."""
    model, latent = held(files, "fp8.safetensors"), torch.zeros(1, 128, 2, 2, 3)
    monkeypatch.setattr(model.patcher, "is_dynamic", lambda: True, raising=False)
    monkeypatch.setattr(activations, "obtainable", lambda device: model.get_ram_usage())
    monkeypatch.setattr(activations, "_step_memory", lambda *a: 1000)
    monkeypatch.setattr(activations, "batch_memory", lambda *a: model.get_ram_usage())
    placed = activations.sampling_memory(model, latent, 4)
    assert placed == activations.Sampling(1000, repeated=True) and placed.notes == [activations.REPEATED]
    monkeypatch.setattr(activations, "batch_memory", lambda *a: 2000)  # they run as one batch
    assert activations.sampling_memory(model, latent, 4) == activations.Sampling(2000)


def test_only_cuda_copies_while_it_computes_and_not_if_the_user_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management, "NUM_STREAMS", 2, raising=False)
    assert fetching.overlaps(torch.device("cuda", 0))
    assert not any(map(fetching.overlaps, (CPU, DEVICE, torch.device("mps"))))
    monkeypatch.setattr(management, "NUM_STREAMS", 0)  # --disable-async-offload
    assert not fetching.overlaps(torch.device("cuda", 0))


class LateStream:
    """In place of a stream that copies as late as it may: when what is computed next waits for it.

    events: what was asked for, in order, with the number of each block that was computed.
    """

    made: LateStream

    def __init__(self, device: torch.device) -> None:
        self.events: list[Any] = []
        self.waiting: list[Callable[[], None]] = []
        LateStream.made = self

    def mark(self) -> int:
        self.events.append("mark")
        return len(self.events)

    def copy(self, copies: Callable[[], None], after: int) -> None:
        assert self.events[after - 1] == "mark"
        self.events.append("copy")
        self.waiting.append(copies)

    def join(self) -> None:
        self.events.append("join")
        for copies in self.waiting:
            copies()
        self.waiting.clear()


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], None]:
    """Copies run beside the computing, and they take no more memory than was reserved for them. Called with the model,
    it makes the stream's list tell of the blocks as well."""
    monkeypatch.setattr(fetching, "overlaps", lambda device: True)
    monkeypatch.setattr(fetching, "SideStream", LateStream)

    def watch(module: nn.Module) -> None:
        room, there = fetching.stay_memory(module.transformer_blocks, DEVICE), weakref.WeakSet()
        place = fetching._place

        def counted(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
            there.add(made := place(parameter, device))
            assert sum(each.nbytes for each in there) <= room
            return made

        monkeypatch.setattr(fetching, "_place", counted)
        for number, block in enumerate(module.transformer_blocks):
            block.register_forward_hook(lambda *_, number=number: LateStream.made.events.append(number), prepend=True)

    return watch


@pytest.mark.parametrize("name", ["ltx-2.3-tiny.safetensors", "fp8.safetensors"])
def test_the_next_block_comes_while_one_computes(
    files: TinyFiles,
    name: str,
    in_part: Callable,
    copies: Callable,
    fetched: Counter[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each layer once a step, and a block's weights are waited for before it reads them."""
    expected = one_step(load_checkpoint(files.checkpoint.with_name(name)).transformer(torch.float32), CPU, 0.0)
    copied: Counter[int] = Counter()
    copy = fetching._copy

    def counted(parameter: Tensor, place: Tensor) -> None:
        copied[id(parameter)] += 1
        copy(parameter, place)

    monkeypatch.setattr(fetching, "_copy", counted)
    model = held(files, name)
    with simulated():
        module = in_part(model)
        copies(module)
        before = {id(p): p.device for p in module.parameters()}
        blocks = [each for each in module.transformer_blocks.modules() if hasattr(each, "comfy_cast_weights")]
        waiting = [layer.weight for layer in blocks if not isinstance(layer.weight, Elsewhere)]
        with fetching.blocks_stay(module.transformer_blocks, DEVICE):
            for steps in (1, 2):
                assert torch.equal(one_step(module, DEVICE, 0.0), expected)
                assert waiting and {copied[id(weight)] for weight in waiting} == {steps}
        assert not any(fetched[id(layer)] for layer in blocks)
        # The STG pass begins as a copy of the conditional one at block 1, so three passes run in block 0.
        step = ["mark", 0, "copy", 0, 0, "join", "mark", 1, "copy", 1, 1, 1, "join", 2, 2, 2, 2]
        assert LateStream.made.events == step * 2
        assert {id(p): p.device for p in module.parameters()} == before
        model.patcher.detach()


def test_a_run_that_ends_waits_for_copies(files: TinyFiles, in_part: Callable, copies: Callable) -> None:
    """Otherwise their memory would be given away while they write there."""
    model = held(files, "fp8.safetensors")
    with simulated():
        module = in_part(model)
        copies(module)
        before = {id(p): p.device for p in module.parameters()}
        with pytest.raises(KeyboardInterrupt), fetching.blocks_stay(module.transformer_blocks, DEVICE):
            module.transformer_blocks[1].register_forward_pre_hook(lambda *_: _raise(), prepend=True)
            one_step(module, DEVICE, 0.0)
        assert LateStream.made.events == ["mark", 0, "copy", 0, 0, "join"] and not LateStream.made.waiting
        assert {id(p): p.device for p in module.parameters()} == before
        model.patcher.detach()


@pytest.mark.timeout(600)
@pytest.mark.soak
def test_a_compiled_block_stays_too(files: TinyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code takes the weights that are there when it is called, and is not compiled again for them.

    Compiled code knows no simulated device. So every weight waits here for the CPU under another name.
    """
    other_name = torch.device("cpu", 0)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    module = load_checkpoint(files.checkpoint).transformer(torch.float32)
    memory.hold(module, CPU, CPU)
    expected = one_step(module, CPU, 0.0)
    torch._dynamo.reset()
    compile_blocks(module)
    counters = torch._dynamo.utils.counters
    counters.clear()
    assert torch.equal(one_step(module, CPU, 0.0), expected)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    copied: Counter[int] = Counter()
    copy = fetching._copy

    def counted(parameter: Tensor, place: Tensor) -> None:
        copied[id(parameter)] += 1
        copy(parameter, place)

    monkeypatch.setattr(fetching, "_copy", counted)
    layers = [each for each in module.transformer_blocks.modules() if hasattr(each, "comfy_cast_weights")]
    weights = [layer.weight for layer in layers]
    with fetching.blocks_stay(module.transformer_blocks, other_name):
        for steps in (1, 2):
            assert torch.equal(one_step(module, CPU, 0.0), expected)
            assert weights and {copied[id(weight)] for weight in weights} == {steps}
    assert counters["stats"]["unique_graphs"] == graphs
    with torch.no_grad():
        weights[0].data.mul_(2)
    assert not torch.equal(one_step(module, CPU, 0.0), expected), "the compiled code kept a weight"
    compile_blocks(module, False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pinned", [False, True])
def test_on_cuda_the_numbers_are_the_same_and_two_blocks_are_there(
    pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide blocks, so that copies and products overlap."""
    monkeypatch.setattr(management, "NUM_STREAMS", 2, raising=False)
    device = torch.device("cuda", torch.cuda.current_device())
    blocks = [nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(4))) for _ in range(8)]
    model = nn.ModuleList(blocks).requires_grad_(False)
    if pinned:
        model._apply(lambda weight: weight.pin_memory())
    memory.hold(model, device, CPU)
    x = torch.randn(4096, 2048, device=device) / 8

    def step() -> Tensor:
        y = x
        for block in model:
            for _ in range(3):
                y = torch.nn.functional.normalize(block(y))
        return y

    expected = step()
    size = fetching.stay_memory(model, device)
    assert size == 2 * 4 * 2048 * 2048 * 4
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with fetching.blocks_stay(model, device):
        for _ in range(3):
            assert torch.equal(step(), expected)
    assert torch.cuda.max_memory_allocated() - before < size + 8 * x.nbytes
    assert all(weight.device == CPU for weight in model.parameters())
