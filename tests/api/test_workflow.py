"""Requests as graphs: against the committed workflows themselves, and links that all lead somewhere."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest
from a2v.api.graph import compose as workflow
from a2v.api.graph import fields
from a2v.api.graph.compose import compose
from a2v.api.graph.graph import Graph, Prompt, read
from a2v.api.graph.model_files import ModelMissing, ModelNames, find_distilled, find_lora, find_models
from a2v.ltx.request import parse

MODELS = ModelNames(
    "ltx-2.3-22b-dev.safetensors",
    "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
    "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
    "gemma_3_12B_it_fp4_mixed.safetensors",
)
ADDED = {"PreviewAny"}
LOADER = {"LoadImage": "LTXA2VLoadImage"}
"""What the API's graphs load pictures with: strangers' may be of any size."""


def named(prompt: Prompt) -> dict[tuple[str, str], dict[str, Any]]:
    """Inputs by class and title, links by theirs: the graph without its numbers."""
    names = {
        key: (LOADER.get(kind := node["class_type"], kind), node["_meta"]["title"]) for key, node in prompt.items()
    }
    assert len(set(names.values())) == len(names)
    return {
        names[key]: {
            name: (*names[value[0]], value[1]) if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        for key, node in prompt.items()
        if node["class_type"] not in ADDED
    }


@pytest.mark.parametrize(
    ("name", "asked", "images"),
    [
        ("audio_to_video", {}, {}),
        ("image_and_audio", {"video_size": "auto"}, {"image": "example.png"}),
        ("first_and_last_image", {"video_size": "auto"}, {"image": "example.png", "end_image": "example.png"}),
        ("camera_move", {"camera_lora": "dolly_in"}, {}),
        ("audio_regeneration", {"audio_strength": 0.5}, {}),
    ],
)
def test_the_endpoint_s_defaults_are_the_committed_workflow(
    name: str, asked: dict[str, Any], images: dict[str, str]
) -> None:
    committed = read(name)
    prompt = Graph(committed).inputs(workflow.EXPAND)["prompt"]
    request = parse({"prompt": prompt, "seed": 42, **asked})
    made = compose(request, MODELS, audio="speech.opus", **images, prefix="video/ltx-a2v")
    assert named(made) == named(committed)


FEATURES: dict[str, tuple[Any, ...]] = {
    "images": ({}, {"image": "a.png"}, {"end_image": "b.png"}, {"image": "a.png", "end_image": "b.png"}),
    "camera_lora": ("none", "jib_up"),
    "audio_strength": (1, 0.5),
    "use_multiscale": (True, False),
    "use_restart_sampling": (True, False),
    "seed": (1, 2**64 - 5, -5),
}


@pytest.mark.parametrize(
    ("asked", "graph", "said"),
    [
        ({"num_frames": 20, "match_audio_length": False}, {"num_frames": 25}, ["num_frames rounded up from 20 to 25"]),
        ({"num_frames": 20}, {"num_frames": 25}, []),  # it does not act
        (
            {"video_size": {"width": 1100, "height": 65}},
            {"width": 1120, "height": 96},
            ["size changed from 1100×65 to 1120×96"],
        ),
        ({"video_size": {"width": 4096, "height": 64}}, {"width": 4096, "height": 64}, []),
    ],
    ids=str,
)
def test_numbers_are_rounded_up_to_the_steps_of_their_widgets(
    asked: dict[str, Any], graph: dict[str, int], said: list[str]
) -> None:
    """As their nodes do. The editor would round them to the nearest step, down as well, when it opens the graph."""
    made = Graph(compose(parse({"prompt": "x", **asked}), MODELS, audio="a.wav", prefix="p"))
    given = {**made.inputs("LTXA2VFrameCount"), **made.inputs("LTXA2VVideoSize")}
    assert {name: given[name] for name in graph} == graph
    remarks = made.all("PrimitiveString")
    assert [made.prompt[key]["inputs"]["value"] for key in remarks] == said
    assert all([key, 0] in made.inputs("LTXA2VReport").values() for key in remarks)


def test_every_combination_hangs_together() -> None:
    for values in itertools.product(*FEATURES.values()):
        asked = dict(zip(FEATURES, values, strict=True))
        images = asked.pop("images")
        prompt = compose(parse({"prompt": "x", **asked}), MODELS, audio="a.wav", **images, prefix="p")
        graph = Graph(prompt)
        for key, node in prompt.items():
            for name, value in node["inputs"].items():
                assert not isinstance(value, list) or value[0] in prompt, (asked, key, name)
        used = {value[0] for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)}
        ends = {graph.find(workflow.SAVE), graph.find("PreviewAny")}
        assert prompt.keys() - used == ends, asked
        assert len(graph.all("LTXA2VLoadImage")) == len(images)
        passes = 2 if asked["use_multiscale"] else 1
        assert len(graph.all(workflow.SAMPLER)) == passes
        assert len(graph.all(workflow.IMAGE)) == passes * ("image" in images)
        assert len(graph.all(workflow.END_IMAGE)) == passes * ("end_image" in images)
        seed = asked["seed"] % 2**64
        seeds = [graph.inputs("RandomNoise")["noise_seed"], graph.inputs(workflow.EXPAND)["seed"]]
        if graph.has("PrimitiveInt"):
            assert seeds == [[graph.find("PrimitiveInt"), 0]] * 2 and graph.inputs("PrimitiveInt")["value"] == seed
        else:
            assert seeds == [seed, seed] and seed > 2**63 - 1
        texts = reports(graph, graph.inputs(workflow.SAVE)["report"])
        assert len(texts) == len(set(texts)) and len(texts) >= 6 + passes - 1
        assert ("LTXA2VCameraLora" in texts, "LTXA2VDecodeAudio" in texts) == (
            asked["camera_lora"] != "none",
            asked["audio_strength"] < 1,
        )


def reports(graph: Graph, link: list[Any]) -> list[str]:
    """Whose reports reach the file's."""
    nodes = [graph.prompt[value[0]] for value in graph.prompt[link[0]]["inputs"].values()]
    return [node["class_type"] + node["_meta"]["title"] * (node["class_type"] == workflow.SAMPLER) for node in nodes]


