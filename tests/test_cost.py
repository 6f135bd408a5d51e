"""The counts of a step at the published width: a later change cannot lose them unseen. Nothing is timed."""

from __future__ import annotations

import pytest
import torch
from a2v.benchmarks import cost, gpu, layers, weights
from a2v.benchmarks.count import CARDS, DEVICE, FP8, HALF, INT8, counting
from a2v.benchmarks.layers import Layers, exchanged

BLOCKS = 12
"""A quarter of the published 48, with the STG block at the same share of them: a step costs a quarter there."""
SIZE = {**cost.PUBLISHED, "layers": BLOCKS}


@pytest.fixture(scope="module")
def steps() -> dict[str, cost.Step]:
    """A step of each stage at 1024×576×121, with a first image."""
    return cost.ours(SIZE, gpu.CLIP, image=True)


@pytest.fixture(scope="module")
def eager() -> dict[str, cost.Step]:
    """The same without Triton kernels."""
    return cost.ours(SIZE, gpu.CLIP, image=True, how={"fused": False})


@pytest.mark.parametrize(
    ("kind", "stage", "flops", "moved", "launches", "bound"),
    [
        ("eager", "first", 56.16, 95.47, 2046, 400e9),
        ("eager", "second", 79.21, 118.49, 1946, 480e9),
        ("steps", "first", 56.16, 89.55, 1597, 360e9),
        ("steps", "second", 79.21, 111.10, 1499, 450e9),
    ],
)
def test_the_counts_of_a_step(
    kind: str, stage: str, flops: float, moved: float, launches: float, bound: float, request: pytest.FixtureRequest
) -> None:
    one = request.getfixturevalue(kind)[stage].cost
    assert (round(one.flops / 1e12, 2), round(one.bytes / 1e9, 2), round(one.launches)) == (flops, moved, launches)
    assert 48 / BLOCKS * one.bytes <= bound  # it counts the embeddings of the positions four times


@pytest.mark.parametrize(
    ("stage", "decoded", "with_a_lora"),
    [
        ("first", (56.2, 103.3, 1998), (59.2, 121.4, 2729)),
        ("second", (79.2, 124.8, 1900), (82.0, 141.9, 2631)),
    ],
)
def test_a_lora_on_fp8_costs_at_most_a_tenth(
    steps: dict[str, cost.Step], stage: str, decoded: tuple[float, ...], with_a_lora: tuple[float, ...]
) -> None:
    """A pair of rank 384 on each linear layer of the blocks, as the published distilled LoRA has."""
    found = [exchanged(steps[stage], Layers("fp8", rank)).cost for rank in (0, layers.RANK)]
    counts = [(round(c.flops / 1e12, 1), round(c.bytes / 1e9, 1), round(c.launches)) for c in found]
    assert counts == [decoded, with_a_lora]
    shares = [longer / shorter - 1 for shorter, longer in zip(*(c.seconds for c in found), strict=True)]
    assert max(shares) <= cost.LORA_SHARE


def test_an_exchanged_step_is_the_step_in_that_format() -> None:
    """The same counts as of the real step with such layers, to the launch and the byte."""
    size = {**cost.SMALL, "layers": 2}
    without, real = cost.ours(size, gpu.TOY), cost.ours(size, gpu.TOY, how={"fp8": True, "rank": 16})
    for stage in cost.STAGES:
        ours, expected = exchanged(without[stage], Layers("fp8", 16)).cost, real[stage].cost
        for name in ("flops", "bytes", "launches"):
            assert getattr(ours, name) == pytest.approx(getattr(expected, name), rel=1e-12)
        assert ours.seconds == pytest.approx(expected.seconds, rel=1e-9)
        assert expected.launches > without[stage].cost.launches


@pytest.mark.parametrize(("kind", "number", "cards"), [("fp8", FP8, 6), ("int8", INT8, 6), ("nvfp4", "nvfp4", 2)])
def test_fast_products_run_where_the_card_has_them(kind: str, number: str, cards: int) -> None:
    call = 4096, 4096, 4096, True
    fast, decoded = (layers.of_call(call, Layers(kind, fast=fast)) for fast in (True, False))
    assert fast.flops == decoded.flops == 2 * 4096**3
    able = [card for card, seconds in zip(CARDS.values(), fast.seconds, strict=True) if seconds < float("inf")]
    assert able == [card for card in CARDS.values() if number in card.products] and len(able) == cards
    for card, seconds in zip(CARDS.values(), fast.seconds, strict=True):
        assert seconds > fast.flops / card.products.get(number, float("inf"))
    for card, seconds in zip(CARDS.values(), decoded.seconds, strict=True):
        assert seconds > decoded.flops / card.products[HALF]


def test_the_input_of_an_fp8_product_is_rounded_in_one_pass() -> None:
    """3 bytes for each value and 4 for each row's scale, as the kernel moves them; then the product."""
    tokens, inputs, outputs = call = 4096, 2048, 1024
    rounding, scales = tokens * (3 * inputs + 4), 4 * outputs  # the weight's one scale was written for all its rows
    product = tokens * inputs + inputs * outputs + 4 * tokens + scales + 2 * outputs + 2 * tokens * outputs
    fast = layers.of_call((*call, True), Layers("fp8", fast=True))
    assert (fast.bytes, fast.launches) == (rounding + product, 2)


