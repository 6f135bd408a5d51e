"""The shipped workflows: both forms agree, fit the nodes as they are, and run to a video on the real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from a2v.api.graph.begun import Begun
from a2v.api.graph.graph import sources
from a2v.ltx.diffusion import schedules
from a2v.ltx.models import MODELS, V25
from a2v.ltx.request import PARAMETERS
from a2v.tests.host import demo
from a2v.tests.host.api import write_ic_lora, write_published_25
from a2v.tests.host.browser import Frontend, Workflow
from a2v.tests.host.comfy import Comfy, Prompt, Run
from a2v.tests.host.draw_workflows import (
    API_WORKFLOWS,
    BLUEPRINTS,
    CUT,
    DRAWN_HERE,
    INPUTS,
    PICTURES,
    ROOT,
    WORKFLOWS,
    all_nodes_file,
    api_file,
    api_text,
    blueprint,
    draw,
    export,
    flat_prompt,
    microphone_file,
    opening_file,
    sent,
)
from a2v.tests.host.drawing import faces, poster
from a2v.tests.host.drawing.parts import CAMERA, DUBIT, FILES, ID_LORA, INGREDIENTS, UNION
from a2v.tests.host.drawing.variants import CAST, DEFAULT, DUB, REDUB, REFERENCE, RETAKE, SONG, VARIANTS, VOICE, Variant
from a2v.tests.ltx.media.clips import write_clip
from a2v.tests.tiny import TinyFiles
from PIL import Image

FACES: dict[str, dict[str, Workflow]] = {
    variant.name: {
        "opening": json.loads(opening_file(variant).read_text(encoding="utf-8")),
        "all nodes": json.loads(all_nodes_file(variant).read_text(encoding="utf-8")),
    }
    for variant in VARIANTS
}
API: dict[str, Prompt] = {v.name: json.loads(api_file(v).read_text(encoding="utf-8")) for v in VARIANTS}
BY_NAME = {variant.name: variant for variant in VARIANTS}
# as Ctrl+B does
BYPASS = """titles => [app.graph, ...app.graph.subgraphs.values()].flatMap(graph => graph.nodes)
    .filter(node => titles.includes(node.title)).forEach(node => node.mode = 4)"""
# at the closed node that shows it
CHANGE_PROMPT = """text => app.graph.nodes.filter(node => node.isSubgraphNode?.()).flatMap(node => node.widgets)
    .filter(widget => widget.name === 'prompt').forEach(widget => widget.value = text)"""
# what the page does with the widgets of a graph that it has queued
AFTER_RUN = """() => [app.graph, ...app.graph.subgraphs.values()].flatMap(graph => graph.nodes)
    .flatMap(node => node.widgets ?? []).forEach(widget => widget.afterQueued?.())"""
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "AUDIO_UI"}
# values that are the user's, or files that a fresh server does not have
OWN = {"checkpoint", "folder", "file", "lora", "audio", "image", "text", "prompt", "timeline", "audioUI"}
SEEDS = {"noise_seed", "seed", "value"}
DISTILLED = FILES["2.3"].distilled
# LTX-2.5's parts, and its prompt as it is
PARTS_25 = {
    ("LTXA2VModelLoader", "video_vae"): "ltx-2.5-video-vae-conv-bf16.safetensors",
    ("LTXA2VModelLoader", "audio_vae"): "ltx-2.5-audio-vae-bf16.safetensors",
    ("LTXA2VExpandPrompt", "enabled"): False,
}
# the values of the application …/pro, of which the official pipeline has all but the CFG scale
QUALITY_25 = {
    ("LTXA2VScheduler", "scheduler"): "ltx2",
    ("LTXA2VScheduler", "steps"): 30,
    ("LTXA2VGuidance", "cfg"): 5,
    ("LTXA2VGuidance", "rescale"): 0.7,
    ("LTXA2VDistilledLora", "first_pass_strength"): 0,
    ("LTXA2VDistilledLora", "second_pass_strength"): 1,
}
# all that a workflow is about, beside its nodes
CHANGED: dict[str, dict[tuple[str, str], Any]] = {
    "audio_to_video": {},
    "image_and_audio": {("LTXA2VVideoSize", "video_size"): "auto"},
    "first_and_last_image": {("LTXA2VVideoSize", "video_size"): "auto"},
    "distilled_fast": {("LTXA2VScheduler", "scheduler"): "linear_quadratic", ("LTXA2VScheduler", "steps"): 8},
    "camera_move": {("LTXA2VCameraLora", "camera_lora"): "dolly_in"},
    "audio_regeneration": {("LTXA2VAudioConditioning", "strength"): 0.5},
    "song": {("LTXA2VVideoSize", "video_size"): "auto", ("LTXA2VFrameCount", "whole_track"): True},
    "retake": {
        ("LTXA2VVideoSize", "video_size"): "auto",
        ("LTXA2VRetake", "start"): 1.0,
        ("LTXA2VRetake", "end"): 2.5,
    },
    "redub": {("LTXA2VVideoSize", "video_size"): "auto", ("LTXA2VRetake", "soften_pixels"): 16},
    "reference": {
        ("LTXA2VVideoSize", "video_size"): "auto",
        ("LTXA2VScheduler", "scheduler"): "linear_quadratic",
        ("LTXA2VScheduler", "steps"): 8,
    },
    "dub": {
        ("LTXA2VVideoSize", "video_size"): "auto",
        ("LTXA2VScheduler", "scheduler"): "linear_quadratic",
        ("LTXA2VScheduler", "steps"): 8,
        ("LTXA2VExpandPrompt", "enabled"): False,
    },
    "cast": {
        ("LTXA2VVideoSize", "video_size"): "custom",
        ("LTXA2VVideoSize", "width"): 1536,
        ("LTXA2VVideoSize", "height"): 896,
        ("LTXA2VScheduler", "scheduler"): "linear_quadratic",
        ("LTXA2VScheduler", "steps"): 8,
        ("LTXA2VExpandPrompt", "enabled"): False,
        ("LTXA2VLora", "strength"): 1.4,
    },
    "voice": {
        ("LTXA2VVideoSize", "video_size"): "auto",
        ("LTXA2VFrameCount", "match_audio_length"): False,
        ("LTXA2VAudioConditioning", "strength"): 0,
        ("LTXA2VAudioGuidance", "stg"): 1,
        ("LTXA2VAudioGuidance", "identity"): 3,
        ("LTXA2VAudioGuidance", "rescale"): 0,
        ("LTXA2VGuidance", "rescale"): 0,
        ("LTXA2VScheduler", "scheduler"): "ltx2",
        ("LTXA2VScheduler", "steps"): 30,
        ("LTXA2VDistilledLora", "first_pass_strength"): 0,
        ("LTXA2VDistilledLora", "second_pass_strength"): 0.8,
        ("LTXA2VExpandPrompt", "enabled"): False,
    },
    "audio_to_video_25": {**PARTS_25, **QUALITY_25},
    "image_and_audio_25": {
        **PARTS_25,
        **QUALITY_25,
        ("LTXA2VVideoSize", "video_size"): "auto",
        ("LTXA2VGuidance", "cfg"): 9,
    },
    "distilled_fast_25": {
        **PARTS_25,
        ("LTXA2VScheduler", "scheduler"): "linear_quadratic",
        ("LTXA2VScheduler", "steps"): 8,
        ("LTXA2VSampler", "sampler"): "euler_ancestral",  # in the first stage
    },
}
DECODED = {"folder": "temp", "filename_prefix": "ltx-a2v"}  # where the one node saves what Save Video then saves
UNDISTILLED = {"LTXA2VDistilledLora", "LTXA2VGuidance", "LTXA2VRestart"}
SIDES = (128, 64)  # of the runs' videos, and of the images that auto takes them from
WIDER = (256, 128)  # of the reference's, because its IC-LoRA sees half a size
FRAMES = 9
SMALL, SMALL_CLIP = "small.png", "small.mp4"
SOME_TIME = {"start": 0.1, "end": 0.3}  # of the small clip, to be made anew
# of tests that take seconds a workflow; `make soak` has all
SOME = ("song",)
DRAWN = (DEFAULT,)  # it has all stages
LIKE = (
    "camera_move",
    "image_and_audio_25",
    "audio_to_video_25",
    "redub",
    "distilled_fast",
)  # others have all that they have

each = pytest.mark.parametrize("name", BY_NAME)


def nodes_of(face: Workflow) -> list[dict[str, Any]]:
    """All nodes, those within subgraphs, too; the closed subgraphs themselves are left out."""
    subgraphs = face["definitions"]["subgraphs"]
    closed = {subgraph["id"] for subgraph in subgraphs}
    return [node for graph in (face, *subgraphs) for node in graph["nodes"] if node["type"] not in closed]


OUTPUTS = {  # sockets by node type, as the frontend knows them
    node["type"]: {output["name"] for output in node["outputs"]}
    for found in FACES.values()
    for node in nodes_of(found["all nodes"])
}
OUTPUTS["LTXA2VReport"] = set()  # it joins the others


@pytest.fixture(scope="module")
def info(comfy: Comfy) -> dict[str, Any]:
    return comfy.object_info()


@pytest.fixture(scope="module")
def sound(comfy: Comfy, comfy_base: Path, models: TinyFiles) -> Iterator[str]:
    """The workflows' own files are there, as on a server whose user has uploaded them, and a small image and clip.

    So are the tiny camera LoRA, also as ID-LoRA, and the tiny checkpoint under the published names, and the
    camera LoRA as the IC-LoRAs, of which Union-Control reads half the size.
    """
    picture = Image.effect_noise(SIDES, 60).convert("RGB")
    picture.save(comfy_base / "input" / SMALL)
    pictures = [np.roll(np.asarray(picture), 5 * number, axis=1) for number in range(FRAMES)]
    tone = 0.3 * np.sin(np.arange(48_000 * FRAMES // 24) / 17)
    write_clip(comfy_base / "input" / SMALL_CLIP, pictures, kind="h264.mp4", sound=(tone, 0.0))
    placed = {CAMERA: models.camera_lora, ID_LORA: models.camera_lora, DISTILLED: models.checkpoint}
    links = [comfy_base / "models" / file.folder / file.name for file in (UNION, DUBIT, INGREDIENTS)]
    for downscale, link in zip((2, 1, 1), links, strict=True):
        write_ic_lora(models.camera_lora, link, downscale)
    for file, tiny in placed.items():
        links.append(comfy_base / "models" / file.folder / file.name)
        links[-1].symlink_to(tiny)
    uploaded = [comfy.upload(file) for file in INPUTS]
    yield uploaded[0]
    for link in links:
        link.unlink()


@pytest.fixture(scope="module")
def tiny_25(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_published_25(tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("tiny25"))


@pytest.fixture
def installed(name: str, comfy_base: Path, tiny_25: dict[str, Path]) -> Iterator[None]:
    """LTX-2.5's files are on the server while a test of one of its workflows runs."""
    links = {comfy_base / "models" / MODELS[key].folder / path.name: path for key, path in tiny_25.items()}
    links = links if BY_NAME[name].is_25 else {}
    for link, path in links.items():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path)
    yield
    for link in links:
        link.unlink()


