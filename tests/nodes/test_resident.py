"""Layers whose weights are resident go past ComfyUI's casting, with the same numbers; all others go through it.

The device is simulated (devices.py), and ComfyUI itself loads and unloads the models.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import comfy.model_management as management
import comfy.ops
from a2v.ltx.weights import lora
from a2v.ltx.weights.adapters import Leaf
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.quantized import layer_of, to_float8
from a2v.nodes import fetching, memory
from a2v.tests import layouts
from a2v.tests.nodes.devices import DEVICE, Elsewhere, simulated
from a2v.tests.nodes.test_memory import run_transformer, run_video_vae
from a2v.tests.tiny import TinyFiles, write_tiny

pytestmark = pytest.mark.usefixtures("inference")
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
TRANSFORMERS = ("ltx-2.3-tiny.safetensors", "fp8.safetensors", "q8.gguf")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    files = write_tiny(tmp_path_factory.mktemp("tiny"), layers=2)
    layouts.write_fp8(files.checkpoint, files.checkpoint.with_name("fp8.safetensors"), "rows")
    layouts.write_gguf(files.checkpoint, files.checkpoint.with_name("q8.gguf"), "Q8_0")
    return files


@pytest.fixture
def cast(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often ComfyUI's casting was asked for the weights of a layer, by the layer's id."""
    counts: Counter[int] = Counter()
    usual = comfy.ops.cast_bias_weight

    def counted(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        counts[id(layer)] += 1
        return usual(layer, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", counted)
    return counts


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float, memory.Handle], nn.Module]]:
    """(share, handle): loads it as ComfyUI does where so much of it finds room on the simulated device."""
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(management, "soft_empty_cache", lambda force=False: None)

    def load(share: float, handle: memory.Handle) -> nn.Module:
        models = handle.get_models()
        total = management.minimum_inference_memory() + share * sum(each.model_size() for each in models)

        def free(dev: Any = None, torch_free_too: bool = False) -> Any:
            left = total - sum(each.loaded_size() for each in models)
            return (left, 0) if torch_free_too else left

        monkeypatch.setattr(management, "get_free_memory", free)
        return memory.use(handle)[0]

    with simulated():
        yield load
        management.current_loaded_models.clear()


def held(module: nn.Module) -> memory.Model:
    patcher = memory.hold(module, DEVICE, CPU)
    return memory.Model(patcher, patcher)


def layers(handle: memory.Handle) -> list[nn.Module]:
    """Those that ComfyUI may leave behind, with those of LoRAs beside quantized weights."""
    found = (part for each in handle.get_models() for part in each.model.modules())
    return [part for part in found if hasattr(part, "comfy_cast_weights")]


def waiting(handle: memory.Handle) -> set[int]:
    return {id(layer) for layer in layers(handle) if not isinstance(layer.weight, Elsewhere)}


