"""The hosted applications of LTX-2.5: their inputs, what these stand for, files that do not fit, models and graphs."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from a2v.api.applications import APPLICATIONS
from a2v.api.applications.audio_to_video import AUDIO_TO_VIDEO
from a2v.api.applications.inputs import CheckedRequest, Invalid
from a2v.api.applications.ltx_2_5 import FAST, OURS, PRO
from a2v.api.database.store import Store
from a2v.api.graph import compose as workflow
from a2v.api.graph.graph import Graph
from a2v.api.graph.model_files import ModelMissing, ModelNames, find_distilled_25, find_finest_25, find_models_25
from a2v.api.settings import Settings
from a2v.ltx.errors import InputError
from a2v.ltx.models import GEMMA_FILES, MODELS
from a2v.ltx.request import Request, parse
from a2v.tests.api.edges import data_uri, make_settings, wav
from a2v.tests.api.stand_ins import working
from PIL import Image

LEAST = {"prompt": "A woman speaks", "audio_url": "https://host/a.mp3"}
PICTURE = {"audio_url": "https://host/a.mp3", "image_url": "https://host/a.png"}
SOUND = data_uri(wav(2), "audio/wav")
HOSTED = pytest.mark.parametrize("app", [FAST, PRO], ids=["fast", "pro"])


def problem(app: Any, body: Any) -> dict[str, Any]:
    with pytest.raises(Invalid) as refused:
        app.check(body)
    (found,) = refused.value.detail
    json.dumps(found)
    return found


@HOSTED
def test_the_five_inputs(app: Any) -> None:
    schema = app.inputs.model_json_schema()
    assert [*schema["properties"]] == ["audio_url", "image_url", "prompt", "guidance_scale", "aspect_ratio"]
    assert schema["required"] == ["audio_url"]
    assert schema["properties"]["aspect_ratio"]["enum"] == ["auto", "16:9", "9:16"]


@HOSTED
@pytest.mark.parametrize(
    ("body", "place", "words"),
    [
        ({"prompt": "x"}, "audio_url", "required"),
        ({"audio_url": "https://host/a.mp3"}, "prompt", "prompt: missing; say what the video shows, or give the first"),
        ({**LEAST, "prompt": " \n"}, "prompt", "prompt: missing"),
        ({**LEAST, "prompt": None, "image_url": ""}, "prompt", "prompt: missing"),
        ({**LEAST, "prompt": "x" * 5001}, "prompt", "at most 5000"),
        ({**LEAST, "guidance_scale": 0.9}, "guidance_scale", "greater than or equal to 1"),
        ({**LEAST, "guidance_scale": 50.1}, "guidance_scale", "less than or equal to 50"),
        ({**LEAST, "guidance_scale": float("nan")}, "guidance_scale", "finite"),
        ({**LEAST, "aspect_ratio": "1:1"}, "aspect_ratio", "'auto', '16:9' or '9:16'"),
    ],
)
def test_what_is_wrong(app: Any, body: Any, place: str, words: str) -> None:
    found = problem(app, body)
    assert found["loc"] == ["body", place] and words in found["msg"]


@HOSTED
def test_what_is_right(app: Any) -> None:
    for body in (
        PICTURE,
        {**PICTURE, "prompt": ""},
        {**LEAST, "prompt": "x" * 5000, "guidance_scale": 1},
        {**LEAST, "guidance_scale": 50, "aspect_ratio": "9:16"},
        {**LEAST, "guidance_scale": None, "image_url": None},
    ):
        assert app.check(body).request.prompt == body.get("prompt", "")


def changed(request: Request) -> dict[str, Any]:
    """What differs from the engine's defaults, but for the seed."""
    usual = vars(parse({"prompt": request.prompt, "seed": request.seed}))
    return {name: value for name, value in vars(request).items() if value != usual[name] and name != "given"}


def test_what_the_inputs_stand_for() -> None:
    assert changed(FAST.check(LEAST).request) == {"acceleration": "full", "use_restart_sampling": False}
    official = {
        "num_inference_steps": 30,
        "scheduler": "ltx2",
        "video_rescaling_scale": 0.7,
        "use_restart_sampling": False,
        "distill_lora_first_pass_scale": 0.0,
        "distill_lora_second_pass_scale": 1.0,
    }
    for body, scale in ((LEAST, 5), (PICTURE, 9), ({**PICTURE, "guidance_scale": 2.5}, 2.5)):
        assert changed(PRO.check(body).request) == {**official, "video_cfg_scale": scale}


