"""Edges of pictures and clips, on drawings whose edges are known."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from a2v.ltx.media.clip import ImageClip
from a2v.ltx.media.edges import EdgeClip, edges


def grey(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.repeat(picture.astype(np.uint8)[..., None], 3, axis=2))


def lines(picture: torch.Tensor) -> np.ndarray:
    assert picture.dtype == torch.uint8 and picture.shape[2] == 3 and set(picture.unique().tolist()) <= {0, 255}
    assert (picture[..., :1] == picture).all()
    return picture[..., 0].numpy() > 0


def box(value: int) -> np.ndarray:
    drawn = np.zeros((40, 60))
    drawn[10:30, 15:45] = value
    return drawn


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_box_is_one_closed_line_around_it(turns: int) -> None:
    drawn = np.rot90(box(200), turns).copy()
    found = lines(edges(grey(drawn)))
    assert found.sum() == 2 * (20 + 30) - 4
    inside = np.argwhere(drawn > 0)
    (top, left), (bottom, right) = inside.min(0), inside.max(0)
    near = np.zeros_like(found)
    near[top - 1 : bottom + 2, left - 1 : right + 2] = True
    near[top + 1 : bottom, left + 1 : right] = False
    assert not (found & ~near).any()


@pytest.mark.parametrize(("step", "is_drawn"), [(25, False), (49, False), (51, True), (255, True)])
def test_what_is_an_edge(step: int, is_drawn: bool) -> None:
    """Above 200, four times the step, it is drawn. At a corner it is larger than along a side."""
    half = np.zeros((40, 60))
    half[:, 30:] = step
    found = lines(edges(grey(half)))
    assert found.any() == is_drawn and found.sum() in (0, 40)


def test_a_weak_edge_is_drawn_as_far_as_it_touches_a_strong_one() -> None:
    drawn = np.zeros((40, 80))
    drawn[20:, :30] = 60  # strong: 240
    drawn[20:, 30:60] = 40  # weak: 160
    found = lines(edges(grey(drawn)))
    assert found[18:22, :58].any(0).all(), "the weak one goes on from the strong one"
    drawn[20:, 60:] = 20  # too weak: 80
    assert not lines(edges(grey(drawn)))[18:22, 64:].any()


def test_the_thresholds_can_be_chosen() -> None:
    assert lines(edges(grey(box(20)), weak=40, strong=60)).any()
    assert not lines(edges(grey(box(200)), weak=1100, strong=1300)).any()


def test_colours_count_by_their_brightness() -> None:
    blue = torch.zeros(40, 60, 3, dtype=torch.uint8)
    blue[10:30, 15:45, 2] = 255  # as grey 29
    assert not lines(edges(blue)).any()
    blue[10:30, 15:45, 1] = 255
    assert lines(edges(blue)).any()


def test_a_clip_of_edges_is_the_clip_s_pictures_drawn() -> None:
    images = torch.stack([grey(np.roll(box(200), shift, 1)) for shift in (0, 5, 9)]) / 255
    clip = ImageClip(images, Fraction(4))
    drawn = EdgeClip(clip)
    assert (drawn.name, drawn.width, drawn.height, drawn.fps) == ("images", 60, 40, 4)
    assert drawn.seconds == Fraction(3, 4) and drawn.count(Fraction(8)) == 6 and drawn.notes == ()
    found = list(drawn.pictures(Fraction(8), 8))
    expected = [edges(picture) for picture in clip.pictures(Fraction(8), 8)]
    assert len(found) == 8 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found[0] is not found[2] and torch.equal(found[6], found[7])
