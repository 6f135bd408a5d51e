"""Where a video lies beside the new part that makes it longer."""

from __future__ import annotations

from typing import Any

import pytest
from a2v.ltx.edits import VideoEdit
from a2v.ltx.errors import InputError
from a2v.ltx.extension import BACKWARD, FORWARD, stretch_beside


@pytest.mark.parametrize(
    ("count", "num_frames", "context", "direction", "place"),
    [  # frames of the stretch, where the video begins in it, context, frames before and behind it
        (161, 121, 25, FORWARD, (121, -136, 25, 136, 0)),
        (161, 121, 25, BACKWARD, (121, 97, 24, 0, 137)),
        (11, 25, 9, FORWARD, (25, -2, 9, 2, 0)),
        (11, 17, 12, BACKWARD, (17, 9, 8, 0, 3)),
        (30, 121, 121, FORWARD, (121, -5, 25, 5, 0)),
        (30, 121, 121, BACKWARD, (121, 97, 24, 0, 6)),
        (5, 9, 25, FORWARD, (9, -4, 1, 4, 0)),
        (5, 9, 0, FORWARD, (9, -5, 0, 5, 0)),
        (5, 9, 0, BACKWARD, (9, 9, 0, 0, 5)),
        (11, 13, 9, FORWARD, (17, -2, 9, 2, 0)),
        (11, 13, 9, BACKWARD, (17, 9, 8, 0, 3)),
        (100, 17, 3, BACKWARD, (17, 9, 8, 0, 92)),
    ],
)
def test_the_join_is_the_video_s_own_end(
    count: int, num_frames: int, context: int, direction: str, place: tuple[int, ...]
) -> None:
    """A latent ends or begins there: the first one is one frame, and each other one eight."""
    found = stretch_beside(count, num_frames, context, direction)
    assert (found.frames, found.begin, found.context, found.lead, found.tail) == place
    assert found.frames % 8 == 1 and num_frames <= found.frames < num_frames + 8
    join = found.begin if direction == BACKWARD else found.begin + count
    assert join == 0 or join == found.frames or join % 8 == 1
    assert found.lead + found.frames + found.tail == found.film == count + found.new and not found.shown


def test_a_video_shorter_than_a_latent_is_held() -> None:
    """The model sees eight frames of it, and the file has those that there are."""
    found = stretch_beside(5, 17, 25, BACKWARD)
    assert (found.frames, found.begin, found.context, found.shown, found.tail, found.film) == (17, 9, 8, 14, 0, 14)
    assert found.told() == "the video has 5 frames, of which the model sees the first 5, and gets 9 new ones"
    behind = stretch_beside(11, 25, 9, FORWARD)
    assert behind.told() == "the video has 11 frames, of which the model sees the last 9, and gets 16 new ones"
    alone = stretch_beside(5, 9, 0, FORWARD)
    assert alone.told() == "the video has 5 frames, of which the model sees none, and gets 9 new ones"


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_nothing_new(direction: str) -> None:
    with pytest.raises(InputError, match=r"^num_frames: 24 frames leave no new ones beside the 2[45] that the model s"):
        stretch_beside(100, 24, 31, direction)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"extend": "left"}, r"edit: extend is 'left'; choose one of forward, backward\."),
        ({"extend": "forward", "context": 474}, r"edit: context is 474; give a whole number of frames from 0 to 473\."),
        ({"extend": "forward", "context": 2.5}, r"edit: context is 2\.5; give a whole number .*"),
        ({"extend": "backward", "at": 1}, r"edit: extend says where the video lies, so at does nothing; leave .*"),
    ],
)
def test_what_is_wrong(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}$"):
        VideoEdit.parse(wrong)


@pytest.mark.parametrize(
    ("within", "said"),
    [
        ({}, []),
        ({"start": 1.0}, ["extend keeps the whole video, so start does nothing"]),
        (
            {"start": 3.0, "end": 2.0, "soften": 0.2},
            ["extend keeps the whole video, so start, end and soften do nothing"],
        ),
    ],
)
def test_a_time_beside_it_is_told_and_does_nothing(within: dict[str, float], said: list[str]) -> None:
    edit = VideoEdit.parse({"extend": "forward", "strength": 0.5, **within})
    assert edit.extending() == (VideoEdit(extend="forward", strength=0.5), said)
