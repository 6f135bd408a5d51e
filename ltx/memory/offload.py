"""Offloading: blocks wait in host memory and are copied to the device when they compute, the next one in advance.

So a model that is larger than the device can compute, with the same numbers. diffusers' group offloading moves a block
at every call and learns the next block from the model's own forward. Here the passes of a step may call a block several
times in a row, under this pack's own forward (passes.py), so a block stays on the device until another one is called.
Blocks that fit beside the step are resident: they stay on the device. A `Placement`, which the forecast decides, says
how many.

Before weights are changed, for instance by merging a LoRA, call `rest`, which puts the waiting blocks back into host
memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..weights.quantized import parts_of

PINNED_SHARE = 0.75
"""Waiting blocks are page-locked if they take at most this share of the free host memory. torch rounds each tensor's
locked memory up to a power of two, which is an eighth of Gemma's layers, and the system cannot swap it: what is left is
for that, for frames, and for other programs."""
Home = list[tuple[nn.Module, str, Tensor]]
"""For each tensor of a block: its module, its name there, and the tensor in host memory."""


@dataclass(frozen=True)
class Placement:
    """Where a model's blocks wait. resident: the number of blocks that stay on the device; pinned: whether the others
    are page-locked for good, so that a copy to the device reads them as they lie. locked: whether blocks are copied
    from page-locked memory at all, as on CUDA alone."""

    resident: int = 0
    pinned: bool = False
    locked: bool = True


def waiting(blocks: int, resident: int) -> list[int]:
    """The numbers of the blocks that wait in host memory if `resident` of them stay on the device. They are spread
    evenly, so that a copy has the time in which resident blocks compute."""
    count = blocks - resident
    return [number for number in range(blocks) if (number + 1) * count // blocks > number * count // blocks]


def on_device(blocks: Sequence[int], resident: int) -> int:
    """Bytes of the blocks that are on the device at once, of these bytes each: the resident ones, one that computes and
    one that is copied."""
    sizes = sorted(blocks[number] for number in waiting(len(blocks), resident))
    return sum(blocks) - sum(sizes[:-2])


def residents(blocks: Sequence[int], room: float) -> int:
    """The largest number of blocks that can stay on the device so that the blocks there take at most `room` bytes at
    once; 0 if that is not possible."""
    return max((count for count in range(len(blocks) + 1) if on_device(blocks, count) <= room), default=0)


def pins(size: float, host: float) -> bool:
    """Whether waiting blocks of `size` bytes are page-locked on a GPU's host with `host` bytes free. A torch that
    cannot give page-locked memory back would keep that of each model until the process ends."""
    return size <= PINNED_SHARE * host and hasattr(torch._C, "_host_emptyCache")


def free_pinned() -> None:
    """Gives page-locked memory that no tensor has back to the system. torch would keep it for tensors of its sizes."""
    if hasattr(torch._C, "_host_emptyCache"):
        torch._C._host_emptyCache()


class CopyStream:
    """A CUDA stream of its own, on which blocks are copied to the device while others compute."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def copies(self, tensors: Iterable[Tensor]) -> tuple[list[Tensor], Any]:
        """Begins to copy page-locked tensors. Returns the copies and the event of their end."""
        # A copy may overwrite memory that queued kernels of the previous block still read, so it waits for them.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            copies = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
            return copies, self.stream.record_event()

    def expect(self, copied: Any) -> None:
        """Lets what computes next wait for copies."""
        torch.cuda.current_stream(self.device).wait_event(copied)

    def finish(self) -> None:
        """Waits until nothing is copied any more: the host may then write to the tensors."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        self.stream.synchronize()


class Offload:
    """Puts a model on `device`, except blocks that wait in host memory, which are copied when they are called.

    The blocks must be in host memory. At most two of those that wait are on the device at a time. On CUDA the next one
    is copied on a stream of its own, from page-locked memory: with `placement.pinned` each block is page-locked once;
    otherwise it is copied into memory that is, at each fetch, which torch uses again and again.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Iterable[nn.Module],
        device: torch.device | str,
        placement: Placement = Placement(),
    ) -> None:
        self.module, self.blocks, self.device = module, list(blocks), torch.device(device)
        self.pinned = placement.pinned
        self.fetched = 0  # number of blocks that were copied to the device so far
        self._copying = CopyStream(self.device) if self.device.type == "cuda" else None
        self._homes: dict[int, Home] = {}  # of the waiting blocks that are on the device
        self._coming: dict[int, tuple[list[Tensor], Any]] = {}  # copies in progress, each with the event of its end
        order = waiting(len(self.blocks), placement.resident)
        self._next = dict(zip(order, [*order[1:], *order[:1]], strict=True))
        inside = {id(part) for number in order for part in parts_of(self.blocks[number])}
        moved: dict[int, Tensor] = {}  # a tensor that two modules share stays shared
        for part in parts_of(module):
            if id(part) not in inside:
                for name, tensor in _own(part):
                    if id(tensor) not in moved:
                        moved[id(tensor)] = _like(tensor, tensor.to(self.device))
                    setattr(part, name, moved[id(tensor)])
        if self.pinned:
            free_pinned()  # of the model before
        self._hooks = [self.blocks[number].register_forward_pre_hook(partial(self._enter, number)) for number in order]

    def rest(self) -> None:
        """Puts the waiting blocks back into host memory. Afterwards the weights of all blocks may be changed."""
        if self._copying is not None:
            self._copying.finish()
        self._coming.clear()
        for number in list(self._homes):
            self._leave(number)

    def release(self) -> None:
        """Puts the waiting blocks back into host memory and removes the hooks. All else stays on the device."""
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
        if self._copying is not None:
            self._copying.expect(copied)
        home = [(part, name, tensor) for part in parts_of(block) for name, tensor in _own(part)]
        self._homes[number] = home
        for (part, name, tensor), copy in zip(home, copies, strict=True):
            setattr(part, name, _like(tensor, copy))
        if self._next[number] != number:
            self._fetch(self._next[number])

    def _leave(self, number: int) -> None:
        for part, name, tensor in self._homes.pop(number):
            setattr(part, name, tensor)

    def _fetch(self, number: int) -> None:
        """Begins to copy a block to the device. Its event tells when the copy is complete."""
        tensors = [tensor for part in parts_of(self.blocks[number]) for _, tensor in _own(part)]
        self._coming.clear()  # drops the copy of a block that was not called after all
        self.fetched += 1
        if self._copying is None:
            self._coming[number] = [tensor.to(self.device) for tensor in tensors], None
        else:
            self._coming[number] = self._copying.copies(map(self._locked, tensors))

    def _locked(self, tensor: Tensor) -> Tensor:
        """The tensor in page-locked memory: a copy, which with `pinned` takes the tensor's place."""
        if tensor.is_pinned():
            return tensor.data
        try:
            locked = tensor.data.pin_memory()
        except RuntimeError:  # the system locks no more pages; torch then copies through a buffer of the driver
            self.pinned = False
            return tensor.data
        if self.pinned:
            tensor.data = locked
        return locked


def _own(part: nn.Module) -> list[tuple[str, Tensor]]:
    return [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]


def _like(tensor: Tensor, copy: Tensor) -> Tensor:
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy


def offload_transformer(model: nn.Module, device: torch.device | str, placement: Placement = Placement()) -> Offload:
    """Offloads the blocks of a transformer that was loaded on the CPU."""
    return Offload(model, model.transformer_blocks, device, placement)


def offload_gemma(model: nn.Module, device: torch.device | str, placement: Placement = Placement()) -> Offload:
    """Offloads the language model's layers of a Gemma model that was loaded on the CPU."""
    return Offload(model, model.model.language_model.layers, device, placement)