# Parameter → the class, title and input in which its value must be found.
PLACES: dict[str, tuple[Any, str, str | None, str]] = {
    "negative_prompt": ("blue", workflow.ENCODE, workflow.NEGATIVE, "text"),
    "match_audio_length": (False, "LTXA2VFrameCount", None, "match_audio_length"),
    "num_frames": (33, "LTXA2VFrameCount", None, "num_frames"),
    "fps": (23.976, "LTXA2VFrameCount", None, "frame_rate"),
    "video_size": ("square", "LTXA2VVideoSize", None, "video_size"),
    "use_multiscale": (False, "LTXA2VVideoSize", None, "two_passes"),
    "num_inference_steps": (9, "LTXA2VScheduler", None, "steps"),
    "acceleration": ("full", workflow.ACCELERATION, None, "level"),
    "scheduler": ("ltx2", "LTXA2VScheduler", None, "scheduler"),
    "video_cfg_scale": (2.5, "LTXA2VGuidance", None, "cfg"),
    "video_stg_scale": (0.5, "LTXA2VGuidance", None, "stg"),
    "video_rescaling_scale": (0.25, "LTXA2VGuidance", None, "rescale"),
    "video_modality_scale": (1.5, "LTXA2VGuidance", None, "modality"),
    "audio_cfg_scale": (2.5, "LTXA2VAudioGuidance", None, "cfg"),
    "audio_stg_scale": (0.5, "LTXA2VAudioGuidance", None, "stg"),
    "audio_rescaling_scale": (0.25, "LTXA2VAudioGuidance", None, "rescale"),
    "audio_modality_scale": (1.5, "LTXA2VAudioGuidance", None, "modality"),
    "audio_strength": (0.75, "LTXA2VAudioConditioning", None, "strength"),
    "gradient_estimation_gamma": (2.0, workflow.SAMPLER, workflow.FIRST_STAGE, "gradient_estimation_gamma"),
    "camera_lora": ("jib_down", "LTXA2VCameraLora", None, "camera_lora"),
    "camera_lora_scale": (0.5, "LTXA2VCameraLora", None, "strength"),
    "distill_lora_first_pass_scale": (0.1, workflow.LORA, None, "first_pass_strength"),
    "distill_lora_second_pass_scale": (0.6, workflow.LORA, None, "second_pass_strength"),
    "image_strength": (0.5, workflow.IMAGE, "First image, second stage", "strength"),
    "end_image_strength": (0.5, workflow.END_IMAGE, "End image, first stage", "strength"),
    "enable_prompt_expansion": (False, workflow.EXPAND, None, "enabled"),
    "preprocess_audio": (False, "LTXA2VPreprocessAudio", None, "enabled"),
    "video_output_type": ("VP9 (.webm)", workflow.SAVE, None, "format"),
    "video_quality": ("low", workflow.SAVE, None, "quality"),
    "video_write_mode": ("small", workflow.SAVE, None, "write_mode"),
}


