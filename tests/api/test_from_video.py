"""The applications that take a video: their inputs against the hosted ones', and what these stand for."""

from __future__ import annotations

from typing import Any

import pytest
from a2v.api.applications.from_video import FAMILY, FROM_VIDEO
from a2v.api.applications.inputs import Invalid
from a2v.ltx.request import PARAMETERS, parse

LEAST = {"prompt": "it goes on", "video_url": "https://host/a.mp4"}
BY_NAME = {each.id.removeprefix(f"{FAMILY}/"): each for each in FROM_VIDEO}
EXTEND, VIDEO, REFERENCE = (BY_NAME[name] for name in ("extend-video", "video-to-video", "reference-video-to-video"))

GUIDANCE = {
    *("num_inference_steps", "video_cfg_scale", "video_stg_scale", "video_rescaling_scale", "video_modality_scale"),
    *("audio_cfg_scale", "audio_stg_scale", "audio_rescaling_scale", "audio_modality_scale"),
    *("gradient_estimation_gamma", "use_restart_sampling", "distill_lora_first_pass_scale"),
}
SHARED = {
    *("prompt", "negative_prompt", "video_url", "num_frames", "video_size", "use_multiscale", "fps", "acceleration"),
    *("camera_lora", "camera_lora_scale", "seed", "enable_prompt_expansion", "enable_safety_checker"),
    *("video_output_type", "video_quality", "video_write_mode", "sync_mode", "video_strength", "audio_strength"),
    *("generate_audio", "match_input_fps"),
}
OF_THE_DISTILLED = {"scheduler", "distill_lora_second_pass_scale"}  # the hosted ones have them; they do nothing there
OWN = {
    "extend-video": {"extend_direction", "num_context_frames", "end_image_url", "end_image_strength"},
    "video-to-video": {"match_video_length"},
    "reference-video-to-video": {
        *("match_video_length", "preprocessor", "ic_lora_type", "audio_url", "image_url", "end_image_url"),
    },
}
HOSTED = {name: SHARED | GUIDANCE | OF_THE_DISTILLED | own for name, own in OWN.items()}
"""The inputs of the hosted applications, by the schemas that the service publishes."""
BEYOND_IT = {"image_size", "nag"}  # ours


def test_which_there_are() -> None:
    """The hosted service has no distilled extend-video."""
    names = ["extend-video", "video-to-video", "reference-video-to-video"]
    distilled = [f"distilled/{name}" for name in names[1:]]
    assert set(BY_NAME) == {each + end for each in (*names, *distilled) for end in ("", "/lora")}


@pytest.mark.parametrize("name", BY_NAME)
def test_the_inputs_are_the_hosted_ones(name: str) -> None:
    kind = name.removeprefix("distilled/").removesuffix("/lora")
    expected = HOSTED[kind] | BEYOND_IT | ({"loras"} if name.endswith("/lora") else set())
    if name.startswith("distilled/"):
        expected -= GUIDANCE | OF_THE_DISTILLED
    schema = BY_NAME[name].inputs.model_json_schema()
    assert set(schema["properties"]) == expected
    loras = ["loras"] if name.endswith("/lora") else []
    assert sorted(schema["required"]) == sorted(["prompt", "video_url", *loras])


@pytest.mark.parametrize(
    ("app", "values"),
    [
        (EXTEND, {"video_strength": 1, "extend_direction": "forward", "num_context_frames": 25}),
        (VIDEO, {"video_strength": 0.01, "audio_strength": 0.01, "match_video_length": True}),
        (REFERENCE, {"video_strength": 1, "audio_strength": 1, "preprocessor": "none", "ic_lora_type": "union"}),
    ],
)
def test_the_defaults_are_the_hosted_ones(app: Any, values: dict[str, Any]) -> None:
    values = {**values, "video_size": "auto", "fps": 24, "num_frames": 121, "generate_audio": True}
    values["match_input_fps"] = True
    properties = app.inputs.model_json_schema()["properties"]
    assert {name: properties[name]["default"] for name in values} == values
    checked = app.check({**LEAST, "seed": 1})
    assert {**vars(checked.request), **checked.own}.items() >= values.items()
    for name in properties.keys() & PARAMETERS.keys() - {"prompt", *values}:
        assert properties[name]["default"] == PARAMETERS[name].default


@pytest.mark.parametrize(
    ("app", "wrong", "words"),
    [
        (EXTEND, {"num_context_frames": 122}, "less than or equal to 121"),
        (EXTEND, {"num_context_frames": -1}, "greater than or equal to 0"),
        (EXTEND, {"extend_direction": "sideways"}, "'forward' or 'backward'"),
        (EXTEND, {"video_strength": 1.01}, "less than or equal to 1"),
        (EXTEND, {"num_frames": 8}, "greater than or equal to 9"),
        (VIDEO, {"video_url": ""}, "at least 1 character"),
        (VIDEO, {"video_strength": float("nan")}, "finite"),
        (REFERENCE, {"ic_lora_type": "canny"}, "'match_preprocessor', 'union', 'detailer', 'ingredients' or 'none'"),
        (REFERENCE, {"preprocessor": "lines"}, "'depth', 'canny', 'pose' or 'none'"),
        (REFERENCE, {"preprocessor": "pose"}, "preprocessor: pose needs a model that this server does not have; make"),
        (REFERENCE, {"preprocessor": "depth"}, "give it as video_url, and set preprocessor to none"),
    ],
)
def test_what_is_wrong(app: Any, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid) as refused:
        app.check({**LEAST, **wrong})
    (found,) = refused.value.detail
    assert found["loc"] == ["body", *wrong] and words in found["msg"]


def test_what_was_sent_gives_the_same_again() -> None:
    """A request that runs again after a crash is checked again."""
    asked = {**LEAST, "extend_direction": "backward", "num_context_frames": 9, "generate_audio": False}
    checked = EXTEND.check({**asked, "audio_strength": 0.5, "end_image_url": "https://host/e.png"})
    again = EXTEND.check(checked.arguments)
    assert (again.request, again.own, again.files) == (checked.request, checked.own, checked.files)


def test_without_new_sound_the_sound_is_kept_and_a_strength_that_does_nothing_is_named() -> None:
    quiet = VIDEO.check({**LEAST, "generate_audio": False})
    assert quiet.request.audio_strength == 1 and quiet.notes == ()
    told = VIDEO.check({**LEAST, "generate_audio": False, "audio_strength": 0.3})
    assert told.request.audio_strength == 1
    assert told.notes == ("audio_strength does nothing here: generate_audio is off",)


def test_the_distilled_ones_sample_as_the_model_was_trained() -> None:
    usual = parse({"prompt": "x"})
    for name, app in BY_NAME.items():
        request = app.check(LEAST if not name.endswith("/lora") else {**LEAST, "loras": [{"path": "a"}]}).request
        expected = ("full", False) if name.startswith("distilled/") else (usual.acceleration, True)
        assert (request.acceleration, request.use_restart_sampling) == expected, name


def test_every_input_is_described() -> None:
    for app in FROM_VIDEO:
        assert all(field.description for field in app.inputs.model_fields.values()), app.id
