"""The graph that each application queues, opened in the real frontend by a person who was sent it.

The official client sends a request with everything that the application takes, and the file of its graph is dropped on
the canvas. The page then shows every value, and would queue the very same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fal_client
import pytest
import requests
from a2v.api.applications import APPLICATIONS
from a2v.api.applications.application import Application
from a2v.api.settings import SUBFOLDER
from a2v.tests.api.edges import data_uri, wav
from a2v.tests.host import demo
from a2v.tests.host.api import APP, CAMERA_FILE, SMALL, client_of, write_ic_lora, write_published_25
from a2v.tests.host.browser import Frontend
from a2v.tests.host.comfy import Comfy, Prompt
from a2v.tests.host.draw_workflows import sent
from a2v.tests.ltx.media.clips import write_clip
from PIL import Image
from playwright.sync_api import Response

from .test_api_from_video import FAMILY, FPS, UNION, drawn
from .test_workflows import settings, specs

EVERYTHING: dict[str, Any] = {
    **SMALL,
    "num_frames": 25,
    "num_context_frames": 9,
    "audio_strength": 0.5,
    "image_strength": 0.9,
    "nag": {"scale": 6, "alpha": 0.5},
    "camera_lora": "dolly_in",
    "loras": [{"path": CAMERA_FILE, "scale": 0.5}],
    "preprocessor": "canny",
    "ic_lora_type": "match_preprocessor",
}
"""Of it, each request has what its application takes."""
CASES = {
    **{each: {} for each in APPLICATIONS},
    f"{APP}, a film": {"windows": {"frames": 33}, "timeline": "0:00.5 [cut] a tree"},
    f"{APP}, odd numbers": {"video_size": {"width": 100, "height": 76}, "num_frames": 20, "fps": 23.976},
    f"{FAMILY}/video-to-video, a part": {"match_video_length": False, "num_frames": 9},
}
"""Application, and what else is asked for."""
RUN = "fal-ai/ltx-2.3-22b/reference-video-to-video/lora"  # it has the most nodes
LARGEST = 128  # pixels a side of a run; the hosted applications of LTX-2.5 choose the size themselves
BELIEVED = 3.1  # seconds for which the server believes its last look at the models folders
PENDING = 60  # seconds in which a graph is there
# what a person sees: the values, the choices beside them, and where the links come from
SEEN = """() => Object.fromEntries(app.graph.nodes.map(node => [node.id, {
    title: node.title,
    values: Object.fromEntries((node.widgets ?? []).map(widget => [widget.name, widget.value])),
    choices: Object.fromEntries((node.widgets ?? []).filter(widget => widget.type === 'combo').map(widget => {
        const {values} = widget.options;
        return [widget.name, typeof values === 'function' ? values(widget, node) : values];
    })),
    links: Object.fromEntries((node.inputs ?? []).map((input, slot) => [input.name, node.getInputLink(slot)])
        .filter(([, link]) => link).map(([name, link]) => [name, [String(link.origin_id), link.origin_slot]])),
}]))"""
QUEUE = "() => app.queuePrompt(0, 1)"
DIALOGS = "[role=dialog]:visible"


@dataclass(frozen=True)
class Asked:
    """A request's graph, and the name of its file."""

    graph: Prompt
    file: str


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A file of each kind as a data URI."""
    folder = tmp_path_factory.mktemp("media")
    Image.effect_noise((120, 70), 60).convert("RGB").save(folder / "picture.png")
    clip = write_clip(folder / "clip.mp4", drawn(), kind="h264.mp4", fps=FPS)
    return {
        "audio": data_uri(wav(2.0), "audio/wav"),
        "image": fal_client.encode_file(folder / "picture.png"),
        "video": fal_client.encode_file(clip),
        "reference": fal_client.encode_file(clip),
    }


@pytest.fixture(scope="module")
def client(server: Comfy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """On a server that has the models of all applications: LTX-2.5's and the IC-LoRA, too."""
    loras = server.base / "models" / "loras"
    write_ic_lora(loras / CAMERA_FILE, loras / UNION)
    placed = write_published_25(server.base, tmp_path_factory.mktemp("tiny25"))
    time.sleep(BELIEVED)
    try:
        with client_of(server) as fal:
            yield fal.SyncClient(key="any")
    finally:
        for path in (loras / UNION, *placed.values()):
            path.unlink()


@pytest.fixture(scope="module")
def info(server: Comfy, client: Any) -> dict[str, Any]:
    return server.object_info()


@pytest.fixture(scope="module")
def frontend(server: Comfy, client: Any, chromium: str) -> Iterator[Frontend]:
    """Opened when all models are there, because the page asks once which there are."""
    with Frontend(server.url, chromium, width=1600, height=1000) as opened:
        yield opened