@pytest.fixture(scope="module")
def frontend(comfy: Comfy, chromium: str, sound: str) -> Iterator[Frontend]:
    with Frontend(comfy.url, chromium, width=1280, height=800) as opened:  # a large page is slow to draw
        yield opened


def specs(info: dict[str, Any], kind: str) -> dict[str, list[Any]]:
    """Inputs of a node class by name: [type or options, settings]."""
    inputs = info[kind]["input"]
    return {**inputs.get("required", {}), **inputs.get("optional", {})}


def type_of(spec: list[Any]) -> str:
    """Of a widget into which other types may be linked, its own."""
    return "COMBO" if isinstance(spec[0], list) else settings(spec).get("widgetType", spec[0])


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
    for node in nodes_of(FACES[name]["all nodes"]) + nodes_of(FACES[name]["opening"]):
        if not node["type"].startswith("LTXA2V"):
            continue
        known, values = widgets(info, node["type"]), node.get("widgets_values", [])
        assert len(values) == len(known), node["type"]
        assert [w["widget"]["name"] for w in node["inputs"] if "widget" in w and w["name"] != "upload"] == [
            widget for widget, spec in known if spec
        ]
        for (widget, spec), value in zip(known, values, strict=True):
            if spec and widget not in OWN | SEEDS:
                options = spec[0] if isinstance(spec[0], list) else settings(spec).get("options", [value])
                default = settings(spec).get("default", options[0])
                key = (node["type"], widget)
                if key in list(PARTS_25)[:2] and key in CHANGED[name]:
                    options = [CHANGED[name][key]]  # a file that this server does not have
                assert value in (*options, default)
                if node.get("title") == "Decode" and widget in DECODED:
                    default = DECODED[widget]
                changed = {} if widget == "sampler" and node["title"] == "Second stage" else CHANGED[name]
                assert value == changed.get(key, default), key


