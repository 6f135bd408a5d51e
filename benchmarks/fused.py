"""The pack's Triton kernels as a card sees them: a launch that reads its inputs once and writes its results once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from a2v.ltx.diffusion import block, kernels
from a2v.ltx.diffusion.modulation import Ada, Pair
from a2v.ltx.weights import decoding, int8, quantized, rounding
from a2v.ltx.weights.quantized import reading
from a2v.ltx.weights.rounding import Input, Rounded
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


def norm_modulate(
    add: Add, norm: nn.Module, x: Tensor, ada: Ada, shift: int, scale: int, readers: Iterable[nn.Module]
) -> Input:
    rounded, plain = reading(readers, x)
    made = Rounded.empty(x, plain) if rounded else torch.empty_like(x)
    add([x, ada.values[shift], ada.values[scale]], _forms(made))
    return made


def gelu(add: Add, x: Tensor, readers: Iterable[nn.Module]) -> Input:
    rounded, plain = reading(readers, x)
    made = Rounded.empty(x, plain) if rounded else torch.empty_like(x)
    add([x], _forms(made))
    return made


def _forms(made: Input) -> list[Tensor]:
    """What a kernel writes."""
    if isinstance(made, Tensor):
        return [made]
    return [made.values, made.factors, *([] if made.plain is None else [made.plain])]


def norm_rotate(add: Add, norm: nn.Module, x: Tensor, heads: int, positions: Pair) -> Tensor:
    result = torch.empty_like(x)
    add([x, norm.weight, *positions], [result])
    return result.unflatten(2, (heads, -1))


def add_gated(add: Add, x: Tensor, change: Tensor, ada: Ada, gate: int, result: Tensor) -> Tensor:
    add([x, change, ada.values[gate]], [result])
    return result


def gate_heads(add: Add, parts: list[Tensor], logits: Tensor, reader: nn.Module) -> Input:
    sizes = [len(part) for part in parts]
    shape = (len(logits), parts[0].shape[1], parts[0].shape[2] * parts[0].shape[3])
    rounded, plain = reading((reader,), parts[0])
    if rounded:
        made = Rounded.empty(parts[0], plain, shape)
    else:
        made = parts[0].view(shape) if len(parts) == 1 else parts[0].new_empty(shape)
    for part, own, *results in zip(
        parts, logits.split(sizes), *(form.split(sizes) for form in _forms(made)), strict=True
    ):
        add([part, own], results)
    return made


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
    gelu: (block,),
    decode: (quantized, int8),
    in_one_pass: (rounding,),
}
"""Each of these functions, and the modules in which code looks up the kernel's launch by the same name."""
