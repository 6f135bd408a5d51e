"""Masks over time, by token: the strict rule in float32, soft edges, and what a video does not fill."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from a2v.ltx.diffusion.masks import audio_spans, outside_mask, ramped, time_mask, video_spans

FPS = Fraction(24)


@pytest.mark.parametrize(
    ("time", "wanted"),
    [
        ((0.05, 0.375), [0, 1, 0, 0]),  # the end lies on a token's edge, 9/24
        ((0.375, 0.7), [0, 0, 1, 0]),  # the start does
        ((1 / 24, 9 / 24), [0, 1, 0, 0]),
        ((0.0, 0.01), [1, 0, 0, 0]),
        ((0.5, 0.500001), [0, 0, 1, 0]),
        ((0.0, float("inf")), [1, 1, 1, 1]),
        ((2.0, 3.0), [0, 0, 0, 0]),
    ],
)
def test_tokens_that_reach_into_a_time(time: tuple[float, float], wanted: list[int]) -> None:
    assert time_mask(video_spans(4, FPS), time).tolist() == wanted


def test_edges_are_compared_in_float32() -> None:
    """At 30 fps the edge 17/30 differs between float32 and float64, which would take another token in."""
    fps, edges = Fraction(30), []
    spans = video_spans(40, fps)
    for number in range(1, 40):
        exact = float(Fraction(8 * number + 1) / fps)
        edges.append(time_mask(spans, (exact, 99.0)).argmax().item() == number + 1 or number == 39)
    assert all(edges)


def test_audio_tokens() -> None:
    """Token i spans max(0, 4i - 3) to 4i + 1 hundredths of a second."""
    spans = audio_spans(26)
    assert torch.allclose(spans[:3], torch.tensor([[0, 0.01], [0.01, 0.05], [0.05, 0.09]]))
    assert time_mask(spans, (0.05, 0.375)).nonzero().flatten().tolist() == list(range(2, 11))


def test_soft_edges_rise_inwards_and_only_at_edges_of_the_time() -> None:
    spans = video_spans(13, FPS)
    hard, soft = (time_mask(spans, (1.0, 3.0), soften) for soften in (0.0, 1.0))
    assert torch.equal(hard > 0, soft > 0)
    inside = soft[hard > 0]
    assert inside[0] < 0.2 and inside[-1] < 0.4 and inside.max() > 0.8
    assert (inside.diff()[:2] > 0).all() and (inside.diff()[-2:] < 0).all()
    assert time_mask(spans, (0.0, 99.0), 1.0).tolist() == [1] * 13


def test_what_a_video_does_not_fill() -> None:
    spans = video_spans(5, FPS)
    assert outside_mask(spans, (0.0, float("inf")), 0.02).tolist() == [0] * 5
    assert outside_mask(spans, (0.0, 17 / 24), 0.02).tolist() == [0, 0, 0, 1, 1]
    assert outside_mask(spans, (9 / 24, float("inf")), 0.02).tolist() == [1, 1, 0, 0, 0]


def test_what_was_made_rises_at_its_edges() -> None:
    made = torch.tensor([1.0, 1, 1, 0, 0, 1, 1, 1, 0, 1])
    wanted = [1, 2 / 3, 1 / 3, 0, 0, 1 / 3, 2 / 3, 1 / 3, 0, 1 / 3]
    torch.testing.assert_close(ramped(made, 2), torch.tensor(wanted))
    assert torch.equal(ramped(torch.ones(5), 3), torch.ones(5)) and not ramped(torch.zeros(5), 3).any()
