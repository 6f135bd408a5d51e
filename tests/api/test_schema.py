"""The request's model against the endpoint's page and table, and errors in the form that the clients read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from a2v.api.applications import APPLICATIONS
from a2v.api.applications.audio_to_video import AUDIO_TO_VIDEO, DISTILLED, WITH_LORAS, Input
from a2v.api.applications.inputs import CheckedRequest, Invalid, digest, read_json
from a2v.api.applications.outputs import Output, ResultVideo
from a2v.ltx.nag import Nag
from a2v.ltx.request import OF_VIDEOS, PARAMETERS
from a2v.ltx.windows import WindowSize
from a2v.tests.beyond import BEYOND
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
LEAST = {"prompt": "A woman speaks", "audio_url": "https://host/a.mp3"}
# name: (default, least, most) or (default, choices), from the endpoint's public page and its ranges
PAGE: dict[str, tuple[Any, ...]] = {
    "match_audio_length": (True,),
    "num_frames": (121, 9, 481),
    "use_multiscale": (True,),
    "fps": (24, 1, 60),
    "num_inference_steps": (15, 8, 50),
    "video_cfg_scale": (3, 1, 20),
    "video_stg_scale": (1, 0, 20),
    "video_rescaling_scale": (0.85, 0, 1),
    "video_modality_scale": (3, 0, 10),
    "audio_cfg_scale": (7, 1, 20),
    "audio_stg_scale": (None, 0, 20),
    "audio_rescaling_scale": (0.7, 0, 1),
    "audio_modality_scale": (3, 0, 10),
    "gradient_estimation_gamma": (None, 0, 10),
    "use_restart_sampling": (True,),
    "scheduler": ("beta", ("ltx2", "linear_quadratic", "beta")),
    "acceleration": ("none", ("none", "regular", "high", "full")),
    "camera_lora": (
        "none",
        ("dolly_in", "dolly_out", "dolly_left", "dolly_right", "jib_up", "jib_down", "static", "none"),
    ),
    "camera_lora_scale": (1, 0, 1),
    "seed": (None,),
    "enable_prompt_expansion": (True,),
    "enable_safety_checker": (True,),
    "video_output_type": ("X264 (.mp4)", ("X264 (.mp4)", "VP9 (.webm)", "PRORES4444 (.mov)", "GIF (.gif)")),
    "video_quality": ("high", ("low", "medium", "high", "maximum")),
    "video_write_mode": ("balanced", ("fast", "balanced", "small")),
    "sync_mode": (False,),
    "distill_lora_first_pass_scale": (0.2, 0, 1),
    "distill_lora_second_pass_scale": (0.5, 0, 1),
    "image_strength": (1, 0, 1),
    "end_image_strength": (1, 0, 1),
    "audio_strength": (1, 0, 1),
    "preprocess_audio": (True,),
}


def check(body: Any) -> CheckedRequest:
    return AUDIO_TO_VIDEO.check(body)


def problems(body: Any) -> list[dict[str, Any]]:
    with pytest.raises(Invalid) as refused:
        check(body)
    json.dumps(refused.value.detail)
    return refused.value.detail


def places(body: Any) -> list[list[Any]]:
    return [problem["loc"] for problem in problems(body)]


def test_the_inputs_are_the_page_s() -> None:
    other = {"prompt", "negative_prompt", "audio_url", "image_url", "end_image_url", "video_size", "image_size"}
    assert Input.model_fields.keys() - BEYOND == PAGE.keys() | other
    assert PARAMETERS.keys() - {*OF_VIDEOS} <= Input.model_fields.keys()
    assert {name for name, field in Input.model_fields.items() if field.is_required()} == {"prompt", "audio_url"}


@pytest.mark.parametrize("name", PAGE)
def test_default_and_range(name: str) -> None:
    default, *limits = PAGE[name]
    assert Input.model_fields[name].default == default
    if not limits:
        return
    if isinstance(limits[0], tuple):
        assert tuple(c for c in get_args(Input.model_fields[name].annotation) if c not in BEYOND) == limits[0]
        assert places({**LEAST, name: "other"}) == [["body", name]]
        return
    low, high = limits
    step = 1 if isinstance(default, int) and name.startswith("num_") else 0.001
    for value in (low, high):
        check({**LEAST, name: value})
    for value in (low - step, high + step, "x", None if default is not None else [], float("nan"), float("inf")):
        assert places({**LEAST, name: value}) == [["body", name]], value


def test_the_page_s_first_example_and_a_drawn_seed() -> None:
    first, second = check(LEAST), check(LEAST)
    assert first.files == {"audio_url": "https://host/a.mp3"} and not first.sync_mode
    assert 0 <= first.request.seed < 2**31 and first.request.seed != second.request.seed
    assert first.arguments == {**LEAST, "seed": first.request.seed}
    assert check({**LEAST, "seed": 2**70}).request.seed == 2**70


def test_the_page_s_whole_example() -> None:
    example = json.loads((ROOT / "tests" / "api" / "example.json").read_text())
    job = check(example)
    assert job.files.keys() == {"audio_url", "image_url"} and job.notes[0].endswith("(audio_strength 1)")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, [["body", "audio_url"], ["body", "prompt"]]),
        ([], [["body"]]),
        ("x", [["body"]]),
        (None, [["body"]]),
        ({**LEAST, "audio_url": ""}, [["body", "audio_url"]]),
        ({**LEAST, "audio_url": None}, [["body", "audio_url"]]),
        ({**LEAST, "prompt": 1}, [["body", "prompt"]]),
        ({**LEAST, "video_size": "huge"}, [["body", "video_size"]]),
        ({**LEAST, "video_size": 5}, [["body", "video_size"]]),
        ({**LEAST, "video_size": {"width": 63}}, [["body", "video_size", "width"]]),
        ({**LEAST, "image_size": {"height": 4097}}, [["body", "image_size", "height"]]),
        ({**LEAST, "video_size": "auto", "image_size": "auto"}, [["body", "video_size"], ["body", "image_size"]]),
        ({**LEAST, "fps": 0, "num_frames": 5.5}, [["body", "num_frames"], ["body", "fps"]]),
    ],
)
def test_places_of_mistakes(body: Any, where: list[list[Any]]) -> None:
    assert places(body) == where
    for problem in problems(body):
        assert problem["msg"] and problem["type"]


def test_both_names_of_the_size() -> None:
    assert check({**LEAST, "image_size": "square"}).request.video_size == "square"
    assert check({**LEAST, "image_size": {"width": 1280}}).request.video_size == (1280, 512)
    assert check({**LEAST, "video_size": {"width": 1280, "height": 720}}).request.video_size == (1280, 720)
    for body in ({"video_size": None, "image_size": "square"}, {"video_size": "square", "image_size": None}):
        assert check({**LEAST, **body}).request.video_size == "square"
    assert places({**LEAST, "video_size": None}) == [["body", "video_size"]]


@pytest.mark.parametrize("name", [name for name, field in Input.model_fields.items() if field.default is None])
def test_null_is_as_good_as_absent(name: str) -> None:
    """Where the default is null. A film with a timeline has windows unless the request says that it has none."""
    body = {**LEAST, "seed": 7, "timeline": "0:01 [cut] y"}
    if name == "seed":
        assert 0 <= check({**body, name: None}).request.seed < 2**31
    else:
        assert check({**body, name: None}) == check(body)


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ({"frames": 121.0, "overlap": "3"}, {"frames": 121, "overlap": 3}),
        ({"seeds": {"1": 5.0}}, {"seeds": {"1": 5}}),
        ({"pauses": "false", "anchor": "0.5", "drift": 0}, {"pauses": False, "anchor": 0.5, "drift": 0.0}),
    ],
    ids=str,
)
def test_settings_of_windows_are_read_as_all_inputs_are(sent: dict[str, Any], meant: dict[str, Any]) -> None:
    """JSON schema, and so the OpenAPI document, counts 121.0 among the integers."""
    assert check({**LEAST, "num_frames": 121.0, "fps": "24", "windows": sent}).request.windows == WindowSize.parse(
        meant
    )


@pytest.mark.parametrize(
    ("sent", "meant"),
    [(True, Nag()), ({"scale": "5"}, Nag(5)), ({"alpha": 0.5, "tau": 2}, Nag(alpha=0.5, tau=2)), (False, None)],
    ids=str,
)
def test_settings_of_nag(sent: Any, meant: Nag | None) -> None:
    assert check({**LEAST, "nag": sent}).request.nag == meant


@pytest.mark.parametrize("sent", [{"scale": 0.5}, {"alpha": 2}, {"tau": 11}, {"strength": 1}], ids=str)
def test_wrong_settings_of_nag(sent: dict[str, Any]) -> None:
    assert places({**LEAST, "nag": sent}) == [["body", "nag", *sent]]


NUMBERS = st.one_of(
    st.integers(-5, 600),
    st.floats(0, 20),
    st.sampled_from([2**64, 10**30, -(10**400), 1e308, 1e-320, 0.5, "1", "NaN", True]),
)
NAMES = [*WindowSize().__dict__, *Nag().__dict__, "width", "height", "path", "scale", "weight_name", "1", "01", "x"]
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["auto", "0:00 x", "\0", "9" * 5000])
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=6,
)
TIMES = st.sampled_from(["0:00", "0:01", "1:00", "99:99", "-1:00", "1e9", "٠:٠٠", "NaN:00", "0:0:0:0", ""])
MARKS = st.sampled_from(["", "[cut]", "[seed 5]", "[seed 1e5]", "[seed " + "9" * 30 + "]", "[image x.png]", "[", "]["])
LINES = st.builds("{} {} {}".format, TIMES, MARKS, st.text(max_size=8)) | st.text(max_size=12)
TIMELINES = st.builds(lambda lines, end: end.join(lines), st.lists(LINES, max_size=5), st.sampled_from(["\n", "\r\n"]))


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), name=st.sampled_from([*APPLICATIONS]))
def test_whatever_is_sent_is_taken_or_refused_by_the_field(data: st.DataObject, name: str) -> None:
    """One or two fields of each application. What is wrong is told in fal's form and in JSON, and names its field."""
    application = APPLICATIONS[name]
    fields = application.inputs.model_fields
    strange = data.draw(st.lists(st.sampled_from([*fields]), min_size=1, max_size=2), "fields")
    body = {"prompt": "p", **dict.fromkeys(application.files, "https://host/file")}
    body |= {field: data.draw(TIMELINES | VALUES if field == "timeline" else VALUES, field) for field in strange}
    try:
        application.check(body)
    except Invalid as refused:
        json.dumps(refused.detail, allow_nan=False)
        for problem in refused.detail:
            assert problem["loc"][0] == "body" and problem["loc"][1] in fields and problem["msg"] and problem["type"]