def test_the_distilled_model_has_no_guidance_and_says_so() -> None:
    asked, plain = FAST.check({**LEAST, "guidance_scale": 7, "seed": 1}), FAST.check({**LEAST, "seed": 1})
    assert asked.request == plain.request and plain.notes == ()
    assert asked.notes == ("guidance_scale does nothing here, because the distilled model has no guidance",)


@HOSTED
def test_what_the_hosted_ones_do_not_take_is_passed_over_and_the_seed_is_kept(app: Any) -> None:
    strange = {"duration": 5, "resolution": "1080p", "fps": 50, "generate_audio": True, "end_image_url": "https://h/e"}
    checked = app.check({**LEAST, **strange})
    assert checked.request.fps == 24 and checked.files.keys() == {"audio_url"}
    assert sorted(note.split("'")[1] for note in checked.notes) == sorted(strange)
    again = app.check(checked.arguments)
    assert again.request == checked.request and again.request.seed == checked.request.seed


# files


def file(folder: Path, seconds: float) -> Path:
    path = folder / ("0a" * 16 + ".wav")
    path.write_bytes(wav(seconds))
    return path


@pytest.mark.parametrize(
    ("app", "seconds", "words"),
    [
        (FAST, 1.9, r"^audio_url: the sound lasts 1\.90 s; give one of 2 to 20 s\.$"),
        (FAST, 1.98, None),
        (FAST, 2, None),
        (FAST, 20.04, None),
        (FAST, 20.1, r"^audio_url: the sound is longer than 20 s; give one of 2 to 20 s\.$"),
        (FAST, 90, "longer than 20 s"),
        (PRO, 1, "2 to 10 s"),
        (PRO, 10, None),
        (PRO, 10.1, r"^audio_url: the sound is longer than 10 s; give one of 2 to 10 s\.$"),
        (AUDIO_TO_VIDEO, 0.5, None),
        (OURS[0], 30, None),
    ],
)
def test_how_long_a_sound_is(tmp_path: Path, app: Any, seconds: float, words: str | None) -> None:
    path = file(tmp_path, seconds)
    if words is None:
        app.check_file("audio_url", path)
    else:
        with pytest.raises(InputError, match=words):
            app.check_file("audio_url", path)


def test_a_sound_that_cannot_be_decoded_is_told_by_its_field(tmp_path: Path) -> None:
    path = file(tmp_path, 0)
    with pytest.raises(InputError, match=r"^audio_url: no sound could be decoded"):
        FAST.check_file("audio_url", path)
    FAST.check_file("image_url", path)  # a picture has no length


def settled(checked: CheckedRequest, image: Path | None = None, **settings: Any) -> Request:
    made = Settings(**{**dict.fromkeys(("system", "input", "output"), Path()), **settings})
    return FAST.settle(checked, {} if image is None else {"image_url": image}, made).request


@pytest.mark.parametrize(
    ("shape", "image", "size"),
    [
        (None, None, (1920, 1080)),
        ("auto", None, (1920, 1080)),
        ("16:9", (90, 120), (1920, 1080)),
        ("9:16", None, (1080, 1920)),
        (None, (90, 120), (1080, 1920)),
        ("auto", (120, 90), (1920, 1080)),
        ("auto", (90, 90), (1920, 1080)),
        ("9:16", (120, 90), (1080, 1920)),
    ],
)
def test_the_shape(tmp_path: Path, shape: str | None, image: tuple[int, int] | None, size: tuple[int, int]) -> None:
    path = tmp_path / "a.png" if image else None
    if image:
        Image.new("RGB", image).save(path)
    body = {**LEAST, **({"aspect_ratio": shape} if shape else {}), **({"image_url": "https://h/a"} if image else {})}
    assert settled(FAST.check(body), path).video_size == size


def test_a_photo_that_lies_on_its_side_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by a quarter
    Image.new("RGB", (120, 90)).save(tmp_path / "a.jpg", exif=exif)
    assert settled(FAST.check(PICTURE), tmp_path / "a.jpg").video_size == (1080, 1920)


