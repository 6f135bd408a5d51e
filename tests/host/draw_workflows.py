"""Draws the shipped workflows: `python tests/host/draw_workflows.py [NAME …]` writes all, or those named, anew.

drawing/ says what is in them: variants.py which there are, stages.py and faces.py their nodes, layout.py where these
lie. ComfyUI's real frontend makes the nodes and writes the files. Written are, for each workflow, its two faces in
example_workflows/ (TITLE.json opens short, "TITLE (all nodes).json" shows the stages) with a picture for the template
browser, workflows/api/NAME.json as the frontend queues the flat graph, and a screenshot in assets/workflows/; with
audio_to_video and image_and_audio, too, the pipeline as one node in subgraphs/.
Exit status: 0, 1 where the pack does not load, a node or input does not exist, or there is no browser.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import re
import sys
import tempfile
import types
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# the pack's name outside ComfyUI, as in tests/conftest.py
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

from a2v.tests.host.browser import OWN_NODE, Frontend, Workflow, browser_path
from a2v.tests.host.comfy import HOST, Comfy, Prompt
from a2v.tests.host.drawing import clips, faces, graphs, poster
from a2v.tests.host.drawing.layout import OUT
from a2v.tests.host.drawing.parts import Stage
from a2v.tests.host.drawing.variants import DEFAULT, VARIANTS, Variant
from PIL import Image

WORKFLOWS = ROOT / "example_workflows"
"""ComfyUI prefers this name. It looks for templates in one folder of a pack, and not below it."""
API_WORKFLOWS = ROOT / "workflows" / "api"
PICTURES = ROOT / "assets" / "workflows"
JPEG_QUALITY = 75
FRONTEND = "comfyui-frontend-package"
DRAWN_HERE = f"\n{FRONTEND}=={version(FRONTEND)}\n" in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
"""Whether this frontend is the one that draws the files, and gives them back to the letter."""
INPUTS = (
    *(ROOT / "assets" / "speech.opus", HOST / "input" / "example.png"),
    *(ROOT / "assets" / "clip.mp4", ROOT / "assets" / "mouth.png"),
)
"""What the workflows load."""
# a note or prompt that would have to be scrolled
CUT = """() => [...document.querySelectorAll('.comfy-markdown .tiptap, .comfy-multiline-input')]
    .filter(text => text.offsetParent && text.scrollHeight > text.clientHeight + 2)
    .map(text => [text.scrollHeight - text.clientHeight, (text.value ?? text.innerText).slice(0, 60)])"""
BLUEPRINTS = {
    DEFAULT: ROOT / "subgraphs" / "LTX Audio to Video.json",
    "image_and_audio": ROOT / "subgraphs" / "LTX Image and Audio to Video.json",
}
"""By the variant whose pipeline it is; its name in the node library is the file's."""
BLUEPRINT_ABOUT = "Makes a video that moves with the sound, from Load Audio to a VIDEO. Open it for all settings."
PLAYER = "video-preview"
"""The widget that Load Video gets once the page has read its file."""
FRAME = 3  # of the ten in a strip of the gallery: the mouth is open
THUMBNAIL = 512


def opening_file(variant: Variant) -> Path:
    return WORKFLOWS / f"{variant.title}.json"


def all_nodes_file(variant: Variant) -> Path:
    return WORKFLOWS / f"{variant.title}{faces.ALL}.json"


def microphone_file(variant: Variant) -> Path:
    return WORKFLOWS / f"{variant.title}{faces.MICROPHONE}.json"


def api_file(variant: Variant) -> Path:
    return API_WORKFLOWS / f"{variant.name}.json"


def api_text(prompt: dict[str, dict[str, Any]]) -> str:
    """API form as it is committed: nodes by id, inputs as the frontend gives them before it shows a clip."""
    ordered = {key: dict(prompt[key]) for key in sorted(prompt, key=lambda key: [int(part) for part in key.split(":")])}
    for node in ordered.values():
        node["inputs"] = {name: value for name, value in node["inputs"].items() if name != PLAYER}
    return text(ordered)


