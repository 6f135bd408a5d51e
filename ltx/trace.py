"""A run's tensors under names, and the file that keeps them: the names are those of the golden files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

Trace = Callable[[str, Tensor], None]
"""(name, tensor): is shown the tensors of a run as they are made."""


def under(prefix: str, trace: Trace | None) -> Trace | None:
    """The same trace for names that begin with `prefix` and a slash."""
    return None if trace is None else lambda name, tensor: trace(f"{prefix}/{name}", tensor)


class Recorder:
    """Collects named tensors; floats become float32, everything is copied to the CPU."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> None:
        kept = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else None, copy=True)
        self.tensors[name] = kept.contiguous()

    def save(self, path: str | Path) -> None:
        """Writes all of it, under a temporary name first. Errors: OSError."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        try:
            save_file(self.tensors, str(partial), metadata={"format": "pt"})
            partial.replace(path)
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({error})") from error
        finally:
            partial.unlink(missing_ok=True)
