"""Weights that wait in host memory: layers that fetch them when they are called, and blocks that keep them for a while.

ComfyUI's layers fetch a weight at each call. CASTABLE gives the engine's layers ComfyUI's classes, which do that. The
passes of a step that run one after the other would fetch each weight as often. With `blocks_stay` the first pass brings
a block's waiting weights to the device, and they are dropped when another block begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ..ltx.memory.rehearsal import bytes_of
from ..ltx.weights.adapters import Leaf
from ..ltx.weights.quantized import QuantizedLinear, ScaledLinear, parts_of


class FetchingLinear(QuantizedLinear, comfy.ops.CastWeightBiasOp):
    """A quantized layer that fetches its bytes to the input's device, as ComfyUI's layers do, and decodes them there.

    Its weight has no patches of ComfyUI, because LoRAs on it are branches.
    """

    comfy_cast_weights = True

    def forward(self, x: Tensor) -> Tensor:
        data, bias, stream = comfy.ops.cast_bias_weight(
            self, dtype=self.weight.dtype, device=x.device, bias_dtype=x.dtype, offloadable=True
        )
        if self.branches and bias is not None:
            bias = bias.clone()  # a branch's tensors may be fetched into its memory before it is added
        y = self.compute(x, data, bias)
        comfy.ops.uncast_bias_weight(self, data, bias, stream)
        return y


class FetchingScaledLinear(FetchingLinear, ScaledLinear):
    """The same for a layer with scales, which it fetches, too."""


class FetchingLeaf(Leaf, comfy.ops.CastWeightBiasOp):
    """A tensor of a LoRA beside a quantized layer. It is fetched when it is called, so ComfyUI may leave it in host
    memory, or page it."""

    comfy_cast_weights = True
    bias = None

    def forward(self, use: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
        value, _, stream = comfy.ops.cast_bias_weight(
            self, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
        )
        result = use(value)
        comfy.ops.uncast_bias_weight(self, value, None, stream)
        return result


CASTABLE = {
    **{
        getattr(nn, name): getattr(comfy.ops.manual_cast, name)
        for name in ("Linear", "Conv1d", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm", "RMSNorm")
    },
    QuantizedLinear: FetchingLinear,
    ScaledLinear: FetchingScaledLinear,
    Leaf: FetchingLeaf,
}
"""torch's layer → ComfyUI's layer, which fetches its weights to the input's device. Embedding is not among them: the
token ids are Gemma's first input and are put on the device of the embeddings."""

Home = list[tuple[nn.Module, str, nn.Parameter]]
"""For each parameter that was fetched: its layer, its name there, and the parameter in host memory."""


def largest(blocks: Iterable[nn.Module]) -> int:
    """Bytes of the largest block, with what is beside its layers."""
    return max(bytes_of(p for part in parts_of(block) for p in part.parameters(recurse=False)) for block in blocks)


class _Stay:
    """The block whose weights are on the device now."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.number: int | None = None
        self.homes: Home = []

    def enter(self, number: int, block: nn.Module, inputs: Any) -> None:
        if number == self.number:
            return
        self.leave()
        self.number = number
        for part in parts_of(block):
            if not hasattr(part, "comfy_cast_weights"):
                continue
            for name, parameter in list(part.named_parameters(recurse=False)):
                if parameter.device != self.device:
                    self.homes.append((part, name, parameter))
                    part._parameters[name] = nn.Parameter(_copy(parameter, self.device), requires_grad=False)

    def leave(self) -> None:
        for part, name, parameter in self.homes:
            part._parameters[name] = parameter
        self.number, self.homes = None, []


def _copy(parameter: Tensor, device: torch.device) -> Tensor:
    return parameter.data.to(device, non_blocking=True)


@contextmanager
def blocks_stay(blocks: Iterable[nn.Module], device: torch.device, on: bool = True) -> Iterator[None]:
    """Inside `with`, a block's waiting weights are fetched when it is called and stay until another one is called.
    `on` False changes nothing."""
    stay = _Stay(device)
    hooks = [
        block.register_forward_pre_hook(partial(stay.enter, number))
        for number, block in enumerate(blocks if on else ())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        stay.leave()
