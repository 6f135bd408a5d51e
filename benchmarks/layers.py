"""What a linear layer costs in each format of small weights, counted without a GPU: decoded at each call, multiplied in
its own format, and with a LoRA.

A step in a format differs from one in 16 bits in the linear layers of its blocks alone. So each kind of call is counted
once, by the layer's own code, in place of the call of a plain layer (`exchanged`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from a2v.benchmarks import gpu
from a2v.benchmarks.count import DEVICE, FP4, FP8, INT8, Call, Cost, Step, counting
from a2v.ltx.weights import nvfp4, products
from a2v.ltx.weights.gguf import Blocks
from a2v.ltx.weights.int8 import Int8
from a2v.ltx.weights.quantized import Stored, layer_of, to_float8
from torch import Tensor, nn

KIND = torch.bfloat16  # what the blocks compute in
KINDS = {"bf16": "", "fp8": "fp8", "int8": "int8", "GGUF Q8_0": "Q8_0", "NVFP4": "nvfp4", "GGUF Q4_0": "Q4_0"}
"""The formats of the table, and their names here. int8 has a scale for each row."""
RANK = 384  # of the published distilled LoRA


def stored(kind: str, inputs: int, outputs: int) -> Stored:
    """A weight [outputs, inputs] in that format, without numbers."""

    def data(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, device=DEVICE)

    shape = torch.Size((outputs, inputs))
    if kind == "fp8":
        return to_float8(torch.empty(shape, dtype=KIND, device=DEVICE))
    if kind == "int8":
        return Stored(data(*shape), shape, Int8(data(4 * outputs)))
    if kind == "nvfp4":
        rows, columns = (-(-side // nvfp4.BLOCK) * nvfp4.BLOCK for side in shape)
        scales = data(nvfp4.tiled(rows, columns // nvfp4.BLOCK))
        return Stored(data(rows, columns // 2), shape, nvfp4.NVFP4(scales, torch.ones(()), (outputs, inputs)))
    import gguf

    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return Stored(data(outputs, inputs // values * size), shape, Blocks(kind))


@dataclass(frozen=True)
class Layers:
    """How the linear layers of the blocks are. kind: their format, "" for 16 bits; rank: of a LoRA pair on each, 0 for
    none; fast: whether they multiply in their own format."""

    kind: str = ""
    rank: int = 0
    fast: bool = False

    def one(self, inputs: int, outputs: int, has_bias: bool) -> nn.Linear:
        plain = nn.Linear(inputs, outputs, has_bias, dtype=KIND, device=DEVICE)
        if not self.kind:
            return plain
        layer = layer_of(stored(self.kind, inputs, outputs), plain.bias)
        layer.branches = ((gpu.random_pair(layer, self.rank, KIND), gpu.STRENGTH),) if self.rank else ()
        layer.fast = self.fast
        return layer

    def bytes(self, model: nn.Module) -> int:
        """Of the weights of a model in 16 bits, if its linear layers were such ones."""
        total = 0
        with counting():
            for layer in model.modules():
                if isinstance(layer, nn.Linear):
                    layer = self.one(layer.in_features, layer.out_features, layer.bias is not None)
                total += sum(parameter.nbytes for parameter in layer.parameters(recurse=False))
        return total


@cache
def of_call(call: Call, layers: Layers) -> Cost:
    """What one call of such a layer costs."""
    tokens, *shape = call
    with counting() as (cost, _), able(cost):
        layer, x = layers.one(*shape), torch.empty(1, tokens, shape[0], dtype=KIND, device=DEVICE)
        layer(x)  # the first call writes what later ones find
        before = Cost().plus(cost)
        layer(x)
    return cost.per(1, before)


def exchanged(step: Step, layers: Layers) -> Step:
    """A step in 16 bits as it would be with such layers in its blocks. Its peak is not counted again."""
    cost = step.cost
    for call, times in step.calls.items():
        cost = cost.plus(of_call(call, Layers()), -times).plus(of_call(call, layers), times)
    return Step(cost, step.peak, step.calls)


@contextmanager
def able(cost: Cost) -> Iterator[None]:
    """A card that multiplies in every format."""
    kitchen = SimpleNamespace(**{f.__name__: _counted(f, cost) for f in (int8_linear, quantize_nvfp4, scaled_mm_nvfp4)})
    with (
        patch.object(torch, "_scaled_mm", _counted(scaled_mm, cost)),
        patch.multiple(
            products,
            card_has=lambda kind, device: True,
            rows_have_scales=lambda device: True,
            kitchen=lambda function: kitchen,
        ),
    ):
        yield


def _counted(function: Callable[..., Any], cost: Cost) -> Callable[..., Any]:
    return lambda *given, **named: function(cost, *given, **named)


# torch's product of fp8 and comfy-kitchen's functions, as a card sees them: one kernel rounds the input, another
# multiplies.


def scaled_mm(
    cost: Cost, x: Tensor, weight: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    return _product(cost, [x, weight, scale_a, scale_b], bias, (*x.shape, weight.shape[1]), out_dtype, FP8)


def int8_linear(
    cost: Cost, x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype, **_: Any
) -> Tensor:
    rounded, factors = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(len(x), 1, dtype=torch.float32)
    cost.add([x], [rounded, factors])
    return _product(cost, [rounded, factors, weight, scales], bias, (*x.shape, len(weight)), dtype, INT8)


def quantize_nvfp4(cost: Cost, x: Tensor, factor: Tensor, pad_16x: bool) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape
    rounded = x.new_empty(rows, columns // 2, dtype=torch.uint8)
    blocks = x.new_empty(nvfp4.tiled(rows, columns // nvfp4.BLOCK), dtype=torch.uint8)
    cost.add([x, factor], [rounded, blocks])
    return rounded, blocks


def scaled_mm_nvfp4(
    cost: Cost,
    x: Tensor,
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    blocks: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    shape = (len(x), 2 * x.shape[1], len(weight))
    return _product(cost, [x, weight, factor, scale, blocks, scales], bias, shape, dtype, FP4)


def _product(
    cost: Cost, given: list[Tensor], bias: Tensor | None, shape: tuple[int, int, int], dtype: torch.dtype, kind: str
) -> Tensor:
    tokens, inputs, outputs = shape
    made = given[0].new_empty(tokens, outputs, dtype=dtype)
    cost.add([*given, *([] if bias is None else [bias])], [made], 2 * tokens * inputs * outputs, kind)
    return made
