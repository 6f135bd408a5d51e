"""Products in a weight's own format, on cards that have such arithmetic: the input is rounded to that format, too.

That replaces the decoding and the 16-bit product, and it costs exactness. torch computes the products of fp8;
comfy-kitchen, which ComfyUI brings along, those of the other formats. Each function takes x [M, in] and gives [M, out],
or None where the product cannot be computed so: in float32, which asks for exactness, on another device, or without the
package. Then the layer decodes its weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from ..errors import out_of_memory
from .rounding import FLOAT8, TINY, TOP, Input, round_to_float8, top

HALVES = (torch.bfloat16, torch.float16)
NVFP4_TOP = TOP * 6  # the largest scale of a block times the largest 4-bit value
ALIGNED = 16  # the sides of a matrix that the units for 8 bits take are multiples of this number
NEEDED = {"int8": (7, 5), "fp8": (8, 9), "nvfp4": (10, 0), "mxfp8": (10, 0)}
"""The compute capability from which NVIDIA's cards have the format's arithmetic."""
KITCHEN = {"int8": "int8_linear", "nvfp4": "scaled_mm_nvfp4", "mxfp8": "scaled_mm_mxfp8"}
"""comfy-kitchen's product in each format that torch does not multiply in itself."""
EXPONENTS = getattr(torch, "float8_e8m0fnu", None)  # the dtype of MXFP8's scales; torch before 2.7 has none


Kept = dict[tuple[bool, torch.device], Tensor]
"""The scale of a weight as tensors, by whether it is written for each row, and by device."""


@dataclass(frozen=True)
class WeightFormat:
    """The format of a stored weight. name: for people; arithmetic: a key of NEEDED, "" if no card multiplies in it;
    quantized: whether it is decoded otherwise; by_rows: whether each row has a scale."""

    name: str
    arithmetic: str = ""
    quantized: bool = True
    by_rows: bool = False


def obstacle(stored: WeightFormat, device: torch.device) -> str:
    """Why a device decodes quantized weights of a format with bfloat16 inputs, in words; "" if it multiplies in it."""
    kind = stored.arithmetic
    if not kind:
        return "no card has such products"
    if not card_has(kind, device):
        return f"such products need a card by NVIDIA of compute capability {'.'.join(map(str, NEEDED[kind]))} or more"
    if kind == "mxfp8" and EXPONENTS is None:
        return "such products need torch 2.7 or newer"
    if kind in KITCHEN and kitchen(KITCHEN[kind]) is None:
        return "such products need comfy-kitchen with a kernel for this card: pip install comfy-kitchen"
    if stored.by_rows and kind == "fp8" and not rows_have_scales(device):
        return "this torch has no products with a scale for each row"
    return ""


def multiplies_float8(x: Input, kind: torch.dtype, shape: tuple[int, ...], by_rows: bool) -> bool:
    """Whether a card multiplies inputs like x, rounded to fp8, with a weight of that dtype and shape.

    by_rows: whether there is a scale for each row of the input.
    """
    aligned = not any(side % ALIGNED for side in shape)
    if kind != FLOAT8 or x.dtype not in HALVES or not aligned or not card_has("fp8", x.device):
        return False
    return not by_rows or (x.dtype == torch.bfloat16 and rows_have_scales(x.device))


def float8_product(
    x: Input, weight: Tensor, scale: float | Tensor, bias: Tensor | None, kept: Kept | None = None
) -> Tensor | None:
    """weight: float8 [out, in]; scale: of all values, as a number or float32 [], or float32 [out]. kept: where a number
    stays as the tensor that a product takes, so that it is not written for each product.

    The input gets a scale per row from its own values. A file's own scale for the input was measured with other inputs:
    larger ones, for instance with a LoRA, would be cut off. Where torch multiplies only with one scale for all rows, as
    on a CPU, the input gets one, if the weight has one as well.
    """
    by_rows = multiplies_float8(x, weight.dtype, weight.shape, by_rows=True)
    each = isinstance(scale, Tensor) and scale.ndim > 0
    if not by_rows and (each or not multiplies_float8(x, weight.dtype, weight.shape, by_rows=False)):
        return None
    rounded, factor = round_to_float8(x, by_rows)
    if each:
        scale = scale.view(1, -1)
    elif kept is None:
        scale = _spread(scale, len(weight), by_rows, x.device)
    else:
        if (by_rows, x.device) not in kept:
            kept[by_rows, x.device] = _spread(scale, len(weight), by_rows, x.device)
        scale = kept[by_rows, x.device]
    return torch._scaled_mm(rounded, weight.t(), scale_a=factor, scale_b=scale, bias=bias, out_dtype=x.dtype)


