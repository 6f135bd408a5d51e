"""The Triton kernels in Triton's interpreter on the CPU, against the eager code."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion import kernels

PROGRAM = Path(__file__).with_name("interpreted.py")


@pytest.mark.skipif(kernels.triton is None, reason="Triton is not installed")
def test_they_give_the_eager_codes_numbers(tmp_path: Path) -> None:
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, PROGRAM, tmp_path], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = dict(map(json.loads, done.stdout.splitlines()))
    assert len(errors) == 3 * 2 * 5 + 1
    for name, error in errors.items():
        assert error <= (1e-2 if "bfloat16" in name else 1e-6), name  # eager rounds to 8 bits two or three times
        assert error > 0 or "float32" in name, f"{name}: no kernel ran"  # which rounds once


def test_without_triton_they_stay_off_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "triton", None)
    kernels._tell_that_they_stay_off.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # a graph asks for it in each stage
            kernels.fuse(norm := torch.nn.RMSNorm(4))
    assert caplog.text.count("Triton is not installed here") == 1
    assert not kernels.fuses(norm, torch.zeros(1, 1, 4))


@pytest.mark.skipif(kernels.triton is None, reason="Triton is not installed")
def test_what_they_cannot_take_over_stays_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    norm, x = torch.nn.RMSNorm(4), torch.zeros(1, 1, 4)
    assert not kernels.fuses(norm, x)
    kernels.fuse(norm)
    assert kernels.fuses(norm, x)
    norm.weight_function = [lambda weight: weight]  # ComfyUI changes the weight at each call
    assert not kernels.fuses(norm, x)
    del norm.weight_function
    assert not kernels.fuses(norm, x.to("meta"))  # an offloaded weight is elsewhere
    kernels.fuse(norm, False)
    assert not kernels.fuses(norm, x)
