"""Rounds the input of a product to fp8 (E4M3), with a scale for each row or one for all.

The eager code moves 13 bytes for each 16-bit value, in three passes over memory. For scales by rows, a Triton kernel
moves 3 bytes in one pass: it reads a row once and keeps it in registers. Both give the same bits, so the kernel has no
switch of its own: it takes over on a GPU where Triton can build it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..fused import takes_over, tl, triton

FLOAT8 = torch.float8_e4m3fn
TOP = torch.finfo(FLOAT8).max
# torch divides by a number as it likes: on a GPU most versions multiply by the inverse, and a CPU divides. A product is
# the same everywhere.
INVERSE = 1 / TOP
TINY = 2.0**-100  # keeps the scale of an input of zeros above 0
WARPS = ((2048, 4), (8192, 8))  # up to so wide a block, so many warps hold it; MOST_WARPS hold a wider one
MOST_WARPS = 16


def round_to_float8(x: Tensor, by_rows: bool) -> tuple[Tensor, Tensor]:
    """x [M, in], of a float type → float8 [M, in], and what it has to be multiplied by: float32 [M, 1] by rows, else
    []."""
    if by_rows and takes_over(x):
        return in_one_pass(x)
    return in_passes(x, by_rows)


def in_passes(x: Tensor, by_rows: bool) -> tuple[Tensor, Tensor]:
    """The eager code of `round_to_float8`. A row with NaN becomes NaN as a whole. In a row with infinity, that value
    becomes NaN, and finite values become 0."""
    factor = (top(x, by_rows).float() * INVERSE).clamp_min(TINY)
    return (x / factor).to(FLOAT8), factor  # what a division rounds up is below the next float8, so it is TOP


def in_one_pass(x: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel for `round_to_float8` by rows. It gives the bits of `in_passes`, except in rows with NaN: there the
    other values stay numbers. The row's products are NaN in both cases."""
    x = x.contiguous()
    rows, width = x.shape
    rounded = torch.empty_like(x, dtype=FLOAT8)
    factor = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _round_rows[(rows,)](x, rounded, factor, width, INVERSE, TINY, BLOCK=block, num_warps=warps(block))
    return rounded, factor


def warps(block: int) -> int:
    """How many warps share a row in a block of that width."""
    return next((number for width, number in WARPS if block <= width), MOST_WARPS)


def top(x: Tensor, by_rows: bool = False) -> Tensor:
    """The largest magnitude [], or of each row [M, 1], in one pass over memory."""
    return torch.linalg.vector_norm(x, torch.inf, 1 if by_rows else None, keepdim=by_rows)


if triton is not None:

    @triton.jit
    def _round_rows(x, rounded, factors, width, inverse, tiny, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        mask = column < width
        value = tl.load(x + row * width + column, mask, 0.0).to(tl.float32)
        size = tl.abs(value)
        factor = tl.maximum(tl.max(size, 0) * inverse, tiny)
        tl.store(factors + row, factor)
        size = tl.div_rn(size, factor)  # `/` is approximate here
        # The neighbours of a float8 are 2 ** (exponent - 3) apart, and those below 2 ** -6 are 2 ** -9 apart. Float32
        # has that distance at 2 ** (exponent + 20). So adding this number rounds to a float8, ties to even, and taking
        # it away again is exact. The store then has nothing to round: Triton's conversion for compute capability 8.9
        # drops bits before it rounds, and its interpreter rounds every tie up.
        above = tl.maximum(size.to(tl.int32, bitcast=True) & 0x7F800000, (127 - 6) << 23) + (20 << 23)
        above = above.to(tl.float32, bitcast=True)
        size = (size + above) - above
        sign = value.to(tl.int32, bitcast=True) & -0x80000000  # what is rounded to 0 keeps it, too
        value = (size.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
        tl.store(rounded + row * width + column, value, mask)