def test_the_size_is_the_administrator_s(tmp_path: Path) -> None:
    assert settled(FAST.check(LEAST), short_side=720).video_size == (1280, 720)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"^image_url: "):
        settled(FAST.check(PICTURE), tmp_path / "a.png")
    assert make_settings(tmp_path).short_side == 1080


# models and graphs

THERE: dict[str, list[str]] = {
    "diffusion_models": [
        "ltx\\ltx-2.5-22b-dev-transformer-bf16.safetensors",
        "ltx-2.5-22b-distilled-transformer-bf16.safetensors",
    ],
    "text_encoders": ["gemma4-12b-with-proj-ltx-2.5-bf16.safetensors"],
    "vae": [
        "ltx-2.5-video-vae-bf16.safetensors",
        "ltx-2.5-video-vae-conv-bf16.safetensors",
        "ltx-2.5-audio-vae-bf16.safetensors",
    ],
    "latent_upscale_models": ["ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0.safetensors"],
    "loras": ["ltx-2.5-22b-distilled-lora-450-bf16.safetensors"],
}
DEV, DISTILLED = THERE["diffusion_models"]
DIFFUSION, CONVOLUTIONAL, AUDIO = THERE["vae"]
(GEMMA,), (UPSCALER,), (LORA,) = (THERE[kind] for kind in ("text_encoders", "latent_upscale_models", "loras"))


def found(finder: Any, folders: tuple[str, ...] = (), **changes: list[str]) -> ModelNames:
    return finder({**THERE, **changes}.__getitem__, lambda kind: list(folders) if kind == "text_encoders" else [])


def test_the_models_of_each_application() -> None:
    usual = ModelNames(DEV, UPSCALER, LORA, GEMMA, (LORA,), CONVOLUTIONAL, AUDIO)
    assert found(find_models_25) == usual
    assert found(find_distilled_25) == replace(usual, checkpoint=DISTILLED, lora=None)
    assert found(find_distilled_25, diffusion_models=[DEV]) == usual
    assert found(find_finest_25) == replace(usual, video_vae=DIFFUSION)
    assert found(find_finest_25, vae=[CONVOLUTIONAL, AUDIO]) == usual
    assert found(find_models_25, vae=[DIFFUSION, AUDIO]) == replace(usual, video_vae=DIFFUSION)
    finders = {FAST.id: find_distilled_25, PRO.id: find_finest_25}
    finders |= {each.id: find_distilled_25 if "/distilled/" in each.id else find_models_25 for each in OURS}
    assert {id: APPLICATIONS[id].find_models for id in finders} == finders


def test_the_published_files_for_small_cards_do_the_same() -> None:
    dev, distilled, encoder = (
        MODELS[key].name for key in ("dev-int8-2.5", "distilled-nvfp4-2.5", "text-encoder-int8-2.5")
    )
    small = {"diffusion_models": [dev, distilled], "text_encoders": [encoder]}
    usual = ModelNames(dev, UPSCALER, LORA, encoder, (LORA,), CONVOLUTIONAL, AUDIO)
    assert found(find_models_25, **small) == usual
    assert found(find_distilled_25, **small) == replace(usual, checkpoint=distilled, lora=None)
    assert found(find_models_25, diffusion_models=[dev, DEV]).checkpoint == DEV


def test_an_expander_is_used_where_there_is_one() -> None:
    gemma_3 = "google/gemma-3-12b-it-qat-q4_0-unquantized"
    assert found(find_models_25, ("google/gemma-4-E2B-it", gemma_3)).expander == "google/gemma-4-E2B-it"
    assert found(find_models_25, (gemma_3,)).expander == gemma_3
    single = "gemma4_e2b_it_int8_convrot.safetensors"
    listed = [GEMMA, f"google/{single}", GEMMA_FILES[-1]]
    assert found(find_models_25, (gemma_3,), text_encoders=listed).expander == f"google/{single}"
    assert found(find_models_25, ("gemma-4-E2B-it",), text_encoders=listed).expander == "gemma-4-E2B-it"
    assert found(find_models_25, text_encoders=[GEMMA, GEMMA_FILES[-1]]).expander == GEMMA_FILES[-1]


