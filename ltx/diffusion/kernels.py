"""Triton kernels for what a block does beside its products: normalisation with modulation and with rotation, residuals
with gates, the gates of attention heads, and activations that are rounded.

Each reads its input once and writes its result once. The eager code does so up to six times, or with slow strided
access. The kernels compute in float32 and round once at the end, while the eager code rounds to the model's dtype in
between; in float32 both agree to 1e-6. They run on CUDA wherever Triton can build them, unless they are switched off.

Where layers multiply in fp8 (weights/products.py), a kernel that makes their input also rounds it to fp8, in registers.
The input in 16 bits is then written only for layers that read it. The values are those of a rounding afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention, LTX2VideoTransformerBlock
from torch import Tensor, nn

from ..fused import takes_over, tl, triton
from ..weights.quantized import reading
from ..weights.rounding import INVERSE, PTX, TINY, Input, Rounded, store_rounded, warps
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


def modulator(norm: nn.Module, x: Tensor) -> Callable[[Ada, int, int, Iterable[nn.Module]], Input]:
    """Normalised x as a function of an `Ada`, its numbers of shift and scale, and the layers that read the result.
    Without the kernels x is normalised once, here; with them in each call, which reads `x`: call it before `x` changes.
    """
    if norm.weight is None and fuses(norm, x):
        return partial(norm_modulate, norm, x)
    normed = nn.functional.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    return lambda ada, shift, scale, readers: ada.modulate(normed, shift, scale)


def norm_modulate(
    norm: nn.Module, x: Tensor, ada: Ada, shift: int, scale: int, readers: Iterable[nn.Module] = ()
) -> Input:
    """RMS-normalised x [R, N, D], times 1 + scale, plus shift. shift, scale: the parameters' numbers in `ada`. readers:
    the layers that read it. The normalisation has no weight."""
    x = x.contiguous()
    rounded, plain = reading(readers, x)
    made = Rounded.empty(x, plain) if rounded else torch.empty_like(x)
    tokens, width = x.shape[1:]
    places = None if ada.places is None else ada.places.index
    shift, scale = (ada.values[number].contiguous() for number in (shift, scale))
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _norm_modulate[(x.shape[0] * tokens,)](
            x, shift, scale, places, *_targets(made), tokens, width, norm.eps, INVERSE, TINY,
            BLOCK=block, LEVELS=places is not None, **_how(made, block),
        )  # fmt: skip
    return made


def gelu(x: Tensor, readers: Iterable[nn.Module]) -> Input:
    """The tanh form of GELU of x [R, N, D]. readers: as for `norm_modulate`; if none takes it rounded, torch has it in
    one pass, too."""
    rounded, plain = reading(readers, x)
    if not rounded:
        return nn.functional.gelu(x, approximate="tanh")
    x, made, width = x.contiguous(), Rounded.empty(x, plain), x.shape[2]
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _gelu[(x.numel() // width,)](x, *_targets(made), width, INVERSE, TINY, BLOCK=block, **_how(made, block))
    return made


def _targets(made: Input) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Where a kernel writes an input of layers: as it is, rounded, and the factors."""
    return (made.plain, made.target, made.factors) if isinstance(made, Rounded) else (made, None, None)


def _how(made: Input, block: int) -> dict[str, int | bool]:
    """The forms in which a kernel writes an input of layers, and the warps that share a row of `block` values."""
    if not isinstance(made, Rounded):
        return {"PLAIN": True, "ROUND": False, "PTX": PTX}
    return {"PLAIN": made.plain is not None, "ROUND": True, "PTX": PTX, "num_warps": warps(block)}


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