@pytest.mark.parametrize("name", PLACES)
def test_each_parameter_reaches_its_widget(name: str) -> None:
    value, kind, title, place = PLACES[name]
    base = {"prompt": "x", "audio_strength": 0.5, "camera_lora": "dolly_in"}
    request = parse({**base, name: value})
    graph = Graph(compose(request, MODELS, audio="a.wav", image="a.png", end_image="b.png", prefix="p"))
    assert graph.inputs(kind, title)[place] == value
    usual = Graph(compose(parse(base), MODELS, audio="a.wav", image="a.png", end_image="b.png", prefix="p"))
    if name not in ("audio_strength", "camera_lora"):
        assert usual.inputs(kind, title)[place] != value


def test_a_film_is_cut_into_windows() -> None:
    graph = Graph(compose(parse({"prompt": "x", "windows": {"frames": 33}}), MODELS, audio="a.wav", prefix="p"))
    frames, windows = graph.find(workflow.FRAME_COUNT), graph.find(workflow.WINDOW)
    assert graph.prompt[frames]["inputs"]["whole_track"] is True and graph.has(workflow.EXPAND)
    assert graph.prompt[windows]["inputs"] == {
        "window_frames": 33,
        "overlap": 2,
        "pauses": True,
        "anchor": 1.0,
        "drift": 0.3,
        "window_seeds": "",
        "audio": [graph.find("LTXA2VPreprocessAudio"), 0],
        "frames": [frames, 0],
        "fps": [frames, 1],
    }
    assert graph.inputs("LTXA2VAudioConditioning")["windows"] == [windows, 0]
    clip = Graph(compose(parse({"prompt": "x", "windows": False}), MODELS, audio="a.wav", prefix="p"))
    assert not clip.has(workflow.WINDOW) and clip.inputs(workflow.FRAME_COUNT)["whole_track"] is False


@pytest.mark.parametrize("two_stages", [True, False])
def test_nag_leads_every_stage_away_from_the_negative_prompt(two_stages: bool) -> None:
    asked = {"prompt": "x", "use_multiscale": two_stages}
    plain, led = (
        Graph(compose(parse({**asked, **more}), MODELS, audio="a.wav", prefix="p"))
        for more in ({}, {"nag": {"scale": 5}})
    )
    assert not plain.has(workflow.NAG)
    samplers = led.all(workflow.SAMPLER)
    assert len(samplers) == len(led.all(workflow.NAG)) == (2 if two_stages else 1)
    for key in samplers:
        inputs, before = led.prompt[key]["inputs"], plain.prompt[key]["inputs"]
        node = led.prompt[inputs["model"][0]]
        assert node["class_type"] == workflow.NAG
        assert node["inputs"] == {"model": before["model"], "scale": 5, "alpha": 0.25, "tau": 2.5}
        assert inputs["negative"] == [led.find(workflow.ENCODE, workflow.NEGATIVE), 0]


