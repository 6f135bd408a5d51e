"""Neighbourhood attention in blocks against its definition, and the layer against diffusers' own."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

decoder = pytest.importorskip("diffusers.models.autoencoders.ltx2_diffusion_decoder")
from a2v.ltx.diffusion import neighbourhood  # noqa: E402
from a2v.ltx.diffusion.neighbourhood import Layer, attend, axis  # noqa: E402

SHAPES = {
    "smaller than a window": ((2, 3, 4), (3, 7, 7)),
    "as large as a window": ((3, 7, 7), (3, 7, 7)),
    "one larger": ((4, 8, 8), (3, 7, 7)),
    "long": ((1, 2, 37), (1, 1, 5)),
    "several blocks": ((9, 13, 21), (3, 5, 5)),
    "a window of one": ((4, 5, 6), (1, 1, 1)),
    "an even window": ((5, 6, 7), (2, 4, 4)),
    "stage 5": ((11, 12, 12), (11, 11, 11)),
}


def windows(length: int, kernel: int) -> list[range]:
    """For each position, the keys it sees: centred, and moved inwards at an edge."""
    kernel = min(kernel, length)
    starts = (min(max(place - kernel // 2, 0), length - kernel) for place in range(length))
    return [range(start, start + kernel) for start in starts]


def by_definition(query: Tensor, key: Tensor, value: Tensor, kernel: tuple[int, ...]) -> Tensor:
    sees = [windows(length, size) for length, size in zip(query.shape[1:4], kernel, strict=True)]
    result = torch.empty_like(query)
    for t, h, w in product(*map(range, query.shape[1:4])):
        box = torch.meshgrid(*(torch.tensor(list(s[i])) for s, i in zip(sees, (t, h, w), strict=True)), indexing="ij")
        keys, values = (x[:, box[0], box[1], box[2]].flatten(1, 3) for x in (key, value))  # [B, n, heads, d]
        scores = torch.einsum("bhd,bnhd->bhn", query[:, t, h, w], keys).softmax(-1)
        result[:, t, h, w] = torch.einsum("bhn,bnhd->bhd", scores, values)
    return result


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("batch", [None, 5000], ids=["at once", "in small batches"])
def test_equals_its_definition(
    case: str, batch: int | None, randn: Callable, off: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, kernel = SHAPES[case]
    if batch:
        monkeypatch.setattr(neighbourhood, "BATCH", batch)
    query, key, value = (randn(1, *shape, 2, 4) for _ in range(3))
    assert off(attend(query, key, value, kernel), by_definition(query, key, value, kernel)) < 1e-6


def test_every_position_is_asked_in_some_block() -> None:
    for length in range(1, 70):
        for kernel in (1, 2, 3, 5, 7, 11):
            cut = axis(length, kernel)
            asked = {start + n for start in cut.queries for n in range(cut.block)}
            assert asked == set(range(length))
            expected = windows(length, kernel)
            for start, key, first in zip(cut.queries, cut.keys, cut.first, strict=True):
                assert key >= 0 and key + cut.box <= length
                for n, begin in enumerate(first):
                    assert key + begin == expected[start + n].start and begin + cut.kernel <= cut.box


def test_scores_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest call of attention is bounded; the whole matrix would have 256 times as many scores."""
    calls: list[int] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(query: Tensor, key: Tensor, *rest: object, **more: object) -> Tensor:
        calls.append(math.prod(query.shape[:3]) * key.shape[2])
        return real(query, key, *rest, **more)

    monkeypatch.setattr(neighbourhood, "BATCH", 1 << 16)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    x = torch.zeros(1, 16, 16, 16, 1, 2)
    attend(x, x, x, (3, 5, 5))
    assert max(calls) <= 1 << 16 == 16**6 // 256


@pytest.mark.parametrize("shape", [(3, 5, 6), (5, 9, 7)])
def test_the_layer_equals_diffusers(shape: tuple[int, ...], randn: Callable, off: Callable) -> None:
    layer = decoder.LTX2VideoVaeNeighborhoodAttention(32, (3, 5, 5), 16).eval()
    x = randn(1, *shape, 32)
    with torch.no_grad():
        theirs = layer(x, layer.build_block_mask(x))
        layer.__class__ = Layer
        assert off(layer(x, None), theirs) < 1e-5
