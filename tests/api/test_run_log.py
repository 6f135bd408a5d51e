"""What a request's log says of a run, by the events that ComfyUI sends."""

from __future__ import annotations

from typing import Any

import pytest
from a2v.api.graph.begun import Begun
from a2v.api.graph.graph import sources
from a2v.api.host import NODE_TEXT
from a2v.api.queue.run_log import RunLog

Event = tuple[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


PROMPT = {
    "load": node("Load"),
    "sample": node("LTXA2VSampler", model=["load", 0], steps=3, sizes=[1, 2]),
    "branch": node("Branch", model=["load", 0]),
    "save": node("Save", vae=["load", 1], latent=["sample", 0], other=["branch", 0]),
    "after": node("After", video=["save", 0]),
}
SAMPLED = ["executing sample"]
DONE = ["execution_success", "executing"]


def events(*lines: str) -> list[Event]:
    """Each line is the kind of an event and, for most, its node."""
    keys = {"execution_error": "node_id"}
    split = (line.partition(" ") for line in lines)
    return [(kind, {keys.get(kind, "node"): name or None, "value": 1, "max": 4}) for kind, _, name in split]


def begun(heard: list[Event]) -> list[tuple[str, str]]:
    """The nodes that have begun, each with the kind of event that said so."""
    listens = Begun(PROMPT)
    return [(found, kind) for kind, data in heard for found in listens.hear(kind, data)]


def test_the_sources_of_a_node() -> None:
    assert sources(PROMPT, "save") == {"load", "sample", "branch"}
    assert sources(PROMPT, "sample") == {"load"} and sources(PROMPT, "load") == set()


CASES = {
    "all inputs are wanted": (
        ["executing load", "executing save", "executing sample", "executing branch", "executing save"],
        "save: executing",
    ),
    "it is asked twice, for one input after the other": (
        ["executing load", "executing save", "executing sample", "executing save", "executing branch"],
        "save: executing",
    ),
    "a branch is never wanted": (["executing load", "executing save", *SAMPLED, "executing save"], "save: executing"),
    "it wants nothing, and tells its progress": (
        ["executing load", "executing save", "progress save"],
        "save: progress",
    ),
    "it wants nothing, and has an output": (["executing load", "executing save", "executed save"], "save: executed"),
    "it wants nothing, and is silent": (["executing load", "executing save"], "save: execution_success"),
    "it is wrong": (["executing load", "executing save", "execution_error save"], "save: execution_error"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_node_with_lazy_inputs_begins_once(name: str) -> None:
    lines, told = CASES[name]
    found = begun(events(*lines, *(["executing"] if "execution_error" in told else DONE)))
    assert [f"{which}: {kind}" for which, kind in found if which == "save"] == [told]
    assert len({which for which, _ in found}) == len(found)


def test_a_node_that_was_only_asked_has_not_begun_when_another_one_fails() -> None:
    found = begun(events("executing load", "executing save", *SAMPLED, "execution_error sample", "executing"))
    assert found == [("load", "executing"), ("sample", "executing")]


def test_kept_nodes_are_there_from_the_start() -> None:
    kept: list[Event] = [("execution_cached", {"nodes": ["load", "sample", "branch"]})]
    assert begun([*kept, *events("executed load", "executing save", *DONE)]) == [("save", "executing")]


def test_nodes_that_a_node_makes_are_not_of_the_prompt() -> None:
    assert begun(events("executing load", "executing load.0.1", "executed load.0.1", *DONE)) == [("load", "executing")]


def test_a_film_of_thousands_of_steps_has_a_short_log() -> None:
    lines: list[str] = []
    log = RunLog(PROMPT, lines.append)
    for step in range(1, 4156):
        log("progress", {"node": "sample", "value": step, "max": 4155})
    assert len(lines) == 200 and lines[-1] == "LTXA2VSampler: step 4155/4155"


def test_a_log_names_a_saver_once_and_behind_the_samplers() -> None:
    lines: list[str] = []
    log = RunLog(PROMPT, lines.append)
    log("execution_start", {})
    log("execution_cached", {"nodes": ["branch"]})
    for kind, data in events("executing load", "executing save", *SAMPLED, "progress sample"):
        log(kind, data)
    for kind, data in events("executing save", "progress save", "executing after", *DONE):
        log(kind, data)
    assert lines == [
        "Started",
        "1 of 5 nodes are kept from the last run",
        "Load",
        "LTXA2VSampler",
        "LTXA2VSampler: step 1/4",
        "Save",
        "Save: 1/4",
        "After",
    ]


def test_the_steps_of_a_film_are_told_by_their_windows() -> None:
    """As the command tells them. A node's text that names no window changes nothing."""
    lines: list[str] = []
    log = RunLog(PROMPT, lines.append)
    step = 0
    for window in (1, 2):
        for done in (1, 2):
            step += 1
            place = f"window {window} of 2, step {done}/2"
            log(NODE_TEXT, {"node": "sample", "text": f"window {window} of 2, about 5 s left", "window": place})
            log("progress", {"node": "sample", "value": step, "max": 4})
    log(NODE_TEXT, {"node": "load", "text": "a report"})
    log("progress", {"node": "save", "value": 1, "max": 2})
    expected = [f"LTXA2VSampler: window {w} of 2, step {s}/2" for w in (1, 2) for s in (1, 2)]
    assert [line for line in lines if ":" in line] == [*expected, "Save: 1/2"]
