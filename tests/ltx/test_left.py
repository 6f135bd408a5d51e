"""The estimate of the time that is left, with a clock of our own."""

from __future__ import annotations

import pytest
from a2v.ltx.left import TimeLeft, cost, told
from a2v.ltx.windows import Window


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_stage_stands_for_the_second_until_that_begins(clock: Clock) -> None:
    left = TimeLeft([[2.0, 2.0], [1.0, 1.0]], clock)
    assert left.left() is None
    left.begin(0, 0)
    clock.now += 5
    assert left.step(1, 2) == pytest.approx(25)  # 5 s for a cost of 1; 5 more are left
    clock.now += 5
    assert left.step(2, 2) == pytest.approx(20)
    left.begin(0, 1)
    clock.now += 10
    assert left.step(2, 2) == pytest.approx(10)
    clock.now += 50  # the upscaler's time counts for nobody
    left.begin(1, 0)
    clock.now += 30
    assert left.step(1, 1) == pytest.approx(30), "the second stage is judged by its own speed"
    left.begin(1, 1)
    assert left.left() == pytest.approx(30)
    clock.now += 30
    assert left.step(1, 1) == 0


def test_windows_that_were_kept_take_no_time(clock: Clock) -> None:
    left = TimeLeft([[1.0] * 4], clock)
    for window in range(3):
        left.begin(0, window)
    clock.now += 2
    assert left.step(1, 2) == pytest.approx(2 + 4)
    clock.now += 2
    assert left.step(2, 2) == pytest.approx(4)


def test_a_step_that_compiled_says_nothing_about_the_others(clock: Clock) -> None:
    left = TimeLeft([[1.0, 1.0], [2.0, 2.0]], clock)
    left.begin(0, 0)
    clock.now += 60
    assert left.step(1, 4, usual=False) is None, "nothing else is known yet"
    clock.now += 5
    assert left.step(2, 4) == pytest.approx(10 + 20 + 80)
    left.begin(1, 0)
    clock.now += 90
    assert left.step(1, 2, usual=False) == pytest.approx(20 + 40), "by the first stage's speed"


def test_what_a_window_costs() -> None:
    assert cost(Window(0, 16), (64, 32), 15, 4) == 4 * cost(Window(0, 16), (64, 32), 15, 1) == 16 * 64 * 32 * 60


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "5 s"),
        (42, "40 s"),
        (89, "90 s"),
        (90, "2 min"),
        (3000, "50 min"),
        (5700, "1 h 35 min"),
        (7180, "2 h 00 min"),
    ],
)
def test_in_words(seconds: float, words: str) -> None:
    assert told(seconds) == f"about {words} left"