def test_the_default_workflow_is_the_endpoints_default() -> None:
    inputs = {node["class_type"]: node["inputs"] for node in API[DEFAULT].values()}
    default = {name: parameter.default for name, parameter in PARAMETERS.items()}
    size = inputs["LTXA2VVideoSize"]
    assert (size["video_size"], size["two_passes"]) == (default["video_size"], default["use_multiscale"])
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
    assert inputs["LTXA2VPreprocessAudio"]["enabled"] is default["preprocess_audio"]
    assert inputs["LTXA2VExpandPrompt"]["enabled"] is default["enable_prompt_expansion"]
    assert inputs["LTXA2VAudioConditioning"]["strength"] == default["audio_strength"]
    assert inputs["LTXA2VSampler"]["gradient_estimation_gamma"] == (default["gradient_estimation_gamma"] or 0)
    first = titled(API[DEFAULT], "First stage")
    assert default["use_restart_sampling"] is True and API[DEFAULT][first["restart"][0]]["inputs"]["noise"] == 0.2
    saved = inputs["LTXA2VSaveLatentVideo"]
    assert saved["checker"] == "first found" and default["enable_safety_checker"] is True
    assert [saved[key] for key in ("format", "quality", "write_mode")] == [
        default[f"video_{key}"] for key in ("output_type", "quality", "write_mode")
    ]


def titled(prompt: Prompt, title: str) -> dict[str, Any]:
    """The inputs of the node of that title."""
    (found,) = (node["inputs"] for node in prompt.values() if node["_meta"]["title"] == title)
    return found


