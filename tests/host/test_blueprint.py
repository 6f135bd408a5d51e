"""The pipeline as one node: the server offers the file, the frontend's search finds it, and it makes the same video."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from a2v.tests.host import demo
from a2v.tests.host.browser import Frontend
from a2v.tests.host.comfy import PACK, Comfy, Prompt
from a2v.tests.host.draw_workflows import (
    BLUEPRINT,
    BLUEPRINT_ABOUT,
    DEFAULT,
    DRAWN_HERE,
    INPUTS,
    OUTSIDE,
    PROMOTED,
    WORKFLOWS,
    api_file,
    blueprint,
    sent,
)
from a2v.tests.tiny import TinyFiles

FILE = BLUEPRINT.read_text(encoding="utf-8")
WORKFLOW = WORKFLOWS / f"{DEFAULT}.json"
UI = json.loads(WORKFLOW.read_text(encoding="utf-8"))
API = json.loads(api_file(WORKFLOW).read_text(encoding="utf-8"))
EMPTY = {"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": []}
# ComfyUI has blueprints of its own, too
OFFERED = """name => document.getElementById('vue-app').__vue_app__.config.globalProperties.$pinia._s.get('nodeDef')
    .visibleNodeDefs.filter(found => found.name.startsWith('SubgraphBlueprint.') && found.display_name === name)
    .map(found => found.description)"""
SEARCH = "() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
ADDED = "() => app.graph.nodes.some(node => node.isSubgraphNode())"
# the workflow's loader and saver, and what the two took and gave, at the node that was found
CONNECT = """() => {
    const node = app.graph.nodes.find(node => node.isSubgraphNode());
    const [load, save] = ['LTXA2VLoadAudio', 'LTXA2VSaveLatentVideo'].map(type => {
        const made = LiteGraph.createNode(type);
        app.graph.add(made);
        return made;
    });
    load.widgets.find(widget => widget.name === 'audio').value = 'speech.opus';
    for (const to of [node, save]) load.connect(0, to, to.findInputSlot('audio'));
    for (const {name} of node.outputs) node.connect(node.findOutputSlot(name), save, save.findInputSlot(name));
}"""
TYPE = "text => app.graph.nodes.find(node => node.isSubgraphNode()).widgets[0].value = text"


@pytest.fixture(scope="module")
def frontend(comfy: Comfy, chromium: str) -> Iterator[Frontend]:
    for file in INPUTS:
        comfy.upload(file)
    with Frontend(comfy.url, chromium) as opened:
        yield opened


@pytest.fixture(scope="module")
def asked(frontend: Frontend) -> Prompt:
    """What a person gets who searches for the blueprint on an empty canvas and connects both ends."""
    frontend.load(EMPTY)
    frontend.page.evaluate(SEARCH)
    frontend.page.keyboard.type(BLUEPRINT.stem, delay=10)
    frontend.page.get_by_role("option").filter(has_text=BLUEPRINT.stem).first.click()
    frontend.page.wait_for_function(ADDED, timeout=10_000)
    frontend.page.evaluate(CONNECT)
    assert frontend.errors == [] and frontend.toasts() == 0
    return frontend.prompt()


def named(prompt: Prompt) -> dict[str, dict[str, Any]]:
    """Inputs by the nodes' classes and titles instead of their ids."""
    names = {key: f"{node['class_type']} {node['_meta']['title']}" for key, node in prompt.items()}
    assert len(set(names.values())) == len(prompt)
    return {
        names[key]: {
            name: [names[value[0]], value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        for key, node in prompt.items()
    }


def test_the_server_offers_it(comfy: Comfy) -> None:
    offered = comfy.get("/global_subgraphs").items()
    ((key, found),) = ((key, found) for key, found in offered if PACK in found["info"]["node_pack"])
    assert (found["name"], found["info"]) == (BLUEPRINT.stem, {"node_pack": f"custom_nodes.{PACK}"})
    assert comfy.get(f"/global_subgraphs/{key}")["data"] == FILE


@pytest.mark.skipif(not DRAWN_HERE, reason="files are drawn with the frontend of requirements-dev.txt")
def test_the_file_is_what_is_drawn(frontend: Frontend) -> None:
    assert blueprint(frontend, UI) == FILE, "run tests/host/draw_workflows.py"
    assert frontend.errors == []


def test_it_holds_the_workflow_but_its_ends() -> None:
    (node,), (subgraph,) = (found := json.loads(FILE))["nodes"], found["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"] and len(node["properties"]["proxyWidgets"]) == len(PROMOTED)
    assert sorted(inner["type"] for inner in subgraph["nodes"]) == sorted(
        outer["type"] for outer in UI["nodes"] if outer["type"] not in OUTSIDE
    )
    offered = [[model for inner in nodes for model in inner["properties"].get("models", [])] for nodes in
               (subgraph["nodes"], UI["nodes"])]  # fmt: skip
    assert offered[0] == offered[1] and len(offered[0]) == 3


def test_the_node_library_lists_it(frontend: Frontend) -> None:
    # a page is ready before it has fetched the blueprints
    frontend.page.wait_for_function(f"name => ({OFFERED})(name).length", arg=BLUEPRINT.stem)
    assert frontend.page.evaluate(OFFERED, BLUEPRINT.stem) == [BLUEPRINT_ABOUT]


def test_it_queues_what_the_workflow_queues(asked: Prompt) -> None:
    assert named(sent(asked)) == named(sent(API))


def test_the_closed_node_takes_the_prompt_and_makes_a_video(
    asked: Prompt, frontend: Frontend, comfy: Comfy, models: TinyFiles
) -> None:
    frontend.page.evaluate(TYPE, "a lighthouse")
    prompt = frontend.prompt()
    assert [inputs["prompt"] for inputs in demo.nodes(prompt, "LTXA2VExpandPrompt")] == ["a lighthouse"]
    prompt = demo.fill(prompt, models, "speech.opus", None, None)
    for kind, values in {
        "LTXA2VVideoSize": {"width": 64, "height": 64},
        "LTXA2VScheduler": {"steps": 2},
        "LTXA2VFrameCount": {"match_audio_length": False, "num_frames": 9},
        "LTXA2VExpandPrompt": {"enabled": False},
    }.items():
        for inputs in demo.nodes(prompt, kind):
            inputs.update(values)
    run = comfy.run(prompt)
    assert run.error is None, run.message
    assert demo.video_of(comfy, run).stat().st_size > 0