@pytest.mark.parametrize(
    ("rank", "first", "second"), [(0, (13.68, 435), (16.34, 389)), (layers.RANK, (21.07, 557), (25.23, 511))]
)
def test_inputs_of_fp8_products_are_rounded_where_they_are_made(
    rank: int, first: tuple[float, int], second: tuple[float, int]
) -> None:
    """A step moves a fifth less than with a rounding of its own for each input. Beside a LoRA, which reads the input
    itself, it moves a twelfth less."""
    size = {**SIZE, "layers": 2}
    without = cost.ours(size, gpu.CLIP)
    found = cost.ours(size, gpu.CLIP, how={"fp8": True, "fast": True, "rank": rank})
    for stage, expected in zip(cost.STAGES, (first, second), strict=True):
        now, apart = found[stage].cost, exchanged(without[stage], Layers("fp8", rank, fast=True)).cost
        assert (round(now.bytes / 1e9, 2), round(now.launches)) == expected
        assert now.bytes <= (11 / 12 if rank else 4 / 5) * apart.bytes and now.launches < apart.launches


def test_blocks_that_do_not_fit_are_copied() -> None:
    """Blocks of 1 GB on a card of 12 GB, of which 1.5 are reserved: 9 of them have room, two places are for copies."""
    card = CARDS["RTX 4070"]
    assert card.room == 12 * 2**30
    gb, room = 10**9, int(card.room - weights.RESERVE)
    assert weights.copied(card, 9 * gb, 1 * gb, 9, room - 10 * gb) == 0
    assert weights.copied(card, 48 * gb, 1 * gb, 48, room - 10 * gb) == (48 - 9 + weights.MOVING) * gb
    assert weights.copied(card, 48 * gb, room, 48, 0) == 48 * gb  # none stays


def test_the_weights_of_each_format() -> None:
    """Bytes of a block of the published width: as many as its numbers need, and a few for scales."""
    with counting():
        block = gpu.our_model(**{**SIZE, "layers": 1}).transformer_blocks[0]
        sizes = {name: Layers(kind).bytes(block) for name, kind in layers.KINDS.items()}
    gpu.our_model.cache_clear()
    numbers = sizes["bf16"] / 2
    bits = {"fp8": 8, "int8": 8, "GGUF Q8_0": 8.5, "NVFP4": 4.5, "GGUF Q4_0": 4.5}
    for name, each in bits.items():
        assert each * numbers / 8 < sizes[name] < 1.01 * each * numbers / 8, name


def test_the_host_waits_for_no_step() -> None:
    """It waits where a stage starts, as often for many steps as for one."""
    size = {**cost.SMALL, "heads": 8, "head_dim": 64}  # latents so large that they are on the device

    def waits(steps: int) -> float:
        found = cost.counted(gpu.ours, size, gpu.CLIP.plain, "none", steps, room=float("inf"), early=False)
        return found["first"].cost.waits * steps

    assert waits(1) == waits(4) > 0


def test_operations_are_counted_as_a_device_sees_them() -> None:
    def there(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=DEVICE)

    with counting() as (cost, _):
        x, weight = there(64, 32), there(16, 32, dtype=torch.float32)
        assert (cost.bytes, cost.launches) == (0, 0)
        torch.nn.functional.linear(x, weight)
        assert cost.flops == 2 * 64 * 32 * 16 and cost.bytes == 4 * (64 * 32 + 16 * 32 + 64 * 16)
        before = cost.bytes
        x.view(32, 64).t()
        assert cost.launches == 1 and cost.bytes == before
        x.add_(x.new_empty(32))  # the row is read once
        assert cost.bytes - before == 4 * (2 * 64 * 32 + 32)
        before = cost.bytes
        x.view(64, 32).addmm_(there(64, 8), there(8, 32))
        assert cost.flops == 2 * 64 * 32 * (16 + 8) and cost.bytes - before == 4 * (2 * 64 * 32 + 64 * 8 + 8 * 32)
        before = cost.bytes
        x.copy_(there(64, 32, dtype=torch.bfloat16))  # the target is only written
        assert cost.bytes - before == 64 * 32 * (4 + 2) and cost.waits == 0
        before, launches = cost.bytes, cost.launches
        x.to(torch.float32).reshape(-1)  # they return their input
        assert (cost.bytes, cost.launches) == (before, launches)
        x.to(torch.bfloat16)
        x.t().reshape(-1)  # these copy
        assert (cost.bytes - before, cost.launches - launches) == (64 * 32 * (4 + 2 + 4 + 4), 2)
        float(x.sum())
        assert cost.waits == 1
        torch.ones(8).to(DEVICE)
        assert cost.waits == 2
        before = cost.launches
        torch.ones(8).sum()  # the host's own work
        assert cost.launches == before
        query = there(1, 2, 64, 16)
        before = cost.flops
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
        assert cost.flops - before == 4 * 2 * 64 * 64 * 16
