"""The node that chooses attention, kernels and products: what it refuses and says, and that the sampler obeys."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

from a2v import nodes
from a2v.ltx import fused
from a2v.ltx.computing import MATH, TORCH
from a2v.ltx.diffusion import attention as engine
from a2v.ltx.diffusion.attention import BACKENDS
from a2v.ltx.errors import InputError
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.quantized import QuantizedLinear
from a2v.nodes import activations, memory
from a2v.nodes.kernels import Kernels
from a2v.tests import layouts
from a2v.tests.tiny import TinyFiles, write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"), layers=2)


@pytest.fixture(scope="module")
def model(tiny: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> memory.Model:
    path = tmp_path_factory.mktemp("fp8") / "fp8.safetensors"
    layouts.write_fp8(tiny.checkpoint, path)
    return memory.hold_transformer(load_checkpoint(path).transformer, "float32", "tiny", path=path)


def backends(model: memory.Model) -> set[object]:
    modules = model.module.transformer_blocks.modules()
    found = [each.processor for each in modules if getattr(each, "processor", None) is not None]
    return {processor._attention_backend for processor in found}


def fast(model: memory.Model) -> set[bool]:
    return {layer.fast for layer in model.module.modules() if isinstance(layer, QuantizedLinear)}


def chosen(model: memory.Model, *values: object) -> tuple[memory.Model, str]:
    result = Kernels.execute(model, *values)
    return result.args[0], result.args[1]


def test_the_defaults_change_nothing(model: memory.Model) -> None:
    same, told = chosen(model, TORCH, True, False)
    assert same.identity == model.identity
    assert told == "attention by torch (exact); no fused kernels: they need a GPU by NVIDIA or AMD"
    defaults = {each.id: each.default for each in Kernels.GET_SCHEMA().inputs if hasattr(each, "default")}
    assert (defaults["attention"], defaults["fused"], defaults["fast_products"]) == (TORCH, True, False)


def test_each_handle_computes_as_it_says(model: memory.Model) -> None:
    """All handles share the module, so each sets all of it."""
    other, told = chosen(model, MATH, False, True)
    expected = "attention by math (exact); no fused kernels; fast products where the card has them (not exact)"
    assert told == expected
    assert other.identity != model.identity and other.module is model.module
    other.compute_so()
    assert backends(model) == {BACKENDS[MATH].name} and fast(model) == {True}
    model.compute_so()
    assert backends(model) == {None} and fast(model) == {False}


def test_it_is_told_whether_fused_kernels_run(model: memory.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "obstacle", lambda device: "Triton is not installed (pip install triton)")
    assert chosen(model, TORCH, True, False)[1].endswith(
        "no fused kernels: Triton is not installed (pip install triton)"
    )
    monkeypatch.setattr(fused, "obstacle", lambda device: "")
    assert chosen(model, TORCH, True, False)[1].endswith("; fused kernels")


def test_weights_that_are_not_quantized_have_no_fast_products(tiny: TinyFiles) -> None:
    plain = memory.hold_transformer(load_checkpoint(tiny.checkpoint).transformer, "float32", "tiny")
    assert chosen(plain, TORCH, False, True)[1].endswith("no fast products, because the weights are not quantized")


@pytest.mark.parametrize("name", [name for name, backend in BACKENDS.items() if backend.package])
def test_what_is_not_installed_is_refused_before_anything_runs(name: str, model: memory.Model) -> None:
    told = Kernels.validate_inputs(attention=name)
    assert isinstance(told, str) and f"{name!r} needs the package {BACKENDS[name].package}" in told
    with pytest.raises(InputError, match="is not installed here"):
        Kernels.execute(model, name, False, False)


def test_what_cannot_compute_here_is_refused(model: memory.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_check_attention_backend_requirements", lambda backend: None)  # as if installed
    with pytest.raises(InputError, match="computes on GPUs by NVIDIA and AMD only"):
        Kernels.execute(model, "sage", False, False)
    assert "is unknown" in str(Kernels.validate_inputs(attention="nonsense"))


def test_the_tooltip_marks_each_backend(model: memory.Model) -> None:
    (tooltip,) = (each.tooltip for each in Kernels.GET_SCHEMA().inputs if each.id == "attention")
    exact, _, inexact = tooltip.partition("Not exact")
    assert all((name in (exact if backend.exact else inexact)) for name, backend in BACKENDS.items())
    assert Kernels in nodes.NODES


@pytest.mark.parametrize("stay", [False, True])
def test_the_sampler_obeys(model: memory.Model, monkeypatch: pytest.MonkeyPatch, stay: bool) -> None:
    """Within a sampler's own code, with the sampling itself left out. stay: whether blocks keep their weights while
    their passes run (test_fetches.py)."""
    from a2v.nodes import sampling

    asked, _ = chosen(model, MATH, False, True)
    seen: list[object] = []

    def watched() -> set[int]:
        return {len(block._forward_pre_hooks) for block in asked.module.transformer_blocks}

    def begun(*_: object, **__: object) -> tuple[object, ...]:
        seen.append((backends(asked), fast(asked), watched()))
        return start, (), ()

    monkeypatch.setattr(sampling, "sample_windows", begun)

    def placed(*_: object) -> activations.Sampling:
        order.append("what a block takes")
        return activations.Sampling(0, stay, repeated=not stay)

    order: list[str] = []
    film = type(
        "Film", (), {"cut": _cut(), "frozen": True, "sounds": (SimpleNamespace(reference=None, frozen=True),)}
    )()
    steering = type("S", (), {"steps": 1, "sampler": "euler", "passes": lambda self, frozen: 4})()
    monkeypatch.setattr(sampling, "StageProgress", lambda *a: None)
    monkeypatch.setattr(memory.Model, "attach", lambda self: order.append("LoRAs beside the weights"))
    monkeypatch.setattr(activations, "sampling_memory", placed)
    start = torch.zeros(1, 128, 2, 2, 2)
    conditions = type("C", (), {"audio": None})()
    _, told = sampling._sample(
        replace(asked, weights=""), start, film, [], conditions, steering, (object(),), None, None
    )
    assert told == ([] if stay else [activations.REPEATED])
    assert order[:2] == ["LoRAs beside the weights", "what a block takes"]
    assert seen == [({BACKENDS[MATH].name}, {True}, {int(stay)})] and watched() == {0}


def _cut() -> object:
    from fractions import Fraction

    from a2v.ltx.windows import cut_windows
    from a2v.nodes.film import Cut

    return Cut(9, Fraction(24), cut_windows(9))