@each
def test_what_every_workflow_has(name: str) -> None:
    prompt = API[name]
    if not BY_NAME[name].distilled:
        assert titled(prompt, "Negative prompt")["text"] == PARAMETERS["negative_prompt"].default
    assert len(titled(prompt, "Positive prompt")["prompt"]) > 100
    # one seed drives all
    (seed,) = (key for key, node in prompt.items() if node["class_type"] == "PrimitiveInt")
    assert titled(prompt, "Noise")["noise_seed"] == titled(prompt, "Positive prompt")["seed"] == [seed, 0]
    # whatever is reported reaches the file
    said = {key for key, node in prompt.items() if "report" in OUTPUTS.get(node["class_type"], ())}
    (joined,) = demo.nodes(prompt, "LTXA2VReport")
    assert {source for source, _ in joined.values()} == said


@pytest.mark.parametrize("name", [name for name in BY_NAME if BY_NAME[name].is_25])
def test_the_diffusion_decoder_goes_on_with_the_last_noise(name: str) -> None:
    """As in the command: its frames depend on that noise. The decoder that the workflow names takes none."""
    prompt = API[name]
    (second,) = (key for key, node in prompt.items() if node["_meta"]["title"] == "Second stage")
    assert titled(prompt, "Decode and Save")["noise"] == [second, 1]


def test_quality_workflows_renew_no_noise() -> None:
    """The official pipeline of LTX-2.5 does not; LTX-2.3's endpoint does."""
    kinds = {name: {node["class_type"] for node in API[name].values()} for name in ("audio_to_video_25", DEFAULT)}
    assert kinds[DEFAULT] - kinds["audio_to_video_25"] == {"LTXA2VRestart"}
    assert not kinds["audio_to_video_25"] - kinds[DEFAULT]


@pytest.mark.parametrize("name", ["distilled_fast", "distilled_fast_25", REFERENCE, DUB, CAST])
def test_the_distilled_workflow_is_the_distilled_recipe(name: str) -> None:
    prompt = API[name]
    assert titled(prompt, "First stage")["sampler"] == ("euler_ancestral" if BY_NAME[name].is_25 else "euler")
    assert titled(prompt, "Second stage")["sampler"] == "euler"
    assert not UNDISTILLED & {node["class_type"] for node in prompt.values()}
    (schedule,) = demo.nodes(prompt, "LTXA2VScheduler")
    sigmas = schedules.SCHEDULES[schedule["scheduler"]](schedule["steps"])
    assert sigmas.tolist() == pytest.approx(schedules.DISTILLED, abs=1e-7)


@each
def test_models_can_be_offered_for_download(name: str, comfy: Comfy) -> None:
    """Each loader names its file, so that the page can list what is missing with a button."""
    folders = comfy.get("/models")
    variant = BY_NAME[name]
    wanted = {file.name for file in faces.files(variant)}
    for face in FACES[name].values():
        offered = set()
        for node in nodes_of(face):
            for model in node["properties"].get("models", []):
                assert model["name"] in node["widgets_values"] or node["type"] == "LTXA2VCameraLora"
                assert model["directory"] in folders
                assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith("/" + model["name"])
                offered.add(model["name"])
        assert offered == wanted
        # the note says the same, each with its address
        (said,) = (node["widgets_values"][0] for node in face["nodes"] if node.get("title") == "Model files")
        assert all(f"[{file.name}]({file.url})" in said and file.folder in said for file in faces.files(variant))


