"""Offloading: blocks wait in host memory and are copied to the device when they compute, the next one in advance.

So a model that is larger than the device can compute, with the same numbers. diffusers' group offloading moves a block
at every call and learns the next block from the model's own forward. Here the passes of a step may call a block several
times in a row, under this pack's own forward (passes.py), so a block stays on the device until another one is called.

Before weights are changed, for instance by merging a LoRA, call `rest`, which puts all blocks back into host memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

Home = list[tuple[nn.Module, str, Tensor]]
"""For each tensor of a block: its module, its name there, and the tensor in host memory."""


class Offload:
    """Puts a model on `device`, except `blocks`, which are copied there when they are called.

    The blocks must be in host memory. At most two of them are on the device at a time. On CUDA the next block is copied
    on a separate stream, from page-locked memory. With `pinned` all blocks are page-locked for good, which takes as
    much host memory as they have bytes; otherwise each block is page-locked for its copy.
    """

    def __init__(
        self, module: nn.Module, blocks: Iterable[nn.Module], device: torch.device | str, *, pinned: bool = False
    ) -> None:
        self.module, self.blocks, self.device = module, list(blocks), torch.device(device)
        self.pinned = pinned
        self.fetched = 0  # number of blocks that were copied to the device so far
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._homes: dict[int, Home] = {}  # of the blocks that are on the device
        self._coming: dict[int, tuple[list[Tensor], Any]] = {}  # copies in progress, each with the event of its end
        inside = {id(part) for block in self.blocks for part in block.modules()}
        moved: dict[int, Tensor] = {}  # a tensor that two modules share stays shared
        for part in module.modules():
            if id(part) not in inside:
                for name, tensor in _own(part):
                    if id(tensor) not in moved:
                        moved[id(tensor)] = _like(tensor, tensor.to(self.device))
                    setattr(part, name, moved[id(tensor)])
        self._hooks = [
            block.register_forward_pre_hook(partial(self._enter, number)) for number, block in enumerate(self.blocks)
        ]

    def rest(self) -> None:
        """Puts all blocks back into host memory. Afterwards their weights may be changed."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        self._coming.clear()
        for number in list(self._homes):
            self._leave(number)

    def release(self) -> None:
        """Puts all blocks back into host memory and removes the hooks."""
        self.rest()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> Offload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _enter(self, number: int, block: nn.Module, inputs: Sequence[object]) -> None:
        if number in self._homes:
            return
        for other in list(self._homes):
            self._leave(other)
        if number not in self._coming:
            self._fetch(number)
        copies, copied = self._coming.pop(number)
        if copied is not None:
            torch.cuda.current_stream(self.device).wait_event(copied)
        home = [(part, name, tensor) for part in block.modules() for name, tensor in _own(part)]
        self._homes[number] = home
        for (part, name, tensor), copy in zip(home, copies, strict=True):
            setattr(part, name, _like(tensor, copy))
        if len(self.blocks) > 1:
            self._fetch((number + 1) % len(self.blocks))

    def _leave(self, number: int) -> None:
        for part, name, tensor in self._homes.pop(number):
            setattr(part, name, tensor)

    def _fetch(self, number: int) -> None:
        """Begins to copy a block to the device. Its event tells when the copy is complete."""
        tensors = [tensor for part in self.blocks[number].modules() for _, tensor in _own(part)]
        self._coming.clear()  # drops the copy of a block that was not called after all
        self.fetched += 1
        if self._stream is None:
            self._coming[number] = [tensor.to(self.device) for tensor in tensors], None
            return
        # This copy may overwrite memory that queued kernels of the previous block still read, so it waits for them.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            copies = []
            for tensor in tensors:
                locked = tensor.data.pin_memory()
                if self.pinned:
                    tensor.data = locked
                copies.append(locked.to(self.device, non_blocking=True))
            self._coming[number] = copies, self._stream.record_event()


def _own(part: nn.Module) -> list[tuple[str, Tensor]]:
    return [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]


def _like(tensor: Tensor, copy: Tensor) -> Tensor:
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy


def offload_transformer(model: nn.Module, device: torch.device | str, *, pinned: bool = False) -> Offload:
    """Offloads the blocks of a transformer that was loaded on the CPU."""
    return Offload(model, model.transformer_blocks, device, pinned=pinned)


def offload_gemma(model: nn.Module, device: torch.device | str, *, pinned: bool = False) -> Offload:
    """Offloads the language model's layers of a Gemma model that was loaded on the CPU."""
    return Offload(model, model.model.language_model.layers, device, pinned=pinned)
