"""The kernel that decodes weights of one byte per value gives the bits of the eager code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from a2v.ltx import fused
from a2v.ltx.weights import decoding, quantized
from a2v.ltx.weights.decoding import decode
from a2v.ltx.weights.mxfp8 import mxfp8
from a2v.ltx.weights.nvfp4 import nvfp4
from a2v.ltx.weights.quantized import FLOAT8, Stored, float8
from a2v.tests.ltx.weights.codings import DTYPES, KINDS, SCALES, cases
from a2v.tests.nodes.devices import LACKS, simulated
from torch import Tensor, nn

PROGRAM = Path(__file__).with_name("decoded.py")


@pytest.mark.skipif(fused.triton is None, reason="Triton is not installed")
def test_the_kernel_gives_the_same_bits() -> None:
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, PROGRAM], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = list(map(json.loads, done.stdout.splitlines()))
    assert len(found) == len(KINDS) * len(DTYPES) * len(SCALES) - len(DTYPES)
    for name, wrong, error in found:
        if " bfloat16" in name:
            assert error < 2**-7, name  # Triton's interpreter cuts off where a GPU rounds
        else:
            assert wrong == 0, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_kernel_gives_the_same_bits() -> None:
    for name, eager, decoded in cases("cuda"):
        assert torch.equal(eager.nan_to_num(123), decoded.nan_to_num(123)), name


def test_what_the_kernel_cannot_decode_is_left_to_the_eager_code() -> None:
    data = torch.zeros(2, 8, dtype=torch.uint8)
    assert decode(data, torch.int8, 1.0, torch.float32) is None  # on a CPU
    assert decode(data[0], torch.int8, 1.0, torch.float32) is None
    assert decode(data, torch.uint8, 1.0, torch.float32) is None


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated device (tests/nodes/devices.py) counts as one without float8, as Apple's."""
    for module in (decoding, quantized):
        monkeypatch.setattr(module, "WITH_FLOAT8", ("cpu", "cuda"))


def stored() -> dict[str, Stored]:
    """Weights [128, 64] in each format with float8 in it, with every byte."""
    data = torch.arange(256, dtype=torch.uint8).repeat(32).view(128, 64)
    scales = torch.arange(512, dtype=torch.int32).remainder(0x7E).to(torch.uint8).view(torch.float8_e4m3fn)
    plain = {str(kind): float8(data.view(kind), scale) for kind in FLOAT8 for scale in SCALES.values() if scale is None}
    rows = float8(data.view(FLOAT8[0]), torch.linspace(0.5, 2, 128))
    fp4 = nvfp4(data[:, :32].contiguous(), scales, torch.tensor(0.3), (128, 64))
    return {**plain, "by rows": rows, "nvfp4": fp4, "mxfp8": mxfp8(data, scales.view(torch.uint8), (128, 64))}


@pytest.mark.parametrize("name", stored())
def test_a_device_without_float8_decodes_the_same(name: str, lacking: None) -> None:
    weight = stored()[name]
    for dtype in DTYPES:
        expected = weight.coding.decode(weight.data, dtype)
        with simulated(LACKS) as device:
            decoded = weight.coding.decode(weight.data.to(device), dtype).cpu()
        assert torch.equal(decoded.nan_to_num(123), expected.nan_to_num(123))


def test_a_device_without_float8_leaves_rounding_to_the_cpu(lacking: None) -> None:
    def rounded(on: torch.device | str) -> Tensor:
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(8, 4))
        quantized.quantize(module, on=on, prefix="")
        return module[0].weight

    with simulated(LACKS) as device:
        made = rounded(device)
    assert torch.equal(made, rounded("cpu"))
