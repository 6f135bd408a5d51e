"""What requests take from the video that they give: rate, size, length, sound, and its place in a longer film."""

from __future__ import annotations

import wave
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from a2v.api.applications.from_video import FAMILY, FROM_VIDEO, REFERENCES_25
from a2v.api.graph import compose_video
from a2v.api.graph.compose import MOST_REPORTS, REPORT, SAMPLER, SAVE
from a2v.api.graph.fields import field_of, in_request_words
from a2v.api.graph.graph import Graph, sources
from a2v.api.graph.model_files import ModelMissing, ModelNames
from a2v.ltx.errors import InputError
from a2v.ltx.models import MODELS
from a2v.tests.api.edges import make_settings
from a2v.tests.ltx.media.clips import write_clip
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
APPS = {each.id.removeprefix(f"{FAMILY}/"): each for each in FROM_VIDEO}
APPS |= {each.id: each for each in REFERENCES_25}
UNION = MODELS["union-control"].name
MODELS_THERE = ModelNames("dev", "upscaler", "distilled", "gemma", (f"ic/{UNION}", "ink.safetensors", "X-IC-LoRA.pt"))
NAMES = {"video_url": "ltx_a2v_api/v.mp4", "audio_url": "ltx_a2v_api/a.wav", "end_image_url": "ltx_a2v_api/e.png"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames of 100x70 pixels at 25 frames per second, without sound."""
    path = tmp_path_factory.mktemp("clip") / ("0a" * 16 + ".mkv")
    return write_clip(path, [np.full((70, 100, 3), number, np.uint8) for number in range(30)], fps=Fraction(25))


def settled(name: str, clip: Path, tmp_path: Path, files: tuple[str, ...] = (), **asked: Any) -> Any:
    app = APPS[name]
    urls = {field: f"https://host/{field}" for field in ("video_url", *files)}
    checked = app.check({"prompt": "x", "seed": 1, **urls, **asked})
    return app, app.settle(checked, dict.fromkeys(urls, clip), make_settings(tmp_path))


def graph_of(name: str, clip: Path, tmp_path: Path, files: tuple[str, ...] = (), **asked: Any) -> Graph:
    app, checked = settled(name, clip, tmp_path, files, **asked)
    return Graph(app.compose(checked, MODELS_THERE, {field: NAMES[field] for field in ("video_url", *files)}, "p"))


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("video-to-video", {}, (25, 33, (100, 70))),
        ("video-to-video", {"match_input_fps": False}, (24, 33, (100, 70))),
        ("video-to-video", {"match_input_fps": False, "fps": 50}, (50, 65, (100, 70))),
        ("video-to-video", {"match_video_length": False}, (25, 121, (100, 70))),
        ("video-to-video", {"video_size": "square"}, (25, 33, "square")),
        ("reference-video-to-video", {}, (25, 33, (100, 70))),
        ("reference-video-to-video", {"video_size": "landscape_16_9"}, (25, 33, "landscape_16_9")),
        ("extend-video", {}, (25, 121, (100, 70))),
    ],
)
def test_rate_length_and_size(name: str, asked: dict[str, Any], expected: Any, clip: Path, tmp_path: Path) -> None:
    request = settled(name, clip, tmp_path, **asked)[1].request
    assert (request.fps, request.num_frames, request.video_size) == expected
    assert not request.match_audio_length


@pytest.mark.parametrize(
    ("sides", "expected"), [((48, 70), (64, 70)), ((5120, 2880), (1920, 1024)), ((6000, 100), (4096, 128))]
)
def test_a_size_that_the_graph_cannot_take_is_brought_into_its_range(
    sides: tuple[int, int], expected: tuple[int, int], tmp_path: Path
) -> None:
    path = write_clip(tmp_path / "0c.mkv", [np.zeros((sides[1], sides[0], 3), np.uint8)] * 2, fps=Fraction(25))
    assert settled("video-to-video", path, tmp_path)[1].request.video_size == expected


def told(graph: Graph) -> list[str]:
    """The sentences about the given files that are in the file's report before a node runs."""
    joined = [link for key in graph.all(REPORT) for link in graph.prompt[key]["inputs"].values()]
    remarks = [graph.prompt[key]["inputs"]["value"] for key in graph.all("PrimitiveString") if [key, 0] in joined]
    return [said for said in remarks if said.startswith(("video_url", "audio_url"))]


@pytest.mark.parametrize("name", ["video-to-video", "reference-video-to-video"])
def test_a_video_longer_than_the_model_takes_is_cut_and_that_is_told(name: str, clip: Path, tmp_path: Path) -> None:
    long = write_clip(tmp_path / "a.mkv", [np.zeros((32, 32, 3), np.uint8)] * 500, fps=Fraction(50))
    assert settled(name, long, tmp_path)[1].request.num_frames == 481
    assert told(graph_of(name, long, tmp_path)) == [
        "video_url: only the first 481 of its 500 frames are used; to use more, set match_input_fps to false and fps "
        "to a lower value, or send the rest as further requests."
    ]
    (said,) = told(graph_of(name, long, tmp_path, match_video_length=False, match_input_fps=False, num_frames=120))
    assert said == "video_url: only the first 121 of its 240 frames are used; to use more, raise num_frames."
    assert not told(graph_of(name, clip, tmp_path))
    film = settled("extend-video", long, tmp_path)[1].request
    assert film.num_frames == 121 and film.windows is None, "the model sees no more than the context"


def test_a_sound_longer_than_the_video_is_cut_and_that_is_told(clip: Path, tmp_path: Path) -> None:
    """The given video makes the length: 30 frames at 25 frames per second are made as 33."""
    app, sound = APPS["reference-video-to-video"], tmp_path / "five.wav"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 5 * 8000))

    def sentences(seconds: Path, **asked: Any) -> list[str]:
        checked = app.check({"prompt": "x", "video_url": "https://host/v", "audio_url": "https://host/a", **asked})
        checked = app.settle(checked, {"video_url": clip, "audio_url": seconds}, make_settings(tmp_path))
        graph = Graph(app.compose(checked, MODELS_THERE, {each: NAMES[each] for each in checked.files}, "p"))
        return told(graph)

    cut = "of the audio's 5.00 s are used, because the video ends there: to use more"
    assert sentences(sound) == [
        f"audio_url: only the first 1.32 s {cut}, set match_video_length to false and raise num_frames."
    ]
    (said,) = sentences(sound, match_video_length=False, num_frames=100)
    assert said == f"audio_url: only the first 4.20 s {cut}, raise num_frames."
    assert not sentences(sound, match_video_length=False, num_frames=125)
    assert not sentences(clip), "a sound that cannot be read is told by the node that loads it"


