"""Tells the format of a stored weight by its dtype and by what lies beside it, and joins both.

ComfyUI's files have a note for each layer, the tensor `comfy_quant` beside its weight or an entry of the header. The
official files have none, so that dtypes and names decide there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .finite import is_finite
from .int8 import int8
from .mxfp8 import mxfp8
from .nvfp4 import nvfp4
from .quantized import FLOAT8, Stored, float8

SCALES = ("weight_scale", "scale_weight")
"""Names of a weight's scale: the present one of Lightricks and ComfyUI, and an older one of ComfyUI."""
SECOND_SCALE = "weight_scale_2"  # NVFP4's scale of all values
NOTE = "comfy_quant"
BESIDE = (*SCALES, SECOND_SCALE, "input_scale", "scale_input", NOTE, "scaled_fp8")
"""Tensors beside a quantized weight that are not weights. input_scale is a calibrated scale of the input, which the
products here measure (products.py)."""
FLOAT8_KINDS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
READ = (*FLOAT8_KINDS, "nvfp4", "mxfp8", "int8_tensorwise")
"""ComfyUI's names of the formats that are read."""
PACKED = "nvfp4"  # two values in a byte
EXPONENTS = "mxfp8"  # its scales are bytes that mean powers of two
PADDED = (PACKED, EXPONENTS)  # rows and columns are padded to whole blocks
NAN_BYTES = (0x7F, 0xFF)  # of NVFP4's scales, and of MXFP8's, where 0x7F is 1
METADATA = "_quantization_metadata"
GROUP = 256  # columns that are rotated together if the note does not say

Note = Mapping[str, Any]
"""What a file says about a layer: `format`, one of ComfyUI's names, and its settings."""


def stored(
    weight: Tensor, shape: tuple[int, ...] | None, beside: Callable[[str], Tensor | None], note: Note
) -> Tensor | Stored:
    """A weight with its coding; the tensor itself if it is not quantized.

    shape: of the layer, without padding. beside: gives the tensor of that name beside the weight, None if there is
    none. Raises ValueError if they do not fit each other.
    """
    kind = kind_of(weight.dtype, note, beside)
    scale = next((tensor for name in SCALES if (tensor := beside(name)) is not None), None)
    if kind not in READ:
        return weight
    if kind in FLOAT8_KINDS:
        values = weight.view(FLOAT8_KINDS[kind]) if weight.dtype == torch.uint8 else weight
        return _checked(float8(values, scale), [scale])
    if scale is None:
        raise ValueError("no scale beside it")
    if kind == "int8_tensorwise":
        return _checked(int8(weight, scale, rotated_columns(note)), [scale])
    if kind == "mxfp8":
        return _checked(mxfp8(weight, scale, shape), [scale])
    second = beside(SECOND_SCALE)
    if second is None:
        raise ValueError("no second scale beside it")
    return _checked(nvfp4(weight, scale, second, shape), [scale, second])


def _checked(weight: Stored, scales: Iterable[Tensor | None]) -> Stored:
    """The weight. Raises ValueError if a scale of it is NaN or infinite: then all that the model makes would be."""
    if all(scale is None or _is_sound(scale) for scale in scales) or is_finite(weight.decode()):  # it may be padding
        return weight
    raise ValueError("a scale that is NaN or infinite")


def _is_sound(scale: Tensor) -> bool:
    """Whether no number is NaN or infinite. Scales of blocks are bytes, which are read fastest as such: none of them is
    negative."""
    if scale.element_size() > 1 or scale.is_meta:
        return is_finite(scale)
    return int(scale.view(torch.uint8).amax()) not in NAN_BYTES


def kind_of(dtype: torch.dtype, note: Note, beside: Callable[[str], Tensor | None]) -> str | None:
    """ComfyUI's name of a weight's format, None for a weight that is not quantized."""
    if note.get("format"):
        return note["format"]
    if dtype == torch.uint8 and beside(SECOND_SCALE) is not None:
        return "nvfp4"
    if dtype in FLOAT8:
        scale = beside(SCALES[0])
        blocks = scale is not None and scale.ndim == 2 and scale.element_size() == 1
        return "mxfp8" if blocks else str(dtype).removeprefix("torch.")
    return "int8_tensorwise" if dtype == torch.int8 else None


def rotated_columns(note: Note) -> int:
    """How many columns of an INT8 weight are rotated together, by the layer's note; 0 for none."""
    inner = note.get("params")
    said = {**(inner if isinstance(inner, Mapping) else {}), **note}
    if not said.get("convrot"):
        return 0
    try:
        return int(said.get("convrot_groupsize", GROUP))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a rotation of {said['convrot_groupsize']!r:.40} columns") from error


def notes(metadata: Mapping[str, str], keys: Iterable[str], tensor: Callable[[str], Tensor]) -> dict[str, dict]:
    """What a file says about its layers: the layer's name → its note. tensor: reads a tensor by its key. Raises
    ValueError if a note is not JSON."""
    found: dict[str, dict] = {}
    header = json.loads(metadata.get(METADATA, "{}"))
    layers = header.get("layers") if isinstance(header, dict) else None
    for layer, given in (layers if isinstance(layers, dict) else {}).items():
        found[layer] = given if isinstance(given, dict) else {"format": given}
    for key in keys:
        layer, _, last = key.rpartition(".")
        if last == NOTE:
            given = json.loads(tensor(key).flatten().view(torch.uint8).numpy().tobytes())
            if not isinstance(given, dict):
                raise ValueError(f"{key} is no JSON object")
            found[layer] = given
    return found
