"""A second device on a machine that has none: tensors that say they lie elsewhere and compute on the CPU all the same.

Within `simulated()` a tensor can be moved to `DEVICE`. An operation that mixes devices fails as it would on a GPU, and
what comes out is bit for bit what the CPU gives, so that a test can compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from a2v.ltx.memory.rehearsal import mapped
from a2v.ltx.weights import decoding, int8, nvfp4
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")  # a device that needs no driver; here its tensors do hold numbers
CPU = torch.device("cpu")
MOVES = ("copy_", "to", "_to_copy")
LACKS = (torch.float64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2)
"""The dtypes that Apple's GPUs lack."""


_lacks: tuple[torch.dtype, ...] = ()


class Elsewhere(Tensor):
    """A tensor on DEVICE; `inner` holds the numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Catches what names DEVICE without a tensor of it: `torch.zeros(device=…)`, `tensor.to(…)`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """`torch.tensor(…, device=…)` makes its tensor without telling the mode above."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": CPU}).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def simulated(lacks: tuple[torch.dtype, ...] = ()) -> Iterator[torch.device]:
    """lacks: dtypes that no tensor on the device can have."""
    global _lacks
    before, _lacks = _lacks, lacks
    _forget_tables()
    try:
        with _FromNumbers(), _Factories():
            yield DEVICE
    finally:
        _lacks = before
        _forget_tables()


def _forget_tables() -> None:
    """Tables that code keeps for a device are of another kind inside than outside, where DEVICE holds no numbers."""
    for kept in (decoding._values_of, nvfp4._pairs, int8._rotation):
        kept.cache_clear()


def _run(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.__name__.split(".")[0]
    tensors: list[Tensor] = []
    named: list[torch.device] = []
    owners: dict[int, Elsewhere] = {}

    def unwrap(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            if isinstance(value, Elsewhere):
                owners[id(value.inner)] = value
                return value.inner
        elif isinstance(value, torch.device):
            named.append(value)
            return CPU
        return value

    args, kwargs = mapped(unwrap, args), mapped(unwrap, kwargs)
    if name == "_has_compatible_shallow_copy_type":  # whether `.data` may be set: not of what lies elsewhere
        return not owners
    if named:
        target = named[0]
    elif name == "to" and len(tensors) == 2:
        target = tensors[1].device
    elif name in MOVES:
        target = tensors[0].device
    else:
        target = DEVICE if owners else CPU
        if owners and any(not isinstance(tensor, Elsewhere) and tensor.ndim for tensor in tensors):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if target.type == DEVICE.type and value.dtype in _lacks:
            raise TypeError(f"{func}: the device has no {value.dtype}")
        owner = owners.get(id(value))
        if target.type == DEVICE.type:
            return Elsewhere(value) if owner is None else owner  # the owner: an operation in place
        return value if owner is None else value.clone()

    return mapped(wrap, func(*args, **kwargs))