def test_a_film_that_gets_too_long_is_refused(clip: Path, tmp_path: Path) -> None:
    app = APPS["extend-video"]
    checked = app.check({"prompt": "x", "video_url": "https://host/a"})
    with pytest.raises(InputError, match=r"^video_url: with the new part it would last 0\.1 minutes, and this"):
        app.settle(checked, {"video_url": clip}, make_settings(tmp_path, max_minutes=0.05))


@pytest.mark.parametrize(
    ("asked", "strength"), [({}, 0), ({"audio_strength": 1}, 0), ({"generate_audio": False}, 1)], ids=str
)
def test_where_there_is_no_sound_it_is_made_or_left_out(
    asked: dict[str, Any], strength: float, clip: Path, tmp_path: Path
) -> None:
    assert settled("video-to-video", clip, tmp_path, **asked)[1].request.audio_strength == strength
    assert ("audio" in graph_of("video-to-video", clip, tmp_path, **asked).inputs(SAVE)) == (strength == 0)


def test_a_file_that_cannot_be_read_is_told_by_its_input(tmp_path: Path) -> None:
    path = tmp_path / "0b.mp4"
    path.write_bytes(b"no video")
    for app in FROM_VIDEO:
        with pytest.raises(InputError, match=r"^video_url: cannot be read"):
            app.check_file("video_url", path)
        app.check_file("audio_url", path)  # the graph's loader reads it


# longer films


