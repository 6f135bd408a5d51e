"""The counts of a step at the published width: a later change cannot lose them unseen. Nothing is timed."""

from __future__ import annotations

import pytest
import torch
from a2v.benchmarks import cost, gpu
from a2v.benchmarks.count import DEVICE, counting

BLOCKS = 12
"""A quarter of the published 48, with the STG block at the same share of them: a step costs a quarter there."""
SIZE = {**cost.PUBLISHED, "layers": BLOCKS}


@pytest.fixture(scope="module")
def steps() -> dict[str, cost.Step]:
    """A step of each stage at 1024×576×121, with a first image."""
    return cost.ours(SIZE, gpu.CLIP, image=True)


@pytest.mark.parametrize(
    ("stage", "flops", "moved", "launches", "bound"),
    [("first", 56.37, 98.18, 2039, 400e9), ("second", 79.21, 118.29, 1930, 480e9)],
)
def test_the_counts_of_a_step(
    steps: dict[str, cost.Step], stage: str, flops: float, moved: float, launches: float, bound: float
) -> None:
    one = steps[stage].cost
    assert (round(one.flops / 1e12, 2), round(one.bytes / 1e9, 2), round(one.launches)) == (flops, moved, launches)
    assert 48 / BLOCKS * one.bytes <= bound  # it counts the embeddings of the positions four times


@pytest.mark.soak
def test_the_host_waits_for_no_step() -> None:
    """It waits where a stage starts, as often for many steps as for one."""
    size = {**cost.SMALL, "heads": 8, "head_dim": 64}  # latents so large that they are on the device

    def waits(steps: int) -> float:
        found = cost.counted(gpu.ours, size, gpu.CLIP.plain, "none", steps, room=float("inf"))
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
        x.copy_(there(64, 32, dtype=torch.bfloat16))  # the target is only written
        assert cost.bytes - before == 64 * 32 * (4 + 2) and cost.waits == 0
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
