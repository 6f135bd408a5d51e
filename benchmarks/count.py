"""Counts what a piece of code asks of a device, by running it on tensors without numbers: no GPU is needed.

An operation counts as a GPU sees it in inference mode: a fused one (linear, attention, normalisation) is one launch,
which reads each input once and writes its result once; a view is free.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any

import torch
import torch.nn.functional as F
from a2v.benchmarks import fused
from a2v.ltx.memory.rehearsal import ASKING, Rehearsal
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

HALF, FP8, INT8, FP4 = "bf16", "fp8", "int8", "nvfp4"
"""What matrix units multiply: both factors in this format."""


@dataclass(frozen=True)
class Card:
    """A card by its maker's data sheet. products: dense ones with sums in 32 bits, FLOP/s by their format; memory:
    bytes/s; room: bytes; link: bytes/s from the host, one way, of 16 lanes of PCI Express."""

    products: Mapping[str, float]
    memory: float
    room: float
    link: float


PCIE_4, PCIE_5 = 31.5e9, 63e9
CARDS = {
    "H100": Card({HALF: 989e12, FP8: 1979e12, INT8: 1979e12}, 3.35e12, 80 * 2**30, PCIE_5),
    "H200": Card({HALF: 989e12, FP8: 1979e12, INT8: 1979e12}, 4.8e12, 141e9, PCIE_5),
    "RTX 5090": Card({HALF: 209.5e12, FP8: 419e12, INT8: 838e12, FP4: 1676e12}, 1.79e12, 32 * 2**30, PCIE_5),
    "RTX 4090": Card({HALF: 165.2e12, FP8: 330.3e12, INT8: 660.6e12}, 1.008e12, 24 * 2**30, PCIE_4),
    "RTX 5080": Card({HALF: 112.6e12, FP8: 225.1e12, INT8: 450.2e12, FP4: 900.4e12}, 0.96e12, 16 * 2**30, PCIE_5),
    "RTX 4070": Card({HALF: 58.3e12, FP8: 116.6e12, INT8: 233.2e12}, 0.504e12, 12 * 2**30, PCIE_4),
}
DEVICE = torch.device("meta")
"""What stands for the GPU: code that is counted names it as its device."""
FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "lift_fresh", "detach", "_reshape_alias"),
    "dropout",  # returns its input where nothing is trained
}
COPIES = {"to", "_to_copy", "copy_"}
PRODUCTS = {"linear", "addmm", "mm", "bmm", "baddbmm", "matmul"}
WAITING = {*ASKING, torch.ops.aten.nonzero.default, torch.ops.aten._unique2.default}
"""Operations whose result, or its size, the host has to know: it waits for the device if they run there."""


@dataclass
class Cost:
    """What was counted. flops: of matrix products and attention. bytes: read and written. launches: operations that are
    no views. waits: how often the host waits for the device, or copies between them, which waits where the host's
    memory is not pinned. seconds: the roofline of each of CARDS."""

    flops: float = 0
    bytes: float = 0
    launches: float = 0
    waits: float = 0
    seconds: tuple[float, ...] = (0.0,) * len(CARDS)

    def add(self, given: list[Tensor], made: list[Tensor], flops: float = 0, kind: str = HALF) -> None:
        """Counts one operation. kind: the format of its products; a card that lacks it takes for ever."""
        moved = sum(read(tensor) for tensor in {id(t): t for t in given}.values()) + sum(map(read, made))
        self.flops += flops
        self.bytes += moved
        self.launches += 1
        each = zip(self.seconds, CARDS.values(), strict=True)
        self.seconds = tuple(
            before + max(flops / card.products[kind] if kind in card.products else inf, moved / card.memory)
            for before, card in each
        )

    def plus(self, other: Cost, times: float = 1.0) -> Cost:
        """This and `times` the other one."""
        names = ("flops", "bytes", "launches", "waits")
        numbers = (getattr(self, name) + times * getattr(other, name) for name in names)
        each = zip(self.seconds, other.seconds, strict=True)
        return Cost(*numbers, tuple(own + times * further if own < inf else inf for own, further in each))

    def per(self, steps: int, before: Cost) -> Cost:
        """What came after `before`, by step."""
        return Cost().plus(self, 1 / steps).plus(before, -1 / steps)


Call = tuple[int, int, int, bool]
"""A call of a linear layer: tokens, width of the input, width of the output, whether it has a bias."""


@dataclass(frozen=True)
class Step:
    """A step of one stage. peak: the most bytes alive at once beside the weights; calls: how often each linear layer of
    the blocks is called, by what its cost depends on."""

    cost: Cost
    peak: int
    calls: Mapping[Call, float] = field(default_factory=dict)


class _Meter(Rehearsal):
    def __init__(self, cost: Cost) -> None:
        super().__init__("cuda")
        self.cost = cost
        self._there: set[int] = set()  # storages on the device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = super().__torch_dispatch__(func, types, args, kwargs)
        given, made = _tensors((args, kwargs)), _tensors(result)
        name, places = func.overloadpacket.__name__, {self._is_there(tensor) for tensor in given}
        there = True in places
        named = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
        self._place(made, named[0] == DEVICE if named else there)
        if not there and not (made and self._is_there(made[0])):
            return result  # work of the host
        crossing = name in COPIES and len(places | {*map(self._is_there, made)}) > 1
        if crossing or func in WAITING:
            self.cost.waits += 1
        if name in FREE or func in ASKING or _is_view(func, given, made):
            return result
        if name == "copy_" or "out" in kwargs:  # the target is only written
            given = _tensors(args[1:] if name == "copy_" else args)
        kind = name.removesuffix("_")  # in place or not
        self.cost.add(given, made, _flops(kind, given) if kind in PRODUCTS else 0)
        return result

    def _is_there(self, tensor: Tensor) -> bool:
        return _key(tensor) in self._there

    def _place(self, made: list[Tensor], there: bool) -> None:
        for tensor in made:
            key = _key(tensor)
            if there and key not in self._there:
                self._there.add(key)
                weakref.finalize(tensor.untyped_storage(), self._there.discard, key)


class _Attention(TorchFunctionMode):
    """Fused attention as one operation that holds only its result."""

    def __init__(self, cost: Cost) -> None:
        super().__init__()
        self.cost = cost

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (kwargs.get(name, *args[i : i + 1]) for i, name in enumerate(("query", "key", "value")))
        made = torch.empty_like(query)  # in its layout, as torch's backends give it
        self.cost.add([query, key, value], [made], 2 * key.shape[-2] * (query.numel() + made.numel()))
        return made


def _is_view(func: Any, given: list[Tensor], made: list[Tensor]) -> bool:
    """Whether an operation moves nothing. `to` and `reshape` are called views, but they may copy."""
    return func.is_view and bool(made) and _key(made[0]) in {_key(tensor) for tensor in given}


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def read(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; what stride 0 repeats counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * prod(size for size, stride in sizes if stride)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _flops(name: str, given: list[Tensor]) -> int:
    x, weight = given[1:3] if name in ("addmm", "baddbmm") else given[:2]
    return 2 * x.numel() * (weight.shape[0] if name == "linear" else weight.shape[-1])


def _on_device(x: Tensor) -> bool:
    return x.device == DEVICE


@contextmanager
def counting() -> Iterator[tuple[Cost, Rehearsal]]:
    """Inside `with`, tensors have sizes but no numbers, and what runs on DEVICE is counted. The second value knows the
    memory."""
    cost = Cost()
    with torch.inference_mode(), fused.counted(cost.add, _on_device), _Attention(cost), _Meter(cost) as meter:
        yield cost, meter
