"""A program for test_kernels.py: it runs the Triton kernels in Triton's interpreter, which its environment asks for.

It prints the errors against the eager code, one JSON line each: [name, relative L2]."""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

assert os.environ["TRITON_INTERPRET"] == "1"
ROOT = Path(__file__).resolve().parents[3]
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules["a2v"] = alias

import torch
from a2v.ltx.diffusion import kernels
from a2v.ltx.diffusion.block import Block, _gated, _modulated, _rotate
from a2v.ltx.diffusion.modulation import Ada, Places
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx.diffusion.one_pass import Case, guided_step
from a2v.tests.tiny import write_tiny
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention
from torch import Tensor, nn

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
        tell(f"modulate {levels} {name}", *both(norm, partial(_modulated, norm, x, ada, 1, 2)))
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


@torch.inference_mode()
def main(part: str, folder: str) -> None:
    draw = torch.Generator().manual_seed(7)
    randn = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    if part == "kernels":
        for shape, dtype in product(SHAPES, (torch.float32, torch.bfloat16)):
            compare(shape, dtype, randn)
        return
    files = write_tiny(Path(folder), layers=2, vae_width=4, gemma_layers=1)
    model = load_checkpoint(files.checkpoint).transformer(torch.float32)
    run = Case(model, randn, image=0.4)
    eager, fused = both(model, lambda: torch.cat([one.video for one in run.run(guided_step(run))]))
    tell("a guided step", eager, fused)


main(*sys.argv[1:])
