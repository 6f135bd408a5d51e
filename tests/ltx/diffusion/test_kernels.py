"""The Triton kernels in Triton's interpreter on the CPU, against the eager code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from a2v.ltx import fused
from a2v.ltx.diffusion import kernels
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, Guide, TextContext
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.modulation import Ada, rotary
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.grid import audio_length
from a2v.ltx.latents import Noise
from a2v.ltx.nag import Nag
from a2v.ltx.weights import products
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.quantized import Branch, layer_of, quicken, to_float8
from a2v.ltx.weights.rounding import Rounded, in_passes
from a2v.tests.tiny import write_tiny

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PROGRAM = Path(__file__).with_name("interpreted.py")


def told_by(part: str, folder: Path) -> dict[str, float]:
    """What a part of the program tells of each case."""
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, PROGRAM, part, folder], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.skipif(kernels.triton is None, reason="Triton is not installed")
@pytest.mark.parametrize(("part", "count"), [("kernels", 3 * 2 * 12), pytest.param("step", 2, marks=pytest.mark.soak)])
def test_they_give_the_eager_codes_numbers(tmp_path: Path, part: str, count: int) -> None:
    errors = told_by(part, tmp_path)
    assert len(errors) == count
    for name, error in errors.items():
        assert error <= (1e-2 if "bfloat16" in name else 1e-6), name  # eager rounds to 8 bits two or three times
        assert error > 0 or "float32" in name, f"{name}: no kernel ran"  # which rounds once


@pytest.mark.skipif(kernels.triton is None, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("part", "count"), [("rounded", 2 * 2 * 8), pytest.param("fp8 step", 1, marks=pytest.mark.soak)]
)
def test_what_they_round_is_what_a_rounding_afterwards_gives(tmp_path: Path, part: str, count: int) -> None:
    """Of norms, gates of heads and activations, with and without the input itself, which a LoRA reads."""
    errors = told_by(part, tmp_path)
    assert len(errors) == count
    for name, error in errors.items():
        assert error <= (1e-6 if "float32" in name else 0), name


@pytest.mark.skipif(kernels.triton is None, reason="Triton is not installed")
def test_what_they_cannot_take_over_stays_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "INTERPRETED", True)
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


@CUDA
@pytest.mark.parametrize("nag", [None, Nag()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_a_guided_step_is_that_of_the_eager_code(
    dtype: torch.dtype, nag: Nag | None, tmp_path: Path, randn: Callable
) -> None:
    files = write_tiny(tmp_path, layers=3, heads=4, head_dim=64)
    model = load_checkpoint(files.checkpoint).transformer(dtype, "cuda")
    widths = model.config.cross_attention_dim, model.config.audio_cross_attention_dim
    positive, negative = (TextContext(randn(1, 6, w), randn(1, 6, v)) for w, v in (widths, widths))
    audio = AudioCondition(randn(1, 8, audio_length(9, Fraction(24)), 16), 9, Fraction(24))
    conditions = Conditions(positive, audio, negative, (Guide(randn(1, 128, 1, 3, 5), 0, 0.6),))
    guidance = Guidance(cfg=3.0, stg=1.0, modality=3.0, stg_blocks=(1,))
    results = []
    for on in (False, True):
        kernels.fuse(model, on)
        steering = Steering(torch.tensor([0.9, 0.0]), guidance, nag=nag)
        latent, *_ = sample(
            model, torch.zeros(1, 128, 2, 3, 5), conditions, steering, Noise(1), device="cuda", room=1e9
        )
        results.append(latent)
    eager, fused = results
    assert any(module.fused for module in model.modules() if isinstance(module, kernels.SWITCHED))
    error = float((eager - fused).norm() / eager.norm())
    assert 0 < error < (2e-2 if dtype is torch.bfloat16 else 1e-5)


@CUDA
@pytest.mark.parametrize("lora", [False, True], ids=["alone", "beside a LoRA"])
def test_on_a_gpu_what_they_round_is_what_a_rounding_afterwards_gives(lora: bool, randn: Callable) -> None:
    """At the published width, where the kernels have other blocks and the card's own conversion."""
    place = torch.device("cuda")
    if not (products.card_has("fp8", place) and products.rows_have_scales(place)):
        pytest.skip("this card has no fp8 products")
    norm, x = torch.nn.RMSNorm(4096, eps=1e-6, elementwise_affine=False), randn(2, 100, 4096).bfloat16().cuda()
    kernels.fuse(norm)
    ada = Ada(tuple(randn(4, 1, 4096).bfloat16().cuda()), None)
    attended, logits = x.view(2, 100, 32, 128), randn(2, 100, 32).bfloat16().cuda()
    hidden = randn(2, 100, 16384).bfloat16().cuda()

    def reader(width: int, lora: bool = lora) -> torch.nn.Module:
        layer = layer_of(to_float8(torch.ones(16, width)), None).cuda()
        layer.branches = ((Branch(torch.ones(4, width), torch.ones(16, 4)), 1.0),) if lora else ()
        quicken(layer)
        return layer

    activated = kernels.gelu(hidden, (reader(16384, lora=True),)).plain
    torch.testing.assert_close(activated, torch.nn.functional.gelu(hidden, approximate="tanh"), rtol=1e-2, atol=1e-5)
    for plain, made in (
        (kernels.norm_modulate(norm, x, ada, 1, 2), kernels.norm_modulate(norm, x, ada, 1, 2, (reader(4096),))),
        (kernels.gate_heads([attended.clone()], logits), kernels.gate_heads([attended], logits, reader(4096))),
        (activated, kernels.gelu(hidden, (reader(16384),))),
    ):
        assert isinstance(plain, torch.Tensor) and isinstance(made, Rounded) and (made.plain is not None) == lora
        assert made.plain is None or torch.equal(made.plain, plain)
        values, factors = in_passes(plain.flatten(0, 1), True)
        rows = made.rows()
        assert torch.equal(rows.values.view(torch.uint8), values.view(torch.uint8))
        assert torch.equal(rows.factors, factors)


@CUDA
def test_on_a_gpu_positions_are_those_of_the_cpu(tmp_path: Path) -> None:
    """The angles reach 15 000, so that one bit of a float32 frequency or position is a thousandth here."""
    model = load_checkpoint(write_tiny(tmp_path, layers=1).checkpoint).transformer(torch.bfloat16)
    positions = torch.rand(1, 3, 4096, 2) * torch.tensor([5.0, 576.0, 1024.0])[:, None, None]
    there, here = (rotary(model, positions, positions[:, :1], torch.device(place)) for place in ("cuda", "cpu"))
    for name in ("video", "audio", "cross_video", "cross_audio"):
        for found, expected in zip(getattr(there, name), getattr(here, name), strict=True):
            torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=2e-6)