def test_strange_names_are_passed_over_and_named() -> None:
    (note,) = check({**LEAST, "num_frame": 9}).notes
    assert note == "'num_frame' is no input and was passed over; did you mean num_frames?"


@pytest.mark.parametrize("body", [b"", b"{", b"{'a': 1}", b'{"a": NaN}', b'{"a": "\\ud800"}', b"\xff", b"[" * 100_000])
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(Invalid) as refused:
        read_json(body)
    assert refused.value.detail[0]["type"] == "json_invalid"


def test_the_digest_tells_meanings_apart_and_not_spellings() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_the_output_is_the_page_s() -> None:
    assert Output.model_fields.keys() == {"video", "seed", "prompt"}
    assert list(ResultVideo.model_fields) == [
        "url", "content_type", "file_name", "file_size", "width", "height", "fps", "duration", "num_frames"
    ]  # fmt: skip


# the variants

OF_THE_DISTILLED = {
    *("prompt", "audio_url", "image_url", "end_image_url", "match_audio_length", "num_frames", "video_size"),
    *("image_size", "use_multiscale", "fps", "acceleration", "camera_lora", "camera_lora_scale", "negative_prompt"),
    *("seed", "enable_prompt_expansion", "enable_safety_checker", "video_output_type", "video_quality"),
    *("video_write_mode", "sync_mode", "image_strength", "end_image_strength", "audio_strength", "preprocess_audio"),
}
"""The inputs of the distilled endpoints, as the official client's types list them."""
BEYOND_IT = {"windows", "timeline", "nag"}  # ours


