"""The pipeline as one node: the server offers the file, the frontend's search finds it, and it makes the same video."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from a2v.tests.host import demo
from a2v.tests.host.browser import Frontend
from a2v.tests.host.comfy import PACK, Comfy, Prompt
from a2v.tests.host.draw_workflows import BLUEPRINT_ABOUT, BLUEPRINTS, INPUTS, sent
from a2v.tests.host.drawing.variants import DEFAULT
from a2v.tests.host.test_workflows import API, FACES, named, nodes_of
from a2v.tests.tiny import TinyFiles

BLUEPRINT = BLUEPRINTS[DEFAULT]
EMPTY = {"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": []}
# ComfyUI has blueprints of its own, too
OFFERED = """name => document.getElementById('vue-app').__vue_app__.config.globalProperties.$pinia._s.get('nodeDef')
    .visibleNodeDefs.filter(found => found.name.startsWith('SubgraphBlueprint.') && found.display_name === name)
    .map(found => found.description)"""
SEARCH = "() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
ADDED = "() => app.graph.nodes.some(node => node.isSubgraphNode())"
# the sound goes in, and ComfyUI's own node saves the VIDEO that comes out
CONNECT = """() => {
    const node = app.graph.nodes.find(node => node.isSubgraphNode());
    const [load, save] = ['LTXA2VLoadAudio', 'SaveVideo'].map(type => {
        const made = LiteGraph.createNode(type);
        app.graph.add(made);
        return made;
    });
    load.title = 'Load Audio';
    load.widgets.find(widget => widget.name === 'audio').value = 'speech.opus';
    load.connect(0, node, node.findInputSlot('audio'));
    node.connect(node.findOutputSlot('video'), save, save.findInputSlot('video'));
}"""
TYPE = "text => app.graph.nodes.find(node => node.isSubgraphNode()).widgets[0].value = text"


@pytest.fixture(scope="module")
def frontend(comfy: Comfy, chromium: str) -> Iterator[Frontend]:
    for file in INPUTS:
        comfy.upload(file)
    with Frontend(comfy.url, chromium, width=1280, height=800) as opened:  # a large page is slow to draw
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


@pytest.mark.parametrize("path", BLUEPRINTS.values(), ids=BLUEPRINTS)
def test_the_server_offers_it(path: Path, comfy: Comfy) -> None:
    offered = comfy.get("/global_subgraphs").items()
    ((key, found),) = ((key, found) for key, found in offered if found["name"] == path.stem)
    assert found["info"] == {"node_pack": f"custom_nodes.{PACK}"}
    assert comfy.get(f"/global_subgraphs/{key}")["data"] == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_it_is_the_one_node_of_the_workflow(name: str) -> None:
    made = json.loads(BLUEPRINTS[name].read_text(encoding="utf-8"))
    (node,) = made["nodes"]
    (outer,) = (subgraph for subgraph in made["definitions"]["subgraphs"] if subgraph["id"] == node["type"])
    assert [(slot["name"], slot["type"]) for slot in outer["outputs"]] == [("video", "VIDEO"), ("report", "STRING")]
    ends = [slot["name"] for slot in node["inputs"] if "widget" not in slot]
    assert ends == ["audio", *(["first image"] if name == "image_and_audio" else [])]
    labels = [slot.get("label", slot["name"]) for slot in node["inputs"] if "widget" in slot]
    assert {"prompt", "negative prompt", "size", "seed", "steps", "speed-up", "checkpoint"} <= set(labels)
    outside = {"LTXA2VLoadAudio", "LTXA2VLoadImage", "SaveVideo", "PreviewAny"}
    whole = sorted(inner["type"] for subgraph in FACES[name]["opening"]["definitions"]["subgraphs"]
                   for inner in subgraph["nodes"] if len(inner["type"]) != 36)  # fmt: skip
    assert sorted(inner["type"] for inner in nodes_of(made)) == whole and not outside & set(whole)
    offered = {model["name"] for inner in nodes_of(made) for model in inner["properties"].get("models", [])}
    assert len(offered) == 4


def test_the_node_library_lists_it(frontend: Frontend) -> None:
    # a page is ready before it has fetched the blueprints
    frontend.page.wait_for_function(f"name => ({OFFERED})(name).length", arg=BLUEPRINT.stem)
    assert frontend.page.evaluate(OFFERED, BLUEPRINT.stem) == [BLUEPRINT_ABOUT]


def test_it_queues_what_the_workflow_queues(asked: Prompt) -> None:
    found, wanted = named(sent(asked)), named(sent(API[DEFAULT]))
    assert found.pop("Save Video")["video"] == ["Decode", 0]
    decode, save = found.pop("Decode"), wanted.pop("Decode and Save")
    assert (decode.pop("folder"), save.pop("folder")) == ("temp", "output")
    assert (decode.pop("filename_prefix"), save.pop("filename_prefix")) == ("ltx-a2v", "video/ltx-a2v")
    assert (decode, found) == (save, wanted)


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
