"""The workflow that records its sound, with ComfyUI's own Record Audio and the browser's own microphone for tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
from a2v.tests.host import demo
from a2v.tests.host.browser import Frontend
from a2v.tests.host.comfy import Comfy, Prompt
from a2v.tests.host.draw_workflows import DRAWN_HERE, draw, microphone_file, sent, serialized, text
from a2v.tests.host.drawing import faces
from a2v.tests.host.drawing.measure import DRAWN, RENDER, look
from a2v.tests.host.test_faces import LEAST, later_renderings, renderings
from a2v.tests.host.test_workflows import BY_NAME, DEFAULT, FACES, named, quick
from a2v.tests.tiny import TinyFiles

PATH = microphone_file(BY_NAME[DEFAULT])
FILE = json.loads(PATH.read_text(encoding="utf-8"))
# the button of the canvas, as a click on it does
PRESS = """() => {
    const button = app.graph.nodes.find(node => node.type === 'RecordAudio').widgets.at(-1);
    button.callback(button.value);
}"""
BUTTONS = """() => app.graph.nodes.find(node => node.type === 'RecordAudio').widgets.map(widget => widget.name)"""
SPOKEN_MS, FRAMES = 2500, 41  # the browser's microphone beeps once a second


@pytest.fixture(scope="module")
def frontend(comfy: Comfy, chromium: str) -> Iterator[Frontend]:
    with Frontend(comfy.url, chromium, width=1600, height=1000, microphone=True) as opened:
        yield opened
        opened.page.evaluate(RENDER, False)  # the server keeps settings


@later_renderings
def test_it_opens_whole_and_readable_and_without_a_missing_node(nodes2: bool, frontend: Frontend) -> None:
    frontend.page.evaluate(RENDER, nodes2)
    assert frontend.load(FILE) == []
    frontend.page.wait_for_timeout(1000)
    frontend.page.wait_for_function(DRAWN)
    seen = look(frontend)
    assert seen.wrong == [] and seen.zoom >= LEAST and not seen.hidden, seen


@pytest.mark.skipif(not DRAWN_HERE, reason="files are drawn with the frontend of requirements-dev.txt")
@pytest.mark.soak
def test_the_file_is_what_is_drawn(frontend: Frontend) -> None:
    frontend.page.evaluate(RENDER, False)
    drawn = draw(frontend, faces.opening(BY_NAME[DEFAULT], spoken=True), PATH.stem)
    assert text(drawn) == PATH.read_text(encoding="utf-8"), "run tests/host/draw_workflows.py"
    frontend.load(FILE)
    assert serialized(frontend) == FILE


def test_app_mode_shows_the_recorder_in_place_of_the_file() -> None:
    (recorder, _), *others = FILE["extra"]["linearData"]["inputs"]
    assert next(node["type"] for node in FILE["nodes"] if node["id"] == recorder) == "RecordAudio"
    assert [name for _, name in others] == [
        name for _, name in FACES[DEFAULT]["opening"]["extra"]["linearData"]["inputs"][1:]
    ]


def test_app_mode_shows_the_button(frontend: Frontend) -> None:
    frontend.load(FILE)
    names = frontend.page.evaluate(BUTTONS)
    assert len(names) >= 2, "the player and the button"
    if len(set(names)) == 1:
        pytest.skip("this frontend gives Record Audio's player and button one name, so that a form shows the player")
    assert FILE["extra"]["linearData"]["inputs"][0][1] == names[-1]


def without_the_source(prompt: Prompt) -> dict[str, Any]:
    """A prompt by its nodes' titles, without the node that gives the sound."""
    copy = json.loads(json.dumps(sent(prompt)))
    (source,) = (node for node in copy.values() if node["class_type"] in ("RecordAudio", "LTXA2VLoadAudio"))
    source["_meta"]["title"] = "sound"
    return {title: node for title, node in named(copy).items() if title != "sound"}


@pytest.mark.soak
@renderings
def test_what_is_spoken_is_heard_in_the_video(
    nodes2: bool, frontend: Frontend, comfy: Comfy, models: TinyFiles
) -> None:
    page = frontend.page
    page.evaluate(RENDER, nodes2)
    frontend.load(FILE)
    page.wait_for_timeout(1000)
    if nodes2:
        page.get_by_role("button", name="Start Recording").click()
        page.wait_for_timeout(SPOKEN_MS)
        page.get_by_title("Stop Recording").click()
    else:
        page.evaluate(PRESS)
        page.wait_for_timeout(SPOKEN_MS)
        page.evaluate(PRESS)
    page.wait_for_timeout(1000)
    prompt = frontend.prompt()
    (recorded,) = (node["inputs"]["audio"] for node in prompt.values() if node["class_type"] == "RecordAudio")
    assert recorded, "no recording was uploaded"

    # all the rest is the first workflow
    frontend.load(FACES[DEFAULT]["opening"])
    ours, theirs = (without_the_source(found) for found in (prompt, frontend.prompt()))
    assert ours == theirs

    small = quick(DEFAULT, models, recorded, prompt)
    (count,) = demo.nodes(small, "LTXA2VFrameCount")
    count["num_frames"] = FRAMES
    run = comfy.run(small)
    assert run.error is None, run.message
    (video,) = [item for output in run.outputs.values() for item in output.get("images", ())
                if item["type"] == "output"]  # fmt: skip
    with av.open(str(comfy.path(video))) as file:
        assert sum(1 for _ in file.decode(video=0)) == FRAMES
    with av.open(str(comfy.path(video))) as file:
        heard = np.concatenate([frame.to_ndarray().ravel() for frame in file.decode(audio=0)])
    assert np.abs(heard).max() > 0.01
