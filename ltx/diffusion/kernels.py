"""Two Triton kernels for what a block does beside its products: normalisation with modulation, and with rotation.

Each reads its input once and writes its result once, where the eager code does so three and six times. They compute in
float32 and round once at the end, while the eager code rounds to the model's dtype in between; in float32 both agree to
1e-6. A model has them only after `fuse`, because no GPU has measured them yet.
"""

from __future__ import annotations

import logging
import os
from functools import cache

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from .modulation import Ada, Pair

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels in Python on the CPU, as the tests do."""


def fuse(model: nn.Module, on: bool = True) -> None:
    """Makes the kernels take over in a model's blocks. `on` False undoes it. Without Triton they stay off, and the log
    says so once a process."""
    if on and triton is None:
        _tell_that_they_stay_off()
        return
    for module in model.modules():
        if isinstance(module, (nn.RMSNorm, RMSNorm)):
            module.fused = on


@cache
def _tell_that_they_stay_off() -> None:
    logging.warning("LTX A2V: Triton is not installed here, so the fused kernels stay off: pip install triton.")


def fuses(norm: nn.Module, x: Tensor) -> bool:
    """Whether a kernel takes over a normalisation of `x`: `fuse` asked for it, its weight is there, and nobody changes
    it on the way."""
    weight = norm.weight
    return (
        getattr(norm, "fused", False)
        and not torch.compiler.is_compiling()
        and (x.is_cuda or INTERPRETED)
        and (weight is None or (weight.device == x.device and not getattr(norm, "weight_function", ())))
    )


def norm_modulate(norm: nn.Module, x: Tensor, ada: Ada, shift: int, scale: int) -> Tensor:
    """RMS-normalised x [R, N, D], times 1 + scale, plus shift. shift, scale: the parameters' numbers in `ada`. The
    normalisation has no weight."""
    x = x.contiguous()
    result = torch.empty_like(x)
    tokens, width = x.shape[1:]
    places = None if ada.places is None else ada.places.index
    shift, scale = (ada.values[number].contiguous() for number in (shift, scale))
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _norm_modulate[(x.shape[0] * tokens,)](
            x, shift, scale, places, result, tokens, width, norm.eps, BLOCK=block, LEVELS=places is not None
        )
    return result


def norm_rotate(norm: nn.Module, x: Tensor, heads: int, positions: Pair) -> Tensor:
    """RMS-normalised x [R, N, heads · d], rotated by split embeddings → [R, N, heads, d]. positions: as in `Rotary`."""
    x = x.contiguous()
    result = torch.empty_like(x)
    cos, sin = positions
    tokens, half = x.shape[1], cos.shape[-1]
    sizes = {"HEADS": triton.next_power_of_2(heads), "HALF": triton.next_power_of_2(half)}
    shared = tokens // len(cos)
    with torch.cuda.device_of(x):
        _norm_rotate[(x.shape[0] * tokens,)](
            x, norm.weight, cos, sin, result, tokens, shared, heads, half, norm.eps, **sizes
        )
    return result.unflatten(2, (heads, -1))


if triton is not None:

    @triton.jit
    def _norm_modulate(
        x,
        shift,
        scale,
        places,
        result,
        tokens,
        width,
        eps,
        BLOCK: tl.constexpr,
        LEVELS: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        mask = column < width
        value = tl.load(x + row * width + column, mask, 0.0).to(tl.float32)
        value = value * tl.rsqrt(tl.sum(value * value, 0) / width + eps)
        at = column
        if LEVELS:
            at += tl.load(places + row % tokens) * width
        factor = 1 + tl.load(scale + at, mask, 0.0).to(tl.float32)
        value = value * factor + tl.load(shift + at, mask, 0.0).to(tl.float32)
        tl.store(result + row * width + column, value, mask)

    # long: a kernel takes each tensor and each size by itself
    @triton.jit
    def _norm_rotate(
        x,
        weight,
        cos,
        sin,
        result,
        tokens,
        shared,
        heads,
        half,
        eps,
        HEADS: tl.constexpr,
        HALF: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        head, place = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
        mask = (head < heads) & (place < half)
        at = head * 2 * half + place
        base = row * heads * 2 * half
        first = tl.load(x + base + at, mask, 0.0).to(tl.float32)
        second = tl.load(x + base + at + half, mask, 0.0).to(tl.float32)
        square = tl.sum(tl.sum(first * first + second * second, 1), 0)
        factor = tl.rsqrt(square / (heads * 2 * half) + eps)
        first *= factor * tl.load(weight + at, mask, 0.0).to(tl.float32)
        second *= factor * tl.load(weight + at + half, mask, 0.0).to(tl.float32)
        turn = (row % tokens // shared * heads + head) * half + place
        c, s = tl.load(cos + turn, mask, 0.0), tl.load(sin + turn, mask, 0.0)
        tl.store(result + base + at, first * c - second * s, mask)
        tl.store(result + base + at + half, second * c + first * s, mask)