def gate_heads(parts: list[Tensor], logits: Tensor, reader: nn.Module | None = None) -> Input:
    """Rows [r, N, heads, d], one part after the other, times twice the sigmoid of their logits [R, N, heads] → [R, N,
    heads · d]. reader: the layer that reads it. A single contiguous part may be overwritten."""
    heads, width = parts[0].shape[2:]
    sizes = [len(part) for part in parts]
    shape = (sum(sizes), parts[0].shape[1], heads * width)
    rounded, plain = (False, True) if reader is None else reading((reader,), parts[0])
    if rounded:
        made = Rounded.empty(parts[0], plain, shape)
    elif len(parts) == 1 and parts[0].is_contiguous():
        made = parts[0].view(shape)
    else:
        made = parts[0].new_empty(shape)
    blocks = {"HEADS": triton.next_power_of_2(heads), "DIM": triton.next_power_of_2(width)}
    how = _how(made, blocks["HEADS"] * blocks["DIM"])
    targets = [(None,) * len(parts) if target is None else target.split(sizes) for target in _targets(made)]
    for part, own_logits, *own in zip(parts, logits.contiguous().split(sizes), *targets, strict=True):
        part = part if part.stride(3) == 1 else part.contiguous()
        rows, tokens = part.shape[:2]
        with torch.cuda.device_of(part):
            _gate_heads[(rows * tokens,)](
                part, own_logits, *own, tokens, *part.stride()[:3], heads, width, INVERSE, TINY, **blocks, **how
            )
    return made


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
    # long: a kernel takes each tensor and each size by itself
    @triton.jit
    def _store(
        value,
        mask,
        at,
        row,
        plain,
        rounded,
        factors,
        inverse,
        tiny,
        PLAIN: tl.constexpr,
        ROUND: tl.constexpr,
        PTX: tl.constexpr,
    ):
        """Writes a row of an input of layers, in the model's dtype, in the forms that they read."""
        if PLAIN:
            tl.store(plain + at, value, mask)
        if ROUND:
            store_rounded(value.to(tl.float32), mask, at, row, rounded, factors, inverse, tiny, PTX)

    # long: a kernel takes each tensor and each size by itself
    @triton.jit
    def _norm_modulate(
        x,
        shift,
        scale,
        places,
        plain,
        rounded,
        factors,
        tokens,
        width,
        eps,
        inverse,
        tiny,
        BLOCK: tl.constexpr,
        LEVELS: tl.constexpr,
        PLAIN: tl.constexpr,
        ROUND: tl.constexpr,
        PTX: tl.constexpr,
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
        value = value.to(x.dtype.element_ty)
        at = row * width + column
        _store(value, mask, at, row, plain, rounded, factors, inverse, tiny, PLAIN, ROUND, PTX)

    # long: a kernel takes each tensor and each size by itself
    @triton.jit
    def _gelu(
        x,
        plain,
        rounded,
        factors,
        width,
        inverse,
        tiny,
        BLOCK: tl.constexpr,
        PLAIN: tl.constexpr,
        ROUND: tl.constexpr,
        PTX: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        mask = column < width
        at = row * width + column
        value = tl.load(x + at, mask, 0.0).to(tl.float32)
        # (1 + tanh(u)) / 2 is the sigmoid of 2u, with u = sqrt(2 / pi) (x + 0.044715 x³)
        value *= tl.sigmoid(value * (1.5957691216057308 + 0.07135481627362753 * value * value))
        value = value.to(x.dtype.element_ty)
        _store(value, mask, at, row, plain, rounded, factors, inverse, tiny, PLAIN, ROUND, PTX)

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
        plain,
        rounded,
        factors,
        tokens,
        row_stride,
        token_stride,
        head_stride,
        heads,
        width,
        inverse,
        tiny,
        HEADS: tl.constexpr,
        DIM: tl.constexpr,
        PLAIN: tl.constexpr,
        ROUND: tl.constexpr,
        PTX: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        head, place = tl.arange(0, HEADS)[:, None], tl.arange(0, DIM)[None, :]
        mask = (head < heads) & (place < width)
        factor = 2 * tl.sigmoid(tl.load(logits + row * heads + head, head < heads, 0.0).to(tl.float32))
        at = row // tokens * row_stride + row % tokens * token_stride + head.to(tl.int64) * head_stride + place
        value = (tl.load(x + at, mask, 0.0).to(tl.float32) * factor).to(x.dtype.element_ty)
        at = row * heads * width + head * width + place
        _store(value, mask, at, row, plain, rounded, factors, inverse, tiny, PLAIN, ROUND, PTX)
