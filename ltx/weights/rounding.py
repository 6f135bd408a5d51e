"""Rounds the input of a product to fp8 (E4M3), with a scale for each row or one for all.

The eager code moves 13 bytes for each 16-bit value, in three passes over memory. For scales by rows, a Triton kernel
moves 3 bytes in one pass: it reads a row once and keeps it in registers. Both give the same bits, so the kernel has no
switch of its own: it takes over on a GPU where Triton can build it. Where a kernel makes the input itself
(diffusion/kernels.py), it rounds it in registers and hands on what it made as `Rounded`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..fused import INTERPRETED, takes_over, tl, triton

FLOAT8 = torch.float8_e4m3fn
TOP = torch.finfo(FLOAT8).max
# torch divides by a number as it likes: on a GPU most versions multiply by the inverse, and a CPU divides. A product is
# the same everywhere.
INVERSE = 1 / TOP
PTX = not INTERPRETED  # whether kernels convert by the card's own instruction
TINY = 2.0**-100  # keeps the scale of an input of zeros above 0
WARPS = ((2048, 4), (8192, 8))  # up to so wide a block, so many warps hold it; MOST_WARPS hold a wider one
MOST_WARPS = 16


@dataclass(frozen=True, eq=False)
class Rounded:
    """An input of linear layers that was rounded where it was made, with a scale for each row.

    values: float8 [..., in]; factors: float32 [..., 1], by which they have to be multiplied; dtype: that of the input;
    plain: the input itself, None if no layer reads it.
    """

    values: Tensor
    factors: Tensor
    dtype: torch.dtype
    plain: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @classmethod
    def empty(cls, x: Tensor, plain: bool, shape: tuple[int, ...] | None = None) -> Rounded:
        """Room for the rounded form of an input as `x`, or of another shape. plain: and for the input itself."""
        values = torch.empty(shape or x.shape, dtype=FLOAT8, device=x.device)
        factors = torch.empty(*values.shape[:-1], 1, dtype=torch.float32, device=x.device)
        return cls(values, factors, x.dtype, torch.empty_like(values, dtype=x.dtype) if plain else None)

    @property
    def target(self) -> Tensor:
        """The values as a kernel writes them: as bytes, except in the interpreter."""
        return self.values if INTERPRETED else self.values.view(torch.uint8)

    def rows(self) -> Rounded:
        """The same as matrices, [M, in]."""
        return Rounded(self.values.flatten(0, -2), self.factors.flatten(0, -2), self.dtype)


Input = Tensor | Rounded


class _Shared(threading.local):
    """What was rounded inside `sharing`, by where the input lies in memory; None outside. The input is kept, so that
    nothing else comes to lie there."""

    found: dict[Any, tuple[Tensor, tuple[Tensor, Tensor]]] | None = None


_shared = _Shared()


def sharing() -> AbstractContextManager[None]:
    """Inside `with`, an input that several layers round is rounded once. Nobody may change it there."""
    return nullcontext() if torch.compiler.is_compiling() else _sharing()


@contextmanager
def _sharing() -> Iterator[None]:
    before, _shared.found = _shared.found, {}
    try:
        yield
    finally:
        _shared.found = before


def round_to_float8(x: Input, by_rows: bool) -> tuple[Tensor, Tensor]:
    """x [M, in], of a float type → float8 [M, in], and what it has to be multiplied by: float32 [M, 1] by rows, else
    []. An input that was rounded before has a scale for each row."""
    if isinstance(x, Rounded):
        return x.values, x.factors
    if torch.compiler.is_compiling() or _shared.found is None:
        return _rounded(x, by_rows)
    key = x.data_ptr(), x.shape, x.stride(), x.dtype, x.device, by_rows
    if key not in _shared.found:
        _shared.found[key] = x, _rounded(x, by_rows)
    return _shared.found[key][1]


def _rounded(x: Tensor, by_rows: bool) -> tuple[Tensor, Tensor]:
    return in_one_pass(x) if by_rows and takes_over(x) else in_passes(x, by_rows)


def in_passes(x: Tensor, by_rows: bool) -> tuple[Tensor, Tensor]:
    """The eager code of `round_to_float8`. A row with NaN becomes NaN as a whole, one with infinity is of no use."""
    factor = (top(x, by_rows).float() * INVERSE).clamp_min(TINY)
    return (x * factor.reciprocal()).to(FLOAT8), factor  # what is rounded up is below the next float8, so it is TOP


def in_one_pass(x: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel for `round_to_float8` by rows. It gives the bits of `in_passes` for finite values. With others, the
    row's products are of no use in both cases."""
    x = x.contiguous()
    rows, width = x.shape
    made = Rounded.empty(x, plain=False)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _round_rows[(rows,)](
            x, made.target, made.factors, width, INVERSE, TINY, BLOCK=block, PTX=PTX, num_warps=warps(block)
        )
    return made.values, made.factors


def warps(block: int) -> int:
    """How many warps share a row in a block of that width."""
    return next((number for width, number in WARPS if block <= width), MOST_WARPS)


def top(x: Tensor, by_rows: bool = False) -> Tensor:
    """The largest magnitude [], or of each row [M, 1], in one pass over memory."""
    return torch.linalg.vector_norm(x, torch.inf, 1 if by_rows else None, keepdim=by_rows)


store_rounded = None  # without Triton
if triton is not None:

    @triton.jit
    def store_rounded(value, mask, at, row, rounded, factors, inverse, tiny, PTX: tl.constexpr):
        """Rounds the values of a row, in float32; those outside of the mask are 0."""
        factor = tl.maximum(tl.max(tl.abs(value)) * inverse, tiny)
        tl.store(factors + row, factor)
        value *= tl.div_rn(1.0, factor)
        if PTX:
            # Triton's own conversion for compute capability 8.9 goes through float16 and drops bits before it rounds.
            value = tl.inline_asm_elementwise(
                """{
                .reg .b16 low, high;
                cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
                cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
                mov.b32 $0, {low, high};
                }""",
                constraints="=r,r,r,r,r",
                args=[value],
                dtype=tl.uint8,
                is_pure=True,
                pack=4,
            )
        else:
            # The interpreter has no PTX, and rounds every tie up. The neighbours of a float8 are 2 ** (exponent - 3)
            # apart, and those below 2 ** -6 are 2 ** -9 apart. Float32 has that distance at 2 ** (exponent + 20). So
            # adding this number rounds to a float8, ties to even, and taking it away again is exact.
            size = tl.abs(value)
            above = tl.maximum(size.to(tl.int32, bitcast=True) & 0x7F800000, (127 - 6) << 23) + (20 << 23)
            above = above.to(tl.float32, bitcast=True)
            size = (size + above) - above
            sign = value.to(tl.int32, bitcast=True) & -0x80000000  # what is rounded to 0 keeps it, too
            value = (size.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
        tl.store(rounded + at, value, mask)

    @triton.jit
    def _round_rows(x, rounded, factors, width, inverse, tiny, BLOCK: tl.constexpr, PTX: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        mask = column < width
        at = row * width + column
        value = tl.load(x + at, mask, 0.0).to(tl.float32)
        store_rounded(value, mask, at, row, rounded, factors, inverse, tiny, PTX)
