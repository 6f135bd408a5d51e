"""The endpoint's parameters against its public page, refusals by name, sizes and frames by brute force."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media.audio import Track
from a2v.ltx.plan import Plan, plan, snap_size
from a2v.ltx.request import FLAGS, PARAMETERS, SIZES, Request, parse
from a2v.tests.beyond import BEYOND
from hypothesis import given
from hypothesis import strategies as st

AREA = 2_088_960
ASKED = parse({"prompt": "x", "seed": 0})
FILES = {"audio_url", "image_url", "end_image_url", "sync_mode"}


def track(samples: int, rate: int = 48000) -> Track:
    return Track(torch.zeros(1, 1).expand(2, samples), rate)


def planned(values: dict[str, object], seconds: float = 5, images: tuple = ()) -> Plan:
    return plan(parse({"prompt": "x", **values}), track(int(seconds * 48000)), images)


# The public page.


def test_every_default_of_the_pages_example(page: Path) -> None:
    example = json.loads(re.search(r"^\{\n  \"prompt\".*?^\}", page.read_text("utf-8"), re.S | re.M)[0])
    for name, value in example.items():
        if name != "prompt" and name not in FLAGS:
            assert PARAMETERS[name].default == value, name
            assert type(PARAMETERS[name].default) is type(value), name
    assert example.keys() <= PARAMETERS.keys() | FLAGS.keys()


def test_every_input_and_choice_of_the_page(page: Path) -> None:
    inputs = page.read_text("utf-8").split("Input#\n")[1].split("\n{\n")[0]
    names = set(re.findall(r"^([a-z][a-z_]+)\s(?:string|boolean|integer|float|\w+Enum|ImageSize)\b", inputs, re.M))
    assert len(names) == 38
    assert names == (PARAMETERS.keys() - BEYOND) | FLAGS.keys() and FLAGS.keys() == FILES
    blocks = re.findall(r"^(\w+)\s\w*(?:Enum|ImageSize)\b.*?Possible enum values: (.*?)$", inputs, re.S | re.M)
    assert len(blocks) == 7
    for name, choices in blocks:
        assert tuple(c for c in PARAMETERS[name].choices if c not in BEYOND) == tuple(choices.split(", ")), name
    for name in ("seed", "gradient_estimation_gamma", "audio_stg_scale"):
        assert PARAMETERS[name].default is None


def test_defaults_in_numbers() -> None:
    request = parse({"prompt": "A woman speaks", "seed": 5})
    wanted = {
        "prompt": "A woman speaks", "match_audio_length": True, "num_frames": 121, "video_size": "landscape_16_9",
        "use_multiscale": True, "fps": 24, "num_inference_steps": 15, "video_cfg_scale": 3, "video_stg_scale": 1,
        "video_rescaling_scale": 0.85, "video_modality_scale": 3, "audio_strength": 1, "gradient_estimation_gamma": 0,
        "scheduler": "beta", "camera_lora": "none", "camera_lora_scale": 1, "distill_lora_first_pass_scale": 0.2,
        "distill_lora_second_pass_scale": 0.5, "image_strength": 1, "end_image_strength": 1, "seed": 5,
        "audio_cfg_scale": 7, "audio_stg_scale": 0, "audio_rescaling_scale": 0.7, "audio_modality_scale": 3,
        "use_restart_sampling": True, "enable_prompt_expansion": True, "enable_safety_checker": True,
        "preprocess_audio": True, "video_output_type": "X264 (.mp4)", "video_quality": "high",
        "video_write_mode": "balanced",
    }  # fmt: skip
    assert {k: getattr(request, k) for k in wanted} == wanted
    assert request.negative_prompt.startswith("news broadcast, 3d") and request.negative_prompt.endswith("static")
    # One home: what a request leaves out is the parameter's default.
    names = {field.name for field in dataclasses.fields(Request)} - {"given", "notes"}
    assert names == PARAMETERS.keys()
    for name in names - {"prompt", "seed"}:
        absent = {"timeline": "", **dict.fromkeys(("windows", "edit", "reference", "nag"))}.get(name, 0)
        assert getattr(ASKED, name) == (PARAMETERS[name].default or absent), name
    assert SIZES == {
        "square_hd": (1024, 1024), "square": (512, 512), "portrait_4_3": (768, 1024), "portrait_16_9": (576, 1024),
        "landscape_4_3": (1024, 768), "landscape_16_9": (1024, 576),
    }  # fmt: skip


# Refusals, each by the name of what is wrong.


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_frame": 9}, ["num_frame: no such parameter", "did you mean num_frames?"]),
        ({"zzzz": 1}, ["zzzz: no such parameter"]),
        ({"audio_url": "x"}, ["audio_url: ", "--audio"]),
        ({"image_url": "x"}, ["image_url: ", "--image"]),
        ({"end_image_url": "x"}, ["end_image_url: ", "--end-image"]),
        ({"sync_mode": False}, ["sync_mode: ", "--output"]),
        ({"prompt": 3}, ["prompt: 3 is not a text"]),
        ({"prompt": None}, ["prompt: None is not a text"]),
        ({"num_frames": True}, ["num_frames: True is not a whole number"]),
        ({"num_frames": 9.5}, ["num_frames: 9.5"]),
        ({"num_frames": "9"}, ["num_frames: '9'"]),
        ({"num_frames": 0}, ["num_frames: 0 is not between 1 and 65536"]),
        ({"num_frames": 10**400}, ["num_frames: 10", "between 1 and 65536"]),
        ({"num_inference_steps": 10**400}, ["num_inference_steps: 10"]),
        ({"video_size": {"width": 10**400}}, ["video_size.width: 10"]),
        ({"num_inference_steps": 0}, ["num_inference_steps: 0 is not between 1 and 10000"]),
        ({"seed": 1.0}, ["seed: 1.0 is not a whole number"]),
        ({"seed": False}, ["seed: False is not a whole number"]),
        ({"fps": float("nan")}, ["fps: nan is not a number"]),
        ({"fps": float("inf")}, ["fps: inf is not a number"]),
        ({"fps": "24"}, ["fps: '24' is not a number"]),
        ({"fps": 0}, ["fps: 0 is not between 0.01 and 1000"]),
        ({"fps": None}, ["fps: None"]),
        ({"video_cfg_scale": True}, ["video_cfg_scale: True is not a number"]),
        ({"video_cfg_scale": -1}, ["video_cfg_scale: -1 is not at least 0"]),
        ({"video_cfg_scale": 10**400}, ["video_cfg_scale: "]),
        ({"image_strength": 1.01}, ["image_strength: 1.01 is not between 0 and 1"]),
        ({"video_rescaling_scale": 2}, ["video_rescaling_scale: 2 is not between 0 and 1"]),
        ({"match_audio_length": 1}, ["match_audio_length: 1 is not true or false"]),
        ({"use_multiscale": "true"}, ["use_multiscale: 'true' is not true or false"]),
        ({"scheduler": "euler"}, ["scheduler: 'euler'", "ltx2, linear_quadratic, beta"]),
        ({"scheduler": ["beta"]}, ["scheduler: ['beta']"]),
        ({"video_size": "huge"}, ["video_size: 'huge'", "square_hd"]),
        ({"video_size": 512}, ["video_size: 512"]),
        ({"video_size": {"w": 3}}, ["video_size: {'w': 3}"]),
        ({"video_size": {"width": 64.0}}, ["video_size.width: 64.0"]),
        ({"video_size": {"height": 0}}, ["video_size.height: 0"]),
        ({"video_size": {"height": True}}, ["video_size.height: True"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse({"prompt": "x", **values})
    message = str(caught.value)
    assert message.startswith(next(iter(values))) and "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("values", [[], None, "x", 3])
def test_no_object(values: object) -> None:
    with pytest.raises(InputError, match="not a JSON object"):
        parse(values)
    with pytest.raises(InputError, match=r"^prompt: missing"):
        parse({})


def test_what_was_given() -> None:
    """A default that is spelled out is given; a null that stands for absent is not."""
    request = parse({"prompt": "x", "enable_safety_checker": True, "fps": 24, "seed": None, "audio_stg_scale": None})
    assert request.given - {"seed"} == {"prompt", "enable_safety_checker", "fps"}
    assert request == parse({"prompt": "x", "seed": request.seed}), "and is the same request"


def test_notes() -> None:
    full = {"prompt": "x", "acceleration": "full", "negative_prompt": "text"}
    assert parse(full).notes == ("negative_prompt does nothing under acceleration full",)
    assert parse({**full, "nag": True}).notes == ()
    assert any("audio_cfg_scale does nothing" in note for note in parse({"prompt": "x", "audio_cfg_scale": 7}).notes)
    assert not parse({"prompt": "x"}).notes
    inert = {"audio_cfg_scale": 7, "audio_stg_scale": 1, "audio_rescaling_scale": 0.5, "audio_modality_scale": 2}
    assert [note.split()[0] for note in parse({"prompt": "x", **inert}).notes] == list(inert)
    assert not parse({"prompt": "x", **inert, "audio_strength": 0.99}).notes
    notes = " ".join(planned({"match_audio_length": False, "num_frames": 30, "video_size": "portrait_16_9"}, 1).notes)
    assert "from 30 to 33" in notes and "silence follows" in notes and "size" not in notes
    notes = " ".join(planned({"video_size": {"width": 1280, "height": 720}}, 30).notes)
    assert "lasts 30.00 s" in notes and "20.04 s" in notes and "1280×720 to 1280×768" in notes


def test_seed() -> None:
    drawn = {parse({"prompt": "x"}).seed for _ in range(20)}
    assert len(drawn) > 15 and all(0 <= seed < 2**31 for seed in drawn)
    for seed in (0, -1, 2**70):
        assert parse({"prompt": "x", "seed": seed}).seed == seed
    assert 0 <= parse({"prompt": "x", "seed": None}).seed < 2**31


# Size.


@pytest.mark.parametrize(
    ("asked", "two", "one"),
    [
        ((1024, 576), (1024, 576), (1024, 576)),
        ((1280, 720), (1280, 768), (1280, 736)),
        ((1920, 1080), (1920, 1088), (1920, 1088)),  # 1088 is 17 times 64, and the area is the largest there is
        ((1000, 1), (1024, 64), (1024, 32)),
        ((64, 64), (64, 64), (64, 64)),
        ((65, 33), (128, 64), (96, 64)),
        ((2048, 1024), (1984, 960), (2016, 992)),  # 2 097 152 px: × 0.99805
        ((4096, 4096), (1408, 1408), (1440, 1440)),  # √2 088 960 is 1445.3
        ((3840, 2160), (1920, 1088), (1920, 1088)),
        ((4096, 64), (4096, 64), (4096, 64)),
    ],
)
def test_size_table(asked: tuple[int, int], two: tuple[int, int], one: tuple[int, int]) -> None:
    assert snap_size(*asked, True) == two
    assert snap_size(*asked, False) == one
    assert snap_size(*asked[::-1], True) == two[::-1]


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.booleans())
def test_size_is_of_the_grid_and_area(width: int, height: int, two: bool) -> None:
    grid = 64 if two else 32
    got = snap_size(width, height, two)
    up = [-(-side // grid) * grid for side in (width, height)]
    assert all(side >= grid and side % grid == 0 for side in got)
    if up[0] * up[1] <= AREA:
        assert got == tuple(up), "the next of the grid at or above what was asked"
    else:
        # Exact: the largest multiple of the grid whose square is at most side² · cap / area; one cell at least.
        for side, result in zip(up, got, strict=True):
            cells = result // grid
            limit = Fraction(side * side * AREA, up[0] * up[1])
            assert cells == 1 or (cells * grid) ** 2 <= limit
            assert ((cells + 1) * grid) ** 2 > limit
        if min(got) > grid:
            assert got[0] * got[1] <= AREA


def test_size_by_name_and_by_image() -> None:
    def size(values: object, *images: tuple[int, int] | None) -> tuple[int, int]:
        result = planned({"video_size": values}, images=images)
        assert result.first_size == (result.width // 2, result.height // 2)
        return result.width, result.height

    assert size("square") == (512, 512)
    assert size({"width": 640}) == (640, 512) and size({"height": 256}) == (512, 256) and size({}) == (512, 512)
    assert size("auto", (700, 500), (64, 64)) == (704, 512)
    assert size("auto", None, (300, 100)) == (320, 128)
    assert size("auto", None, None) == size("auto") == (1024, 576)
    assert size("square", (700, 500)) == (512, 512)
    one = planned({"video_size": {"width": 96}, "use_multiscale": False})
    assert (one.width, one.height) == one.first_size == (96, 512) and not one.two_stages


# Frames.


def brute_force(samples: int, rate: int, fps: Fraction) -> int:
    """The first 8k+1 of 9, 17, … 481 that leaves at most half a frame of the audio without a picture."""
    return next((n for n in range(9, 482, 8) if n + Fraction(1, 2) >= samples * fps / rate), 481)


@given(
    st.integers(1, 48000 * 40),
    st.sampled_from([8000, 16000, 22050, 44100, 48000]),
    st.sampled_from([1, 12.5, 23.976, 24, 25, 29.97, 30, 50, 59.94, 60]),
)
def test_frames_of_audio(samples: int, rate: int, fps: float) -> None:
    result = plan(replace(ASKED, fps=fps), track(samples, rate))
    ntsc = {23.976: Fraction(24000, 1001), 29.97: Fraction(30000, 1001), 59.94: Fraction(60000, 1001)}
    assert result.fps == ntsc.get(fps, Fraction(fps))
    assert result.frames == brute_force(samples, rate, result.fps)


@pytest.mark.parametrize(("extra", "frames"), [(-1, 121), (0, 121), (1, 129)])
def test_half_a_frame_decides(extra: int, frames: int) -> None:
    """121.5 frames of audio at 24 fps are exactly 243 000 samples at 48 kHz: the last that 121 frames hold."""
    assert plan(ASKED, track(243_000 + extra)).frames == frames


@given(st.integers(1, 600))
def test_frames_as_asked(frames: int) -> None:
    got = plan(replace(ASKED, match_audio_length=False, num_frames=frames), track(48000)).frames
    assert got % 8 == 1 and frames <= got < frames + 8
