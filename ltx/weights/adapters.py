"""The kinds of change that a LoRA file makes to a weight, each as its formula.

All changes are computed in float32 from the checkpoint's own W and added up, W + sum of strength * change(W). So their
order does not matter, strength 0 is W, and strength 1 is what was trained. The formulas are those of peft and LyCORIS.
ComfyUI's differ in one point: its DoRA divides by the norm of W and not of the changed weight, which peft and LyCORIS
train with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A change of one parameter. kind: its name in reports."""

    kind: ClassVar[str]

    @property
    def shape(self) -> Shape:
        """The shape of the parameter that it fits."""
        raise NotImplementedError

    def fits(self, shape: Shape) -> bool:
        """Whether it can change a parameter of this shape. A matrix also changes a convolution with kernel size 1."""
        return prod(shape) == prod(self.shape) and (shape == self.shape or shape[:2] == self.shape)

    def change(self, weight: Tensor) -> Tensor:
        """W in float32, in the parameter's shape → its change at strength 1, in the same shape and on its device."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class LowRank(Adapter):
    """LoRA: scale * up @ down, with `down` [rank, in] and `up` [out, rank] in the file's dtype."""

    kind = "LoRA"
    down: Tensor = field(repr=False)
    up: Tensor = field(repr=False)
    scale: float = 1.0

    @property
    def shape(self) -> Shape:
        return _shape((self.up, self.down))

    def change(self, weight: Tensor) -> Tensor:
        return _product((self.up, self.down), weight).mul_(self.scale).view(weight.shape)


@dataclass(frozen=True, eq=False)
class Hadamard(Adapter):
    """LoHa: scale * (up @ down) * (up_2 @ down_2), multiplied value by value."""

    kind = "LoHa"
    up: Tensor = field(repr=False)
    down: Tensor = field(repr=False)
    up_2: Tensor = field(repr=False)
    down_2: Tensor = field(repr=False)
    scale: float = 1.0

    @property
    def shape(self) -> Shape:
        return _shape((self.up, self.down))

    def change(self, weight: Tensor) -> Tensor:
        first = _product((self.up, self.down), weight)
        return first.mul_(_product((self.up_2, self.down_2), weight)).mul_(self.scale).view(weight.shape)


@dataclass(frozen=True, eq=False)
class Kronecker(Adapter):
    """LoKr: scale * kron(first, second). Each of the two is a matrix, or a product of two: (matrix,) or (up, down)."""

    kind = "LoKr"
    first: tuple[Tensor, ...] = field(repr=False)
    second: tuple[Tensor, ...] = field(repr=False)
    scale: float = 1.0

    @property
    def shape(self) -> Shape:
        (rows, columns), (rows_2, columns_2) = _shape(self.first), _shape(self.second)
        return rows * rows_2, columns * columns_2

    def change(self, weight: Tensor) -> Tensor:
        first, second = (_product(factors, weight) for factors in (self.first, self.second))
        return torch.kron(first, second * self.scale).view(weight.shape)


@dataclass(frozen=True, eq=False)
class Full(Adapter):
    """A whole difference of a weight or a bias: scale * difference."""

    kind = "full difference"
    difference: Tensor = field(repr=False)
    scale: float = 1.0

    @property
    def shape(self) -> Shape:
        return tuple(self.difference.shape)

    def change(self, weight: Tensor) -> Tensor:
        return _float(self.difference, weight).view(weight.shape) * self.scale


@dataclass(frozen=True, eq=False)
class Replacement(Adapter):
    """A new value of the weight: value - W, so that strength 1 gives the value."""

    kind = "new value"
    value: Tensor = field(repr=False)

    @property
    def shape(self) -> Shape:
        return tuple(self.value.shape)

    def change(self, weight: Tensor) -> Tensor:
        return _float(self.value, weight).view(weight.shape) - weight


