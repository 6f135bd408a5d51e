"""Keeps the weights of the block that computes on its device, while its passes run one after the other.

ComfyUI's layers fetch a weight that waits in host memory at each call, so that four passes would fetch it four times.
Here the first pass brings the block's waiting weights to the device, and they are dropped when another block begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..ltx.memory.rehearsal import bytes_of
from ..ltx.weights.quantized import QuantizedLinear

Home = list[tuple[nn.Module, str, nn.Parameter]]
"""For each parameter that was fetched: its layer, its name there, and the parameter in host memory."""


def parts_of(block: nn.Module) -> list[nn.Module]:
    """A block's modules, and the changes of LoRAs beside its quantized layers."""
    modules = list(block.modules())
    layers = (module for module in modules if isinstance(module, QuantizedLinear))
    return [*modules, *(part for layer in layers for branch, _ in layer.branches for part in branch.modules())]


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
