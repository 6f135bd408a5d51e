"""MXFP8: float8 values with one power of two for 32 neighbours in a row, as ComfyUI's files store them. They are
decoded at each call, on any device.

The layout is that of comfy-kitchen: the scales lie in the tiles of NVFP4. Neither that package nor a GPU with MXFP8
arithmetic is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoding import float8_values
from .nvfp4 import tiled, unswizzle
from .products import EXPONENTS, WeightFormat, mxfp8_product
from .quantized import Stored

BLOCK = 32  # neighbours in a row that share a scale; rows and columns are padded to multiples of this number
MANTISSA = 23  # bits of a float32's mantissa


@dataclass(frozen=True, eq=False)
class MXFP8:
    """scales: one exponent per block, as a byte, in tiles; shape: (out, in) without padding."""

    scales: Tensor = field(repr=False)
    shape: tuple[int, int]
    format = WeightFormat("MXFP8", "mxfp8")

    def decode(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 [R, C] → weight [out, in], rounded once to `dtype`."""
        rows, columns = data.shape
        numbers = float8_values(data, torch.float8_e4m3fn, dtype).view(rows, columns // BLOCK, BLOCK)
        exponents = unswizzle(self.scales.to(data.device), rows, columns // BLOCK)
        weight = torch.mul(numbers, powers(exponents).unsqueeze(-1), out=torch.empty_like(numbers))
        return weight.view(rows, columns)[: self.shape[0], : self.shape[1]]

    def product(self, x: Tensor, data: Tensor, bias: Tensor | None) -> Tensor | None:
        padding = data.shape[1] - x.shape[1]
        x = F.pad(x, (0, padding)) if padding else x
        if EXPONENTS is None:
            return None
        y = mxfp8_product(x, data.view(torch.float8_e4m3fn), self.scales.view(EXPONENTS), bias)
        return y if y is None or y.shape[1] == self.shape[0] else y[:, : self.shape[0]].contiguous()


def powers(exponents: Tensor) -> Tensor:
    """The float32 numbers 2^(byte - 127), made of their bits; byte 0 means 2^-127, which has half a bit's place."""
    return (exponents.int() << MANTISSA).clamp_min(1 << (MANTISSA - 1)).view(torch.float32)


def mxfp8(weight: Tensor, weight_scale: Tensor, shape: tuple[int, int]) -> Stored:
    """Joins a file's two tensors of a layer (out, in) = shape. Raises ValueError if they do not fit such a layer."""
    rows, columns = (-(-size // BLOCK) * BLOCK for size in shape)
    if weight.element_size() != 1 or tuple(weight.shape) not in ((rows, columns), (shape[0], columns)):
        raise ValueError(f"a weight of {weight.dtype} {tuple(weight.shape)} for a layer of {tuple(shape)}")
    if weight_scale.element_size() != 1 or weight_scale.numel() != tiled(rows, columns // BLOCK):
        raise ValueError(f"scales of shape {tuple(weight_scale.shape)} for a layer of {tuple(shape)}")
    return Stored(weight.view(torch.uint8), torch.Size(shape), MXFP8(weight_scale.view(torch.uint8), tuple(shape)))
