"""Products in the weights' own formats: they compute what they say, and where they cannot be had, weights are decoded.

torch's CPU has fp8 products with one scale for all values, and comfy-kitchen has int8 products for every device. For
NVFP4 and MXFP8, whose products only a card has, comfy-kitchen's own decoders stand in for the card here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from a2v.ltx.weights import products
from a2v.ltx.weights.adapters import Full
from a2v.ltx.weights.quantized import Branch, QuantizedLinear, beside, float8, layer_of, quicken, to_float8
from a2v.tests.ltx.goldens import relative
from torch import Tensor, nn

from .test_formats import layer as made

CPU = torch.device("cpu")
BOUND = {"float8": 0.06, "int8": 0.03, "int8_rows": 0.03, "convrot": 0.02, "nvfp4": 0.2, "mxfp8": 0.06}

multiplies_fp8 = pytest.mark.skipif(
    not products.card_has("fp8", CPU), reason="torch before 2.7 has no fp8 products on a CPU"
)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def layer(kind: str, rows: int = 48, columns: int = 256) -> QuantizedLinear:
    if kind != "float8":
        pytest.importorskip("comfy_kitchen")
        return made(kind, rows, columns)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))
    return layer_of(to_float8(weight), nn.Parameter(torch.arange(float(rows)), requires_grad=False))


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A card that has all formats. Returns the names of the functions that it was asked for."""
    comfy_kitchen = pytest.importorskip("comfy_kitchen")
    from comfy_kitchen.backends.eager import quantization as eager

    asked: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            asked.append(name)
            return function(*args, **kwargs)

        return call

    def nvfp4(
        a: Tensor, b: Tensor, sa: Tensor, sb: Tensor, ba: Tensor, bb: Tensor, bias: Any, out: torch.dtype
    ) -> Tensor:
        x, w = (eager.dequantize_nvfp4(v, s, blocks, torch.float32) for v, s, blocks in ((a, sa, ba), (b, sb, bb)))
        return nn.functional.linear(x, w, None if bias is None else bias.float()).to(out)

    def mxfp8(a: Tensor, b: Tensor, ba: Tensor, bb: Tensor, bias: Any, out: torch.dtype) -> Tensor:
        x, w = (eager.dequantize_mxfp8(v, blocks, torch.float32) for v, blocks in ((a, ba), (b, bb)))
        return nn.functional.linear(x, w, None if bias is None else bias.float()).to(out)

    fake = SimpleNamespace(
        int8_linear=noted("int8_linear", comfy_kitchen.int8_linear),
        quantize_nvfp4=comfy_kitchen.quantize_nvfp4,
        scaled_mm_nvfp4=noted("scaled_mm_nvfp4", nvfp4),
        quantize_mxfp8=comfy_kitchen.quantize_mxfp8,
        scaled_mm_mxfp8=noted("scaled_mm_mxfp8", mxfp8),
    )
    monkeypatch.setattr(products, "card_has", lambda kind, device: True)
    monkeypatch.setattr(products, "kitchen", lambda function: fake)
    return asked


@pytest.mark.parametrize("kind", BOUND)
def test_a_product_is_near_the_decoded_one_and_not_equal(kind: str, able: list[str], randn: Callable) -> None:
    q, x = layer(kind), randn(2, 5, 256).bfloat16()
    exact = q(x)
    quicken(q)
    fast = q(x)
    assert fast.shape == exact.shape and fast.dtype == exact.dtype
    assert 0 < relative(fast.float(), exact.float()) < BOUND[kind]
    assert len(able) == (kind != "float8")
    quicken(q, False)
    assert torch.equal(q(x), exact)


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp8"])
@pytest.mark.parametrize("shape", [(4, 64), (130, 96), (33, 128)])
def test_padding_does_not_reach_the_result(kind: str, shape: tuple[int, int], able: list[str], randn: Callable) -> None:
    q, x = layer(kind, *shape), randn(3, shape[1]).bfloat16()
    exact = q(x)
    quicken(q)
    assert q(x).shape == exact.shape and relative(q(x).float(), exact.float()) < BOUND[kind]


@pytest.mark.parametrize("kind", BOUND)
def test_a_lora_beside_a_fast_product_is_not_rounded(kind: str, able: list[str], randn: Callable) -> None:
    q, x = layer(kind), randn(3, 256).bfloat16()
    down, up = randn(2, 256), randn(48, 2)
    quicken(q)
    plain = q(x)
    q.branches = ((Branch(down, up), 0.5),)
    added = nn.functional.linear(nn.functional.linear(x, down.bfloat16()), up.bfloat16())
    torch.testing.assert_close(q(x), (plain + 0.5 * added).to(x.dtype), rtol=2e-2, atol=0.3)