def text(value: object) -> str:
    """UI form as it is committed."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def sent(prompt: Prompt) -> Prompt:
    """What every frontend sends of one graph: some leave out players and texts that are shown, which have no value."""
    shown = {
        PLAYER,
        "audioUI",
        "preview",
        "preview_markdown",
        "preview_text",
        "preview_mode",
        "previewMode",
        "format.codec",
    }
    return {
        key: {**node, "inputs": {name: value for name, value in node["inputs"].items() if name not in shown}}
        for key, node in prompt.items()
    }


def draw(frontend: Frontend, root: Stage, name: str) -> Workflow:
    """The workflow as the frontend serialises it once it is drawn. Errors: a node, widget or socket does not exist."""
    graph = graphs.Graph(root, frontend, name)
    frontend.load(graph.workflow())
    workflow = graph.workflow(graphs.sizes(frontend))
    workflow["extra"] |= app_mode(graph)
    frontend.load(workflow)
    frontend.load(serialized(frontend))  # the order of nodes is settled by the second time
    return serialized(frontend)


def serialized(frontend: Frontend) -> Workflow:
    """The open graph without where it was looked at, so that every frontend shows it whole. Also without the list
    of promoted widgets, which follows from their links: 1.58 cannot read an old one, keeps the values of that moment
    beside it, and sets them again whenever a person opens what they have saved."""
    found = frontend.serialize()
    found["extra"].pop("ds", None)
    for graph in (found, *found.get("definitions", {}).get("subgraphs", ())):
        for node in graph["nodes"]:
            node["properties"].pop("proxyWidgets", None)
    return found


def app_mode(graph: graphs.Graph) -> dict[str, Any]:
    """What the app mode of newer frontends shows: the files, the settings that a first run needs, and the video."""
    if "whole" not in graph.drawn:
        return {}
    node = graph.drawn["whole"]
    names = {slot.label or slot.name: slot.name for slot in node.inputs if slot.widget}
    wanted = ("prompt", "timeline", *clips.LABELS, "size", "camera", "audio strength", "length from the audio",
              "frames", "seed")  # fmt: skip
    # Record Audio has a player of the same name before its button; newer frontends number the second
    spoken = any(node.kind == "RecordAudio" for node in graph.nodes.values())
    files = {"video": "file", "audio": "audio#1" if spoken else "audio", "mask": "image", "sheet": "image",
             "first image": "image", "end image": "image"}  # fmt: skip
    loaders = [[graph.ids[key], widget] for key, widget in files.items() if key in graph.ids]
    chosen = [[node.id, names[label]] for label in wanted if label in names]
    return {"linearData": {"inputs": loaders + chosen, "outputs": [graph.ids["saved"]]}, "linearMode": False}


def export(frontend: Frontend, workflow: Workflow) -> tuple[str, str]:
    """UI and API form of a workflow, both as texts. Errors: it names nodes that the server does not have."""
    missing = frontend.load(workflow)
    if missing:
        raise ValueError(f"unknown nodes: {', '.join(sorted(set(missing)))}")
    return text(serialized(frontend)), api_text(frontend.prompt())


def flat_prompt(frontend: Frontend, variant: Variant) -> Prompt:
    """The API form: every node on one canvas."""
    frontend.load(graphs.Graph(faces.flat(variant), frontend, f"{variant.name}/flat").workflow())
    return frontend.prompt()


def blueprint(opening: Workflow, path: Path) -> str:
    """The one node of an opening face for the node library, from the files to a VIDEO, which is its first output."""
    opening = json.loads(json.dumps(opening))
    (node,) = (node for node in opening["nodes"] if len(node["type"]) == 36)
    (inside,) = (subgraph for subgraph in opening["definitions"]["subgraphs"] if subgraph["id"] == node["type"])
    node["pos"] = [0, 0]
    for slots in (node["outputs"], inside["outputs"]):
        slots.reverse()
    for slot, place in zip(inside["outputs"], [slot["pos"] for slot in reversed(inside["outputs"])], strict=True):
        slot["pos"] = place
    for link in inside["links"]:
        if link["target_id"] == OUT:
            link["target_slot"] = len(inside["outputs"]) - 1 - link["target_slot"]
    for slot in node["inputs"]:
        slot["link"] = None
    for slot in node["outputs"]:
        slot["links"] = []
    made = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"ltx-audio-to-video/{path.name}")), "revision": 0,
        "last_node_id": opening["last_node_id"], "last_link_id": 0, "nodes": [node], "links": [], "groups": [],
        "definitions": opening["definitions"], "config": {}, "extra": {"BlueprintDescription": BLUEPRINT_ABOUT},
        "version": 0.4,
    }  # fmt: skip
    written = text(made)
    # a blueprint has ids of its own: a workflow may hold both
    for found in dict.fromkeys(re.findall(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", written)):
        written = written.replace(found, str(uuid.uuid5(uuid.NAMESPACE_URL, f"{path.name}/{found}")))
    return written


def thumbnail(frontend: Frontend, variant: Variant) -> Image.Image:
    """A frame of what the miniature made with the workflow, over its sound. The distilled one has no small counterpart:
    it shows the first one's. LTX-2.5 has none at all: its workflows have a drawing."""
    if variant.is_25:
        return poster.picture(frontend, variant, THUMBNAIL)
    name = variant.name
    strips = ROOT / "assets" / "gallery"
    strip = strips / f"{name}.jpg"
    with Image.open(strip if strip.exists() else strips / f"{DEFAULT}.jpg") as found:
        side = found.height - 64
        frame = found.crop((FRAME * side, 64, (FRAME + 1) * side, found.height))
        wave = found.crop((0, 0, found.width, 64)).resize((THUMBNAIL, 96), Image.Resampling.LANCZOS)
    picture = frame.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS).convert("RGB")
    picture.paste(wave, (0, THUMBNAIL - wave.height))
    return picture


