"""NVFP4, the 4-bit weights of NVIDIA's newer GPUs, as the official files and ComfyUI's store them. They are decoded at
each call, on any device.

A weight holds two 4-bit floats per byte, one float8 scale for 16 neighbours in a row, and one float32 scale for all
values. The layout is that of comfy-kitchen. Neither that package nor a GPU with NVFP4 arithmetic is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoding import float8_values
from .products import WeightFormat, nvfp4_product
from .quantized import Stored

BLOCK = 16  # neighbours in a row that share a scale; rows and columns are padded to multiples of this number
TILE_ROWS, TILE_COLUMNS = 128, 4  # a tile of scales, in the order in which matrix units read them
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of e2m1; the fourth bit is the sign
VALUES = (*MAGNITUDES, *(-value for value in MAGNITUDES))


@dataclass(frozen=True, eq=False)
class NVFP4:
    """scales: one float8_e4m3fn per block, as bytes, in tiles; scale: float32 []; shape: (out, in) without padding.
    factor: the number in `scale`."""

    scales: Tensor = field(repr=False)
    scale: Tensor = field(repr=False)
    shape: tuple[int, int]
    factor: float = field(default=1.0, repr=False)
    format = WeightFormat("NVFP4", "nvfp4")

    def decode(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 [R, C / 2], the first of two values in the upper bits → weight [out, in], rounded once to `dtype`."""
        rows, columns = data.shape[0], 2 * data.shape[1]
        numbers = F.embedding(data.int(), pairs(dtype, data.device)).view(rows, columns // BLOCK, BLOCK)
        scales = unswizzle(self.scales.to(data.device), rows, columns // BLOCK).contiguous()
        factors = float8_values(scales, torch.float8_e4m3fn, torch.float32) * self.scale
        weight = torch.mul(numbers, factors.unsqueeze(-1), out=torch.empty_like(numbers))
        return weight.view(rows, columns)[: self.shape[0], : self.shape[1]]

    def product(self, x: Tensor, data: Tensor, bias: Tensor | None) -> Tensor | None:
        padding = 2 * data.shape[1] - x.shape[1]
        x = F.pad(x, (0, padding)) if padding else x
        y = nvfp4_product(x, data, self.scales.view(torch.float8_e4m3fn), self.factor, bias)
        return y if y is None or y.shape[1] == self.shape[0] else y[:, : self.shape[0]].contiguous()


def nvfp4(weight: Tensor, weight_scale: Tensor, weight_scale_2: Tensor, shape: tuple[int, int]) -> Stored:
    """Joins a file's three tensors of a layer (out, in) = shape. Raises ValueError if they do not fit such a layer."""
    rows, columns = (-(-size // BLOCK) * BLOCK for size in shape)
    if weight.dtype != torch.uint8 or tuple(weight.shape) not in ((rows, columns // 2), (shape[0], columns // 2)):
        raise ValueError(f"a packed weight of {weight.dtype} {tuple(weight.shape)} for a layer of {tuple(shape)}")
    if weight_scale.element_size() != 1 or weight_scale.numel() != tiled(rows, columns // BLOCK):
        raise ValueError(f"scales of shape {tuple(weight_scale.shape)} for a layer of {tuple(shape)}")
    if weight_scale_2.numel() != 1:
        raise ValueError(f"a second scale of shape {tuple(weight_scale_2.shape)} for a layer of {tuple(shape)}")
    whole = weight_scale_2.detach().float().reshape(())
    coding = NVFP4(weight_scale.view(torch.uint8), whole, tuple(shape), float(whole))
    return Stored(weight, torch.Size(shape), coding)


def tiled(rows: int, columns: int) -> int:
    """How many scales there are with the padding of the tiles."""
    return -(-rows // TILE_ROWS) * TILE_ROWS * -(-columns // TILE_COLUMNS) * TILE_COLUMNS


def unswizzle(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Scales in tiles → [rows, columns]. A tile has 128 rows of 4; its rows 0, 32, 64 and 96 lie side by side."""
    down, across = -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)
    tiles = scales.reshape(down, across, TILE_ROWS // 4, 4, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(down * TILE_ROWS, across * TILE_COLUMNS)[:rows, :columns]


@torch.compiler.assume_constant_result
def pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The two values that each of the 256 bytes holds: [256, 2]."""
    return _pairs(dtype, device)


@cache
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the cached tensor serves later calls, which may run in another mode
        return torch.tensor(list(product(VALUES, VALUES)), dtype=dtype).to(device)
