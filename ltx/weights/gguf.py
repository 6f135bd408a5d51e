"""Reads GGUF files: tensors in blocks of 32 or 256 values. They map the file; diffusers' functions decode them in
float32."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, no_such_file
from ..foreign import check_kind, unreadable
from .mapping import map_file
from .products import WeightFormat
from .quantized import Stored

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""City96's converter flattens some tensors to fit the format; it stores their original shape under this key."""
CHUNK = 1 << 22  # values decoded at once; it bounds the size of the temporary float32 and int32 tensors


@dataclass(frozen=True)
class Blocks:
    """The coding of rows of blocks. kind: a name of GGMLQuantizationType."""

    kind: str
    scales = None

    @property
    def format(self) -> WeightFormat:
        return WeightFormat(f"GGUF {self.kind}")

    def product(self, x: Tensor, data: Tensor, bias: Tensor | None) -> None:
        """No card multiplies with such blocks."""

    def decode(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        import gguf
        from diffusers.quantizers.gguf.utils import dequantize_functions

        kind = gguf.GGMLQuantizationType[self.kind]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = data.reshape(-1, size)
        function = dequantize_functions[kind]
        if torch.compiler.is_compiling():
            decoded = function(blocks, values, size, dtype=torch.float32).to(dtype)
        else:
            decoded = torch.empty(blocks.shape[0], values, dtype=dtype, device=data.device)
            step = CHUNK // values
            for start in range(0, blocks.shape[0], step):
                part = slice(start, start + step)
                decoded[part] = function(blocks[part], values, size, dtype=torch.float32)
        return decoded.reshape(data.shape[0], -1)


class GgufFile:
    """An opened GGUF file. Opening it reads only the header; its tensors map the file."""

    def __init__(self, path: Path) -> None:
        """Raises InputError if the file is missing, unreadable, cut short or not GGUF, has blocks of an unsupported
        kind, or if the package gguf is missing."""
        if not path.is_file():
            raise no_such_file(path)
        try:
            import gguf
            from diffusers.quantizers.gguf.utils import dequantize_functions
        except ImportError as error:
            raise InputError(f"{path}: reading GGUF needs the package gguf ({error}): pip install gguf.") from error
        try:
            with path.open("rb") as file:
                head = file.read(24).ljust(24, b"\0")
        except OSError as error:
            raise unreadable(path, error) from error
        if not head.startswith(b"GGUF"):
            check_kind(path, "the GGUF file again")
        _, _, tensors, fields = struct.unpack("<4sIQQ", head)
        if (
            24 * tensors + 12 * fields > path.stat().st_size
        ):  # these are the smallest possible sizes; gguf's reader would loop for ever on a larger count
            raise InputError(f"{path}: is not a complete GGUF file (cut short or another format); download it again.")
        try:
            reader = gguf.GGUFReader(path)
            self.metadata = {  # the reader decodes a text only here
                name: field.contents()
                for name, field in reader.fields.items()
                if field.types == [gguf.GGUFValueType.STRING]
            }
        except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError, OverflowError) as error:
            raise InputError(f"{path}: is not a complete GGUF file ({error}); download it again.") from error
        self.path = path
        self._tensors = {}
        for tensor in reader.tensors:
            kind = tensor.tensor_type
            if kind.name not in DTYPES and kind not in dequantize_functions:
                raise InputError(
                    f"{path}: {tensor.name} is stored as {kind.name}, which is not supported; get a Q8_0, Q6_K, Q5_K, "
                    f"Q4_K or Q4_0 file."
                )
            shape = _shape(path, tensor, reader.fields.get(ORIGINAL_SHAPE + tensor.name))
            if kind.name in DTYPES and int(tensor.data_offset) % DTYPES[kind.name].itemsize:
                raise InputError(
                    f"{path}: is not a complete GGUF file ({tensor.name} is misaligned); download it again."
                )
            self._tensors[tensor.name] = (kind.name, shape, int(tensor.data_offset), int(tensor.n_bytes))
        self._content = map_file(path)
        end = max((start + size for *_, start, size in self._tensors.values()), default=0)
        if end > len(self._content):
            raise InputError(f"{path}: is not a complete GGUF file (cut short); download it again.")

    def keys(self) -> list[str]:
        return list(self._tensors)

    def quantization(self) -> None:
        """Every kind of block that is not read was refused when the file was opened."""

    def shape(self, key: str) -> torch.Size:
        return self._tensors[key][1]

    def get(self, key: str) -> Tensor | Stored:
        kind, shape, start, size = self._tensors[key]
        # A tensor of its own, because a part of one that was made outside of inference mode cannot be rehearsed in it.
        data = torch.frombuffer(self._content, dtype=torch.uint8, count=size, offset=start)
        if kind in DTYPES:
            return data.view(DTYPES[kind]).reshape(shape)
        rows = prod(shape[:-1])
        return Stored(data.reshape(rows, -1), shape, Blocks(kind))


def _shape(path: Path, tensor: Any, original: Any) -> torch.Size:
    """The shape of the reader's tensor. original: the field with its shape before it was flattened, or None. Raises
    InputError if the values do not have that shape, or if there are none."""
    shape = torch.Size(int(size) for size in reversed(tensor.shape))
    if original is not None:
        whole = original.contents()
        if not isinstance(whole, list) or not all(isinstance(n, int) for n in whole) or prod(whole) != prod(shape):
            raise InputError(
                f"{path}: is not a complete GGUF file (the shape of {tensor.name} is wrong); download it again."
            )
        shape = torch.Size(whole)
    if not all(size > 0 for size in shape):
        raise InputError(f"{path}: is not a complete GGUF file ({tensor.name} has no values); download it again.")
    return shape