def _spread(scale: float | Tensor, rows: int, by_rows: bool, device: torch.device) -> Tensor:
    """The scale of all values as a product takes it: for each row, float32 [1, rows], or once, []."""
    shape = (1, rows) if by_rows else ()
    if isinstance(scale, Tensor):
        return torch.ones(shape, device=device) * scale
    return torch.full(shape, scale, device=device)


def int8_product(x: Tensor, weight: Tensor, scales: Tensor, group: int, bias: Tensor | None) -> Tensor | None:
    """weight: int8 [out, in]; scales: float32 [1] or [out]; group: columns that are rotated together, 0 for none."""
    kitchen = _kitchen("int8", x)
    if kitchen is None:
        return None
    return kitchen.int8_linear(x, weight, scales, bias, x.dtype, convrot=bool(group), convrot_groupsize=group or 256)


def nvfp4_product(x: Tensor, packed: Tensor, scales: Tensor, scale: float, bias: Tensor | None) -> Tensor | None:
    """packed: uint8 [R, C / 2]; scales: float8 of its blocks, in tiles; scale: of all values. The padding of the result
    is not removed."""
    kitchen = _kitchen("nvfp4", x)
    if kitchen is None:
        return None
    factor = (top(x).float() / NVFP4_TOP).clamp_min(TINY)
    rounded, blocks = kitchen.quantize_nvfp4(x, factor, pad_16x=True)
    whole = torch.full((), scale, device=x.device)
    bias = _padded(bias, len(packed))
    return kitchen.scaled_mm_nvfp4(rounded, packed, factor, whole, blocks, scales, bias, x.dtype)[: len(x)]


def mxfp8_product(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor | None:
    """weight: float8 [R, C]; scales: of its blocks, as powers of two, in tiles. The padding of the result is not
    removed."""
    kitchen = _kitchen("mxfp8", x)
    if kitchen is None:
        return None
    rounded, blocks = kitchen.quantize_mxfp8(x, pad_32x=True)
    bias = _padded(bias, len(weight))
    return kitchen.scaled_mm_mxfp8(rounded, weight, blocks, scales, bias, x.dtype)[: len(x)]


def _padded(bias: Tensor | None, rows: int) -> Tensor | None:
    return bias if bias is None or len(bias) == rows else torch.nn.functional.pad(bias, (0, rows - len(bias)))


@torch.compiler.assume_constant_result
def card_has(kind: str, device: torch.device) -> bool:
    """Whether a device computes with that format. torch's CPU has fp8 products since 2.7, which are slow and serve the
    tests."""
    return _card_has(kind, device)


@cache  # not on the functions that compiled code calls: it would trace them anew and warn of it
def _card_has(kind: str, device: torch.device) -> bool:
    if device.type == "cpu":
        return kind == "fp8" and _multiplies(device, by_rows=False)
    return (
        device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= NEEDED[kind]
    )


@torch.compiler.assume_constant_result  # tracing would take the trial for a success, because it computes nothing
def rows_have_scales(device: torch.device) -> bool:
    """Whether torch multiplies fp8 matrices with a scale per row on a device; it is tried once."""
    try:
        return _multiplies(device, by_rows=True)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False  # now; a later product tries again


@cache
def _multiplies(device: torch.device, by_rows: bool) -> bool:
    """What an fp8 product says on that device, with a scale per row or with one for all."""
    one = torch.ones(ALIGNED, ALIGNED, device=device).to(torch.float8_e4m3fn)
    scales = torch.ones((ALIGNED, 1) if by_rows else (), device=device)
    try:
        torch._scaled_mm(
            one, one.t(), scale_a=scales, scale_b=scales.t() if by_rows else scales, out_dtype=torch.bfloat16
        )
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        return False
    return True


def _kitchen(kind: str, x: Tensor) -> ModuleType | None:
    """comfy-kitchen, if it computes such products of `x` on this card with a kernel of its own."""
    return kitchen(KITCHEN[kind]) if x.dtype in HALVES and card_has(kind, x.device) else None


@cache
def kitchen(function: str) -> ModuleType | None:
    """comfy-kitchen, if it is installed and has a kernel for that function; its plain formula is no gain."""
    try:
        import comfy_kitchen
    except Exception:  # a package for another version of torch or CUDA raises what it likes
        return None
    backends = comfy_kitchen.list_backends()
    able = (
        state["available"] and not state["disabled"] and function in state["capabilities"]
        for name, state in backends.items()
        if name != "eager"
    )
    return comfy_kitchen if any(able) else None
