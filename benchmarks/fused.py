"""The pack's Triton kernels as a card sees them: a launch that reads its inputs once and writes its result once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from a2v.ltx.diffusion import block, kernels
from a2v.ltx.diffusion.modulation import Ada, Pair
from a2v.ltx.weights import decoding, int8, quantized, rounding
from torch import Tensor, nn

Add = Callable[[list[Tensor], list[Tensor]], None]
"""Counts one launch: what it reads, what it writes."""


@contextmanager
def counted(add: Add, there: Callable[[Tensor], bool]) -> Iterator[None]:
    """Inside `with`, the kernels take over where a tensor is `there`, and count instead of computing."""
    with ExitStack() as stack:
        for module in (kernels, rounding, decoding):
            stack.enter_context(patch.object(module, "takes_over", there))
        for function, modules in PLACES.items():
            for module in modules:
                stack.enter_context(patch.object(module, function.__name__, _given(function, add)))
        yield


def _given(function: Callable[..., Any], add: Add) -> Callable[..., Any]:
    return lambda *given, **named: function(add, *given, **named)


def norm_modulate(add: Add, norm: nn.Module, x: Tensor, ada: Ada, shift: int, scale: int) -> Tensor:
    result = torch.empty_like(x)
    add([x, ada.values[shift], ada.values[scale]], [result])
    return result


def norm_rotate(add: Add, norm: nn.Module, x: Tensor, heads: int, positions: Pair) -> Tensor:
    result = torch.empty_like(x)
    add([x, norm.weight, *positions], [result])
    return result.unflatten(2, (heads, -1))


def add_gated(add: Add, x: Tensor, change: Tensor, ada: Ada, gate: int, result: Tensor) -> Tensor:
    add([x, change, ada.values[gate]], [result])
    return result


def gate_heads(add: Add, parts: list[Tensor], logits: Tensor) -> Tensor:
    rows = logits.split([len(part) for part in parts])
    whole = parts[0] if len(parts) == 1 else parts[0].new_empty(len(logits), *parts[0].shape[1:])
    for part, own, result in zip(parts, rows, whole.split([len(part) for part in parts]), strict=True):
        add([part, own], [result])
    return whole.flatten(2)


def decode(add: Add, data: Tensor, kind: torch.dtype, scales: Tensor | float, dtype: torch.dtype) -> Tensor:
    weight = data.new_empty(data.shape, dtype=dtype)
    add([data, *([scales] if isinstance(scales, Tensor) else [])], [weight])
    return weight


def in_one_pass(add: Add, x: Tensor) -> tuple[Tensor, Tensor]:
    rounded, factors = x.new_empty(x.shape, dtype=rounding.FLOAT8), x.new_empty(len(x), 1, dtype=torch.float32)
    add([x], [rounded, factors])
    return rounded, factors


PLACES = {
    norm_modulate: (kernels,),
    norm_rotate: (block,),
    add_gated: (block,),
    gate_heads: (block,),
    decode: (quantized, int8),
    in_one_pass: (rounding,),
}
"""Each of these functions, and the modules in which code looks up the kernel's launch by the same name."""