@pytest.mark.parametrize("seed", [5, 2**64 - 5])
def test_a_timeline_takes_the_place_of_the_prompt(seed: int) -> None:
    asked = {"prompt": "x", "timeline": "0:01 [cut] y", "seed": seed, "enable_prompt_expansion": False}
    prompt = compose(parse(asked), MODELS, audio="a.wav", image="a.png", prefix="p")
    graph = Graph(prompt)
    key = graph.find(workflow.TIMELINE)
    made = prompt[key]["inputs"]
    assert (made["prompt"], made["timeline"], made["enabled"]) == ("x", "0:01 [cut] y", False)
    assert made["seed"] == graph.inputs("RandomNoise")["noise_seed"]
    assert made["image"] == [graph.find("LTXA2VLoadImage"), 0]
    assert graph.inputs(workflow.WINDOW)["timeline"] == [key, 0]
    assert [prompt[each]["inputs"]["positive"] for each in graph.all(workflow.SAMPLER)] == [[key, 1]] * 2
    assert graph.inputs("PreviewAny")["source"] == [key, 2]
    assert not graph.has(workflow.EXPAND) and len(graph.all(workflow.ENCODE)) == 1
    assert {workflow.TIMELINE, workflow.WINDOW} < set(reports(graph, graph.inputs(workflow.SAVE)["report"]))
    links = [value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert all(link[0] in prompt for link in links)


def test_switches_of_whole_nodes() -> None:
    request = parse({"prompt": "x", "use_restart_sampling": False, "enable_safety_checker": False})
    graph = Graph(compose(request, MODELS, audio="a.wav", prefix="p"))
    assert not graph.has("LTXA2VRestart") and "restart" not in graph.inputs(workflow.SAMPLER, workflow.FIRST_STAGE)
    assert graph.inputs(workflow.SAVE)["checker"] == "off"
    custom = parse({"prompt": "x", "video_size": {"width": 640}})
    size = Graph(compose(custom, MODELS, audio="a.wav", prefix="p")).inputs("LTXA2VVideoSize")
    assert (size["video_size"], size["width"], size["height"]) == ("custom", 640, 512)


def test_an_image_at_strength_0_is_not_shown_to_the_prompt() -> None:
    request = parse({"prompt": "x", "image_strength": 0, "video_size": "auto"})
    graph = Graph(compose(request, MODELS, audio="a.wav", image="a.png", prefix="p"))
    assert "image" not in graph.inputs(workflow.EXPAND)
    assert graph.inputs("LTXA2VVideoSize")["first_image"] == [graph.find("LTXA2VLoadImage"), 0]


def test_models_are_found_by_their_official_names_in_any_folder() -> None:
    there = {
        "checkpoints": ["other.safetensors", "LTX\\LTX-2.3-22b-dev.safetensors"],
        "latent_upscale_models": ["ltx-2.3-spatial-upscaler-x2-1.0.safetensors"],
        "loras": ["a/ltx-2.3-22b-distilled-lora-384.safetensors", "ltx-2.3-22b-distilled-lora-384-1.1.safetensors"],
        "text_encoders": ["google/gemma-3-12b-it-qat-q4_0-unquantized"],
    }
    found = find_models(there.__getitem__, there.__getitem__)
    assert found == ModelNames(
        "LTX\\LTX-2.3-22b-dev.safetensors",
        "ltx-2.3-spatial-upscaler-x2-1.0.safetensors",
        "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
        "google/gemma-3-12b-it-qat-q4_0-unquantized",
        tuple(there["loras"]),
    )
    for kind, name in (
        ("checkpoints", "ltx-2.3-22b-dev.safetensors"),
        ("text_encoders", "gemma-3-12b-it-qat-q4_0-unquantized"),
    ):
        without = {**there, kind: []}
        with pytest.raises(ModelMissing, match=rf"{name} is not in ComfyUI's models/{kind}: get it from https://"):
            find_models(without.__getitem__, without.__getitem__)


def test_the_published_files_for_small_cards_are_found() -> None:
    """Those of `python -m ltx download` and `download small`: ComfyUI's file of Gemma, fp8, a small LoRA."""
    there = {
        "checkpoints": ["ltx-2.3-22b-dev-fp8.safetensors"],
        "latent_upscale_models": ["ltx-2.3-spatial-upscaler-x2-1.1.safetensors"],
        "loras": ["ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16.safetensors"],
        "text_encoders": ["gemma_3_12B_it_fp4_mixed.safetensors"],
    }

    def found(folders: tuple[str, ...] = (), **changes: list[str]) -> tuple[str, str | None, str]:
        models = find_models({**there, **changes}.__getitem__, lambda kind: folders)
        return models.checkpoint, models.lora, models.gemma

    assert found() == (there["checkpoints"][0], there["loras"][0], there["text_encoders"][0])
    whole = {"checkpoints": ["ltx-2.3-22b-dev.safetensors", *there["checkpoints"]]}
    whole["loras"] = ["ltx-2.3-22b-distilled-lora-384-1.1.safetensors", *there["loras"]]
    folder = "gemma-3-12b-it-qat-q4_0-unquantized"
    assert found((folder,), **whole) == (whole["checkpoints"][0], whole["loras"][0], folder), "the exact ones first"


def test_the_distilled_checkpoint_or_what_does_the_same() -> None:
    there = {
        "checkpoints": ["x/ltx-2.3-22b-distilled-1.1.safetensors", "ltx-2.3-22b-dev.safetensors"],
        "latent_upscale_models": ["ltx-2.3-spatial-upscaler-x2-1.1.safetensors"],
        "loras": ["ltx-2.3-22b-distilled-lora-384-1.1.safetensors"],
        "text_encoders": ["gemma-3-12b-it-qat-q4_0-unquantized"],
    }

    def found(**changes: list[str]) -> tuple[str, str | None]:
        listed = {**there, **changes}
        models = find_distilled(listed.__getitem__, listed.__getitem__)
        return models.checkpoint, models.lora

    assert found() == ("x/ltx-2.3-22b-distilled-1.1.safetensors", None)
    assert found(checkpoints=["ltx-2.3-22b-dev.safetensors"]) == ("ltx-2.3-22b-dev.safetensors", *there["loras"])
    for name in ("ltx-2.3-22b-distilled-fp8.safetensors", "ltx-2.3-22b-distilled.safetensors"):
        # what ComfyUI's templates and the first release have: it serves beside the LoRA, and without one
        assert found(checkpoints=[name, "ltx-2.3-22b-dev.safetensors"]) == found(checkpoints=[name], loras=[])
        assert found(checkpoints=[name]) == (name, None)
    for changes in ({"checkpoints": []}, {"checkpoints": ["ltx-2.3-22b-dev.safetensors"], "loras": []}):
        with pytest.raises(ModelMissing, match=r"^ltx-2.3-22b-distilled-1.1.safetensors is not in"):
            found(**changes)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("styles/ink.safetensors", "styles/ink.safetensors"),
        ("ink.safetensors", "styles/ink.safetensors"),
        ("INK", "styles/ink.safetensors"),
        ("someone/Ink", "styles/ink.safetensors"),
        ("https://host/a/ink.safetensors?token=x#y", "styles/ink.safetensors"),
        ("https://host/two%20words.safetensors", "w\\two words.safetensors"),
        ("w\\two words.safetensors", "w\\two words.safetensors"),
        ("../../ink.safetensors", "styles/ink.safetensors"),
        ("https://host/other.safetensors", None),
        ("..", None),
        ("https://host/", None),
    ],
)
def test_a_lora_is_one_that_is_installed(path: str, name: str | None) -> None:
    names = ["styles/ink.safetensors", "w\\two words.safetensors"]
    if name:
        assert find_lora(path, names) == name
    else:
        with pytest.raises(ModelMissing, match="is not in ComfyUI's models/loras"):
            find_lora(path, names)