@dataclass(frozen=True, eq=False)
class Decomposed(Adapter):
    """DoRA (arXiv:2402.09353): magnitude * V / |V| - W, with V = W + the inner change.

    magnitude: [out] or [out, 1] for norms over each row, [1, in] for norms over each column.
    """

    kind = "DoRA"
    inner: Adapter
    magnitude: Tensor = field(repr=False)

    @property
    def shape(self) -> Shape:
        return self.inner.shape

    def fits(self, shape: Shape) -> bool:
        wanted = ((shape[0],), (shape[0], 1), *([(1, shape[1])] if len(shape) == 2 else []))
        return self.inner.fits(shape) and tuple(self.magnitude.shape) in wanted

    def change(self, weight: Tensor) -> Tensor:
        whole = self.inner.change(weight).add_(weight).flatten(1)
        by_row = self.magnitude.shape[0] == whole.shape[0]
        magnitude = _float(self.magnitude, weight).view((-1, 1) if by_row else (1, -1))
        # A zero row or column has no direction and stays zero.
        norms = whole.norm(dim=1 if by_row else 0, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return whole.mul_(magnitude / norms).view(weight.shape).sub_(weight)


class Leaf(nn.Module):
    """One tensor of a change beside a quantized weight, as a module of its own, under the name `weight`.

    ComfyUI's dynamic memory pages only `weight` and `bias` of a layer, and puts all other parameters onto the device
    for as long as the model is loaded.
    """

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensor, requires_grad=False)

    def forward(self, use: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Returns use(the tensor on `device` in `dtype`)."""
        return use(self.weight.to(device, dtype))


class Edit(nn.Module):
    """An adapter beside a quantized weight: W in float32 → its change. Each of its tensors is a leaf."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.leaves = nn.ModuleList(map(Leaf, tensors(adapter)))

    def forward(self, weight: Tensor) -> Tensor:
        # Copies in the dtype that computes, because ComfyUI may fetch a later tensor into an earlier one's memory.
        values = [
            leaf(lambda value: value.to(torch.float32, copy=True), weight.device, leaf.weight.dtype)
            for leaf in self.leaves
        ]
        return filled(self.adapter, values).change(weight)


def combine(weight: Tensor, terms: Iterable[tuple[Callable[[Tensor], Tensor], float | Tensor]]) -> Tensor:
    """Returns W + sum of factor * change(W) for terms (change, factor), in float32 on the device of `weight`. A factor
    is a number or a tensor []."""
    weight = weight.float()
    total = weight.clone()
    for change, factor in terms:
        if isinstance(factor, Tensor):
            total.addcmul_(change(weight), factor)
        else:
            total.add_(change(weight), alpha=factor)
    return total


def moved(adapter: Adapter, to: Callable[[Tensor], Tensor]) -> Adapter:
    """The same adapter with to(tensor) in place of each of its tensors, in the order of `tensors`."""

    def each(value: object) -> object:
        if isinstance(value, Tensor):
            return to(value)
        if isinstance(value, tuple):
            return tuple(map(each, value))
        return moved(value, to) if isinstance(value, Adapter) else value

    return replace(adapter, **{entry.name: each(getattr(adapter, entry.name)) for entry in fields(adapter)})


def filled(adapter: Adapter, values: Iterable[Tensor]) -> Adapter:
    """The same adapter with these tensors, in the order of `tensors`."""
    following = iter(values)
    return moved(adapter, lambda _: next(following))


def tensors(adapter: Adapter) -> Iterator[Tensor]:
    """All tensors of an adapter."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    moved(adapter, note)
    return iter(found)


def _float(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like.device, torch.float32)


def _product(factors: tuple[Tensor, ...], like: Tensor) -> Tensor:
    """The product of a matrix, or of two, in float32 on the device of `like`."""
    return reduce(torch.matmul, (_float(factor, like) for factor in factors))


def _shape(factors: tuple[Tensor, ...]) -> Shape:
    """The shape of their product."""
    return factors[0].shape[0], factors[-1].shape[1]
