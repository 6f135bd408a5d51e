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
from a2v.ltx.diffusion import schedules
from a2v.ltx.request import PARAMETERS
from a2v.tests.host import demo
from a2v.tests.host.browser import Frontend, Workflow
from a2v.tests.host.comfy import Comfy, Prompt, Run
from a2v.tests.host.draw_workflows import (
    ASSET,
    CAMERA,
    CUT,
    DEFAULT,
    DISTILLED,
    DRAWN_HERE,
    INPUTS,
    VARIANTS,
    WORKFLOWS,
    api_file,
    api_text,
    draw,
    export,
    sent,
    workflow_files,
)
from a2v.tests.tiny import TinyFiles
from PIL import Image

UI = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in workflow_files()}
API = {path.stem: json.loads(api_file(path).read_text(encoding="utf-8")) for path in workflow_files()}
BYPASSED = 4
TITLE = 30  # height of a node's title bar, which lies above its position
NOTES = {"MarkdownNote", "Note"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "AUDIO_UI"}
# values that are the user's, or files that a fresh server does not have
OWN = {"checkpoint", "folder", "file", "lora", "audio", "image", "text", "prompt", "audioUI"}
SEEDS = {"noise_seed", "seed", "value"}
# all that a workflow is about, beside its nodes
CHANGED: dict[str, dict[tuple[str, str], Any]] = {
    "audio_to_video": {},
    "image_and_audio": {("LTXA2VVideoSize", "video_size"): "auto"},
    "first_and_last_image": {("LTXA2VVideoSize", "video_size"): "auto"},
    "distilled_fast": {("LTXA2VScheduler", "scheduler"): "linear_quadratic", ("LTXA2VScheduler", "steps"): 8},
    "camera_move": {("LTXA2VCameraLora", "camera_lora"): "dolly_in"},
    "audio_regeneration": {("LTXA2VAudioConditioning", "strength"): 0.5},
}
UNDISTILLED = {"LTXA2VDistilledLora", "LTXA2VGuidance", "LTXA2VRestart"}
SIDES = (128, 64)  # of the runs' videos, and of the images that auto takes them from
FRAMES = 9
SMALL = "small.png"

each = pytest.mark.parametrize("name", UI)
OUTPUTS = {  # sockets by node type, as the frontend knows them
    node["type"]: {output["name"] for output in node["outputs"]} for ui in UI.values() for node in ui["nodes"]
}
OUTPUTS["LTXA2VReport"] = set()  # it joins the others


@pytest.fixture(scope="module")
def info(comfy: Comfy) -> dict[str, Any]:
    return comfy.object_info()


@pytest.fixture(scope="module")
def sound(comfy: Comfy, comfy_base: Path, models: TinyFiles) -> Iterator[str]:
    """The workflows' own audio and image are there, as on a server whose user has uploaded them, and a small image.

    So are the tiny camera LoRA and the tiny checkpoint under the published names that these two are known by.
    """
    Image.effect_noise(SIDES, 60).convert("RGB").save(comfy_base / "input" / SMALL)
    placed = {CAMERA: models.camera_lora, DISTILLED: models.checkpoint}
    links = []
    for (name, _, folder, _), tiny in placed.items():
        links.append(comfy_base / "models" / folder / name)
        links[-1].symlink_to(tiny)
    uploaded, _ = (comfy.upload(file) for file in INPUTS)
    yield uploaded
    for link in links:
        link.unlink()


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
            if spec and widget not in OWN | SEEDS:
                options = spec[0] if isinstance(spec[0], list) else settings(spec).get("options", [value])
                default = settings(spec).get("default", options[0])
                assert value in (*options, default)
                assert value == CHANGED[name].get((node["type"], widget), default), (node["type"], widget)


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
    first = titled(API[DEFAULT], "First pass")
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
    if "distilled" not in name:
        assert titled(prompt, "Negative prompt")["text"] == PARAMETERS["negative_prompt"].default
    assert len(titled(prompt, "Positive prompt")["prompt"]) > 100
    # one seed drives all
    (seed,) = (key for key, node in prompt.items() if node["class_type"] == "PrimitiveInt")
    assert titled(prompt, "Noise")["noise_seed"] == titled(prompt, "Positive prompt")["seed"] == [seed, 0]
    # whatever is reported reaches the file
    said = {key for key, node in prompt.items() if "report" in OUTPUTS.get(node["class_type"], ())}
    (joined,) = demo.nodes(prompt, "LTXA2VReport")
    assert {source for source, _ in joined.values()} == said