def named(prompt: Prompt) -> dict[str, dict[str, Any]]:
    """Inputs by the nodes' titles instead of their ids; joined reports as the set of what they join."""
    names = {key: node["_meta"]["title"] for key, node in prompt.items()}
    reports = {key for key, node in prompt.items() if node["class_type"] == "LTXA2VReport"}

    def sources(key: str) -> set[str]:
        """What a report is joined of, those that came joined taken apart."""
        links = [value for value in prompt[key]["inputs"].values() if isinstance(value, list)]
        return set().union(*(sources(at) if at in reports else {f"{names[at]} {slot}"} for at, slot in links))

    def told(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return sources(value[0]) if value[0] in reports else [names[value[0]], value[1]]

    kept = {key: node for key, node in prompt.items() if key not in reports}
    assert len({names[key] for key in kept}) == len(kept)
    return {
        names[key]: {"class": node["class_type"], **{name: told(value) for name, value in node["inputs"].items()}}
        for key, node in kept.items()
    }


@pytest.mark.parametrize(
    ("name", "face"),
    [
        pytest.param(name, face, marks=[pytest.mark.soak] * (face == "all nodes" and name not in DRAWN))
        for name in BY_NAME
        for face in ("opening", "all nodes")
    ],
)
def test_the_frontend_gives_back_the_file_and_queues_the_api_form(name: str, face: str, frontend: Frontend) -> None:
    path = (opening_file if face == "opening" else all_nodes_file)(BY_NAME[name])
    ui, api = export(frontend, FACES[name][face])
    assert frontend.errors == []
    if DRAWN_HERE:
        assert ui == path.read_text(encoding="utf-8"), "run tests/host/draw_workflows.py"
        assert frontend.page.evaluate(CUT) == []
    found, wanted = named(sent(json.loads(api))), named(sent(API[name]))
    if face == "opening":
        # the clip is decoded into the temp folder, and what comes out of the one node is saved and shown
        saved, shown = found.pop("Save Video"), found.pop("Report")
        assert saved == {"class": "SaveVideo", "filename_prefix": "video/ltx-a2v", "format": "auto", "codec": "auto",
                         "video": ["Decode", 0]}  # fmt: skip
        assert shown["class"] == "PreviewAny" and shown["source"] == found["Decode"]["report"]
        assert found["Decode"].pop("folder") == "temp" and found["Decode"].pop("filename_prefix") == "ltx-a2v"
        found["Decode and Save"] = found.pop("Decode")
        assert wanted["Decode and Save"].pop("folder") == "output"
        assert wanted["Decode and Save"].pop("filename_prefix") == "video/ltx-a2v"
    assert found == wanted


@pytest.mark.parametrize("face", ["opening", pytest.param("all nodes", marks=pytest.mark.soak)])
def test_what_a_person_changes_is_there_again_once_saved_and_opened(face: str, frontend: Frontend) -> None:
    frontend.load(FACES[DEFAULT][face])
    frontend.page.evaluate(CHANGE_PROMPT, "a cat sings")
    saved = frontend.serialize()
    frontend.load(FACES[SOME[0]][face])
    frontend.load(saved)
    assert titled(frontend.prompt(), "Positive prompt")["prompt"] == "a cat sings"


@pytest.mark.skipif(not DRAWN_HERE, reason="files are drawn with the frontend of requirements-dev.txt")
@pytest.mark.parametrize(
    "variant", [pytest.param(v, id=v.name, marks=[pytest.mark.soak] * (v.name not in DRAWN)) for v in VARIANTS]
)
def test_the_files_are_what_is_drawn(variant: Variant, frontend: Frontend) -> None:
    said = "run tests/host/draw_workflows.py"
    opened = draw(frontend, faces.opening(variant), opening_file(variant).stem)
    assert opened == FACES[variant.name]["opening"], said
    staged = draw(frontend, faces.all_nodes(variant), all_nodes_file(variant).stem)
    assert staged == FACES[variant.name]["all nodes"], said
    assert api_text(flat_prompt(frontend, variant)) == api_file(variant).read_text(encoding="utf-8"), said
    if variant.name in BLUEPRINTS:
        path = BLUEPRINTS[variant.name]
        assert blueprint(opened, path) == path.read_text(encoding="utf-8"), said
    assert frontend.errors == []


@pytest.mark.parametrize("path", [*sorted(WORKFLOWS.glob("*.json")), *BLUEPRINTS.values()], ids=lambda path: path.stem)
def test_no_two_things_in_a_workflow_have_one_id(path: Path) -> None:
    """As newer frontends save it: of each corner whose id another subgraph has, too, they write a warning and give it
    another one. What comes next has a higher one."""
    face = json.loads(path.read_text(encoding="utf-8"))
    subgraphs = face["definitions"]["subgraphs"]
    nodes = [node["id"] for graph in (face, *subgraphs) for node in graph["nodes"]]
    links = [*(link[0] for link in face["links"]), *(link["id"] for graph in subgraphs for link in graph["links"])]
    corners = [*face["extra"].get("reroutes", ()), *(each for graph in subgraphs for each in graph["reroutes"])]
    found = {"lastNodeId": nodes, "lastLinkId": links, "lastRerouteId": [corner["id"] for corner in corners]}
    for last, ids in found.items():
        assert len(ids) == len(set(ids)), last
        assert all(graph["state"][last] >= max(ids) for graph in subgraphs), last
    # a link that has corners names its last one, which its own subgraph holds
    for graph in subgraphs:
        mine = {corner["id"] for corner in graph["reroutes"]}
        assert {each["parentId"] for each in (*graph["links"], *graph["reroutes"]) if "parentId" in each} <= mine


@each
def test_app_mode_shows_what_a_first_run_needs(name: str) -> None:
    """Newer frontends show these inputs and outputs as a form; each of them exists."""
    face = FACES[name]["opening"]
    shown = face["extra"]["linearData"]
    nodes = {node["id"]: node for node in face["nodes"]}
    for key, widget in shown["inputs"]:
        assert widget in [slot["widget"]["name"] for slot in nodes[key]["inputs"] if "widget" in slot]
    assert [nodes[key]["type"] for key in shown["outputs"]] == ["SaveVideo"]
    chosen = [slot.get("label", slot["name"]) for key, widget in shown["inputs"] for slot in nodes[key]["inputs"]
              if slot.get("widget", {}).get("name") == widget]  # fmt: skip
    variant = BY_NAME[name]
    assert {"prompt", "size", "seed"} <= set(chosen)
    assert ("audio" in chosen, "file" in chosen) == (variant.takes_sound, bool(variant.clip))
    assert chosen.count("image") == len(variant.images) + (name in (REDUB, CAST))
    assert ("camera" in chosen) == bool(variant.camera)
    assert ({"made anew", "start", "end"} <= set(chosen)) == (name == RETAKE)


@each
def test_a_text_of_the_one_node_is_not_much_larger_than_it_needs(name: str) -> None:
    """A text gets what the other widgets leave: twenty lines at most, of which no prompt here has more than six."""
    (node,) = (node for node in FACES[name]["opening"]["nodes"] if len(node["type"]) == 36)
    names = [slot["name"] for slot in node["inputs"] if "widget" in slot]
    texts = len({"prompt", "text", "timeline"} & set(names))
    assert 0 < (node["size"][1] - 42 - 24 * (len(names) - texts)) / texts <= 220


@each
def test_the_links_out_of_the_one_node_do_not_cross(name: str) -> None:
    face = FACES[name]["opening"]
    height = {node["id"]: node["pos"][1] for node in face["nodes"]}
    (one,) = (node for node in face["nodes"] if len(node["type"]) == 36)
    aims = [
        height[end] for _, start, _, end, _, _ in sorted(face["links"], key=lambda link: link[2]) if start == one["id"]
    ]
    assert len(aims) == 2 and aims == sorted(aims)


def test_no_file_is_left_over() -> None:
    titles = {path.stem for variant in VARIANTS for path in (opening_file(variant), all_nodes_file(variant))}
    titles |= {microphone_file(BY_NAME[DEFAULT]).stem}
    assert {path.stem for path in WORKFLOWS.iterdir()} == titles
    assert {path.suffix for path in WORKFLOWS.iterdir()} == {".json", ".jpg"}
    assert {path.stem for path in API_WORKFLOWS.iterdir()} == set(BY_NAME)
    assert set((ROOT / "subgraphs").iterdir()) == set(BLUEPRINTS.values())
    pictures = {f"{name}{end}" for name in BY_NAME for end in ("", "_all_nodes")} | {f"{DEFAULT}_microphone"}
    assert {path.stem for path in PICTURES.iterdir()} == pictures


@each
def test_the_template_browser_has_a_picture(name: str) -> None:
    for path in WORKFLOWS.glob(f"{BY_NAME[name].title}*.json"):
        with Image.open(path.with_suffix(".jpg")) as picture:
            assert picture.format == "JPEG" and min(picture.size) >= 500
        assert path.with_suffix(".jpg").stat().st_size < 100_000
    for picture in PICTURES.glob(f"{name}*.jpg"):
        assert picture.stat().st_size < 250_000


@pytest.mark.parametrize("name", [variant.name for variant in VARIANTS if variant.is_25])
def test_the_badge_of_the_template_browser_covers_no_title(name: str) -> None:
    """Frontends of 2026 lay "Node graph" over the upper left corner of a picture: an eighth of its height."""
    drawn = re.findall(r'<text x="\d+" y="(\d+)".*? font-size="(\d+)"', poster.svg(BY_NAME[name]))
    assert len(drawn) == 2
    for bottom, size in drawn:
        assert int(bottom) - 0.75 * int(size) >= poster.SIDE / 8


@pytest.mark.parametrize("which", ["First image", "End image"])
def test_an_image_steers_both_stages(which: str) -> None:
    prompt = API["first_and_last_image"]
    for sampler, slot in (("First stage", 0), ("Second stage", 1)):
        guide = titled(prompt, f"{which}, {sampler.lower()}")
        assert (prompt[guide["latent"][0]]["class_type"], guide["latent"][1]) == ("LTXA2VVideoSize", slot)
        end = titled(prompt, f"End image, {sampler.lower()}")
        assert prompt[end["guides"][0]]["inputs"] == titled(prompt, f"First image, {sampler.lower()}")
        assert prompt[titled(prompt, sampler)["guides"][0]]["inputs"] == end


def test_the_second_stage_can_be_bypassed(frontend: Frontend) -> None:
    frontend.load(FACES[DEFAULT]["all nodes"])
    frontend.page.evaluate(BYPASS, ["Latent Upscale", "Second stage"])
    prompt = frontend.prompt()
    (decode,) = demo.nodes(prompt, "LTXA2VSaveLatentVideo")
    (first,) = (key for key, node in prompt.items() if node["_meta"]["title"] == "First stage")
    assert decode["latent"] == [first, 0]


@pytest.mark.parametrize("face", ["opening", pytest.param("all nodes", marks=pytest.mark.soak)])
def test_a_song_goes_without_its_picture(
    face: str, frontend: Frontend, comfy: Comfy, models: TinyFiles, sound: str
) -> None:
    """As its note says: bypass the picture."""
    frontend.load(FACES[SONG][face])
    frontend.page.evaluate(BYPASS, ["First image"])
    prompt = frontend.prompt()
    assert not demo.nodes(prompt, "LTXA2VLoadImage") and not demo.nodes(prompt, "LoadImage")
    run = comfy.run(quick(SONG, models, sound, prompt))
    assert run.error is None, run.message


def test_a_stopped_song_goes_on_with_its_seed(frontend: Frontend) -> None:
    """As its note says: the kept windows are those of one seed, and the page would draw another after each Run."""
    seeds = [node["widgets_values"] for face in FACES[SONG].values() for node in nodes_of(face) if
             node["type"] == "PrimitiveInt"]  # fmt: skip
    assert seeds == [[42, "fixed"]] * 2
    frontend.load(FACES[SONG]["all nodes"])
    before = frontend.prompt()
    frontend.page.evaluate(AFTER_RUN)
    assert frontend.prompt() == before


def sides(name: str) -> tuple[int, int]:
    """The width and height of a run's video."""
    return WIDER if name == REFERENCE else SIDES


def published_25(variant: Variant) -> TinyFiles:
    """Names alone: of LTX-2.5's published files."""
    checkpoint = V25.distilled if variant.distilled else V25.checkpoint
    keys = (checkpoint, V25.upscaler, V25.distilled_lora, "dolly-in", V25.encoder)
    return TinyFiles(*(Path(MODELS[key].name) for key in keys))


def quick(name: str, models: TinyFiles, sound: str, prompt: Prompt | None = None) -> Prompt:
    """The workflow on the tiny files, small and short; the default one with its prompt expanded. prompt: another face's
    API form."""
    models = published_25(BY_NAME[name]) if BY_NAME[name].is_25 else models
    prompt = demo.fill(json.loads(json.dumps(prompt or API[name])), models, sound, "a person speaks", None)
    width, height = sides(name)
    size = {"width": width, "height": height}
    given = demo.nodes(prompt, "LTXA2VLoadImage") or demo.nodes(prompt, "LoadVideo")
    automatic = CHANGED[name].get(("LTXA2VVideoSize", "video_size")) == "auto"
    if automatic and given and name != REFERENCE:
        size = {"video_size": "auto"}
    for kind, values in {
        "LTXA2VLoadImage": {"image": SMALL},
        "LoadVideo": {"file": SMALL_CLIP},
        "LTXA2VRetake": SOME_TIME if name == RETAKE else {},
        "LTXA2VVideoSize": size,
        "LTXA2VScheduler": {"steps": 2},
        "LTXA2VFrameCount": {"match_audio_length": False, "num_frames": FRAMES},
        "LTXA2VExpandPrompt": {"enabled": name == DEFAULT},
        "LTXA2VTimeline": {"enabled": False, "timeline": "0:00.1 [cut] a tree"},
    }.items():
        for inputs in demo.nodes(prompt, kind):
            inputs.update(values)
    if BY_NAME[name].distilled and not BY_NAME[name].is_25:
        for inputs in demo.nodes(prompt, "LTXA2VModelLoader"):
            inputs["checkpoint"] = DISTILLED.name
    return prompt


def look(path: Path, rate: int, channels: int, sides: tuple[int, int]) -> None:
    """The video file has the picture and the sound that were asked for."""
    with av.open(str(path)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.average_rate) == (*sides, 24)
        assert (audio.codec_context.sample_rate, audio.codec_context.layout.nb_channels) == (rate, channels)
        decoded = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert len(decoded) == FRAMES and all(picture.std() > 1 for picture in decoded)
    with av.open(str(path)) as file:
        samples = sum(frame.samples for frame in file.decode(audio=0))
    assert abs(Fraction(samples, rate) - Fraction(FRAMES, 24)) < Fraction(2048, rate)  # AAC counts in blocks of 1024


def notes_of(run: Run) -> str:
    (report,) = (value["report"][0] for value in run.outputs.values() if "report" in value)
    return "\n".join(report["notes"])


def check_progress(prompt: Prompt, run: Run) -> None:
    """Each node that ran is told once, behind all nodes that it takes from, although savers are asked early."""
    begun = Begun(prompt)
    told = [node for event in run.events for node in begun.hear(event.type, event.data)]
    assert sorted(told) == sorted(run.executed)
    place = {node: number for number, node in enumerate(told)}
    assert [
        (node, each) for node in told for each in sources(prompt, node) & place.keys() if place[each] > place[node]
    ] == []


def alike(prompt: Prompt, node: str) -> str:
    """What decides about a node's result."""
    return json.dumps([prompt[node]["class_type"], prompt[node]["inputs"]], sort_keys=True)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.soak] * (name in LIKE)) for name in BY_NAME])