def test_loras_act_before_everything_else_on_the_model() -> None:
    request = parse({"prompt": "x", "camera_lora": "dolly_in"})
    loras = [("a.safetensors", 0.5), ("b.safetensors", 2.0)]
    graph = Graph(compose(request, MODELS, audio="a.wav", prefix="p", loras=loras))
    chain, key = [], graph.inputs(workflow.LORA)["model"][0]
    while key != graph.find(workflow.MODEL):
        node = graph.prompt[key]
        chain.append((node["class_type"], node["inputs"].get("lora"), node["inputs"].get("strength")))
        key = node["inputs"]["model"][0]
    assert chain == [
        ("LTXA2VCameraLora", None, 1),
        ("LTXA2VLora", "b.safetensors", 2.0),
        ("LTXA2VLora", "a.safetensors", 0.5),
    ]
    reports = [link[0] for link in graph.inputs(workflow.REPORT).values()]
    assert {*graph.all(workflow.OTHER_LORA)} <= {*reports}
    assert fields.field_of(graph.prompt, graph.all(workflow.OTHER_LORA)[0]) == "loras"
    sampler = graph.find(workflow.SAMPLER, workflow.FIRST_STAGE)
    told = {"model: a.safetensors is an IC-LoRA": "loras", "a.safetensors: is damaged": None}
    assert {said: fields.field_told(graph.prompt, sampler, said) for said in told} == told