def test_the_distilled_workflow_is_the_distilled_recipe() -> None:
    prompt = API["distilled_fast"]
    assert not UNDISTILLED & {node["class_type"] for node in prompt.values()}
    (schedule,) = demo.nodes(prompt, "LTXA2VScheduler")
    sigmas = schedules.SCHEDULES[schedule["scheduler"]](schedule["steps"])
    assert sigmas.tolist() == pytest.approx(schedules.DISTILLED, abs=1e-7)


@each
def test_models_can_be_offered_for_download(name: str, comfy: Comfy) -> None:
    folders = comfy.get("/models")
    offered = []
    for node in UI[name]["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"] or node["type"] == "LTXA2VCameraLora"
            assert model["directory"] in folders
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith("/" + model["name"])
            offered.append(node["type"])
    wanted = ["LTXA2VModelLoader", "LTXA2VUpscalerLoader", "LTXA2VCameraLora", "LTXA2VDistilledLora"]
    present = {node["type"] for node in UI[name]["nodes"]}
    assert offered == [kind for kind in wanted if kind in present]


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


def meant(workflow: Workflow) -> Workflow:
    """What every frontend writes of one graph: newer ones say some things twice, and leave defaults out."""
    found = json.loads(json.dumps(workflow))
    for node in found["nodes"]:
        named = node.pop("widgets_values_named", {})
        values = node.pop("widgets_values", [])
        while values and values[-1] is None:  # of buttons
            values.pop()
        assert list(named.values())[: len(values)] in ([], values), node["type"]
        node["widgets_values"] = values
        for socket in (*node.get("inputs", ()), *node.get("outputs", ())):
            socket.pop("localized_name", None)
    for group in found["groups"]:
        group.pop("font_size", None)
    for corner in found["extra"]["reroutes"]:
        corner["linkIds"].sort()
    return found


@each
def test_the_frontend_gives_back_both_files(name: str, frontend: Frontend) -> None:
    path = WORKFLOWS / f"{name}.json"
    ui, api = export(frontend, UI[name])
    assert frontend.errors == []
    assert meant(json.loads(ui)) == meant(UI[name])
    assert sent(json.loads(api)) == sent(API[name])
    if DRAWN_HERE:
        assert ui == path.read_text(encoding="utf-8"), "run tests/host/draw_workflows.py"
        assert api == api_file(path).read_text(encoding="utf-8"), "run tests/host/draw_workflows.py"
    assert frontend.page.evaluate(CUT) == []


@pytest.mark.skipif(not DRAWN_HERE, reason="files are drawn with the frontend of requirements-dev.txt")
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_files_are_what_is_drawn(variant: Any, frontend: Frontend) -> None:
    assert draw(frontend, variant) == UI[variant.name], "run tests/host/draw_workflows.py"
    assert frontend.errors == []


def test_no_file_is_left_over() -> None:
    names = {variant.name for variant in VARIANTS}
    assert {path.stem for path in WORKFLOWS.glob("*.*")} == {path.stem for path in WORKFLOWS.glob("api/*")} == names


@each
def test_the_template_browser_has_a_picture(name: str) -> None:
    path = WORKFLOWS / f"{name}.jpg"
    assert path.stat().st_size < 200_000 and ASSET.stat().st_size < 400_000
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 500


@pytest.mark.parametrize("which", ["First image", "End image"])
def test_an_image_steers_both_passes(which: str) -> None:
    prompt = API["first_and_last_image"]
    for sampler, slot in (("First pass", 0), ("Second pass", 1)):
        guide = titled(prompt, f"{which}, {sampler.lower()}")
        assert (prompt[guide["latent"][0]]["class_type"], guide["latent"][1]) == ("LTXA2VVideoSize", slot)
        end = titled(prompt, f"End image, {sampler.lower()}")
        assert prompt[end["guides"][0]]["inputs"] == titled(prompt, f"First image, {sampler.lower()}")
        assert prompt[titled(prompt, sampler)["guides"][0]]["inputs"] == end


