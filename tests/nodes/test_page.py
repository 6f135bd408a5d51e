"""The scripts of the page (web/), run by Node beside a page that is only what they ask for."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
API = """
export const api = Object.assign(new EventTarget(), { queuePrompt: async (id) => ({ prompt_id: id }) });
"""
APP = """
export const widgets = [];
const made = (comfyClass) => ({ comfyClass, widgets, computeSize: () => [1, 1], size: [1, 99], setSize() {} });
const nodes = { 7: made("LTXA2VImageConditioning"), 9: made("KSampler") };
export const inner = { id: "stage", getNodeById: (id) => (id === "7" ? nodes[7] : undefined) };
nodes[6] = { subgraph: inner };
export const extensions = [];
export const app = {
  extensionManager: { workflow: { activeWorkflow: { changeTracker: { _restoringState: true, redoQueue: [] } } } },
  nodeOutputs: {},
  graph: { getNodeById: (id) => nodes[id], setDirtyCanvas() {}, subgraphs: new Map([[inner.id, inner]]) },
  widgets: { STRING: (owner, name) => ({ widget: widgets[owner.widgets.push({ name, options: {} }) - 1] }) },
  registerExtension(extension) {
    extensions.push(extension);
    Object.values(nodes).forEach((node) => extension.nodeCreated(node));
  },
};
for (const [id, node] of Object.entries(nodes)) node.id = id;
"""
RUN = """
import { api } from "./scripts/api.js";
import { app, extensions, inner, widgets } from "./scripts/app.js";
import "./extensions/pack/reports.js";

const { workflow } = app.extensionManager;
const tabs = { 1: workflow.activeWorkflow, 2: { changeTracker: { _restoringState: false, redoQueue: [] } } };
const seen = [];
for (const [type, detail] of JSON.parse(process.argv[2])) {
  if (type === "executed") {
    app.nodeOutputs[detail.node] = detail.output;
    (app.graph.getNodeById(detail.node) ?? inner.getNodeById("7")).onExecuted?.(detail.output);
  } else if (type === "size") {
    app.graph.getNodeById("7").size = detail;
  } else if (type === "undo") {
    widgets.length = 0;
    extensions[0].onNodeOutputsUpdated(detail ?? app.nodeOutputs);
  }
  else if (type === "tab") workflow.activeWorkflow = tabs[detail];
  else if (type === "redo") workflow.activeWorkflow.changeTracker.redoQueue.push(detail);
  else if (type === "queue") await api.queuePrompt(detail);
  else api.dispatchEvent(Object.assign(new Event(type), { detail }));
  seen.push(widgets.map((widget) => widget.value));
}
console.log(JSON.stringify(seen));
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    scripts, pack = tmp_path / "scripts", tmp_path / "extensions" / "pack"
    for folder in (scripts, pack):
        folder.mkdir(parents=True)
    (tmp_path / "package.json").write_text(json.dumps({"type": "module"}))
    (scripts / "api.js").write_text(API)
    (scripts / "app.js").write_text(APP)
    (tmp_path / "run.js").write_text(RUN)
    shutil.copy(ROOT / "web" / "reports.js", pack)
    return tmp_path


def seen(page: Path, *events: tuple[str, object]) -> list[list[str]]:
    """The texts that stand on the nodes 7, which is of the pack, and 9 after each event."""
    node = shutil.which("node") or pytest.skip("no node on this machine")
    command = [node, "run.js", json.dumps(events)]
    return json.loads(subprocess.run(command, cwd=page, check=True, capture_output=True, text=True).stdout)


def test_what_a_node_said_goes_when_it_runs_again(page: Path) -> None:
    """For instance *First Image* on its compression, once that is right: it has nothing to say then."""
    said = ("ltx_a2v_text", {"node": "7", "text": "wrong"})
    others = [("executing", other) for other in ("8", "5:7", None)]
    assert seen(page, ("executing", "7"), said, *others, ("executing", "7")) == [[], *[["wrong"]] * 4, [""]]


def test_a_node_of_another_pack_gets_no_text(page: Path) -> None:
    """While a graph runs, the person opens another one, where a node of any kind has the same id."""
    text = {"ltx_a2v_text": ["12 frames"]}
    events = [("ltx_a2v_text", {"node": "9", "text": "12 frames"}), ("executed", {"node": "9", "output": text})]
    assert seen(page, *events, ("executed", {"node": "7", "output": text})) == [[], [], ["12 frames"]]


def test_a_text_comes_back_with_the_outputs_that_an_undo_keeps(page: Path) -> None:
    """The frontend makes the nodes anew, and so it does for another tab. A text that was cleared does not come back."""
    text = {"ltx_a2v_text": ["12 frames"]}
    said = ("executed", {"node": "7", "output": text})
    assert seen(page, said, ("undo", None), ("executing", "7"), ("undo", None)) == [["12 frames"]] * 2 + [[""], []]
    others = {"9": text, "8": text, "gone:7": text, "7": {}}
    assert seen(page, ("undo", {"stage:7": text}), ("undo", others)) == [["12 frames"], []]
    # without room for it the node would grow, and the frontend would forget what can be done again
    assert seen(page, ("size", [1, 50]), ("undo", {"7": text}), said) == [[], [], ["12 frames"]]


def test_a_text_comes_back_with_another_tab_whose_nodes_have_no_room(page: Path) -> None:
    """A tab that was not open during its run never had the room. Outputs of that time have the path of their node."""
    other = {"6:7": {"ltx_a2v_text": ["12 frames"]}}
    opened = [("size", [1, 50]), ("tab", 2), ("undo", other)]
    assert seen(page, *opened, ("executing", "6:7"), ("undo", other))[2:4] == [["12 frames"], [""]]
    assert seen(page, *opened[:2], ("redo", {}), opened[2])[-1] == []
    kept = [("executed", {"node": "6:7", "output": other["6:7"]}), ("undo", None), ("executing", "6:7"), ("undo", None)]
    assert seen(page, *kept) == [["12 frames"], ["12 frames"], [""], []]


def test_a_text_stays_out_of_another_workflow(page: Path) -> None:
    """Two tabs of the same workflow have the same ids. A page that was loaded again does not know its prompts."""
    text, other = ({"ltx_a2v_text": [said]} for said in ("12 frames", "20 frames"))
    begin = ("execution_start", {"prompt_id": "first"})
    events = [("executing", "7"), ("ltx_a2v_text", {"node": "7", "text": "20 frames"}),
              ("executed", {"node": "7", "output": other})]  # fmt: skip
    own = [("executed", {"node": "7", "output": text}), ("queue", "first"), ("tab", 2), begin]
    assert seen(page, *own, *events, ("undo", None))[3:] == [["12 frames"]] * 5
    assert seen(page, *own, ("tab", 1), *events)[-3:] == [[""], ["20 frames"], ["20 frames"]]
    assert seen(page, *own[:1], begin, ("tab", 2), *events)[-3:] == [[""], ["20 frames"], ["20 frames"]]
    # it may run before the answer to its queueing is here
    late = [own[0], begin, ("queue", "first"), ("tab", 2)]
    assert seen(page, *late, *events)[-3:] == [["12 frames"]] * 3