@pytest.mark.parametrize("own", ["fal-ai/ltx-2.3-22b", "local/ltx-2.5-22b"])
def test_the_variants_have_the_inputs_of_their_pages(own: str) -> None:
    """The second name is ours: LTX-2.5 with the inputs that the hosted service has for LTX-2.3."""
    found = [each for each in APPLICATIONS.values() if each.owner == own and "audio-to-video" in each.id]
    inputs = {each.id.removeprefix(f"{own}/"): set(each.inputs.model_fields) for each in found}
    whole = inputs["audio-to-video"]
    assert inputs == {
        "audio-to-video": whole,
        "audio-to-video/lora": whole | {"loras"},
        "distilled/audio-to-video": OF_THE_DISTILLED | BEYOND_IT,
        "distilled/audio-to-video/lora": OF_THE_DISTILLED | BEYOND_IT | {"loras"},
    }


def test_the_distilled_recipe_is_not_the_client_s_to_set() -> None:
    asked = {**LEAST, "acceleration": "none", "num_inference_steps": 40, "negative_prompt": "rain"}
    checked = DISTILLED.check(asked)
    assert (checked.request.acceleration, checked.request.use_restart_sampling) == ("full", False)
    assert checked.arguments["acceleration"] == "none", "it is stored as it was sent"
    notes = "\n".join(checked.notes)
    assert "acceleration does nothing here, it is always full" in notes
    assert "'num_inference_steps' is no input" in notes and "negative_prompt does nothing" in notes
    again = DISTILLED.check(checked.arguments)
    assert again.request == checked.request


def test_loras_are_paths_with_strengths() -> None:
    asked = [{"path": "a.safetensors"}, {"path": "o/b", "scale": 0.4}, {"path": "o/r", "weight_name": "c.safetensors"}]
    checked = WITH_LORAS.check({**LEAST, "loras": asked})
    assert checked.loras == (("a.safetensors", 1.0), ("o/b", 0.4), ("c.safetensors", 1.0))
    assert WITH_LORAS.check(checked.arguments).loras == checked.loras


@pytest.mark.parametrize(
    ("loras", "place"),
    [
        (None, ["body", "loras"]),
        ("a", ["body", "loras"]),
        ([{}], ["body", "loras", 0, "path"]),
        ([{"path": ""}], ["body", "loras", 0, "path"]),
        ([{"path": "a", "scale": 4.1}], ["body", "loras", 0, "scale"]),
        ([{"path": "a"}] * 17, ["body", "loras"]),
    ],
)
def test_loras_that_are_none(loras: Any, place: list[Any]) -> None:
    with pytest.raises(Invalid) as wrong:
        WITH_LORAS.check({**LEAST, **({} if loras is None else {"loras": loras})})
    assert [found["loc"] for found in wrong.value.detail] == [place]
