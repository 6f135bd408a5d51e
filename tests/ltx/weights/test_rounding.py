"""Rounding to fp8: the Triton kernel gives the eager code's bits, wherever kernels run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx import fused
from a2v.ltx.diffusion import block
from a2v.ltx.weights import products, rounding
from a2v.ltx.weights.quantized import layer_of, quicken, to_float8
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention
from torch import Tensor, nn

from .test_products import multiplies_fp8

PROGRAM = Path(__file__).with_name("rounded.py")
needs_triton = pytest.mark.skipif(rounding.triton is None, reason="Triton is not installed")


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """x → what `float8_product` hands to a product with scales by rows, and the scales. The CPU stands for a card."""
    given: list[tuple[Tensor, Tensor]] = []

    def product(x: Tensor, weight: Tensor, scale_a: Tensor, out_dtype: torch.dtype, **_: Any) -> Tensor:
        given.append((x, scale_a))
        return x.new_zeros(len(x), weight.shape[1], dtype=out_dtype)

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        weight = torch.ones(16, x.shape[1]).to(torch.float8_e4m3fn)
        assert products.float8_product(x, weight, 1.0, None) is not None
        return given.pop()

    monkeypatch.setattr(products, "rows_have_scales", lambda device: True)
    monkeypatch.setattr(torch, "_scaled_mm", product)
    return call


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(one[0].view(torch.uint8), other[0].view(torch.uint8)) and torch.equal(one[1], other[1])


@needs_triton
def test_the_kernel_gives_the_eager_codes_bits() -> None:
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, PROGRAM], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 4 * 3 * 6 + 2
    assert [case for case in found if case[1:] != [0, 0]] == []


@pytest.mark.parametrize("capability", [89, 90, 120])
def test_what_a_card_runs(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton compiles for a card that is not there: one read of each value, the nearest float8."""
    triton = pytest.importorskip("triton", "3.3", reason="Triton is not installed, or compiles by another interface")
    if fused.INTERPRETED:
        pytest.skip("Triton runs in its interpreter here")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    block, warps = 4096, rounding.warps(4096)
    kinds = {"x": "*bf16", "rounded": "*u8", "factors": "*fp32", "width": "i32", "inverse": "fp32", "tiny": "fp32"}
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(4)}  # torch's memory, and the width
    constants = {"BLOCK": block, "PTX": True}
    kinds |= dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(rounding._round_rows, kinds, constants, aligned)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    code = triton.compile(source, target=target, options={"num_warps": warps}).asm["ptx"]
    names = re.findall(r"^\s*(?:@\S+ )?([a-z][\w.:]+)", code, re.MULTILINE)
    each = block // warps // 32  # values of a thread, 8 of which are read at once and 2 of which are converted at once
    assert [name for name in names if name.startswith("ld.global")] == ["ld.global.v4.b32"] * (each // 8)
    divisions = [name for name in names if name.startswith("div.")]
    assert divisions in (["div.rn.f32"], ["div.rn.ftz.f32"])  # one for the row
    conversions = re.findall(r"cvt.rn.satfinite.e4m3x2.f32 ", code)
    assert len(conversions) == each // 2 and len(re.findall(r"\bcvt\.", code)) < 2 * each
    assert "st.global.v4.b32" in code


@multiplies_fp8
def test_a_product_takes_the_kernel_where_it_runs(
    by_rows: Callable, randn: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, marked = randn(3, 32).bfloat16(), (torch.full((3, 32), 2.0).to(torch.float8_e4m3fn), torch.ones(3, 1))
    assert same(by_rows(x), rounding.in_passes(x, True))
    monkeypatch.setattr(rounding, "takes_over", lambda x: True)
    monkeypatch.setattr(rounding, "in_one_pass", lambda x: marked)
    assert same(by_rows(x), marked)


@multiplies_fp8
@pytest.mark.parametrize(("crossing", "times"), [(False, 2), (True, 3)])
def test_layers_with_one_input_round_it_once(
    crossing: bool, times: int, randn: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries, keys, values and gates; to_out has an input of its own, and so has a context."""
    attention = LTX2Attention(64, heads=16, kv_heads=16, dim_head=4, cross_attention_dim=64, apply_gated_attention=True)
    for layers in (attention, attention.to_out):
        for name, plain in list(layers.named_children()):
            if isinstance(plain, nn.Linear):
                setattr(layers, name, layer_of(to_float8(plain.weight.detach()), plain.bias))
    quicken(attention.bfloat16(), True)
    x, context = randn(2, 5, 64).bfloat16(), randn(2, 3, 64).bfloat16() if crossing else None
    asked: list[torch.Size] = []

    def rounded(x: Tensor, by_rows: bool) -> tuple[Tensor, Tensor]:
        asked.append(x.shape)
        return rounding.in_passes(x, by_rows)

    monkeypatch.setattr(rounding, "_rounded", rounded)
    with torch.inference_mode():
        shared = block._attention(attention, x, context)
        assert len(asked) == times
        monkeypatch.setattr(block, "sharing", nullcontext)
        assert torch.equal(block._attention(attention, x, context), shared)
    assert len(asked) == times + 5
    assert rounding._shared.found is None


def test_compiled_code_has_the_eager_operations(randn: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(x: Tensor) -> None:
        raise AssertionError("compiled code took the kernel")

    monkeypatch.setattr(fused, "INTERPRETED", True)
    monkeypatch.setattr(fused, "obstacle", lambda device: "")
    monkeypatch.setattr(rounding, "in_one_pass", never)
    x = randn(3, 32).bfloat16()
    with pytest.raises(AssertionError):
        rounding.round_to_float8(x, True)
    compiled = torch.compile(lambda x: rounding.round_to_float8(x, True), fullgraph=True, backend="eager")
    assert same(compiled(x), rounding.in_passes(x, True))


def test_rows_fill_the_range_of_float8(randn: Callable) -> None:
    """Each row's largest magnitude becomes float8's largest, and every value is as near as its 3 bits allow."""
    x = (randn(64, 256) * torch.logspace(-20, 20, 64)[:, None]).bfloat16()
    rounded, factor = rounding.in_passes(x, True)
    assert bool((rounded.float().abs().amax(1) == 448).all()) and factor.shape == (64, 1)
    error, bound = (rounded.double() * factor.double() - x.double()).abs(), x.double().abs() * 2**-4
    assert bool((error <= 1.0001 * torch.maximum(bound, factor.double() * 2**-10)).all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("width", [16, 2048, 4096, 16384])
def test_on_a_gpu_the_kernel_gives_the_eager_codes_bits(width: int) -> None:
    if not products.card_has("fp8", torch.device("cuda")):
        pytest.skip("this card has no fp8 products")
    x = torch.randn(3000, width, device="cuda") * torch.logspace(-20, 20, 3000, device="cuda")[:, None]
    for dtype in (torch.bfloat16, torch.float32):
        assert rounding.takes_over(x.to(dtype))
        assert same(rounding.round_to_float8(x.to(dtype), True), rounding.in_passes(x.to(dtype), True))
