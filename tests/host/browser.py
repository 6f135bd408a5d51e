"""ComfyUI's own frontend in a headless browser: what it makes of a workflow file is what a person gets.

Only the server under test is reached: no other name resolves. One page for each `Frontend`; no assertions here.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from playwright.sync_api import ConsoleMessage, sync_playwright

Workflow = dict[str, Any]
OWN_NODE = "LTXA2VSaveVideo"  # a page that knows it knows them all

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # faster than a route through Python for every asset
)
MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
"""Chromium's own microphone for tests: it beeps once a second, and nobody is asked for leave."""
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # or a dialog of templates covers the canvas
    "Comfy.UseNewMenu": "Top",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0,  # text in pictures of the whole graph too
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "Comfy.Workflow.ShowMissingModelsWarning": True,
}
"""What each page begins with. The server keeps settings for its next page, so a page that needs another value gives it
to its `Frontend`, and never sets it on the way: the test after it would depend on the order of tests."""
READY_MS = 60_000
LOOKED_UP = ("https://api.comfy.org/", "https://huggingface.co/")
"""The node registry, and the pages of models that a graph names: the page asks them, and nothing here reaches them."""
TOASTS = ".p-toast-message, [data-testid=toast]"  # before and since 1.58
# the page loads a workflow of its own at the end of its start
READY = """type => window.app?.vueAppReady && window.LiteGraph?.registered_node_types[type]
    && app.extensionManager.workflow.activeWorkflow && app.graph.nodes.length"""
LOAD = """async workflow => {
    await app.loadGraphData(workflow, true, true, null,
        {showMissingNodesDialog: false, showMissingModelsDialog: false});
    await new Promise(requestAnimationFrame);
}"""
DROP = """async ([data, name, type]) => {
    const {toast} = app.extensionManager;
    (toast.dismissAll ?? toast.removeAll)();
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    await app.handleFile(new File([bytes], name, {type}));
    await new Promise(requestAnimationFrame);
}"""
MISSING = """() => app.graph.nodes
    .filter(node => !(node.type in LiteGraph.registered_node_types)).map(node => node.type)"""
SERIALIZE = "() => JSON.stringify(app.graph.serialize({sortNodes: true}))"
PROMPT = "async () => JSON.stringify((await app.graphToPrompt()).output)"
# the whole graph in view without menus over it; where it lies on the page, in pixels
FIT = """async margin => {
    if (!app.extensionManager.focusMode) await app.extensionManager.command.execute('Workspace.ToggleFocusMode');
    await new Promise(done => setTimeout(done, 500));
    app.canvas.resize();
    const boxes = [...app.graph.nodes, ...app.graph.groups].map(item => item.boundingRect ?? item.boundingBox);
    const low = [0, 1].map(axis => Math.min(...boxes.map(box => box[axis])) - margin);
    const high = [0, 1].map(axis => Math.max(...boxes.map(box => box[axis] + box[axis + 2])) + margin);
    const room = app.canvas.canvas.getBoundingClientRect();
    const button = 60; // the one that leaves this mode is in the upper right corner
    const scale = Math.min(room.width / (high[0] - low[0]), (room.height - button) / (high[1] - low[1]));
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [-low[0], button / scale - low[1]];
    app.canvas.setDirty(true, true);
    await new Promise(done => setTimeout(done, 1000));
    return {x: room.x, y: room.y + button, width: scale * (high[0] - low[0]), height: scale * (high[1] - low[1])};
}"""
MARGIN = 30  # around the graph, in its own units


def browser_path() -> str | None:
    """Debian's chromium, if it is installed."""
    return shutil.which("chromium")


class Frontend:
    """A page of the server at `url`, ready once it knows the node type `wait_for`; a context manager.

    settings: what differs from SETTINGS, for this page alone. microphone: the page has one, as on a computer. It then
    also ignores the policy that `--disable-api-nodes` sends along, which forbids a page to read what it has recorded.

    `errors` collects what the console and uncaught exceptions say.
    """

    def __init__(
        self,
        url: str,
        chromium: str,
        *,
        wait_for: str = OWN_NODE,
        width: int = 2560,
        height: int = 1440,
        settings: Mapping[str, Any] | None = None,
        microphone: bool = False,
    ) -> None:
        self.errors: list[str] = []
        self._playwright = sync_playwright().start()
        try:
            flags = [*FLAGS, *(MICROPHONE if microphone else ())]
            self._browser = self._playwright.chromium.launch(executable_path=chromium, args=flags)
            self.page = self._browser.new_page(viewport={"width": width, "height": height}, bypass_csp=microphone)
            self.page.on("console", self._on_console)
            self.page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
            for key, value in {**SETTINGS, **(settings or {})}.items():
                self.page.request.post(f"{url}/api/settings/{key}", data=json.dumps(value))
            self.page.goto(url, wait_until="load", timeout=READY_MS)
            self.page.wait_for_function(READY, arg=wait_for, timeout=READY_MS)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Frontend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._playwright.stop()

    def load(self, workflow: Workflow) -> list[str]:
        """Opens a UI workflow, as dropping its file would; the types of nodes that the server does not have.

        `errors` starts anew: a fresh server makes the page itself complain of files that no user has written yet.
        """
        self.errors.clear()
        self.page.evaluate(LOAD, workflow)
        return self.page.evaluate(MISSING)

    def drop(self, data: bytes, name: str, kind: str) -> None:
        """Drops a file on the canvas. kind: what a browser says of it, such as video/mp4. `errors` and the messages on
        the page start anew."""
        self.errors.clear()
        self.page.evaluate(DROP, [base64.b64encode(data).decode(), name, kind])

    def serialize(self) -> Workflow:
        """The open graph in UI form."""
        return json.loads(self.page.evaluate(SERIALIZE))

    def prompt(self) -> dict[str, dict[str, Any]]:
        """The open graph in API form, as the Queue button sends it."""
        return json.loads(self.page.evaluate(PROMPT))

    def toasts(self) -> int:
        """How many messages pop up in a corner of the page."""
        return self.page.locator(TOASTS).count()

    def screenshot(self, path: Path) -> None:
        """A picture of the whole open graph, as large as the page allows."""
        self.page.screenshot(path=path, clip=self.page.evaluate(FIT, MARGIN))

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(place in message.text for place in LOOKED_UP):
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")
