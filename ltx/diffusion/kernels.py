"""Triton kernels for what a block does beside its products: normalisation with modulation and with rotation, residuals
with gates, and the gates of attention heads.

Each reads its input once and writes its result once. The eager code does so up to six times, or with slow strided
access. The kernels compute in float32 and round once at the end, while the eager code rounds to the model's dtype in
between; in float32 both agree to 1e-6. They run on CUDA wherever Triton can build them, unless they are switched off.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention, LTX2VideoTransformerBlock
from torch import Tensor, nn

from ..fused import takes_over, tl, triton
from .modulation import Ada, Pair

SWITCHED = (nn.RMSNorm, RMSNorm, LTX2Attention, LTX2VideoTransformerBlock)
"""The modules whose work the kernels take over."""


def fuse(model: nn.Module, on: bool = True) -> None:
    """Makes the kernels take over in a model's blocks, where they can run, or not."""
    for module in model.modules():
        if isinstance(module, SWITCHED):
            module.fused = on


def fuses(module: nn.Module, x: Tensor) -> bool:
    """Whether a kernel takes over a module's work on `x`: `fuse` asked for it, the module's weight, if it has one, is
    there, and nobody changes it on the way."""
    weight = getattr(module, "weight", None)
    return (
        getattr(module, "fused", False)
        and takes_over(x)
        and (weight is None or (weight.device == x.device and not getattr(module, "weight_function", ())))
    )


def modulator(norm: nn.Module, x: Tensor) -> Callable[[Ada, int, int], Tensor]:
    """Normalised x as a function of an `Ada` and its numbers of shift and scale. Without the kernels x is normalised
    once, here; with them in each call, which reads `x`: call it before `x` changes."""
    if norm.weight is None and fuses(norm, x):
        return partial(norm_modulate, norm, x)
    normed = nn.functional.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    return lambda ada, shift, scale: ada.modulate(normed, shift, scale)


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


def add_gated(x: Tensor, change: Tensor, ada: Ada, gate: int, result: Tensor) -> Tensor:
    """x + change · gate, [R, N, D], in the memory of `result`, which may be that of x or of `change`. gate: the
    parameter's number in `ada`. Raises ValueError if the result is not contiguous."""
    if not result.is_contiguous():
        raise ValueError("the result of add_gated is not contiguous")
    tokens, width = x.shape[1:]
    places = None if ada.places is None else ada.places.index
    with torch.cuda.device_of(x):
        _add_gated[(x.shape[0] * tokens,)](
            x.contiguous(),
            change.contiguous(),
            ada.values[gate].contiguous(),
            places,
            result,
            tokens,
            width,
            BLOCK=triton.next_power_of_2(width),
            LEVELS=places is not None,
        )
    return result


def gate_heads(parts: list[Tensor], logits: Tensor) -> Tensor:
    """Rows [r, N, heads, d], one part after the other, times twice the sigmoid of their logits [R, N, heads] → [R, N,
    heads · d]. A single contiguous part is overwritten."""
    heads, width = parts[0].shape[2:]
    sizes = [len(part) for part in parts]
    if len(parts) == 1 and parts[0].is_contiguous():
        whole = parts[0]
    else:
        whole = parts[0].new_empty(sum(sizes), *parts[0].shape[1:])
    blocks = {"HEADS": triton.next_power_of_2(heads), "DIM": triton.next_power_of_2(width)}
    for part, own, own_logits in zip(parts, whole.split(sizes), logits.contiguous().split(sizes), strict=True):
        part = part if part.stride(3) == 1 else part.contiguous()
        rows, tokens = part.shape[:2]
        with torch.cuda.device_of(part):
            _gate_heads[(rows * tokens,)](part, own_logits, own, tokens, *part.stride()[:3], heads, width, **blocks)
    return whole.flatten(2)


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

    @triton.jit
    def _add_gated(
        x,
        change,
        gate,
        places,
        result,
        tokens,
        width,
        BLOCK: tl.constexpr,
        LEVELS: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        mask = column < width
        at = column
        if LEVELS:
            at += tl.load(places + row % tokens) * width
        factor = tl.load(gate + at, mask, 0.0).to(tl.float32)
        value = tl.load(x + row * width + column, mask, 0.0).to(tl.float32)
        value += factor * tl.load(change + row * width + column, mask, 0.0).to(tl.float32)
        tl.store(result + row * width + column, value, mask)

    # long: a kernel takes each tensor and each size by itself
    @triton.jit
    def _gate_heads(
        x,
        logits,
        result,
        tokens,
        row_stride,
        token_stride,
        head_stride,
        heads,
        width,
        HEADS: tl.constexpr,
        DIM: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        head, place = tl.arange(0, HEADS)[:, None], tl.arange(0, DIM)[None, :]
        mask = (head < heads) & (place < width)
        factor = 2 * tl.sigmoid(tl.load(logits + row * heads + head, head < heads, 0.0).to(tl.float32))
        at = row // tokens * row_stride + row % tokens * token_stride + head.to(tl.int64) * head_stride + place
        value = tl.load(x + at, mask, 0.0).to(tl.float32)
        tl.store(result + row * heads * width + head * width + place, value * factor, mask)
