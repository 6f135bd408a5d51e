"""A program for test_rounding.py: it runs the Triton kernel in Triton's interpreter, which its environment asks for.

It prints one JSON line for each case: [name, how many values differ from the eager code's, how many factors do]."""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Iterator
from itertools import product
from pathlib import Path

assert os.environ["TRITON_INTERPRET"] == "1"
ROOT = Path(__file__).resolve().parents[3]
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules["a2v"] = alias

import torch
from a2v.ltx.weights import rounding
from torch import Tensor

SHAPES = ((3, 16), (5, 48), (7, 4112), (2, 16384))  # the first three are no multiples of a block
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def cases(shape: tuple[int, int], draw: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """(name, values): rows in float32, at most 448."""
    randn = torch.randn(shape, generator=draw)
    yield "normal", randn
    yield "zeros", torch.cat((torch.zeros(1, shape[1]), -torch.zeros(1, shape[1]), randn[2:]))
    yield "tiny", randn * torch.tensor([1e-30, 1e-5, 2.0**-99, 1e-37, 1e-7, 1e-20, 1e-3][: shape[0]])[:, None]
    yield "one huge value", torch.where(torch.arange(shape[1]) == 5, 448.0, 1e-2 * randn)
    # The factor is 1, so these are on float8's grid or between two of it, in all binades, and where it has no more.
    finer = torch.randint(-32, 33, shape, generator=draw) * 2.0 ** torch.randint(-16, 4, shape, generator=draw)
    yield "ties", torch.where(torch.arange(shape[1]) == 0, 448.0, finer)
    # In float32 alone: what drops bits before it rounds makes ties of these.
    yield "beside ties", torch.where(torch.arange(shape[1]) == 0, 448.0, finer * (1 + 2.0**-20))


def tell(name: str, x: Tensor) -> None:
    assert rounding.takes_over(x), name
    (values, factor), (rounded, own) = rounding.in_passes(x, True), rounding.round_to_float8(x, True)
    assert values.dtype == rounded.dtype and factor.dtype == own.dtype and factor.shape == own.shape
    wrong = values.view(torch.uint8) != rounded.view(torch.uint8)
    assert "ties" not in name or bool((factor == 1).all()), name
    print(json.dumps([name, int(wrong.sum()), int((factor != own).sum())]), flush=True)


@torch.inference_mode()
def main() -> None:
    draw = torch.Generator().manual_seed(7)
    for shape, dtype in product(SHAPES, DTYPES):
        name = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
        for kind, x in cases(shape, draw):
            tell(f"{kind} {name}", x.to(dtype))
    tell("columns of a wider matrix", torch.randn(4, 96, generator=draw).bfloat16()[:, 16:64])
    tell("a transposed matrix", torch.randn(48, 4, generator=draw).bfloat16().t())


main()
