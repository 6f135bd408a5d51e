"""A LoRA pair on a weight that is decoded: in the decoded weight where an input has many tokens, beside it where it has
few. Both mean the same, and what is stored does not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gguf
import pytest
import torch
from a2v.ltx.weights import quantized
from a2v.ltx.weights.adapters import Leaf, LowRank
from a2v.ltx.weights.gguf import Blocks
from a2v.ltx.weights.lora import merged
from a2v.ltx.weights.quantized import Branch, QuantizedLinear, Stored, joining_is_cheaper, layer_of, quicken, to_float8
from a2v.tests.ltx.goldens import relative
from torch import Tensor, nn

from .test_formats import KINDS
from .test_formats import layer as made
from .test_products import multiplies_fp8

ROWS, COLUMNS, RANK = 96, 256, 24
MANY, FEW = 200, 20  # tokens; the bound is 96 * 256 / (96 + 256) = 70
SHARE = 0.05  # a pair's norm / the weight's


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def layer(kind: str) -> QuantizedLinear:
    weight = 0.02 * torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))
    bias = nn.Parameter(torch.linspace(-1, 1, ROWS), requires_grad=False)
    if kind == "fp8":
        return layer_of(to_float8(weight), bias)
    if kind == "Q8_0":
        data = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
        return layer_of(Stored(torch.from_numpy(data), weight.shape, Blocks("Q8_0")), bias)
    pytest.importorskip("comfy_kitchen")
    return made(kind, ROWS, COLUMNS)


def pairs(weight: Tensor, randn: Callable, count: int) -> list[tuple[LowRank, float]]:
    """Pairs of SHARE of the weight each, at different strengths, as a file in bfloat16 has them."""
    found = []
    for strength in (0.7, -0.4)[:count]:
        down, up = randn(RANK, COLUMNS), randn(ROWS, RANK)
        up *= SHARE * weight.norm() / (up @ down).norm() / abs(strength)
        found.append((LowRank(down.bfloat16(), up.bfloat16(), 1.0), strength))
    return found


def give(q: QuantizedLinear, terms: list[tuple[LowRank, float]]) -> None:
    q.branches = tuple((Branch(pair.down, pair.up), strength) for pair, strength in terms)


@pytest.mark.parametrize("kind", ["fp8", "Q8_0", *KINDS])
@pytest.mark.parametrize("count", [1, 2])
def test_joined_or_beside_it_means_the_same(kind: str, count: int, randn: Callable) -> None:
    q = layer(kind)
    before, terms = q.weight.clone(), pairs(q.decoded(), randn, count)
    give(q, terms)
    weight = q.decoded().double()
    for pair, strength in terms:
        weight += strength * pair.up.double() @ pair.down.double()
    for tokens in (MANY, FEW):
        x = randn(2, tokens // 2, COLUMNS)
        assert relative(q(x).double(), nn.functional.linear(x.double(), weight, q.bias.double())) < 1e-6
    assert torch.equal(q.weight, before)


@pytest.mark.parametrize("count", [1, 2])
def test_the_error_is_that_of_merging_into_a_16_bit_weight(count: int, randn: Callable) -> None:
    """In bfloat16, of the weight that computes: the sum of all pairs and the weight is rounded once."""
    q, one = layer("fp8"), torch.eye(COLUMNS).bfloat16()
    q.bias = None
    half, terms = q.decoded(torch.bfloat16), pairs(q.decoded(), randn, count)
    exact = merged(half, terms)
    give(q, terms)
    ours = q(one).t().float()  # the product with ones rounds nothing
    file = merged(half, terms, torch.bfloat16).float()
    errors = relative(ours, exact), relative(file, exact)
    assert errors[0] <= 1.01 * errors[1] < 0.002
    x = randn(MANY, COLUMNS).bfloat16()
    wanted = x.double() @ exact.double().t()
    outputs = relative(q(x).double(), wanted), relative((x @ file.bfloat16().t()).double(), wanted)
    assert outputs[0] <= 1.02 * outputs[1]
    give(q, [])
    assert relative(q(x).double(), wanted) > 10 * outputs[0]  # the pairs do matter


@multiplies_fp8
def test_the_cheaper_way_is_taken(monkeypatch: pytest.MonkeyPatch, randn: Callable) -> None:
    joined: list[int] = []
    real = quantized.join
    monkeypatch.setattr(quantized, "join", lambda weight, given: joined.append(len(given)) or real(weight, given))
    q = layer("fp8")
    give(q, pairs(q.decoded(), randn, 2))
    q(randn(FEW, COLUMNS))
    assert joined == []
    q(randn(2, MANY // 2, COLUMNS))
    assert joined == [2]
    quicken(q)  # a product in the weight's own format has no decoded weight
    q(randn(MANY, COLUMNS).bfloat16())
    assert joined == [2]
    give(q, [])
    q(randn(MANY, COLUMNS))
    assert joined == [2]


def test_the_bound_is_where_both_cost_the_same() -> None:
    """FLOPs of a pair of rank r: 2·r·in·out in the weight, 2·r·tokens·(in + out) beside it."""
    assert not joining_is_cheaper(2048, 4096, 4096) and joining_is_cheaper(2049, 4096, 4096)
    assert not joining_is_cheaper(3276, 4096, 16384) and joining_is_cheaper(3277, 16384, 4096)


def test_a_strength_may_be_a_tensor(randn: Callable) -> None:
    """So that compiled code does not depend on its number."""
    q, x = layer("fp8"), randn(MANY, COLUMNS).bfloat16()
    terms = pairs(q.decoded(), randn, 2)
    give(q, terms)
    expected = q(x)
    q.branches = tuple((branch, torch.tensor(scale)) for branch, scale in q.branches)
    assert torch.equal(q(x), expected)


@pytest.mark.parametrize("count", [1, 2])
def test_a_later_tensor_may_take_an_earlier_ones_memory(
    count: int, monkeypatch: pytest.MonkeyPatch, randn: Callable
) -> None:
    """As ComfyUI's paging does, which fetches all leaves into one buffer."""
    q, x = layer("fp8"), randn(MANY, COLUMNS)
    give(q, pairs(q.decoded(), randn, count))
    expected, memory = q(x), torch.empty(ROWS * COLUMNS)

    def fetched(self: Leaf, use: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
        place = memory[: self.weight.numel()].view(self.weight.shape)
        result = use(place.copy_(self.weight))
        memory.fill_(float("nan"))
        return result

    monkeypatch.setattr(Leaf, "forward", fetched)
    assert torch.equal(q(x), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_means_the_same(randn: Callable) -> None:
    q = layer("fp8").cuda()
    q.bias = None
    half, terms = q.decoded(torch.bfloat16), pairs(q.decoded().cpu(), randn, 2)
    give(q, terms)
    for branch, _ in q.branches:
        branch.cuda()
    exact = merged(half, terms)
    ours = q(torch.eye(COLUMNS, device="cuda").bfloat16()).t().float()
    assert relative(ours, exact) <= 1.01 * relative(merged(half, terms, torch.bfloat16).float(), exact)
