"""INT8 weights as ComfyUI's files store them, plain or rotated ("ConvRot"). They are decoded at each call, on any
device.

A weight is an integer of 8 bits times the scale of its row, or of all rows. A rotated weight W·H is stored in place of
W: H turns the columns of a row in groups, so that no single column is much larger than the others. H is the Kronecker
power of a 4×4 matrix of ones and minus ones over the square root of its size, and its own inverse. The rotation back
adds integers, which float32 (and TF32) hold exactly, so the decoded numbers are the same on all devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from .decoding import decode
from .products import WeightFormat, int8_product
from .quantized import Stored, as_bytes, floats, one_per_row, scales_of

ROTATION = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))
CHUNK = 1 << 22  # values decoded at once; it bounds the size of the temporary float32 tensors


@dataclass(frozen=True, eq=False)
class Int8:
    """scales: the bytes of one float32, or of one per row; group: the columns that are rotated together, 0 for none."""

    scales: Tensor = field(repr=False)
    group: int = 0

    @property
    def format(self) -> WeightFormat:
        return WeightFormat("int8 rotated" if self.group else "int8", "int8")

    def decode(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 [out, in], the integers' bytes → weight [out, in], rounded once to `dtype`."""
        scales = floats(self.scales, data.device)
        if not self.group and (weight := decode(data, torch.int8, scales, dtype)) is not None:
            return weight
        numbers, scales = data.view(torch.int8), scales.view(-1, 1)
        scales = (scales / self.group**0.5 if self.group else scales).expand(len(data), 1)  # the root is a power of two
        if torch.compiler.is_compiling():
            return (self._turned(numbers) * scales).to(dtype)
        weight = torch.empty(data.shape, dtype=dtype, device=data.device)
        rows = max(CHUNK // data.shape[1], 1)
        for start in range(0, len(data), rows):
            part = slice(start, start + rows)
            torch.mul(self._turned(numbers[part]), scales[part], out=weight[part])
        return weight

    def _turned(self, numbers: Tensor) -> Tensor:
        """Integers in float32, rotated back without the division by the root of the group's size."""
        if not self.group:
            return numbers.float()
        return (numbers.float().unflatten(1, (-1, self.group)) @ rotation(self.group, numbers.device)).flatten(1)

    def rows(self, numbers: Tensor) -> Int8:
        return replace(self, scales=scales_of(self.scales, numbers))

    def product(self, x: Tensor, data: Tensor, bias: Tensor | None) -> Tensor | None:
        return int8_product(x, data.view(torch.int8), floats(self.scales, data.device), self.group, bias)


@torch.compiler.assume_constant_result
def rotation(size: int, device: torch.device) -> Tensor:
    """H times the root of its size: ones and minus ones [size, size] in float32. size: a power of 4."""
    return _rotation(size, device)


@cache
def _rotation(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the cached tensor serves later calls, which may run in another mode
        one = torch.tensor(ROTATION, dtype=torch.float32)
        whole = one
        while len(whole) < size:
            whole = torch.kron(whole, one)
        return whole.to(device)


def int8(weight: Tensor, scale: Tensor, group: int = 0) -> Stored:
    """Joins a file's two tensors of a layer. group: the columns that are rotated together, 0 for none.

    Raises ValueError if they do not fit each other.
    """
    if weight.dtype != torch.int8 or weight.ndim != 2:
        raise ValueError(f"a weight of {weight.dtype} {tuple(weight.shape)}")
    if scale.numel() != 1 and not one_per_row(scale, len(weight)):
        raise ValueError(f"a scale of shape {tuple(scale.shape)} for a weight of shape {tuple(weight.shape)}")
    if group and (not _is_power_of_4(group) or weight.shape[1] % group):
        raise ValueError(f"a rotation of {group} columns for a weight of shape {tuple(weight.shape)}")
    return Stored(weight.view(torch.uint8), weight.shape, Int8(as_bytes(scale), group))


def _is_power_of_4(number: int) -> bool:
    return number >= 4 and number & (number - 1) == 0 and number.bit_length() % 2 == 1
