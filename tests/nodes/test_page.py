"""The scripts of the page (web/), run by Node beside a page that is only what they ask for."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EVENTS = "export const api = new EventTarget();"
APP = """
export const widgets = [];
const node = { widgets, computeSize: () => [1, 1], size: [1, 1], setSize() {} };
export const app = {
  graph: { getNodeById: (id) => (id === "7" ? node : undefined), setDirtyCanvas() {} },
  widgets: { STRING: (owner, name) => ({ widget: widgets[owner.widgets.push({ name, options: {} }) - 1] }) },
  registerExtension() {},
};
"""
RUN = """
import { api } from "./scripts/api.js";
import { widgets } from "./scripts/app.js";
import "./extensions/pack/reports.js";

const seen = [];
for (const [type, detail] of JSON.parse(process.argv[2])) {
  api.dispatchEvent(Object.assign(new Event(type), { detail }));
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
    (scripts / "api.js").write_text(EVENTS)
    (scripts / "app.js").write_text(APP)
    (tmp_path / "run.js").write_text(RUN)
    shutil.copy(ROOT / "web" / "reports.js", pack)
    return tmp_path


def seen(page: Path, *events: tuple[str, object]) -> list[list[str]]:
    """What stands on node 7 after each event."""
    node = shutil.which("node") or pytest.skip("no node on this machine")
    command = [node, "run.js", json.dumps(events)]
    return json.loads(subprocess.run(command, cwd=page, check=True, capture_output=True, text=True).stdout)


def test_what_a_node_said_goes_when_it_runs_again(page: Path) -> None:
    """For instance *First Image* on its compression, once that is right: it has nothing to say then."""
    said = ("ltx_a2v_text", {"node": "7", "text": "wrong"})
    others = [("executing", other) for other in ("8", "5:7", None)]
    assert seen(page, ("executing", "7"), said, *others, ("executing", "7")) == [[], *[["wrong"]] * 4, [""]]