def test_nothing_new(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^num_frames: 24 frames leave no new ones beside the 25 that the model sees"):
        settled("extend-video", clip, tmp_path, num_frames=24)


def test_how_a_film_is_made_longer(clip: Path, tmp_path: Path) -> None:
    graph = graph_of("extend-video", clip, tmp_path, num_frames=25, num_context_frames=9)
    retake = graph.inputs(compose_video.RETAKE)
    assert (retake["renew"], retake["extend"], retake["context"], retake["strength"]) == ("both", "forward", 9, 0)
    assert {graph.prompt[key]["inputs"]["latent"][0] for key in graph.all(SAMPLER)} == {*graph.all(compose_video.KEEP)}
    for kind in (SAVE, compose_video.CONDITION, compose_video.DECODE_AUDIO):
        assert graph.inputs(kind)["retake"] == [graph.find(compose_video.RETAKE), 0]
    held = {"video_strength": 0.5, "extend_direction": "backward", "generate_audio": False}
    graph = graph_of("extend-video", clip, tmp_path, ("end_image_url",), num_frames=25, num_context_frames=9, **held)
    retake = graph.inputs(compose_video.RETAKE)
    assert (retake["renew"], retake["extend"], retake["context"]) == ("picture", "backward", 9)
    assert (retake["strength"], retake["begin"], retake["start"], retake["end"]) == (0.5, 0, 0, 0)
    assert graph.has("LTXA2VImageConditioning") and not graph.has("LTXA2VEndImageConditioning")


@pytest.mark.parametrize(("strength", "context", "held"), [(1, 25, 0), (0.4, 25, 0.4), (0, 0, 0)])
def test_how_firmly_the_context_is_held(strength: float, context: int, held: float, clip: Path, tmp_path: Path) -> None:
    """At 1 wholly, and at 0 the model sees none of it."""
    retake = graph_of("extend-video", clip, tmp_path, video_strength=strength).inputs(compose_video.RETAKE)
    assert (retake["context"], retake["strength"]) == (context, held)


# followed ones


def test_the_ic_lora_acts_in_the_first_stage_alone(clip: Path, tmp_path: Path) -> None:
    loras = [{"path": "ink"}, {"path": "https://host/X-IC-LoRA.pt", "scale": 0.5}]
    graph = graph_of("reference-video-to-video/lora", clip, tmp_path, loras=loras, preprocessor="canny")

    def before(key: str) -> set[str]:
        found = sources(graph.prompt, key)
        return found.union(*map(before, found)) if found else found

    reference = graph.find(compose_video.REFERENCE)
    assert graph.prompt[reference]["inputs"]["clip"] == [graph.find(compose_video.EDGES), 0]
    titles = (compose_video.IC_LORA, compose_video.OWN_IC_LORA)
    reading = {key for key in graph.all("LTXA2VLora") if graph.title(key) in titles}
    named = {key: graph.prompt[key]["inputs"]["lora"] for key in graph.all("LTXA2VLora")}
    assert {named[key] for key in reading} == {f"ic/{UNION}", "X-IC-LoRA.pt"} and len(named) == 3
    size = graph.inputs(compose_video.VIDEO_SIZE)["model"][0]
    assert reading <= {size, *before(size)}, "the size fits the reference of any of them"
    steered = graph.prompt[graph.find("LTXA2VAcceleration")]["inputs"]
    assert reading <= before(reference) and reading <= {steered["first_model"][0], *before(steered["first_model"][0])}
    assert not reading & {steered["second_model"][0], *before(steered["second_model"][0])}
    first, second = (graph.inputs(SAMPLER, title) for title in ("First stage", "Second stage"))
    assert first["references"] == [reference, 0] and "references" not in second
    fields = {named[key]: field_of(graph.prompt, key) for key in named}
    assert fields == {f"ic/{UNION}": "ic_lora_type", "X-IC-LoRA.pt": "loras", "ink.safetensors": "loras"}


def test_without_a_strength_there_is_no_reference(clip: Path, tmp_path: Path) -> None:
    for kind in ("union", "detailer"):  # the latter is not installed, and not needed
        graph = graph_of("reference-video-to-video", clip, tmp_path, video_strength=0, ic_lora_type=kind)
        assert not graph.has(compose_video.REFERENCE) and not graph.has("LTXA2VLora")
    graph = graph_of("video-to-video", clip, tmp_path, video_strength=0)
    assert not graph.has(compose_video.RETAKE) and graph.has(compose_video.CLIP), "its sound and its length are taken"


def test_a_sound_of_its_own_takes_the_place_of_the_clip_s(clip: Path, tmp_path: Path) -> None:
    graph = graph_of("reference-video-to-video", clip, tmp_path, ("audio_url",))
    assert graph.inputs("LTXA2VLoadAudio")["audio"] == NAMES["audio_url"]
    assert not graph_of("reference-video-to-video", clip, tmp_path).has("LTXA2VLoadAudio")


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / ("0c" * 16 + ".png")
    Image.new("RGB", (300, 200), "red").save(path)
    return path


def spoken(path: Path, seconds: float) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2 * round(8000 * seconds)))
    return path


