"""A program for test_kernels.py: it runs the Triton kernels in Triton's interpreter, which its environment asks for.

It prints the errors against the eager code, one JSON line each: [name, relative L2]. Of kernels that round to fp8 it
prints how many values differ from a rounding afterwards."""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

assert os.environ["TRITON_INTERPRET"] == "1"
ROOT = Path(__file__).resolve().parents[3]
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules["a2v"] = alias

import torch
import torch.nn.functional as F
from a2v.ltx.diffusion import kernels
from a2v.ltx.diffusion.block import Block, _gated, _modulated, _rotate
from a2v.ltx.diffusion.leading import Leading
from a2v.ltx.diffusion.modulation import Ada, Places
from a2v.ltx.diffusion.passes import Led
from a2v.ltx.nag import Nag
from a2v.ltx.weights import products, rounding
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.quantized import Branch, QuantizedLinear, layer_of, quantize, quicken, read_by, to_float8
from a2v.ltx.weights.rounding import Input, Rounded
from a2v.tests.ltx.diffusion.one_pass import Case, guided_step
from a2v.tests.tiny import write_tiny
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention
from torch import Tensor, nn

ROUNDED = ((2, 5, 3, 8), (3, 4, 1, 24))  # an fp8 product takes multiples of 16
SHAPES = ((2, 10, 3, 5), (1, 6, 2, 16), (3, 4, 5, 12))  # rows, tokens, heads, half a head: no multiples of a block


