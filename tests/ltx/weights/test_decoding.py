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
from a2v.ltx.weights.decoding import decode
from a2v.tests.ltx.weights.codings import DTYPES, KINDS, SCALES, cases

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
