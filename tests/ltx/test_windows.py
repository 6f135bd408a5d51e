"""The plan of windows, by brute force: every latent is made once, and what a window is given is there before it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from a2v.ltx.errors import InputError
from a2v.ltx.grid import frames_of
from a2v.ltx.windows import DRIFT, JOIN, Border, Window, WindowSize, cut_windows, hard_cuts, shares
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, WindowSize]:
    length = draw(st.integers(3, 61))
    return frames_of(draw(st.integers(1, 2000))), WindowSize(frames_of(length), draw(st.integers(1, length - 2)))


@given(cuts())
def test_every_latent_is_made_once_and_in_order(cut: tuple[int, WindowSize]) -> None:
    frames, size = cut
    windows = cut_windows(frames, size)
    made = 0
    for number, window in enumerate(windows):
        assert window.new.start == made, "it goes on where the one before ended"
        assert window.new.stop > made, "it adds something"
        if number:
            assert window.start >= 1 and window.given == size.overlap + 1
            assert window.start + window.given == made, "what it is given was made"
        assert window.length <= size.length
        made = window.stop
    assert frames_of(made) == frames
    lengths = [window.length for window in windows]
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


@given(cuts())
def test_there_are_as_few_as_possible(cut: tuple[int, WindowSize]) -> None:
    frames, size = cut
    done, count = size.frames, 1
    while done < frames:  # full windows, one after the other
        done += size.frames - 1 - 8 * size.overlap
        count += 1
    assert len(cut_windows(frames, size)) == count


@given(cuts(), st.data())
def test_a_frame_is_new_in_one_window(cut: tuple[int, WindowSize], data: st.DataObject) -> None:
    frames, size = cut
    frame = data.draw(st.integers(0, frames - 1))
    windows = cut_windows(frames, size)
    (found,) = [(w, w.frame_within(frame)) for w in windows if w.frame_within(frame) is not None]
    window, inside = found
    assert window.first_frame + inside == frame and 0 <= inside < window.frames
    # the latent of that frame, by the rule for a clip of its own and for the whole
    assert window.start + -(-inside // 8) == -(-frame // 8)
    assert windows[0].frame_within(0) == 0 and windows[-1].frame_within(frames - 1) == windows[-1].frames - 1


@given(cuts(), st.lists(st.tuples(st.integers(1, 600), st.booleans()), max_size=6, unique_by=lambda each: each[0]))
def test_windows_begin_at_borders(cut: tuple[int, WindowSize], places: list[tuple[int, bool]]) -> None:
    frames, size = cut
    borders = [Border(*place) for place in sorted(places)]
    windows = cut_windows(frames, size, borders)
    total, made = (frames - 1) // 8 + 1, 0
    cuts_at = {border.latent: border.cut for border in borders if border.latent < total}
    for window in windows:
        assert window.new.start == made < window.new.stop and window.start >= 0 and window.length <= size.length
        if made in cuts_at:
            assert window.given == 1 if cuts_at[made] else 1 <= window.given <= size.overlap + 1
        elif made:
            assert window.given == size.overlap + 1
        made = window.stop
    assert made == total and cuts_at.keys() <= {window.new.start for window in windows}
    assert cut_windows(frames, size, [Border(total)]) == cut_windows(frames, size)


@given(
    cuts(),
    st.lists(st.tuples(st.integers(1, 600), st.booleans()), max_size=3, unique_by=lambda each: each[0]),
    st.integers(0, 2**32),
)
def test_windows_that_end_at_pauses(cut: tuple[int, WindowSize], places: list[tuple[int, bool]], seed: int) -> None:
    """They keep every rule of windows, none is shorter than the bound, and equal levels change nothing."""
    frames, size = cut
    borders = [Border(*place) for place in sorted(places)]
    total = (frames - 1) // 8 + 1
    levels = random.Random(seed).choices(range(-60, 0), k=total)
    usual, windows = cut_windows(frames, size, borders), cut_windows(frames, size, borders, levels)
    assert cut_windows(frames, size, borders, [-20] * total) == usual
    assert len(windows) == len(usual) or sum(loudness(windows, levels)) < sum(loudness(usual, levels))
    made = 0
    for window in windows:
        assert window.new.start == made < window.new.stop and window.start >= 0 and window.length <= size.length
        made = window.stop
    assert made == total
    given = {window.new.start: window.given for window in usual}
    assert all(given.get(window.new.start, size.overlap + 1) == window.given for window in windows)
    shortest = min(*(window.length for window in usual), size.length - size.length // 4)
    assert all(window.length >= shortest for window in windows)


def loudness(windows: Sequence[Window], levels: Sequence[int]) -> list[int]:
    return [levels[window.new.start] + 60 for window in windows[1:]]


def test_the_quietest_ends_within_the_bound() -> None:
    """By trying all of them."""
    size, total = WindowSize(frames_of(8), 2), 24
    levels = random.Random(3).choices(range(-60, 0), k=total)
    lengths, found = range(6, 9), []

    def extend(ends: list[int]) -> None:
        if ends[-1] == total:
            found.append(sum(levels[end] - min(levels[1:]) + JOIN for end in ends[:-1]))
        for length in lengths:
            if ends[-1] + length - 3 <= total:
                extend([*ends, ends[-1] + length - 3])

    for length in lengths:
        extend([length])
    ends = [window.stop for window in cut_windows(frames_of(total), size, (), levels)]
    assert sum(levels[end] - min(levels[1:]) + JOIN for end in ends[:-1]) == min(found) and len(found) > 20


def test_of_equally_quiet_ends_those_of_the_most_equal_windows_are_taken() -> None:
    windows = cut_windows(frames_of(16), WindowSize(frames_of(8), 2), (), [-60] * 16)
    assert sorted(window.length for window in windows) == [7, 7, 8]


def test_with_the_default_drift_what_is_added_to_a_video_is_matched_to_it() -> None:
    assert [WindowSize(drift=drift).joined for drift in (0, DRIFT / 2, DRIFT, 1)] == [0, 0.5, 1, 1]


def test_a_clip_that_fits_is_one_window() -> None:
    assert cut_windows(481) == (Window(0, 61),) == cut_windows(481, WindowSize(481, 4))
    assert cut_windows(9, WindowSize(121)) == (Window(0, 2),)
    assert cut_windows(8 * 9999 + 1) == (Window(0, 10000),)
    (one,) = cut_windows(49, WindowSize(49, 2))
    assert (one.given, one.new, one.whole, one.frames) == (0, slice(0, 7), slice(0, 7), 49)


def test_the_one_that_was_tried() -> None:
    windows = cut_windows(721, WindowSize(49, 2))
    assert len(windows) == 22 and {window.frames for window in windows} == {49}
    assert [window.first_frame for window in windows[:3]] == [0, 32, 64]
    assert windows[3].starts_at(Fraction(24000, 1001)) == Fraction(96 * 1001, 24000)
    assert windows[1].new == slice(7, 11)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"frames": 120}, ["windows: 120 frames", "multiple of 8"]),
        ({"frames": 489}, ["windows: 489 frames", "at most 481"]),
        ({"frames": 121, "overlap": 0}, ["windows: an overlap of 0", "at least 1"]),
        ({"frames": 121, "overlap": -3}, ["windows: an overlap of -3", "at least 1"]),
        ({"frames": 49, "overlap": 6}, ["windows: an overlap of 6", "at least 57 frames"]),
        ({"frames": 49, "overlap": 7}, ["windows: an overlap of 7", "at least 65 frames"]),
        ({"frames": 1}, ["windows: an overlap of 2", "at least 25 frames"]),
        ({"frames": -7}, ["windows: an overlap of 2", "at least 25 frames"]),
        ({"frames": 49.0}, ["windows: frames"]),
        ({"frames": True}, ["windows: frames"]),
        ({"frames": 10**400}, ["windows: frames"]),
        ({"overlap": None}, ["windows: overlap"]),
        ({"length": 49}, ["windows: 'length'", "use frames, overlap"]),
        ({4: 49}, ["windows: 4 is unknown"]),
        ({"pauses": 1}, ["windows: pauses", "true or false"]),
        ({"pauses": None}, ["windows: pauses", "true or false"]),
        ({"anchor": 1.5}, ["windows: anchor", "between 0 and 1"]),
        ({"drift": True}, ["windows: drift", "between 0 and 1"]),
        ({"drift": math.nan}, ["windows: drift", "between 0 and 1"]),
        ({"seeds": [3]}, ["windows: seeds", '{"5": 123}']),
        ({"seeds": {"0": 3}}, ["windows: '0' in seeds", "from 1"]),
        ({"seeds": {"five": 3}}, ["windows: 'five' in seeds"]),
        ({"seeds": {"1000000": 3}}, ["windows: '1000000' in seeds"]),
        ({"seeds": {"5": 1.5}}, ["windows: the seed of window 5"]),
        (121, ["windows: ", "true, false"]),
        ("yes", ["windows: "]),
        ([], ["windows: "]),
    ],
)
def test_refused_in_one_sentence(value: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        WindowSize.parse(value)
    message = str(refused.value)
    assert "\n" not in message and message.endswith(".")
    assert all(word in message for word in words), message


def test_what_a_request_may_say() -> None:
    assert WindowSize.parse(True) == WindowSize.parse({}) == WindowSize(121, 2)
    assert WindowSize.parse(False) is WindowSize.parse(None) is None
    assert WindowSize.parse({"frames": 49}) == WindowSize(49, 2)
    assert WindowSize.parse({"seeds": {"12": 4, "5": -1}}).seeds == ((5, -1), (12, 4))
    assert WindowSize.parse({"anchor": 1, "drift": 0.2}) == WindowSize(anchor=1, drift=0.2)
    with pytest.raises(
        InputError, match=r"^windows: there is a seed for window 12, but the film has 11; leave it out.$"
    ):
        WindowSize(seeds=((5, 1), (12, 4))).check_seeds(11)
    assert WindowSize.parse({"pauses": False}) == WindowSize(pauses=False) != WindowSize()
    assert WindowSize.parse({"frames": 17, "overlap": 1}) == WindowSize(17, 1)


@given(cuts(), st.lists(st.tuples(st.integers(1, 600), st.booleans()), max_size=6, unique_by=lambda each: each[0]))
def test_a_hard_cut_is_one_that_was_asked_for(cut: tuple[int, WindowSize], places: list[tuple[int, bool]]) -> None:
    """A section without one that begins at latent 1 can be given latent 0 alone, and goes on with it nevertheless."""
    frames, size = cut
    borders = [Border(*place) for place in sorted(places)]
    wanted = tuple(border.latent for border in borders if border.cut and frames_of(border.latent) < frames)
    assert hard_cuts(cut_windows(frames, size, borders)) == wanted
    behind = 1
    for window in cut_windows(frames, size, borders):
        behind = window.new.start if window.cut else behind
        shared = range(window.start + 1, window.start + window.given)
        assert all(latent >= behind for latent in shared), "nothing before a cut is given to a window behind it"
    assert hard_cuts(cut_windows(frames_of(9), size, [Border(1)])) == ()
    assert hard_cuts(cut_windows(frames_of(9), size, [Border(1, cut=True)])) == (1,)


@given(
    cuts(),
    st.lists(st.tuples(st.integers(1, 600), st.booleans()), max_size=9, unique_by=lambda each: each[0]),
    st.integers(1, 8),
)
def test_the_parts_of_a_film(cut: tuple[int, WindowSize], places: list[tuple[int, bool]], count: int) -> None:
    frames, size = cut
    windows = cut_windows(frames, size, [Border(*place) for place in sorted(places)])
    parts = shares(windows, count)
    assert [number for part in parts for number in part] == list(range(len(windows)))
    assert len(parts) == min(count, len(hard_cuts(windows)) + 1) and all(parts)
    assert all(windows[part.start].cut for part in parts[1:]), "a part begins behind a hard cut"


def test_parts_are_about_equally_long() -> None:
    size, cuts_at = WindowSize(33, 2), [10, 12, 20, 28, 29, 30]
    windows = cut_windows(frames_of(40), size, [Border(latent, cut=True) for latent in cuts_at])
    assert [windows[part.start].new.start for part in shares(windows, 4)] == [0, 10, 20, 30]
    assert [windows[part.start].new.start for part in shares(windows, 2)] == [0, 20]