def both(model: nn.Module, work: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    results = []
    for on in (False, True):
        kernels.fuse(model, on)
        results.append(work())
    return results[0], results[1]


def tell(name: str, eager: Tensor, fused: Tensor) -> None:
    assert eager.shape == fused.shape and eager.dtype == fused.dtype, name
    assert fused.float().isfinite().all()
    error = float((eager.double() - fused.double()).norm() / eager.double().norm())
    print(json.dumps([name, error]), flush=True)


Draw = Callable[..., Tensor]


def compare(shape: tuple[int, int, int, int], dtype: torch.dtype, randn: Draw) -> None:
    rows, tokens, heads, half = shape
    width, name = heads * 2 * half, f"{rows}x{tokens}x{heads}x{half} {str(dtype).removeprefix('torch.')}"
    x, change = randn(rows, tokens, width).to(dtype), randn(rows, tokens, width).to(dtype)
    norm = torch.nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
    block = Block.__new__(Block)
    nn.Module.__init__(block)
    for levels in (1, 2, tokens):
        index = torch.arange(tokens) % levels
        ada = Ada(tuple(randn(4, levels, width).to(dtype)), Places.of(index) if levels > 1 else None)
        tell(f"modulate {levels} {name}", *both(norm, partial(_modulated, norm, x, ada, 1, 2, ())))
        tell(f"gate {levels} {name}", *both(block, lambda ada=ada: block._added(ada, x, change.clone(), 2)))

    def add(gate: Ada) -> Tensor:
        block._add(gate, target := x.clone(), change)
        return target

    tell(f"gate in place {name}", *both(block, partial(add, Ada((randn(1, width).to(dtype),), None))))
    attention = LTX2Attention(width, heads=heads, kv_heads=heads, dim_head=2 * half, rope_type="split").to(dtype)
    attention.norm_q.weight.copy_(randn(width))
    attended = randn(rows, tokens, heads, 2 * half).to(dtype)
    logits = randn(rows, tokens, heads).to(dtype)
    strided = attended.transpose(1, 2).contiguous().transpose(1, 2)  # as a backend may return it
    for kind, parts in (("whole", (attended,)), ("rows", attended.split(1)), ("strided", (strided,))):
        work = lambda parts=parts: _gated(attention, [part.clone() for part in parts], logits)  # noqa: E731
        tell(f"heads {kind} {name}", *both(attention, work))
    for shared in (1, 2):
        pair = randn(tokens // shared, 1, heads, half), randn(tokens // shared, 1, heads, half)
        tell(f"rotate {shared} {name}", *both(attention, partial(_rotate, attention, attention.norm_q, x, pair)))


def reader(width: int, randn: Draw, lora: bool) -> QuantizedLinear:
    layer = layer_of(to_float8(randn(32, width)), None)
    layer.branches = ((Branch(randn(4, width).bfloat16(), randn(32, 4).bfloat16()), 1.0),) if lora else ()
    quicken(layer)
    return layer


def tell_rounded(name: str, made: Input, expected: Tensor, lora: bool) -> None:
    """Compares what a kernel made for fp8 products with the rounding of `expected` by the eager code."""
    assert isinstance(made, Rounded) and made.shape == expected.shape and made.dtype == expected.dtype, name
    assert (made.plain is not None) == lora, name
    values, factors = rounding.in_passes(expected.flatten(0, -2), True)
    rows = made.rows()
    wrong = int((rows.values.view(torch.uint8) != values.view(torch.uint8)).sum() + (rows.factors != factors).sum())
    print(json.dumps([name, wrong + (int((made.plain != expected).sum()) if lora else 0)]), flush=True)


def compare_rounded(shape: tuple[int, int, int, int], lora: bool, randn: Draw) -> None:
    rows, tokens, heads, half = shape
    width = heads * 2 * half
    name = f"{'beside a LoRA ' if lora else ''}{rows}x{tokens}x{heads}x{half}"
    layer, x = reader(width, randn, lora), randn(rows, tokens, width).bfloat16()
    norm = torch.nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
    attention = LTX2Attention(width, heads=heads, kv_heads=heads, dim_head=2 * half, rope_type="split").bfloat16()
    kernels.fuse(norm)
    kernels.fuse(attention)
    for levels in (1, 2):
        places = Places.of(torch.arange(tokens) % levels) if levels > 1 else None
        ada = Ada(tuple(randn(4, levels, width).bfloat16()), places)
        expected = _modulated(norm, x, ada, 1, 2, ())
        tell_rounded(f"modulate {levels} {name}", _modulated(norm, x, ada, 1, 2, (layer, layer)), expected, lora)
    both_forms = _modulated(norm, x, ada, 1, 2, (layer, nn.Linear(width, 4)))
    assert read_by(nn.Linear(width, 4), both_forms) is both_forms.plain and read_by(layer, both_forms) is both_forms
    attended, logits = randn(rows, tokens, heads, 2 * half).bfloat16(), randn(rows, tokens, heads).bfloat16()
    strided = attended.transpose(1, 2).contiguous().transpose(1, 2)
    for kind, parts in (("whole", (attended,)), ("rows", attended.split(1)), ("strided", (strided,))):
        own = [part.clone() for part in parts]
        expected = kernels.gate_heads([part.clone() for part in parts], logits)
        tell_rounded(f"heads {kind} {name}", kernels.gate_heads(own, logits, layer), expected, lora)
    wide = 4 * randn(rows, tokens, width)
    with patch.object(kernels, "reading", lambda layers, x: (True, True)):
        made = kernels.gelu(wide, ())
    tell(f"gelu {name} float32", F.gelu(wide, approximate="tanh"), made.plain)
    tell_rounded(f"gelu {name}", made, made.plain, True)
    tell_rounded(f"gelu 16 bits {name}", kernels.gelu(x, (layer,)), kernels.gelu(x, (layer, nn.Identity())).plain, lora)


def multiplied(
    x: Tensor, weight: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    """A card's product with scales by rows."""
    y = (x.float() * scale_a) @ (weight.float() * scale_b)
    return (y if bias is None else y + bias.float()).to(out_dtype)


def able() -> Any:
    """A card that multiplies fp8 by rows."""
    return patch.multiple(products, card_has=lambda kind, device: kind == "fp8", rows_have_scales=lambda device: True)


def fp8_step(folder: str, randn: Draw) -> None:
    """A step whose inputs are rounded where they are made, beside one whose inputs are rounded afterwards."""
    files = write_tiny(Path(folder), layers=2, heads=16, head_dim=8, vae_width=4, gemma_layers=1)
    model = load_checkpoint(files.checkpoint).transformer(torch.bfloat16)
    quantize(model)
    quicken(model)
    kernels.fuse(model)
    run = Case(model, randn, image=0.4, dtype=torch.bfloat16)
    compute, found = QuantizedLinear.compute, []

    def later(layer: QuantizedLinear, x: Input, *rest: Any) -> Tensor:
        return compute(layer, x.plain if isinstance(x, Rounded) else x, *rest)

    both_forms = patch.object(kernels, "reading", lambda layers, x: (bool(layers), True))
    with able(), patch.object(torch, "_scaled_mm", multiplied):
        for way in ((both_forms, patch.object(QuantizedLinear, "compute", later)), ()):
            with ExitStack() as stack:
                for change in way:
                    stack.enter_context(change)
                counted = patch.object(rounding, "in_one_pass", wraps=rounding.in_one_pass)
                after = stack.enter_context(counted)
                found.append((torch.cat([one.video for one in run.run(guided_step(run))]), after.call_count))
    (expected, many), (made, few) = found
    assert few < many / 4, f"{few} of {many} inputs were rounded afterwards"
    tell("an fp8 step", expected, made)


@torch.inference_mode()
def main(part: str, folder: str) -> None:
    draw = torch.Generator().manual_seed(7)
    randn = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    if part == "kernels":
        for shape, dtype in product(SHAPES, (torch.float32, torch.bfloat16)):
            compare(shape, dtype, randn)
        return
    if part == "rounded":
        with able():
            for shape, lora in product(ROUNDED, (False, True)):
                compare_rounded(shape, lora, randn)
        return
    if part == "fp8 step":
        fp8_step(folder, randn)
        return
    files = write_tiny(Path(folder), layers=2, vae_width=4, gemma_layers=1)
    model = load_checkpoint(files.checkpoint).transformer(torch.float32)
    run = Case(model, randn, image=0.4)
    usual = guided_step(run)
    away = Led(Leading.of(Nag(), "cpu", torch.float32), usual[1].video_context, None)
    led = [replace(each, led=away) if each.video_context is run.text else each for each in usual]
    for name, passes in (("a guided step", usual), ("with NAG", led)):
        tell(name, *both(model, lambda passes=passes: torch.cat([one.video for one in run.run(passes)])))


main(*sys.argv[1:])