@pytest.mark.parametrize(
    ("seconds", "asked", "expected"),
    [
        (3.0, {}, (24, 73, (300, 200), 1)),
        (3.0, {"fps": 30}, (30, 97, (300, 200), 1)),
        (60.0, {}, (24, 481, (300, 200), 1)),
        (3.0, {"match_video_length": False, "video_size": "square"}, (24, 121, "square", 1)),
        (None, {}, (24, 121, (300, 200), 0)),
    ],
)
def test_a_picture_gives_its_size_and_the_sound_the_length(
    seconds: float | None, asked: dict[str, Any], expected: Any, sheet: Path, tmp_path: Path
) -> None:
    app, files = APPS["reference-video-to-video"], {"video_url": sheet}
    files |= {} if seconds is None else {"audio_url": spoken(tmp_path / ("0d" * 16 + ".wav"), seconds)}
    checked = app.check({"prompt": "x", "seed": 1, **dict.fromkeys(files, "https://host/a"), **asked})
    app.check_file("video_url", sheet)
    found = app.settle(checked, files, make_settings(tmp_path))
    request = found.request
    assert (request.fps, request.num_frames, request.video_size, request.audio_strength) == expected
    assert bool(found.own["said"]) == (seconds == 60)


@pytest.mark.parametrize(
    ("name", "version"),
    [("reference-video-to-video", "2.3"), ("local/ltx-2.5-22b/distilled/reference-video-to-video", "2.5")],
)
def test_people_of_a_picture_speak_with_a_given_voice(name: str, version: str, sheet: Path, tmp_path: Path) -> None:
    app = APPS[name]
    key = {"2.3": "ingredients", "2.5": "ingredients-2.5"}[version]
    assert version in MODELS[key].name
    there = replace(MODELS_THERE, loras=(f"ic/{MODELS[key].name}",))
    urls = dict.fromkeys(("video_url", "audio_url"), "https://host/a")
    checked = app.check({"prompt": "x", "seed": 1, **urls, "ic_lora_type": "ingredients"})
    files = {"video_url": sheet, "audio_url": spoken(tmp_path / "a.wav", 3)}
    checked = app.settle(checked, files, make_settings(tmp_path))
    names = {**NAMES, "video_url": "ltx_a2v_api/s.png"}
    graph = Graph(app.compose(checked, there, {field: names[field] for field in files}, "p"))
    loaded = graph.find("LTXA2VLoadImage", compose_video.REFERENCE_PICTURE)
    assert graph.prompt[loaded]["inputs"] == {"image": "ltx_a2v_api/s.png"}
    assert graph.inputs(compose_video.CLIP)["images"] == [loaded, 0] and not graph.has(compose_video.LOAD_VIDEO)
    assert "video" not in graph.inputs(compose_video.CLIP)
    assert graph.inputs("LTXA2VLoadAudio")["audio"] == NAMES["audio_url"]
    lora = graph.find("LTXA2VLora", compose_video.IC_LORA)
    assert graph.prompt[lora]["inputs"]["lora"] == f"ic/{MODELS[key].name}"
    reference = graph.find(compose_video.REFERENCE)
    assert graph.prompt[reference]["inputs"]["clip"] == [graph.find(compose_video.CLIP), 0]
    assert field_of(graph.prompt, loaded) == field_of(graph.prompt, reference) == "video_url"
    with pytest.raises(ModelMissing, match=f"download {key} --yes"):
        app.compose(checked, MODELS_THERE, {field: names[field] for field in files}, "p")


