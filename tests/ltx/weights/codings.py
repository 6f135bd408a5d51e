"""Every byte of each format that the kernel decodes, by the kernel and by the eager code."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from unittest import mock

import torch
from a2v.ltx.weights import decoding, int8, quantized
from torch import Tensor

KINDS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
COLUMNS = decoding.BLOCK + 514  # two blocks, the second in part
SCALES = {"no scale": None, "a scale": torch.tensor(0.0123), "a scale a row": torch.tensor([0.5, 0.0123, 300.0])}


def cases(device: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, what the eager code decodes, what the kernel decodes), in float64."""
    data = torch.arange(256, dtype=torch.uint8).repeat(3, COLUMNS // 256 + 1)[:, :COLUMNS].contiguous()
    for kind, dtype, (given, scale) in product(KINDS, DTYPES, SCALES.items()):
        if kind is torch.int8 and scale is None:
            continue
        join = int8.int8 if kind is torch.int8 else quantized.float8
        coding = join(data.view(kind), scale).coding
        with mock.patch.object(quantized, "decode", unable), mock.patch.object(int8, "decode", unable):
            eager = coding.decode(data.to(device), dtype)
        with mock.patch.object(torch.Tensor, "mul_", refuse), mock.patch.object(torch, "mul", refuse):
            decoded = coding.decode(data.to(device), dtype)
        assert eager.dtype == decoded.dtype == dtype
        names = (str(each).removeprefix("torch.") for each in (kind, dtype))
        yield " ".join((*names, given)), eager.double().cpu(), decoded.double().cpu()


def unable(*_: object) -> None:
    return None


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("the kernel did not run")
