"""The kinds of GPUs on which a job can compute: which one is there, its name and memory, and its usual dtype.

Only cuda was ever run with this pack. What is used of the other kinds is what torch documents of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .computing import CPU, CUDA, GPUS, MPS


def is_there(kind: str) -> bool:
    """Whether torch can compute on a device of a kind: the CPU, or one of GPUS."""
    if kind == CPU:
        return True
    return (torch.backends.mps if kind == MPS else getattr(torch, kind)).is_available()


def usual() -> str:
    """The kind of device that a job takes if nobody names one."""
    return next(filter(is_there, (*GPUS, CPU)))


def has_bfloat16(kind: str) -> bool:
    """Whether a device that is there computes in bfloat16. Apple's GPUs do so since macOS 14, and the GPUs of other
    makers in a Mac never do."""
    if kind != MPS:
        return True
    try:
        torch.ones(1, dtype=torch.bfloat16, device=kind).add_(1)
    except (TypeError, RuntimeError):
        return False
    return True


def usual_dtype(kind: str) -> torch.dtype:
    """The dtype in which a device of that kind computes if nobody names one. It is never float16, which lacks the
    range of the bfloat16 that the model was made in."""
    return torch.bfloat16 if kind != CPU and has_bfloat16(kind) else torch.float32


def found() -> Iterator[tuple[torch.device, str, int]]:
    """Each GPU that torch finds, with its name and the bytes of its memory. For Apple's that is the part of the host's
    memory that it may take."""
    for kind in filter(is_there, GPUS):
        if kind == MPS:
            yield torch.device(kind), "Apple GPU", torch.mps.recommended_max_memory()
            continue
        module = getattr(torch, kind)
        for number in range(module.device_count()):
            properties = module.get_device_properties(number)
            yield torch.device(kind, number), properties.name, properties.total_memory


def free_on_gpu(device: torch.device) -> int | None:
    """Bytes that new tensors may take on a GPU now, with what torch keeps in reserve there; None if the GPU does not
    tell, as Intel's that share the host's memory."""
    if device.type == MPS:  # the advised maximum: beyond it, macOS moves memory to its disk
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    module = getattr(torch, device.type)
    try:
        free, _ = module.mem_get_info(device)
    except (AttributeError, RuntimeError):
        if device.type == CUDA:
            raise
        return None
    return free + module.memory_reserved(device) - module.memory_allocated(device)


def free_cached_memory() -> None:
    """Releases the memory that torch keeps in reserve on GPUs, so that tensors of other sizes fit."""
    for kind in filter(is_there, GPUS):
        getattr(torch, kind).empty_cache()