@multiplies_fp8
def test_the_fp8_product_by_hand() -> None:
    """Input and weight on fp8's grid, so that only the scales and the sum are left."""
    weight = torch.arange(-128.0, 128.0).view(16, 16).clamp(-8, 8)
    q = layer_of(float8((weight / 2).to(torch.float8_e4m3fn), torch.tensor(2.0)), None)
    x = torch.eye(16).bfloat16() * 448
    quicken(q)
    assert torch.equal(q(x), (448 * weight.T).bfloat16())


@pytest.mark.parametrize("fault", ["float32", "sides", "rows", "e5m2"])
def test_where_fp8_products_cannot_be_had_the_weight_is_decoded(fault: str, randn: Callable) -> None:
    if fault == "rows" and products.rows_have_scales(CPU):
        pytest.skip("this torch multiplies with a scale for each row on a CPU, too")
    rows = 20 if fault == "sides" else 32
    weight, x = randn(rows, 32), randn(3, 32).bfloat16()
    stored = {
        "rows": lambda: float8(weight.to(torch.float8_e4m3fn), torch.ones(rows, 1)),
        "e5m2": lambda: float8(weight.to(torch.float8_e5m2), torch.ones(())),
    }.get(fault, lambda: to_float8(weight))()
    q = layer_of(stored, None)
    x = x.float() if fault == "float32" else x
    exact = q(x)
    quicken(q)
    assert torch.equal(q(x), exact)


def test_without_a_kernel_of_its_own_comfy_kitchen_is_left_alone(randn: Callable) -> None:
    pytest.importorskip("comfy_kitchen")
    for kind in ("int8", "nvfp4", "mxfp8"):
        q, x = layer(kind), randn(3, 256).bfloat16()
        exact = q(x)
        quicken(q)
        assert torch.equal(q(x), exact)


def test_a_comfy_kitchen_for_another_torch_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """0.2.40 raises a ValueError with torch 2.6."""
    (tmp_path / "comfy_kitchen.py").write_text("raise ValueError('infer_schema')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "comfy_kitchen"]:
        monkeypatch.delitem(sys.modules, name)
    assert products.kitchen.__wrapped__("int8_linear") is None


def test_a_change_of_the_weight_itself_is_decoded(randn: Callable) -> None:
    """A change that is no pair of a LoRA acts on the decoded weight."""
    q, x = layer("float8"), randn(3, 256).bfloat16()
    q.branches = ((beside(Full(randn(48, 256))), 1.0),)
    exact = q(x)
    quicken(q)
    assert torch.equal(q(x), exact)


@multiplies_fp8
def test_compiled(randn: Callable) -> None:
    """Whether torch multiplies by rows is tried, and not traced."""
    torch._dynamo.reset()
    products._multiplies.cache_clear()
    q, x = layer("float8"), randn(3, 256).bfloat16()
    quicken(q)
    found = torch.compile(q, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, q(x))


def test_memory_that_is_full_for_a_moment_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    products._multiplies.cache_clear()
    with monkeypatch.context() as at_first:
        at_first.setattr(torch, "_scaled_mm", full)
        assert not products.rows_have_scales(CPU)
    monkeypatch.setattr(torch, "_scaled_mm", lambda x, *_, **__: x)
    assert products.rows_have_scales(CPU)
    products._multiplies.cache_clear()


@multiplies_fp8
@pytest.mark.parametrize(
    ("kind", "dtype", "bound"),
    [("branch", torch.bfloat16, 1e-2), ("branch", torch.float32, 1e-6), ("edit", torch.float32, 1e-6)],
)
def test_scales_and_strengths_are_no_constants_of_compiled_code(
    randn: Callable, kind: str, dtype: torch.dtype, bound: float
) -> None:
    """Layers that differ in them share one graph, with fp8 products, which take bfloat16, and without."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(lambda q, x: q(x), fullgraph=True, backend="eager")
    for size in (1.0, 3.0, 7.0):
        q, x = layer_of(to_float8(size * randn(48, 256)), None), randn(5, 256).to(dtype)
        change = Branch(randn(4, 256), randn(48, 4)) if kind == "branch" else beside(Full(randn(48, 256)))
        q.branches = ((change, size / 8),)
        quicken(q)
        assert relative(compiled(q, x).float(), q(x).float()) < bound
    assert counters["stats"]["unique_graphs"] == 1


def test_what_a_card_must_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, kinds in (((7, 5), {"int8"}), ((8, 9), {"int8", "fp8"}), ((10, 0), set(products.NEEDED))):
        products._card_has.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, has=capability: has)
        assert {kind for kind in products.NEEDED if products.card_has(kind, torch.device("cuda"))} == kinds
    products._card_has.cache_clear()