def test_a_distilled_checkpoint_needs_no_distilled_lora() -> None:
    request = parse({"prompt": "x", "acceleration": "full"})
    models = replace(MODELS, checkpoint="ltx-2.3-22b-distilled-1.1.safetensors", lora=None)
    graph = Graph(compose(request, models, audio="a.wav", prefix="p", loras=[("a.safetensors", 1.0)]))
    assert not graph.has(workflow.LORA) and graph.inputs(workflow.MODEL)["checkpoint"] == models.checkpoint
    lora = graph.find(workflow.OTHER_LORA)
    steered = graph.inputs(workflow.ACCELERATION)
    assert steered["first_model"] == steered["second_model"] == [lora, 0] and steered["level"] == "full"
    for node in graph.prompt.values():
        assert all(not isinstance(value, list) or value[0] in graph.prompt for value in node["inputs"].values())


def test_a_node_s_mistake_is_a_field_s() -> None:
    request = parse({"prompt": "x", "camera_lora": "dolly_in"})
    prompt = compose(request, MODELS, audio="a.wav", image="a.png", end_image="b.png", prefix="p")
    graph = Graph(prompt)
    expected = {
        graph.find("LTXA2VLoadAudio"): "audio_url",
        graph.find("LTXA2VLoadImage", "First image"): "image_url",
        graph.find("LTXA2VLoadImage", "End image"): "end_image_url",
        graph.find("LTXA2VCameraLora"): "camera_lora",
        graph.find(workflow.SAVE): None,
        "gone": None,
    }
    assert {key: fields.field_of(prompt, key) for key in expected} == expected


def test_a_sentence_names_the_field_and_not_the_kept_file() -> None:
    names = {"audio": "api/" + "0a" * 16 + ".wav", "image": "api/" + "1b" * 16 + ".png"}
    prompt = compose(parse({"prompt": "x"}), MODELS, **names, prefix="p")
    say = f"{names['audio']}: no sound; unlike {PurePosixPath(names['image']).name} or other.wav"
    assert fields.in_request_words(prompt, say) == "audio_url: no sound; unlike image_url or other.wav"


def test_composing_changes_no_committed_workflow() -> None:
    before = json.dumps(read("audio_to_video"))
    compose(parse({"prompt": "x", "audio_strength": 0.5, "use_multiscale": False}), MODELS, audio="a", prefix="p")
    assert json.dumps(read("audio_to_video")) == before
