"""A saved file dropped on the canvas of the real frontend brings its graph back, whatever the prompt says."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from a2v.tests.host import demo
from a2v.tests.host.browser import Frontend, Workflow
from a2v.tests.host.comfy import Comfy, Prompt
from a2v.tests.host.draw_workflows import INPUTS, all_nodes_file
from a2v.tests.host.drawing.variants import VARIANTS
from a2v.tests.tiny import TinyFiles

# two more braces closed than opened: the frontend's reader of .webm counts them to find the graph's end
TEXT = 'a { b }} c "quoted" \\" "}" é 日本'
# by the file's ending, what a browser says of the file
FORMATS = {
    "X264 (.mp4)": "video/mp4",
    "VP9 (.webm)": "video/webm",
    "PRORES4444 (.mov)": "video/quicktime",
}
EMPTY = {"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": []}
TYPE = """text => {
    const node = app.graph.nodes.find(node => node.title === 'Prompt');
    node.widgets.find(widget => widget.name === 'prompt').value = text;
}"""
# the workflow names models that a fresh server lacks, and the dialog that offers them looks them up
QUIET = {"Comfy.Workflow.ShowMissingModelsWarning": False}


@pytest.fixture(scope="module")
def frontend(comfy: Comfy, chromium: str) -> Iterator[Frontend]:
    for file in INPUTS:
        comfy.upload(file)
    with Frontend(comfy.url, chromium, width=1280, height=800, settings=QUIET) as opened:
        yield opened


@pytest.fixture(scope="module")
def asked(frontend: Frontend) -> tuple[Workflow, Prompt]:
    """The default workflow with that text in it, in both forms."""
    frontend.load(json.loads(all_nodes_file(VARIANTS[0]).read_text(encoding="utf-8")))
    frontend.page.evaluate(TYPE, TEXT)
    return frontend.serialize(), frontend.prompt()


def tiny(prompt: Prompt, models: TinyFiles, file_format: str) -> Prompt:
    """On the tiny files, one pass of the work that a real run has; all but the saving is the same for every format."""
    prompt = demo.fill(json.loads(json.dumps(prompt)), models, "speech.opus", None, None)
    for kind, values in {
        "LTXA2VVideoSize": {"width": 64, "height": 64},
        "LTXA2VScheduler": {"steps": 2},
        "LTXA2VFrameCount": {"match_audio_length": False, "num_frames": 9},
        "LTXA2VExpandPrompt": {"enabled": False},
        "LTXA2VSaveLatentVideo": {"format": file_format},
    }.items():
        for inputs in demo.nodes(prompt, kind):
            inputs.update(values)
    return prompt


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_dropped_file_brings_its_graph_back(
    file_format: str, comfy: Comfy, models: TinyFiles, frontend: Frontend, asked: tuple[Workflow, Prompt]
) -> None:
    workflow, prompt = asked
    run = comfy.run(tiny(prompt, models, file_format), extra_data={"extra_pnginfo": {"workflow": workflow}})
    assert run.error is None, run.message
    (result,) = (item for output in run.outputs.values() for item in output.get("images", ()) if "filename" in item)
    path = comfy.path(result)
    assert f"({path.suffix})" in file_format
    frontend.load(EMPTY)
    assert frontend.serialize()["nodes"] == []
    frontend.drop(path.read_bytes(), path.name, FORMATS[file_format])
    assert frontend.errors == [] and frontend.toasts() == 0
    found = frontend.serialize()
    assert sum(TEXT in (node.get("widgets_values") or ()) for node in found["nodes"]) == 1
    assert [node["type"] for node in found["nodes"]] == [node["type"] for node in workflow["nodes"]]
    assert found == workflow
    assert frontend.prompt() == prompt
