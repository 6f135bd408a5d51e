"""What the command's progress says of a step that compiles the transformer's blocks."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from a2v.ltx import left
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.headless import Bars
from a2v.ltx.sampling import Observer
from a2v.ltx.windows import Window

STEERING = Steering(torch.linspace(1, 0, 5))  # four steps


def job(windows: int) -> SimpleNamespace:
    plan = SimpleNamespace(
        windows=[Window(number, 1) for number in range(windows)], two_stages=True, sizes=[(32, 32), (64, 64)]
    )
    kept = {"keeps_sound": True, "keeps_picture": False, "referred": False, "source": None, "images": ()}
    return SimpleNamespace(plan=plan, steering=(STEERING, STEERING), **kept)


def test_a_stage_says_that_it_compiles() -> None:
    said: list[tuple[str, int, int]] = []
    observer = Observer(job(1), None, lambda *phase: said.append(phase), None)
    hooks = observer.hooks(0, 0)
    hooks.on_compile()
    hooks.on_compile()
    hooks.on_step(1, 4, None)
    hooks.on_step(2, 4, None)
    hooks.on_compile()
    hooks.on_step(3, 4, None)
    assert said == [
        ("first stage, compiling", 0, 4),
        ("first stage", 1, 4),
        ("first stage", 2, 4),
        ("first stage, compiling", 2, 4),
        ("first stage", 3, 4),
    ]
    observer.hooks(1, 0).on_compile()
    assert said[-1] == ("second stage, compiling", 0, 4)


def test_loading_is_told_before_it_begins() -> None:
    said: list[tuple[str, int, int]] = []
    observer = Observer(job(1), None, lambda *phase: said.append(phase), None)
    assert observer.loading(lambda number: (number, len(said)), 7) == (7, 1)
    assert said == [("load transformer", 0, 1), ("load transformer", 1, 1)]


def test_merging_is_told_beside_what_it_is_for() -> None:
    """On the line of loading, and then on that of the second stage: what follows a comma begins no line of its own."""
    said: list[tuple[str, int, int]] = []
    seconds = [0.0]
    observer = Observer(job(1), None, lambda *phase: said.append(phase), None, lambda: seconds[0])
    for merging in (observer.merging(), observer.merging(1)):
        for done in range(1, 10):
            seconds[0] += 0.25
            merging(done, 9)
    first, second = "load transformer, merging LoRAs", "second stage, merging LoRAs"
    assert said == [(first, 4, 9), (first, 8, 9), (second, 1, 9), (second, 5, 9), (second, 9, 9)], "once a second"


def test_a_stage_is_told_before_its_first_step() -> None:
    said: list[tuple[str, int, int]] = []
    for windows in (1, 2):
        Observer(job(windows), None, lambda *phase: said.append(phase), None).begin(1)
    assert said == [("second stage", 0, 4), ("second stage", 0, 4)], "no window is named: it may be kept"


def test_the_time_that_is_left_is_that_of_usual_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], []
    monkeypatch.setattr(left.TimeLeft.__init__, "__defaults__", (lambda: now[0],))
    hooks = Observer(job(2), None, lambda *_: None, told.append).hooks(0, 0)
    hooks.on_compile()
    now[0] = 60
    hooks.on_step(1, 4, None)
    assert told == []
    now[0] = 62
    hooks.on_step(2, 4, None)
    assert told == [pytest.approx(2 * (2 + 4) + 4 * 2 * 8)], "a window of the second stage costs four times as much"


def test_a_pass_without_the_example_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As each other pass: a step of the first stage takes twice as long then."""
    now, told = [0.0], []
    monkeypatch.setattr(left.TimeLeft.__init__, "__defaults__", (lambda: now[0],))
    film = job(2)
    led = replace(STEERING, audio_guidance=Guidance(identity=3.0))
    film.keeps_sound, film.referred, film.steering = False, True, (led, STEERING)
    hooks = Observer(film, None, lambda *_: None, told.append).hooks(0, 0)
    hooks.on_compile()
    now[0] = 60
    hooks.on_step(1, 4, None)
    now[0] = 62
    hooks.on_step(2, 4, None)
    assert told == [pytest.approx(2 * (2 + 4) + 4 * 2 * 8 / 2)], "and one of the second stage half as long beside it"


def test_the_line_is_the_stage_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    bars = Bars()
    for phase in (("first stage, compiling", 0, 4), ("first stage", 1, 4), ("decode", 0, 1)):
        bars(*phase)
    bars.close()
    assert "first stage, compiling:   0%" in screen.getvalue()
    assert screen.getvalue().count("\n") == 2, "one line for the stage, one for the decoding"
