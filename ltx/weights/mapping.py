"""Maps weight files, of any size, without a look at their weights.

The tensors of `safe_open` map the file, too, with two faults that grow with the file. torch asks Linux to reserve
memory for a copy of the whole file, though only the pages that are written to are copied, and Linux refuses that for a
file larger than memory and swap. And the conversion to a tensor reads its first bytes: a checkpoint that is only looked
at costs thousands of reads all over the disk.
"""

from __future__ import annotations

import json
import mmap
import struct
import sys
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import InputError
from ..models import size

NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python names since 3.13
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
if hasattr(torch, "float8_e8m0fnu"):  # since torch 2.7
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu


class MappedFile:
    """A safetensors file with those methods of `safe_open` that the readers use. Opening it reads only the header."""

    def __init__(self, path: Path) -> None:
        """Raises SafetensorError or OSError if the file is no complete safetensors file, and InputError if the system
        does not map it."""
        self._path = path
        head = safe_open(str(path), framework="np")
        self.keys, self.metadata, self.get_slice = head.keys, head.metadata, head.get_slice
        self._content = map_file(path)
        (length,) = struct.unpack_from("<Q", self._content)
        self._start = 8 + length
        self._header = json.loads(self._content[8 : self._start])

    def get_tensor(self, key: str) -> Tensor:
        """A tensor that maps the file. Raises InputError if torch does not know its dtype."""
        entry = self._header[key]
        dtype, shape, start = DTYPES.get(entry["dtype"]), entry["shape"], self._start + entry["data_offsets"][0]
        if dtype is None:
            raise InputError(
                f"{self._path}: {key} is stored as {entry['dtype']}, which is not supported; use a file in another "
                "format."
            )
        if not prod(shape):
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._content, dtype=dtype, count=prod(shape), offset=start).reshape(shape)


def map_file(path: Path) -> mmap.mmap:
    """Maps a file that is not empty. Its bytes may be written to, and the file does not change. Raises InputError if
    the system does not map it."""
    try:
        with path.open("rb") as file:
            if sys.platform != "linux":
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            access = mmap.PROT_READ | mmap.PROT_WRITE
            return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=access)
    except OSError as error:  # Windows, and a Linux that promises no more memory than it has
        raise InputError(
            f"{path}: the system does not map its {size(path.stat().st_size)} into memory ({error.strerror}); enlarge "
            "the swap or page file, or use a smaller file."
        ) from error
