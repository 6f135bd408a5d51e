"""Decodes weights of one byte per value in one pass: a Triton kernel that gives the bits of the eager code.

The eager code converts and then multiplies, which moves 7 bytes for each value, and torch's conversion of fp8 is slow.
The kernel moves 3 bytes. It takes values apart by their bits, because Triton converts fp8 only on newer cards.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..computing import WITH_FLOAT8
from ..fused import takes_over, tl, triton

BLOCK = 4096
KINDS = {torch.float8_e4m3fn: 0, torch.float8_e5m2: 1, torch.int8: 2}


def decode(data: Tensor, kind: torch.dtype, scales: Tensor | float, dtype: torch.dtype) -> Tensor | None:
    """uint8 [out, in] → weight [out, in]: each value times the scale, rounded once to `dtype`; None if the kernel
    cannot do it here. kind: the dtype of the bytes; scales: float32 [out] or [1] on the device of `data`, or a
    number."""
    if kind not in KINDS or data.ndim != 2 or not data.is_contiguous() or not takes_over(data):
        return None
    rows, columns = data.shape
    weight = torch.empty(rows, columns, dtype=dtype, device=data.device)
    each = isinstance(scales, Tensor) and len(scales) > 1
    with torch.cuda.device_of(data):
        _decode[(rows, triton.cdiv(columns, BLOCK))](
            data,
            scales,
            weight,
            columns,
            KIND=KINDS[kind],
            EACH=each,
            NUMBER=not isinstance(scales, Tensor),
            BLOCK=BLOCK,
        )
    return weight


def float8_values(data: Tensor, kind: torch.dtype, dtype: torch.dtype) -> Tensor:
    """Bytes of a float8 type → their values, exact: bfloat16, float16 and float32 hold those of both types. A device
    without float8 looks them up."""
    if data.device.type in WITH_FLOAT8:
        return data.view(kind).to(dtype)
    return F.embedding(data.int(), values_of(kind, dtype, data.device)).squeeze(-1)


@torch.compiler.assume_constant_result
def values_of(kind: torch.dtype, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The value of each of the 256 bytes of a float8 type: [256, 1]."""
    return _values_of(kind, dtype, device)


@cache
def _values_of(kind: torch.dtype, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the cached tensor serves later calls, which may run in another mode
        return torch.arange(256, dtype=torch.uint8).view(kind).to(dtype)[:, None].to(device)


if triton is not None:

    @triton.jit
    def _decode(
        data, scales, weight, columns, KIND: tl.constexpr, EACH: tl.constexpr, NUMBER: tl.constexpr, BLOCK: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = column < columns
        byte = tl.load(data + row * columns + column, mask, 0).to(tl.int32)
        if KIND == 2:
            value = ((byte ^ 128) - 128).to(tl.float32)
        else:
            # Float16 has the sign and 5 bits of exponent first. E5M2 is its upper byte. E4M3 has the exponent's bias 7
            # in place of 15, so that its bits, moved, are a float16 that is 256 times smaller.
            bits = byte << 8 if KIND == 1 else ((byte & 0x80) << 8) | ((byte & 0x7F) << 7)
            value = bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
            if KIND == 0:
                value = tl.where((byte & 0x7F) == 0x7F, float("nan"), value * 256)
        if NUMBER:
            value *= scales
        elif EACH:
            value *= tl.load(scales + row)
        else:
            value *= tl.load(scales)
        tl.store(weight + row * columns + column, value, mask)