def _write(path: Path, content: str) -> Iterator[str]:
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        yield f"draw: {path.relative_to(ROOT)} written\n"


def _draw_all(frontend: Frontend, variant: Variant) -> Iterator[str]:
    """Writes the files of a variant; what was written, and what is wrong."""
    yield from _write(api_file(variant), api_text(flat_prompt(frontend, variant)))
    drawn = [(faces.all_nodes(variant), all_nodes_file(variant)), (faces.opening(variant), opening_file(variant))]
    if variant.name == DEFAULT:
        drawn.insert(0, (faces.opening(variant, spoken=True), microphone_file(variant)))
    for root, path in drawn:
        face = draw(frontend, root, path.stem)
        yield from _write(path, text(face))
        thumbnail(frontend, variant).save(path.with_suffix(".jpg"), quality=JPEG_QUALITY, optimize=True)
        face_name = path.stem.removeprefix(variant.title).translate(str.maketrans(" ", "_", "()"))
        picture = PICTURES / f"{variant.name}{face_name}.jpg"
        with tempfile.TemporaryDirectory() as folder:
            frontend.screenshot(Path(folder, "shot.png"))
            with Image.open(Path(folder, "shot.png")) as shot:
                shot.convert("RGB").save(picture, quality=JPEG_QUALITY, optimize=True)
        for hidden, start in frontend.page.evaluate(CUT):
            yield f"draw: {path.stem}: {hidden} units are cut of: {start}\n"
        for trouble in frontend.errors:
            yield f"draw: {path.stem}: {trouble}\n"
    if variant.name in BLUEPRINTS:
        yield from _write(BLUEPRINTS[variant.name], blueprint(face, BLUEPRINTS[variant.name]))


def main(names: list[str]) -> int:
    chromium = browser_path()
    if not chromium:
        sys.stderr.write("draw: no chromium here; `apt-get install chromium` brings it\n")
        return 1
    with tempfile.TemporaryDirectory() as base, Comfy(Path(base)) as server:
        if OWN_NODE not in server.object_info():
            sys.stderr.write(f"draw: ComfyUI could not load the pack\n{server.log}")
            return 1
        for file in INPUTS:
            server.upload(file)
        with Frontend(server.url, chromium, width=1600, height=1000) as frontend:
            for variant in VARIANTS:
                if not names or variant.name in names:
                    for line in _draw_all(frontend, variant):
                        sys.stdout.write(line)
                        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