def body(application: Application, media: Mapping[str, str], more: Mapping[str, Any]) -> dict[str, Any]:
    """A request with all files and values that the application takes."""
    files = {name: media[kind] for name, kind in application.files.items()}
    known = application.inputs.model_fields
    return {name: value for name, value in {**EVERYTHING, **files, **more}.items() if name in known}


def graph_of(client: Any, case: str, media: Mapping[str, str]) -> Asked:
    """The graph of a request, which then need not run."""
    application = APPLICATIONS[case.partition(",")[0]]
    handle = client.submit(application.id, body(application, media, CASES[case]))
    deadline = time.monotonic() + PENDING
    while (answer := requests.get(handle.response_url + "/workflow", timeout=10)).status_code == 404:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    handle.cancel()
    said = answer.headers["Content-Disposition"]
    assert said == f'attachment; filename="{handle.request_id}.json"'
    return Asked(answer.json(), f"{handle.request_id}.json")


def check_queued(queued: Prompt, asked: Prompt, info: dict[str, Any]) -> None:
    """The same nodes, titles and values; an optional input that the graph leaves out is at its default."""
    assert {key: (node["class_type"], node["_meta"]) for key, node in queued.items()} == {
        key: (node["class_type"], node["_meta"]) for key, node in asked.items()
    }
    for key, node in asked.items():
        found, known = queued[key]["inputs"], specs(info, node["class_type"])
        assert {name: found.get(name) for name in node["inputs"]} == node["inputs"], node["class_type"]
        for name in found.keys() - node["inputs"].keys():
            spec = settings(known[name])
            options = spec.get("options") or [""]
            assert found[name] == spec.get("default", options[0]), (node["class_type"], name)


def check_seen(seen: dict[str, Any], asked: Prompt) -> None:
    """What the page shows is the graph: each link, each value, and each choice among those that there are. A file of
    the input folder's subfolders is no choice in any of ComfyUI's loaders, and is found."""
    assert seen.keys() == asked.keys()
    for key, node in asked.items():
        shown, links = seen[key], {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
        assert shown["title"] == node["_meta"]["title"] and shown["links"] == links, key
        values = {name: value for name, value in node["inputs"].items() if name not in links}
        assert {name: shown["values"].get(name) for name in values} == values, shown["title"]
        for name, choices in shown["choices"].items():
            value = shown["values"][name]
            is_file = name in values and str(value).startswith(f"{SUBFOLDER}/")
            assert value in choices or name in links or is_file, (shown["title"], name)


OPENED = (*(case for case in CASES if case not in APPLICATIONS), APP, RUN, "local/ltx-2.5-22b/distilled/audio-to-video")
"""Of these, what the usual suite opens: what is asked beside the defaults, the most nodes, and both versions."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.soak] * (case not in OPENED)) for case in CASES]
)
def test_the_graph_opens_in_the_editor_and_would_be_queued_as_it_is(
    client: Any, media: dict[str, str], frontend: Frontend, info: dict[str, Any], case: str
) -> None:
    asked = graph_of(client, case, media)
    frontend.drop(json.dumps(asked.graph).encode(), asked.file, "application/json")
    wanted = sent(asked.graph)
    check_seen(frontend.page.evaluate(SEEN), wanted)
    check_queued(sent(frontend.prompt()), wanted, info)
    assert frontend.errors == [] and frontend.toasts() == 0 and frontend.page.locator(DIALOGS).count() == 0
    places = [tuple(node["pos"]) for node in frontend.serialize()["nodes"]]
    assert len(set(places)) == len(wanted)


def takes_the_prompt(answer: Response) -> bool:
    return answer.request.method == "POST" and answer.url.endswith("/prompt")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.soak] * (case != RUN)) for case in CASES])
def test_it_runs_from_the_page(
    client: Any, media: dict[str, str], frontend: Frontend, info: dict[str, Any], server: Comfy, case: str
) -> None:
    asked = graph_of(client, case, media)
    for size in demo.nodes(asked.graph, "LTXA2VVideoSize"):
        size.update({side: min(size[side], LARGEST) for side in ("width", "height")})
    frontend.drop(json.dumps(asked.graph).encode(), asked.file, "application/json")
    with frontend.page.expect_response(takes_the_prompt) as answer:
        frontend.page.evaluate(QUEUE)
    prompt_id = answer.value.json()["prompt_id"]
    deadline = time.monotonic() + 240
    while not (history := server.get(f"/history/{prompt_id}")):
        assert time.monotonic() < deadline and frontend.errors == []
        time.sleep(0.2)
    done = history[prompt_id]
    assert done["status"]["status_str"] == "success", done["status"]
    check_queued(sent(done["prompt"][2]), sent(asked.graph), info)