@pytest.mark.usefixtures("installed")
def test_it_runs_to_a_video(name: str, comfy: Comfy, models: TinyFiles, sound: str) -> None:
    prompt = quick(name, models, sound)
    run = comfy.run(prompt)
    assert run.error is None, run.message
    # ComfyUI runs one of two nodes that are alike, as the loaders of two images are here.
    assert {alike(prompt, node) for node in run.executed + run.cached} == {alike(prompt, node) for node in API[name]}
    check_progress(prompt, run)
    look(demo.video_of(comfy, run), 48000, 2 if name in ("audio_regeneration", RETAKE, VOICE) else 1, sides(name))
    notes = notes_of(run)
    size = "×".join(map(str, sides(name)))
    wanted = ["LUFS", "9 frames", size, "2 steps of euler", "3 steps of euler", "the safety checker did not run"]
    wanted += ["0:00.1: a tree" if name == SONG else "prompt:"]
    wanted += {
        "camera_move": [CAMERA.name],
        "audio_regeneration": ["at strength 0.5"],
        "song": ["2 windows of up to", "2 sections"],
        "redub": ["picture made anew from 0 s to the end, where the mask is white", "noise mask"],
        "reference": ["looks at 1 reference", UNION.name],
        "dub": [
            *("looks at 1 reference", DUBIT.name, "hears the sound of a reference", "the audio is the loaded one"),
            "Preprocess Clip's Sound: the audio for the model",  # the other may be cached from another graph
        ],
        "cast": ["looks at 1 reference", INGREDIENTS.name, "a single picture"],
        "voice": [ID_LORA.name, "hears the sound of a reference", "5 passes each", "at strength 0"],
        "retake": ["picture made anew from 0.1 s to 0.3 s", "noise mask", "the audio is the loaded one"],
        "distilled_fast_25": ["euler_ancestral, 1 passes each"],
    }.get(name, [])
    wanted += [f"with LTX-{BY_NAME[name].version}"]
    assert [part for part in wanted if part not in notes] == [], notes