def by_casting(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Tensor]) -> Tensor:
    """The result where every layer goes through ComfyUI's casting."""
    with monkeypatch.context() as patch:
        patch.setattr(fetching, "resident", lambda *_: False)
        return run()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_loaded_in_part_and_whole_and_again(
    files: TinyFiles, name: str, cast: Counter[int], use: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step with guidance: whole, no layer is cast; in part, only the layers that wait; unloaded and loaded again."""
    model = held(load_checkpoint(files.checkpoint.with_name(name)).transformer(torch.float32))
    for share in (1.5, 0.5, 0.3, 1.5):
        module = use(share, model)
        expected = by_casting(monkeypatch, lambda module=module: run_transformer(module, DEVICE))
        every = set(cast)
        cast.clear()
        assert torch.equal(run_transformer(module, DEVICE), expected)
        left = waiting(model)
        assert bool(left) == (share < 1)
        assert set(cast) == left & every and len(left & every) < len(every)
        assert share > 1 or left & every
        cast.clear()
        if share == 0.3:
            model.patcher.detach()
            assert waiting(model) == {id(layer) for layer in layers(model)}


def test_a_vae_in_part(files: TinyFiles, cast: Counter[int], use: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers are convolutions."""
    vae = memory.Handle(memory.hold(load_checkpoint(files.checkpoint).video_vae(torch.float32), DEVICE, CPU))
    for share in (1.5, 0.5):
        module = use(share, vae)
        expected = by_casting(monkeypatch, lambda module=module: run_video_vae(module, DEVICE))
        cast.clear()
        assert torch.equal(run_video_vae(module, DEVICE), expected)
        assert bool(cast) == (share < 1) and set(cast) <= waiting(vae)


@pytest.mark.parametrize("share", [0.5, pytest.param(1.5, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", TRANSFORMERS[:2])
def test_strengths_that_change_between_stages(
    files: TinyFiles, name: str, share: float, cast: Counter[int], use: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA that is merged where its layer is resident, added on the way where it waits, or beside fp8 weights."""
    model = held(load_checkpoint(files.checkpoint.with_name(name)).transformer(torch.float32))
    fit = lora.match(lora.load_lora(files.distilled_lora), model.module)
    stages = [model.with_lora(fit, strength) for strength in (0.2, 0.5)]
    results = []
    for handle in (*stages, model, stages[0]):
        module = use(share, handle)
        expected = by_casting(monkeypatch, lambda module=module: run_transformer(module, DEVICE))
        every = set(cast)
        cast.clear()
        results.append(run_transformer(module, DEVICE))
        assert torch.equal(results[-1], expected)
        # The LoRA's tensors have 16 bits and are cast to what computes.
        other = {id(layer) for layer in layers(handle) if isinstance(layer, Leaf)}
        assert set(cast) - other <= waiting(handle) and bool(set(cast) - other) == (share < 1)
        added = {id(layer) for layer in layers(handle) if layer.weight_function}
        assert bool(added) == (share < 1 and handle is not model)
        assert added & every <= set(cast), "a waiting layer computed without its LoRA"
    assert torch.equal(results[0], results[3])
    assert not any(torch.equal(results[0], other) for other in results[1:3])


def kinds() -> dict[str, tuple[nn.Module, Tensor]]:
    """A layer of each kind with what it reads."""
    torch.manual_seed(1)
    made = {
        "Linear": (nn.Linear(8, 4), torch.randn(2, 8)),
        "Linear without bias": (nn.Linear(8, 4, bias=False), torch.randn(2, 8)),
        "Conv1d": (nn.Conv1d(8, 4, 3, padding=1), torch.randn(1, 8, 5)),
        "Conv2d": (nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"), torch.randn(1, 8, 5, 5)),
        "Conv3d": (nn.Conv3d(8, 4, 3), torch.randn(1, 8, 3, 4, 4)),
        "GroupNorm": (nn.GroupNorm(2, 8), torch.randn(2, 8, 3)),
        "LayerNorm": (nn.LayerNorm(8), torch.randn(2, 8)),
        "RMSNorm": (nn.RMSNorm(8), torch.randn(2, 8)),
    }
    stored = to_float8(torch.randn(4, 8))
    made["fp8"] = layer_of(stored, nn.Parameter(torch.randn(4))), torch.randn(2, 8)
    return made


def change(layer: nn.Module, how: str) -> None:
    """What makes casting necessary."""
    if how == "function":
        layer.weight_function = [lambda weight: weight]
    elif how == "function of the bias":
        layer.bias_function = [lambda bias: bias]
    elif how == "paged":
        layer._v = None
    elif how == "bias of another dtype":
        layer.bias.data = layer.bias.data.double()
    elif how == "another dtype":
        layer.to(torch.float64)


HOWS = ("function", "function of the bias", "paged", "another dtype", "bias of another dtype")
PAIRS = [(name, how) for name in kinds() for how in HOWS]
PAIRS.remove(("fp8", "another dtype"))  # its bytes have none
for without_bias in ("Linear without bias", "RMSNorm"):
    PAIRS.remove((without_bias, "bias of another dtype"))


@pytest.mark.parametrize(("name", "how"), PAIRS)
def test_each_kind_of_layer(name: str, how: str, cast: Counter[int]) -> None:
    layer, x = kinds()[name]
    layer.requires_grad_(False)
    expected = layer(x)
    handle = held(nn.Sequential(layer))
    (module,) = memory.use(memory.Handle(memory.hold(handle.module, CPU, CPU)))
    assert torch.equal(module(x), expected) and not cast
    change(layer, how)
    torch.testing.assert_close(module(x), expected, atol=1e-6, rtol=1e-5)
    assert cast == {id(layer): 1}


def test_a_model_that_was_moved_away_in_between_computes(cast: Counter[int], use: Callable) -> None:
    """Frames are decoded while they are written, and another model may want the memory meanwhile."""
    layer = nn.Linear(8, 4).requires_grad_(False)
    x, handle = torch.randn(2, 8), held(nn.Sequential(layer))
    expected = layer(x)
    module, there = use(1.5, handle), x.to(DEVICE)
    assert torch.equal(module(there).cpu(), expected) and not cast
    handle.patcher.detach()
    assert not isinstance(layer.weight, Elsewhere)
    assert torch.equal(module(there).cpu(), expected) and cast == {id(layer): 1}


def test_a_cancelled_run_stops_in_a_resident_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    (module,) = memory.use(memory.Handle(memory.hold(nn.Sequential(nn.Linear(8, 4)), CPU, CPU)))
    monkeypatch.setattr(management, "interrupt_processing", True)
    with pytest.raises(management.InterruptProcessingException):
        module(torch.randn(2, 8))


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/outside.py as in a ComfyUI whose prompts this file executes, without its thread."""
    monkeypatch.setitem(sys.modules, "execution", SimpleNamespace(__file__=__file__))
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)
    spec = importlib.util.spec_from_file_location("outside", ROOT / "benchmarks" / "outside.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("ENGINE", "NODES", "FETCHING"):
        monkeypatch.setattr(module, name, getattr(module, name).replace(module.PACK, f"{ROOT}/"))
    return module


def test_what_a_resident_layer_computes_is_the_engines_time(
    outside: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the benchmark of the host's overhead, to which only the way to torch's own layer counts."""
    (module,) = memory.use(memory.Handle(memory.hold(nn.Sequential(nn.Linear(8, 4)), CPU, CPU)))
    linear, ours, seen = F.linear, comfy.ops.run_every_op, {}

    def computing(*inputs: Any) -> Tensor:
        seen["torch's layer"] = outside.of_engine(sys._getframe(1))
        return linear(*inputs)

    def asking() -> None:
        seen["the way there"] = outside.of_engine(sys._getframe(1))
        ours()

    def execute_async() -> None:
        module(torch.randn(2, 8))
        seen["no layer"] = outside.of_engine(sys._getframe())

    monkeypatch.setattr(F, "linear", computing)
    monkeypatch.setattr(comfy.ops, "run_every_op", asking)
    execute_async()
    assert seen == {"torch's layer": True, "the way there": False, "no layer": False}
    assert outside.of_engine(sys._getframe()) is None, "no prompt is executed"


def test_a_compiled_layer_is_one_graph(cast: Counter[int]) -> None:
    """Dynamo can follow the question whether a layer is resident."""
    layers = [nn.Linear(8, 8), nn.RMSNorm(8), layer_of(to_float8(torch.randn(8, 8)), None)]
    (module,) = memory.use(memory.Handle(memory.hold(nn.Sequential(*layers).requires_grad_(False), CPU, CPU)))
    x = torch.randn(2, 8)
    expected = module(x)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), expected) and not cast
