"""NVFP4 weights against numbers worked out one by one, and against comfy-kitchen where it is installed."""

from __future__ import annotations

import pytest
import torch
from a2v.ltx.weights.nvfp4 import nvfp4, unswizzle
from a2v.ltx.weights.quantized import ScaledLinear
from a2v.tests.ltx.goldens import relative
from torch import Tensor, nn

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SHAPES = ((128, 64), (256, 128), (48, 80), (384, 96), (16, 16), (272, 336))


def stored(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random bytes and scales of a padded layer."""
    generator = torch.Generator().manual_seed(rows)
    packed = torch.randint(256, (rows, columns // 2), dtype=torch.uint8, generator=generator)
    tiled = torch.rand(-(-rows // 128) * 128, -(-columns // 64) * 4, generator=generator) * 20
    return packed, tiled.to(torch.float8_e4m3fn), torch.tensor(0.0371)


def value(packed: Tensor, tiled: Tensor, scale: Tensor, row: int, column: int) -> float:
    """One weight, as the formats' definitions have it: e2m1 in a nibble, cuBLAS's place of its block's scale."""
    byte = int(packed[row, column // 2])
    nibble = byte >> 4 if column % 2 == 0 else byte & 15
    block = column // 16
    tile = row // 128 * (tiled.shape[1] // 4) + block // 4
    place = tile * 512 + (row % 32) * 16 + (row % 128) // 32 * 4 + block % 4
    sign = -1 if nibble & 8 else 1
    return sign * MAGNITUDES[nibble & 7] * float(tiled.flatten()[place]) * float(scale)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_value(shape: tuple[int, int]) -> None:
    parts = stored(*shape)
    weight = nvfp4(*parts, shape).decode()
    assert weight.shape == shape and weight.dtype == torch.float32
    for row in range(0, shape[0], 7):
        for column in range(0, shape[1], 5):
            assert weight[row, column].item() == pytest.approx(value(*parts, row, column), rel=1e-6, abs=0)


def test_every_byte() -> None:
    packed = torch.arange(256, dtype=torch.uint8).view(16, 16)
    scales = torch.ones(128, 4).to(torch.float8_e4m3fn)
    weight = nvfp4(packed, scales, torch.tensor(1.0), (16, 32)).decode()
    signed = [*MAGNITUDES, *(-m for m in MAGNITUDES)]
    assert weight.flatten().tolist() == [v for high in signed for low in signed for v in (high, low)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_value_is_rounded_once(dtype: torch.dtype) -> None:
    layer = nvfp4(*stored(48, 80), (48, 80))
    assert torch.equal(layer.decode(dtype), layer.decode().to(dtype))


def test_padding_is_left_out() -> None:
    parts = stored(48, 80)
    whole, part = nvfp4(*parts, (48, 80)).decode(), nvfp4(*parts, (35, 70)).decode()
    assert torch.equal(part, whole[:35, :70])


def test_the_layer_computes_with_it() -> None:
    layer = nvfp4(*stored(48, 80), (48, 80))
    bias, x = torch.randn(48), torch.randn(2, 3, 80)
    for dtype, given in ((torch.float32, bias), (torch.bfloat16, bias), (torch.float32, None)):
        ours = ScaledLinear(layer, None if given is None else nn.Parameter(given, requires_grad=False))
        expected = nn.functional.linear(x.to(dtype), layer.decode(dtype), None if given is None else given.to(dtype))
        assert torch.equal(ours(x.to(dtype)), expected)
    assert torch.equal(ours.decoded(), layer.decode())
    assert sum(p.nbytes for p in ours.parameters()) == 48 * 40 + 128 * 8
    assert torch.equal(ours.to(torch.bfloat16)(x), expected), "a cast of the module reached the packed weight"


def test_scales_in_rows_again() -> None:
    rows, columns = 300, 10
    tiled = torch.arange(384 * 12)
    found = unswizzle(tiled, rows, columns)
    for row, column in ((0, 0), (1, 0), (31, 3), (32, 0), (127, 3), (128, 0), (299, 9), (5, 4)):
        tile = row // 128 * 3 + column // 4
        assert found[row, column] == tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4


@pytest.mark.parametrize("change", ["dtype", "shape", "scales", "scale"])
def test_what_does_not_belong_together(change: str) -> None:
    packed, scales, scale = stored(48, 80)
    parts = {
        "dtype": (packed.float(), scales, scale),
        "shape": (packed[:32], scales, scale),
        "scales": (packed, scales[:64], scale),
        "scale": (packed, scales, torch.ones(48)),
    }[change]
    with pytest.raises(ValueError, match=r"\(48, 80\)"):
        nvfp4(*parts, (48, 80))


@pytest.mark.parametrize("shape", [*SHAPES, (100, 70)])
def test_comfy_kitchen_reads_it_so_too(shape: tuple[int, int]) -> None:
    kitchen = pytest.importorskip("comfy_kitchen.backends.eager.quantization")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    scale = weight.abs().amax() / (448 * 6)
    packed, scales = kitchen.quantize_nvfp4(weight, scale, pad_16x=True)
    expected = kitchen.dequantize_nvfp4(packed, scale, scales, torch.float32)[: shape[0], : shape[1]]
    assert torch.equal(nvfp4(packed, scales, scale, shape).decode(), expected)
    assert relative(expected, weight) < 0.1
