"""A newcomer's way in a real browser: the template, the models that are missing, and with them in place the video."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import requests
from a2v.ltx.models import MODELS
from a2v.mini import sizes
from a2v.tests.host.browser import Frontend, browser_path
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.drawing import faces
from a2v.tests.host.drawing.measure import enter, look
from a2v.tests.host.drawing.variants import VARIANTS
from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "mini" / "weights"
NAMED = {  # the miniature's part → the published model whose place it takes
    "checkpoint": "dev",
    "upscaler": "upscaler",
    "distilled": "distilled-lora",
    "gemma": "gemma",
}
CHANGES = {  # what a small computer needs: fewer pixels, frames and steps, and no writing of the prompt
    "size": "custom",
    "width": 128,
    "height": 128,
    "length from the audio": False,
    "frames": 9,
    "steps": 3,
    "let Gemma write it out": False,
    "text encoder": MODELS["gemma"].name,  # the miniature's is a folder, as the original is
}
# at the closed node, by the names that a person reads
CHANGE = """changes => {
    const node = app.graph.nodes.find(node => node.isSubgraphNode());
    for (const [label, value] of Object.entries(changes)) {
        const widget = node.widgets.find(widget => [widget.label, widget.name].includes(label));
        widget.value = value;
        widget.callback?.(value);
    }
}"""
# what stands in texts on each node, by its path as the history has it
SAID = """paths => paths.map(path => {
    let graph = app.rootGraph ?? app.graph;
    graph = graph.rootGraph ?? graph;
    const ids = path.split(':');
    for (const id of ids.slice(0, -1)) graph = graph.getNodeById(id).subgraph;
    const node = graph.getNodeById(ids.at(-1));
    return node.widgets.filter(widget => ['ltx_report', '$$node-text-preview'].includes(widget.name))
        .map(widget => widget.value);
})"""
RUN = "[data-testid=queue-button] button, button[data-testid=queue-button]"
DETAILS = "error-overlay-see-errors"
pytestmark = pytest.mark.skipif(browser_path() is None, reason="no chromium here (apt-get install chromium)")


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Comfy]:
    """ComfyUI with the pack, and not one model."""
    with Comfy(tmp_path) as server:
        yield server


def open_template(page: Page, title: str) -> None:
    """As a person finds it: the browser shows the first templates, and more when its list is scrolled."""
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("ltx-audio-to-video", exact=True).click()
    shown = page.get_by_text(re.compile(r"^\d\d "))
    shown.first.wait_for()
    for _ in range(len(VARIANTS)):
        if (found := page.get_by_text(title, exact=True)).count():
            break
        shown.last.scroll_into_view_if_needed()
        page.wait_for_timeout(300)
    found.first.click()


def dialog(page: Page) -> str:
    """What the open dialog says; it is closed again."""
    said = page.locator(".p-dialog").inner_text()
    page.keyboard.press("Escape")
    page.locator(".p-dialog-mask").first.wait_for(state="detached")
    return said


def missing(page: Page) -> str:
    """The page's own list of what an opened template needs, "folder / name" each: a dialog, or since 2026 a panel."""
    told, button = page.get_by_text("the following models were not found"), page.get_by_test_id(DETAILS)
    told.or_(button).first.wait_for()
    if told.is_visible():
        return dialog(page)
    button.click()
    page.get_by_test_id("missing-model-download").first.wait_for()
    rows = page.get_by_test_id("error-group-missing-model").inner_text()
    return re.sub(r"(\S+)\n(\S+)\nDownload\b", r"\2 / \1", rows)


def refused(page: Page) -> str:
    """What the page says once Run was pressed in vain, every detail unfolded."""
    told, panel = page.locator(".p-dialog"), page.get_by_test_id("error-group-execution")
    told.or_(panel).first.wait_for()
    if told.is_visible():
        return dialog(page)
    for info in panel.get_by_role("button", name=re.compile("^Info for")).all():
        info.click()
    return panel.inner_text()


def ran(server: Comfy, seconds: float = 300) -> dict:
    """The history's one entry, once it has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for entry in requests.get(f"{server.url}/history", timeout=10).json().values():
            if entry["status"]["completed"] or entry["status"]["status_str"] == "error":
                return entry
        time.sleep(0.2)
    raise AssertionError("the run did not end")


@pytest.mark.soak
def test_from_the_template_to_the_video(fresh: Comfy) -> None:
    with Frontend(fresh.url, browser_path(), width=1600, height=1000) as frontend:
        page = frontend.page
        open_template(page, VARIANTS[0].title)

        said = missing(page)
        for file in faces.files(VARIANTS[0]):
            assert f"{file.folder} / {file.name}" in said
        page.wait_for_function("() => app.canvas.ds.scale >= 0.5")

        # pressed all the same, the pack names file, folder and page
        page.locator(RUN).first.click()
        said = refused(page)
        for key in NAMED.values():
            assert MODELS[key].page in said, key
        assert requests.get(f"{fresh.url}/history", timeout=10).json() == {}

        # what it said is done, and R pressed
        for part, key in NAMED.items():
            source = WEIGHTS / sizes.FILES[part]
            target = fresh.base / "models" / MODELS[key].folder / MODELS[key].name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        fresh.upload(ROOT / "assets" / "speech.opus")
        page.evaluate("() => app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
        page.evaluate(CHANGE, CHANGES)
        page.locator(RUN).first.click()
        entry = ran(fresh)
        assert entry["status"]["status_str"] == "success", entry["status"]
        (video,) = [item for output in entry["outputs"].values() for item in output.get("images", ())
                    if item["type"] == "output"]  # fmt: skip
        with av.open(str(fresh.path(video))) as file:
            assert sum(1 for _ in file.decode(video=0)) == 9 and file.streams.audio
        page.evaluate("() => app.canvas.centerOnNode(app.graph.nodes.find(n => n.type === 'SaveVideo'))")
        page.locator(f"video[src*='{video['filename']}']").wait_for(state="attached")  # the node plays it
        # the report stays, and with it and the video nothing covers anything
        shown = "() => app.graph.nodes.find(node => node.title === 'Report').widgets.map(widget => widget.value).join()"
        assert "9 frames" in page.evaluate(shown)
        page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        page.wait_for_timeout(1000)
        assert look(frontend).wrong == []
        each_node_keeps_its_report(frontend, entry["outputs"])


def each_node_keeps_its_report(frontend: Frontend, outputs: dict[str, dict]) -> None:
    """Once, on its node inside the stages, without covering anything and without becoming a part of the workflow."""
    told = {path: output["ltx_a2v_text"] for path, output in outputs.items() if "ltx_a2v_text" in output}
    assert len(told) >= 6
    assert dict(zip(told, frontend.page.evaluate(SAID, list(told)), strict=True)) == told
    for path in faces.opening(VARIANTS[0]).ways():
        enter(frontend, *path)
        assert look(frontend).wrong == [], path
    enter(frontend)
    for text in told.values():
        assert json.dumps(text[0]) not in json.dumps([frontend.serialize(), frontend.prompt()])
