"""The shipped workflows: both forms agree, fit the nodes as they are, and run to a video on the real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import av
import pytest
from a2v.ltx.request import PARAMETERS, SIZES
from a2v.tests.host import demo
from a2v.tests.host.browser import Frontend
from a2v.tests.host.comfy import HOST, Comfy, Prompt
from a2v.tests.host.export_workflows import api_file, api_text, export, workflow_files
from a2v.tests.tiny import TinyFiles

UI = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in workflow_files()}
API = {path.stem: json.loads(api_file(path).read_text(encoding="utf-8")) for path in workflow_files()}
DEFAULT = "audio_to_video"
BYPASSED = 4
TITLE = 30  # height of a node's title bar, which lies above its position
NOTES = {"MarkdownNote", "Note"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "AUDIO_UI"}
# values that are the user's, or files that a fresh server does not have
OWN = {"checkpoint", "folder", "file", "lora", "audio", "image", "text", "noise_seed", "audioUI"}

each = pytest.mark.parametrize("name", UI)


@pytest.fixture(scope="module")
def info(comfy: Comfy) -> dict[str, Any]:
    return comfy.object_info()


@pytest.fixture(scope="module")
def sound(comfy: Comfy) -> str:
    """The workflow's own audio and image are there, as on a server whose user has uploaded the one."""
    comfy.upload(HOST / "input" / "example.png")  # every ComfyUI has it
    return comfy.upload(demo.SPEECH)


@pytest.fixture(scope="module")
def frontend(comfy: Comfy, chromium: str, sound: str) -> Iterator[Frontend]:
    with Frontend(comfy.url, chromium) as opened:
        yield opened


def specs(info: dict[str, Any], kind: str) -> dict[str, list[Any]]:
    """Inputs of a node class by name: [type or options, settings]."""
    inputs = info[kind]["input"]
    return {**inputs.get("required", {}), **inputs.get("optional", {})}


def type_of(spec: list[Any]) -> str:
    return "COMBO" if isinstance(spec[0], list) else spec[0]


def settings(spec: list[Any]) -> dict[str, Any]:
    return spec[1] if len(spec) > 1 else {}


def widgets(info: dict[str, Any], kind: str) -> list[tuple[str, list[Any] | None]]:
    """The widgets of a node in the order that its file stores their values; None for those of the frontend's own."""
    found: list[tuple[str, list[Any] | None]] = []
    upload = False
    for name, spec in specs(info, kind).items():
        if type_of(spec) in WIDGETS and not settings(spec).get("forceInput"):
            found.append((name, spec))
            if settings(spec).get("control_after_generate"):
                found.append(("control_after_generate", None))
        upload |= any(settings(spec).get(key) for key in ("image_upload", "audio_upload", "video_upload"))
    return [*found, ("upload", None)] if upload else found


@each
def test_api_form_fits_the_nodes(name: str, info: dict[str, Any]) -> None:
    prompt = API[name]
    for key, node in prompt.items():
        kind = node["class_type"]
        assert kind in info, key
        known = specs(info, kind)
        assert set(node["inputs"]) <= set(known), (key, kind)
        assert set(info[kind]["input"].get("required", {})) <= set(node["inputs"]), (key, kind)
        for field, value in node["inputs"].items():
            wanted = type_of(known[field])
            if isinstance(value, list):
                source, slot = value
                given = info[prompt[source]["class_type"]]["output"][slot]
                assert given in wanted.split(",") or "*" in (given, wanted), (key, field, given, wanted)
            else:
                assert wanted in WIDGETS, (key, field)
    # with one output an invalid graph is refused whole; with two the valid half would run
    assert sum(info[node["class_type"]]["output_node"] for node in prompt.values()) == 1


