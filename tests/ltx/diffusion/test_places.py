"""Noise levels as stretches of tokens: what a stretch computes is what each token computes with its own level."""

from __future__ import annotations

import pytest
import torch
from a2v.ltx.diffusion.modulation import RUNS, Ada, Places


@pytest.mark.parametrize("index", [[0, 0, 1, 1, 1], [1, 0, 0, 1, 1], [2, 0, 0, 1, 2], [0, 1] * (RUNS // 2)], ids=str)
def test_stretches_give_what_single_tokens_give(index: list[int]) -> None:
    draw = torch.Generator().manual_seed(3)
    values = tuple(torch.randn(3, 3, 4, generator=draw))
    x, change = torch.randn(2, 2, len(index), 4, generator=draw)
    places = Places.of(torch.tensor(index))
    assert [number for start, stop, number in places.runs for _ in range(start, stop)] == index
    runs, spread = Ada(values, places), Ada(values, Places(places.index, None))
    assert torch.equal(runs.modulate(x, 0, 1), spread.modulate(x, 0, 1))
    assert torch.equal(runs.gated(x, change.clone(), 2), spread.gated(x, change.clone(), 2))


def test_many_stretches_are_spread() -> None:
    assert Places.of(torch.arange(2 * RUNS) % 2).runs is None