def test_an_ic_lora_needs_the_application_that_follows(clip: Path, tmp_path: Path) -> None:
    for name in ("video-to-video/lora", "extend-video/lora"):
        with pytest.raises(InputError, match=r"^loras: X-IC-LoRA.pt is an IC-LoRA, which needs a video to follow; use"):
            graph_of(name, clip, tmp_path, loras=[{"path": "X-IC-LoRA"}])
    with pytest.raises(ModelMissing, match="download detailer --yes"):
        graph_of("reference-video-to-video", clip, tmp_path, ic_lora_type="detailer")


def test_a_node_s_sentence_is_about_the_input(clip: Path, tmp_path: Path) -> None:
    graph = graph_of("video-to-video", clip, tmp_path)
    for kind in (compose_video.LOAD_VIDEO, compose_video.CLIP, compose_video.RETAKE, *[compose_video.KEEP]):
        assert {field_of(graph.prompt, key) for key in graph.all(kind)} == {"video_url"}
    assert in_request_words(graph.prompt, "v.mp4: is damaged.") == "video_url: is damaged."


def test_all_reports_are_in_the_file(clip: Path, tmp_path: Path) -> None:
    """A Report joins so many; with 16 LoRAs there are more."""
    text = (ROOT / "nodes" / "output.py").read_text(encoding="utf-8")
    assert f"\nREPORTS = {MOST_REPORTS}  #" in text
    asked = {"loras": [{"path": "ink"}] * 16, "camera_lora": "dolly_in"}
    graph = graph_of("video-to-video/lora", clip, tmp_path, **asked)
    told, key = set(), graph.inputs(SAVE)["report"][0]
    while key is not None:
        inputs, key = graph.prompt[key]["inputs"], None
        assert len(inputs) <= MOST_REPORTS
        for source, _ in inputs.values():
            key = source if graph.prompt[source]["class_type"] == REPORT else key
            told.add(source)
    assert {*graph.all("LTXA2VLora"), *graph.all(SAMPLER), *graph.all(compose_video.CLIP)} <= told


# mistakes that nodes find

IMAGES = ("LTXA2VLoadImage", "LTXA2VImageConditioning", "LTXA2VEndImageConditioning")
SOUNDS = ("LTXA2VFrameCount", "LTXA2VPreprocessAudio", compose_video.CONDITION)


@pytest.mark.parametrize("name", APPS)
def test_a_node_s_mistake_is_about_an_input_that_the_client_sent(name: str, clip: Path, tmp_path: Path) -> None:
    loras = {"loras": [{"path": "ink"}]} if name.endswith("/lora") else {}
    graph = graph_of(name, clip, tmp_path, **loras)
    assert {field_of(graph.prompt, key) for key in graph.prompt} <= {
        *("video_url", "ic_lora_type", "video_size", None),
        *loras,
    }
    assert {field_of(graph.prompt, key) for kind in SOUNDS for key in graph.all(kind)} == {"video_url"}


def test_a_sound_of_its_own_is_told_as_that(clip: Path, tmp_path: Path) -> None:
    graph = graph_of("reference-video-to-video", clip, tmp_path, ("audio_url",))
    assert {field_of(graph.prompt, key) for kind in SOUNDS for key in graph.all(kind)} == {"audio_url"}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_end_image_is_the_end_image_where_it_is_the_first_frame(direction: str, clip: Path, tmp_path: Path) -> None:
    graph = graph_of("extend-video", clip, tmp_path, ("end_image_url",), extend_direction=direction)
    nodes = [key for kind in IMAGES for key in graph.all(kind)]
    assert len(nodes) == 3 and {field_of(graph.prompt, key) for key in nodes} == {"end_image_url"}
    said = in_request_words(graph.prompt, "e.png: cannot be read as an image.")
    assert said == "end_image_url: cannot be read as an image."
