"""What the pack's Triton kernels share: Triton itself, if it is there, and whether it can build them for a device."""

from __future__ import annotations

import logging
import os
import sys
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .errors import out_of_memory

MISSING = f"Triton is not installed (pip install {'triton-windows' if sys.platform == 'win32' else 'triton'})"
"""Why there is no Triton, if there is none."""
try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None
except Exception as error:  # a Triton for another torch or CUDA raises what it likes
    triton = tl = None
    MISSING = f"Triton cannot be imported ({type(error).__name__}: {error})"

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels in Python on the CPU, as the tests do."""


def takes_over(x: Tensor) -> bool:
    """Whether kernels can do the work on `x`. torch.compile merges the eager operations by itself."""
    return (
        (x.is_cuda or INTERPRETED)
        and not torch.compiler.is_compiling()
        and not isinstance(x, FakeTensor)
        and not obstacle(x.device)
    )


def obstacle(device: torch.device) -> str:
    """Why kernels cannot run on a device, in words; "" if they can."""
    if INTERPRETED and triton is not None and device.type == "cpu":
        return ""
    if device.type != "cuda" or not torch.cuda.is_available():
        return "they need a GPU by NVIDIA or AMD"
    try:
        return _tried(device)
    except (RuntimeError, MemoryError):  # the trial lets only the lack of memory pass
        return "the GPU's memory is full"  # now; a later step tries again


@cache
def _tried(device: torch.device) -> str:
    """A GPU's obstacle. It is tried once, and the log says what was found."""
    reason = _reason(device)
    if reason:
        logging.warning("LTX A2V: the Triton kernels stay off, so some steps take longer: %s.", reason)
    return reason


def _reason(device: torch.device) -> str:
    if triton is None:
        return MISSING
    try:
        with torch.cuda.device(device):
            _trial[(1,)](torch.zeros(1, device=device))
    except Exception as error:  # Triton, the C compiler and the driver raise classes of their own
        if out_of_memory(error):
            raise
        first = str(error).strip().partition("\n")[0].rstrip(".")
        return f"Triton cannot build them for {device}: {first or type(error).__name__}"
    return ""


if triton is not None:

    @triton.jit
    def _trial(x):
        tl.store(x, 1.0)