def test_the_second_pass_can_be_bypassed(frontend: Frontend) -> None:
    frontend.load(UI[DEFAULT])
    ids = {node.get("title", node["type"]): node["id"] for node in UI[DEFAULT]["nodes"]}
    frontend.set_mode([ids["LTXA2VLatentUpscale"], ids["Second pass"]], BYPASSED)
    prompt = frontend.prompt()
    (decode,) = demo.nodes(prompt, "LTXA2VSaveLatentVideo")
    assert decode["latent"] == [str(ids["First pass"]), 0]


def quick(name: str, models: TinyFiles, sound: str) -> Prompt:
    """The workflow on the tiny files, small and short; the default one with its prompt expanded."""
    prompt = demo.fill(json.loads(json.dumps(API[name])), models, sound, "a person speaks", None)
    width, height = SIDES
    size = {"width": width, "height": height}
    if ("LTXA2VVideoSize", "video_size") in CHANGED[name]:
        size = {"video_size": "auto"}
    for kind, values in {
        "LoadImage": {"image": SMALL},
        "LTXA2VVideoSize": size,
        "LTXA2VScheduler": {"steps": 2},
        "LTXA2VFrameCount": {"match_audio_length": False, "num_frames": FRAMES},
        "LTXA2VExpandPrompt": {"enabled": name == DEFAULT},
    }.items():
        for inputs in demo.nodes(prompt, kind):
            inputs.update(values)
    if name == "distilled_fast":
        for inputs in demo.nodes(prompt, "LTXA2VModelLoader"):
            inputs["checkpoint"] = DISTILLED[0]
    return prompt


def look(path: Path, rate: int, channels: int) -> None:
    """The video file has the picture and the sound that were asked for."""
    with av.open(str(path)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.average_rate) == (*SIDES, 24)
        assert (audio.codec_context.sample_rate, audio.codec_context.layout.nb_channels) == (rate, channels)
        decoded = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert len(decoded) == FRAMES and all(picture.std() > 1 for picture in decoded)
    with av.open(str(path)) as file:
        samples = sum(frame.samples for frame in file.decode(audio=0))
    assert abs(Fraction(samples, rate) - Fraction(FRAMES, 24)) < Fraction(2048, rate)  # AAC counts in blocks of 1024


def notes_of(run: Run) -> str:
    (report,) = (value["report"][0] for value in run.outputs.values() if "report" in value)
    return "\n".join(report["notes"])


@each
def test_it_runs_to_a_video(name: str, comfy: Comfy, models: TinyFiles, sound: str) -> None:
    run = comfy.run(quick(name, models, sound))
    assert run.error is None, run.message
    assert sorted(run.executed + run.cached, key=int) == list(API[name])
    look(demo.video_of(comfy, run), 48000, 2 if name == "audio_regeneration" else 1)
    notes = notes_of(run)
    wanted = ["prompt:", "LUFS", "9 frames", "128×64", "2 steps of euler", "3 steps of euler"]
    wanted += ["the safety checker did not run"]
    wanted += {"camera_move": [CAMERA[0]], "audio_regeneration": ["at strength 0.5"]}.get(name, [])
    assert [part for part in wanted if part not in notes] == [], notes


@each
def test_without_the_models_it_is_refused_by_name(name: str, comfy: Comfy, sound: str) -> None:
    refused = comfy.post("/prompt", {"prompt": API[name]})
    assert refused.status_code == 400
    said = json.dumps(refused.json()["node_errors"])
    for node in UI[name]["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] in said or model["name"] in (DISTILLED[0], CAMERA[0])  # these two are there, tiny


@each
def test_the_committed_api_form_is_in_its_stable_order(name: str) -> None:
    assert api_text(API[name]) == api_file(WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")