@pytest.mark.parametrize(
    ("finder", "changes", "key"),
    [
        (find_models_25, {"diffusion_models": [DISTILLED]}, "dev-2.5"),
        (find_distilled_25, {"diffusion_models": []}, "distilled-2.5"),
        (find_distilled_25, {"diffusion_models": [DEV], "loras": []}, "distilled-2.5"),
        (find_models_25, {"loras": []}, "distilled-lora-2.5"),
        (find_models_25, {"text_encoders": ["gemma_3_12B_it_fp4_mixed.safetensors"]}, "text-encoder-2.5"),
        (find_models_25, {"vae": [AUDIO]}, "video-vae-2.5"),
        (find_finest_25, {"vae": [AUDIO]}, "diffusion-vae-2.5"),
        (find_models_25, {"vae": [CONVOLUTIONAL]}, "audio-vae-2.5"),
        (find_models_25, {"latent_upscale_models": []}, "upscaler-2.5"),
    ],
)
def test_what_is_missing_is_told_with_the_command(finder: Any, changes: dict[str, list[str]], key: str) -> None:
    with pytest.raises(ModelMissing) as missing:
        found(finder, **changes)
    model = MODELS[key]
    assert str(missing.value) == (
        f"{model.name} is not in ComfyUI's models/{model.folder}: get it from {model.page}, or run "
        f"`python -m ltx download {key} --yes` in this pack's folder."
    )


def graph(models: ModelNames, **asked: Any) -> Graph:
    return Graph(workflow.compose(parse({"prompt": "x", **asked}), models, audio="a.wav", prefix="p"))


def test_the_graph_loads_the_split_files() -> None:
    models = replace(found(find_finest_25), expander="gemma-4-E2B-it")
    made, plain = graph(models), graph(replace(models, video_vae=None, audio_vae=None, expander=None))
    loader = made.inputs(workflow.MODEL)
    assert loader == {**plain.inputs(workflow.MODEL), "video_vae": DIFFUSION, "audio_vae": AUDIO}
    assert made.inputs(workflow.EXPAND) == {**plain.inputs(workflow.EXPAND), "expander": "gemma-4-E2B-it"}
    second = made.find(workflow.SAMPLER, workflow.SECOND_STAGE)
    assert made.inputs(workflow.SAVE) == {**plain.inputs(workflow.SAVE), "noise": [second, 1]}
    assert {key: node["class_type"] for key, node in made.prompt.items()} == {
        key: node["class_type"] for key, node in plain.prompt.items()
    }


def test_the_decoder_s_noise_is_the_last_stage_s_where_there_is_one_only() -> None:
    made = graph(found(find_finest_25), use_multiscale=False)
    assert made.inputs(workflow.SAVE)["noise"] == [made.find(workflow.SAMPLER), 1]


@HOSTED
def test_a_result_is_the_video_alone(app: Any) -> None:
    whole = {"video": {"content_type": "video/mp4", "file_name": "a.mp4", "file_size": 9}, "seed": 7, "prompt": "x"}
    assert app.result(whole) == {"video": {"content_type": "video/mp4", "file_name": "a.mp4"}}
    assert AUDIO_TO_VIDEO.result(whole) == whole == OURS[0].result(whole)


def test_from_the_door_to_the_result(settings: Settings, database: Store, tmp_path: Path) -> None:
    """A sound that does not fit is refused before it is stored; of one that does, the graph has the settled size."""
    Image.new("RGB", (30, 40)).save(tmp_path / "a.png")
    image = data_uri((tmp_path / "a.png").read_bytes(), "image/png")

    async def main() -> None:
        async with working(settings, database) as place:
            place.app = FAST.id
            with pytest.raises(Invalid) as refused:
                await place.submit({"audio_url": data_uri(wav(1.5), "audio/wav"), "image_url": image})
            assert [found["loc"] for found in refused.value.detail] == [["body", "audio_url"]]
            await place.until(lambda: place.files("input") == [])
            ended = await place.end_of(await place.submit({"audio_url": SOUND, "image_url": image}))
            assert ended.result["video"].keys() == {"content_type", "file_name"} and ended.result.keys() == {"video"}
            (prompt,) = place.host.runs
            size = Graph(prompt).inputs("LTXA2VVideoSize")
            assert (size["video_size"], size["width"], size["height"]) == ("custom", 1088, 1920)  # 1080 in steps of 32
            seed = place.request(ended.id).arguments["seed"]
            assert Graph(prompt).inputs("PrimitiveInt")["value"] == seed

    asyncio.run(main())