@each
def test_ui_widgets_are_the_schemas_in_order_and_at_their_defaults(name: str, info: dict[str, Any]) -> None:
    for node in UI[name]["nodes"]:
        if node["type"] in NOTES:
            continue
        known, values = widgets(info, node["type"]), node.get("widgets_values", [])
        assert len(values) == len(known), node["type"]
        assert [w["widget"]["name"] for w in node["inputs"] if "widget" in w and w["name"] != "upload"] == [
            widget for widget, spec in known if spec
        ]
        for (widget, spec), value in zip(known, values, strict=True):
            if spec and widget not in OWN:
                options = spec[0] if isinstance(spec[0], list) else settings(spec).get("options", [value])
                default = settings(spec).get("default", options[0])
                assert value == default and value in (*options, default), (node["type"], widget)


def test_the_default_workflow_is_the_endpoints_default() -> None:
    inputs = {node["class_type"]: node["inputs"] for node in API[DEFAULT].values()}
    default = {name: parameter.default for name, parameter in PARAMETERS.items()}
    size = inputs["LTXA2VEmptyLatent"]
    assert (size["width"], size["height"]) == SIZES[default["video_size"]]
    assert size["two_passes"] is default["use_multiscale"]
    count = inputs["LTXA2VFrameCount"]
    assert [count[key] for key in ("frame_rate", "match_audio_length", "num_frames")] == [
        default[key] for key in ("fps", "match_audio_length", "num_frames")
    ]
    scales = inputs["LTXA2VGuidance"]
    assert [scales[key] for key in ("cfg", "stg", "rescale", "modality")] == [
        default[f"video_{key}_scale"] for key in ("cfg", "stg", "rescaling", "modality")
    ]
    lora = inputs["LTXA2VDistilledLora"]
    assert [lora["first_pass_strength"], lora["second_pass_strength"]] == [0.2, 0.5]
    assert inputs["LTXA2VScheduler"] == {"scheduler": "beta", "steps": 15}
    texts = {n["_meta"]["title"]: n["inputs"]["text"] for n in API[DEFAULT].values() if "text" in n["inputs"]}
    assert texts["Negative prompt"] == default["negative_prompt"] and len(texts["Positive prompt"]) > 100


@each
def test_models_can_be_offered_for_download(name: str, comfy: Comfy) -> None:
    folders = comfy.get("/models")
    offered = []
    for node in UI[name]["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"] and model["directory"] in folders
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith("/" + model["name"])
            offered.append(node["type"])
    assert offered == ["LTXA2VModelLoader", "LTXA2VUpscalerLoader", "LTXA2VDistilledLora"]


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom with the title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


@each
def test_the_graph_reads_left_to_right_and_nothing_overlaps(name: str) -> None:
    graph = UI[name]
    nodes = {node["id"]: node for node in graph["nodes"]}
    for a, b in combinations(nodes.values(), 2):
        (l1, t1, r1, b1), (l2, t2, r2, b2) = box(a), box(b)
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1, (a["id"], a["type"], b["id"], b["type"])
    for _, source, _, target, *_ in graph["links"]:
        assert box(nodes[source])[2] < box(nodes[target])[0], (nodes[source]["type"], nodes[target]["type"])
    for node in nodes.values():
        inside = [
            group["title"]
            for group in graph["groups"]
            for x, y, w, h in [group["bounding"]]
            if x <= box(node)[0] and y <= box(node)[1] and box(node)[2] <= x + w and box(node)[3] <= y + h
        ]
        assert len(inside) == 1 or node["type"] in NOTES, node["type"]
    # numbered groups follow one another
    steps = [g["bounding"] for g in sorted(graph["groups"], key=lambda g: g["title"]) if g["title"][0].isdigit()]
    assert all((a[0], a[1]) < (b[0], b[1]) for a, b in pairwise(steps) if a[1] == b[1])


@pytest.mark.parametrize("path", workflow_files(), ids=lambda path: path.stem)
def test_the_frontend_gives_back_both_files(path: Path, frontend: Frontend) -> None:
    ui, api = export(frontend, path)
    assert frontend.errors == []
    assert ui == path.read_text(encoding="utf-8"), "run tests/host/export_workflows.py"
    assert api == api_file(path).read_text(encoding="utf-8"), "run tests/host/export_workflows.py"