def decoded(path: Path) -> list[bytes]:
    """Every frame and every block of sound of a file."""
    found = []
    for kind in ("video", "audio"):
        with av.open(str(path)) as file:
            found += [frame.to_ndarray().tobytes() for frame in file.decode(**{kind: 0})]
    return found


def test_the_sound_of_the_clip_counts_in_a_dub(comfy: Comfy, comfy_base: Path, models: TinyFiles, sound: str) -> None:
    """Of two clips with the same pictures, whose sounds differ, other pictures are made to the same new voice."""
    pictures = [np.full((SIDES[1], SIDES[0], 3), 20 * number, np.uint8) for number in range(FRAMES)]
    made = []
    for name, pitch in (("low", 170), ("high", 17)):
        tone = 0.3 * np.sin(np.arange(48_000 * FRAMES // 24) / pitch)
        clip = write_clip(comfy_base / "input" / f"{name}.mp4", pictures, kind="h264.mp4", sound=(tone, 0.0))
        prompt = quick(DUB, models, sound)
        (loader,) = demo.nodes(prompt, "LoadVideo")
        loader["file"] = clip.name
        run = comfy.run(prompt)
        assert run.error is None, run.message
        made.append(decoded(demo.video_of(comfy, run)))
    low, high = made
    assert low[FRAMES:] == high[FRAMES:], "both have the new voice"
    assert low[:FRAMES] != high[:FRAMES]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.soak] * (name not in SOME)) for name in BY_NAME]
)
@pytest.mark.usefixtures("installed")
def test_the_opening_face_makes_the_same_file(
    name: str, comfy: Comfy, models: TinyFiles, sound: str, frontend: Frontend
) -> None:
    """What the one node decodes and Save Video keeps has the frames and the sound of the API form's file."""
    wanted = comfy.run(quick(name, models, sound))
    frontend.load(FACES[name]["opening"])
    prompt = quick(name, models, sound, frontend.prompt())
    run = comfy.run(prompt)
    assert run.error is None, run.message
    check_progress(prompt, run)
    (saved,) = [item for output in run.outputs.values() for item in output.get("images", ())
                if item.get("type") == "output"]  # fmt: skip
    assert decoded(comfy.path(saved)) == decoded(demo.video_of(comfy, wanted))
    # the report is shown, and in the file beside the graph
    (shown,) = [output["text"][0] for output in run.outputs.values() if "text" in output and "images" not in output]
    with av.open(str(comfy.path(saved))) as file:
        notes = json.loads(file.metadata["comment"])["notes"]
        assert json.loads(file.metadata["prompt"])
    assert set(shown.splitlines()) <= set(notes)
    assert set(notes_of(wanted).splitlines()) == set(notes)


@each
def test_without_the_models_it_is_refused_by_name(name: str, comfy: Comfy, sound: str) -> None:
    refused = comfy.post("/prompt", {"prompt": API[name]})
    assert refused.status_code == 400
    nodes = refused.json()["node_errors"].values()
    said = json.dumps(list(nodes))
    # each node is refused once, whichever of its values are wrong
    assert [(node["class_type"], len(node["errors"])) for node in nodes] == [(node["class_type"], 1) for node in nodes]
    for file in faces.files(BY_NAME[name]):
        there = (DISTILLED, CAMERA, UNION, DUBIT, INGREDIENTS, ID_LORA)  # tiny ones
        assert file.name in said or file in there


@each
def test_the_committed_api_form_is_in_its_stable_order(name: str) -> None:
    assert api_text(API[name]) == api_file(BY_NAME[name]).read_text(encoding="utf-8")
