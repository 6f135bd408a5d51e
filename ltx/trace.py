"""Traces: the tensors of a run, under the names of the golden files, and the file that keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .media.unfinished import disk_errors, replacing

Trace = Callable[[str, Tensor], None]
"""A function that is called with (name, tensor) for each tensor when a run has computed it."""


def under(prefix: str, trace: Trace | None) -> Trace | None:
    """The same trace with `prefix` and a slash before each name."""
    return None if trace is None else lambda name, tensor: trace(f"{prefix}/{name}", tensor)


class Recorder:
    """Collects named tensors. Floats become float32, and each tensor is copied to the CPU."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> None:
        kept = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else None, copy=True)
        self.tensors[name] = kept.contiguous()

    def save(self, path: str | Path) -> None:
        """Writes all tensors, first under a temporary name. Raises InputError or OSError if the file cannot be
        written."""
        path = Path(path)
        with replacing(path) as partial, disk_errors(path):
            save_file(self.tensors, str(partial), metadata={"format": "pt"})