@pytest.mark.parametrize("picture", ["First image", "End image"])
def test_an_image_group_can_be_switched_on_alone(picture: str, frontend: Frontend) -> None:
    frontend.load(UI[DEFAULT])
    group = [node for node in UI[DEFAULT]["nodes"] if node.get("title", "").startswith(picture)]
    assert len(group) == 3 and all(node["mode"] == BYPASSED for node in group)
    frontend.set_mode([node["id"] for node in group], 0)
    prompt = frontend.prompt()
    added = set(prompt) - set(API[DEFAULT])
    assert added == {str(node["id"]) for node in group}
    for sampler, slot in (("First pass", 0), ("Second pass", 1)):
        (inputs,) = (node["inputs"] for node in prompt.values() if node["_meta"]["title"] == sampler)
        guide = prompt[inputs["guides"][0]]
        assert guide["_meta"]["title"] == f"{picture}, {sampler.lower()}"
        assert guide["inputs"]["latent"][1] == slot and "guides" not in guide["inputs"]


def test_the_second_pass_can_be_bypassed(frontend: Frontend) -> None:
    frontend.load(UI[DEFAULT])
    ids = {node.get("title", node["type"]): node["id"] for node in UI[DEFAULT]["nodes"]}
    frontend.set_mode([ids["LTXA2VLatentUpscale"], ids["Second pass"]], BYPASSED)
    prompt = frontend.prompt()
    (decode,) = demo.nodes(prompt, "LTXA2VDecode")
    assert decode["samples"] == [str(ids["First pass"]), 0]


def quick(prompt: Prompt, models: TinyFiles, sound: str, frames: int = 17) -> Prompt:
    """The workflow on the tiny files, small and short."""
    prompt = demo.fill(prompt, models, sound, "a person speaks", None)
    for kind, values in {
        "LTXA2VEmptyLatent": {"width": 192, "height": 128},
        "LTXA2VScheduler": {"steps": 2},
        "LTXA2VFrameCount": {"match_audio_length": False, "num_frames": frames},
    }.items():
        for inputs in demo.nodes(prompt, kind):
            inputs.update(values)
    return prompt


def look(path: Path, frames: int) -> None:
    """The video file has the picture and the sound that were asked for."""
    with av.open(str(path)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.average_rate) == (192, 128, 24)
        decoded = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert len(decoded) == frames and all(picture.std() > 1 for picture in decoded)
    with av.open(str(path)) as file:
        samples = sum(frame.samples for frame in file.decode(audio=0))
        rate = file.streams.audio[0].rate
    assert abs(Fraction(samples, rate) - Fraction(frames, 24)) < Fraction(2048, rate)  # AAC counts in blocks of 1024


@each
def test_it_runs_to_a_video(name: str, comfy: Comfy, models: TinyFiles, sound: str) -> None:
    run = comfy.run(quick(json.loads(json.dumps(API[name])), models, sound))
    assert run.error is None, run.message
    assert sorted(run.executed + run.cached, key=int) == list(API[name])
    look(demo.video_of(comfy, run), 17)


def test_it_runs_with_both_images_switched_on(frontend: Frontend, comfy: Comfy, models: TinyFiles, sound: str) -> None:
    frontend.load(UI[DEFAULT])
    frontend.set_mode([node["id"] for node in UI[DEFAULT]["nodes"]], 0)
    prompt = quick(frontend.prompt(), models, sound, frames=9)
    assert len(prompt) == len(API[DEFAULT]) + 6
    run = comfy.run(prompt)
    assert run.error is None, run.message
    look(demo.video_of(comfy, run), 9)


@each
def test_without_the_models_it_is_refused_by_name(name: str, comfy: Comfy, sound: str) -> None:
    refused = comfy.post("/prompt", {"prompt": API[name]})
    assert refused.status_code == 400
    said = json.dumps(refused.json()["node_errors"])
    for node in UI[name]["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] in said


@each
def test_the_committed_api_form_is_in_its_stable_order(name: str) -> None:
    assert api_text(API[name]) == api_file(Path(workflow_files()[0].parent, f"{name}.json")).read_text(encoding="utf-8")
