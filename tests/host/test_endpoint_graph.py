"""What the endpoint has beyond the plain graph, on the real server: beside the command, in files, and when wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from a2v.ltx.media import audio, probe
from a2v.ltx.prompt.expand import expand
from a2v.ltx.prompt.gemma import load_gemma
from a2v.tests.host import graph
from a2v.tests.host.comfy import Comfy, Event, Prompt, PromptRejected, Run
from a2v.tests.host.command import command_files, run_request
from a2v.tests.ltx.media.test_safety import write as write_classifier
from a2v.tests.tiny import TinyFiles
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
SPEECH = ROOT / "assets" / "speech.opus"
FAST = {"size": (64, 64), "steps": 2, "frames": 9, "seed": 7}
OFFICIAL = "ltx-2-19b-lora-camera-control-dolly-in.safetensors"
FILE = {"format": "X264 (.mp4)", "quality": "high", "write_mode": "balanced"}


@pytest.fixture(scope="module")
def sound(comfy: Comfy) -> str:
    return comfy.upload(SPEECH)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that is neither a multiple of the grid nor as flat as one colour."""
    small = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(8), dtype=torch.uint8).numpy()
    path = tmp_path_factory.mktemp("pictures") / "endpoint-first.png"
    Image.fromarray(small).resize((120, 70), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def camera(models: TinyFiles) -> Iterator[Path]:
    """The tiny camera LoRA under the official name, deeper and in other letters than the node looks for it; its layers
    are named as kohya's scripts do, and every third one is a DoRA."""
    path = models.camera_lora.parent / "LTX-2" / "Camera" / OFFICIAL.upper().replace(".SAFETENSORS", ".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    written: dict[str, Tensor] = {}
    pairs = load_file(models.camera_lora)
    for number, layer in enumerate(sorted({key.split(".lora_")[0] for key in pairs})):
        name = "lora_unet_" + layer.removeprefix("diffusion_model.").replace(".", "_")
        down, up = (pairs[f"{layer}.lora_{half}.weight"] for half in "AB")
        written |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        written[f"{name}.alpha"] = torch.tensor(1.5 * len(down))
        if number % 3 == 0:
            written[f"{name}.dora_scale"] = torch.linspace(0.5, 1.5, len(up))[:, None]
    save_file(written, path)
    yield path
    path.unlink()  # the server is the session's


@pytest.fixture
def classifier(comfy: Comfy) -> Iterator[Path]:
    """A tiny ResNet that takes bright frames for unsafe, installed for one test."""
    folder = comfy.base / "models" / "safety_checker"
    yield write_classifier(folder / "bright")
    shutil.rmtree(folder)


def report_of(run: Run) -> dict[str, Any]:
    assert run.error is None, run.message
    (report,) = run.outputs["save"]["report"]
    return report


def file_of(comfy: Comfy, run: Run) -> Path:
    report_of(run)
    return comfy.path(run.outputs["save"]["images"][0])


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_everything_at_once_is_the_command_bit_for_bit(
    comfy: Comfy, models: TinyFiles, sound: str, picture: Path, camera: Path, tmp_path: Path
) -> None:
    scales = {"cfg": 2.5, "stg": 0.5, "rescale": 0.4, "modality": 1.5}
    audio_scales = {"cfg": 3.0, "stg": 0.5, "rescale": 0.3, "modality": 2.0}
    prompt = graph.audio_to_video(
        models,
        sound,
        image=comfy.upload(picture),
        prompt="a woman speaks",
        negative="static",
        video_size="auto",
        seed=2**33 + 3,
        steps=3,
        frames=17,
        camera=("dolly_in", 0.8),
        audio_strength=0.6,
        audio_guidance=audio_scales,
        preprocess=True,
        restart={},
        expand=True,
        image_strength=0.9,
        gradient_estimation_gamma=1.5,
        prefix="endpoint",
        **scales,
    )
    prompt["png"] = {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "endpoint"}}
    run = comfy.run(prompt)
    report = report_of(run)
    drawn = np.stack([np.asarray(Image.open(comfy.path(result))) for result in run.outputs["png"]["images"]])

    request = {
        "prompt": "a woman speaks",
        "negative_prompt": "static",
        "video_size": "auto",
        "seed": 2**33 + 3,
        "num_inference_steps": 3,
        "num_frames": 17,
        "match_audio_length": False,
        "camera_lora": "dolly_in",
        "camera_lora_scale": 0.8,
        "audio_strength": 0.6,
        "image_strength": 0.9,
        "gradient_estimation_gamma": 1.5,
        "enable_safety_checker": False,
        **{name: scales[key] for name, key in names_of("video")},
        **{name: audio_scales[key] for name, key in names_of("audio")},
    }
    own = {"camera-lora": camera, "image": picture}
    own |= {"trace": tmp_path / "trace.safetensors", "output": tmp_path / "out.mp4"}
    done = run_request(tmp_path, request, {**command_files(models), **own})
    used = json.loads(done.out)

    written = " ".join(used["prompt"].split())
    assert written != "a woman speaks" and f"prompt: {written}" in report["notes"]
    trace = load_file(tmp_path / "trace.safetensors")
    assert drawn.shape == (17, 128, 128, 3)
    assert np.array_equal(drawn, trace["final/frames_u8"].numpy())
    saved = comfy.path(run.outputs["save"]["images"][0])
    ours, theirs = audio.load_track(saved), audio.load_track(tmp_path / "out.mp4")
    assert ours.rate == 48000 and torch.equal(ours.waveform, theirs.waveform)

    # What the command says of the input, the graph says too. *Decode* has no report: its tiles stand on the node.
    notes = [line.removeprefix("note: ") for line in done.error.splitlines() if line.startswith("note: ")]
    notes.remove("decoded whole")
    for line in notes:
        assert any(line in note for note in report["notes"]), line
    assert any("size changed from 120×70 to 128×128" in note for note in report["notes"])
    keys = load_file(camera).keys()
    dora, layers = (sum(key.endswith(end) for key in keys) for end in (".dora_scale", ".lora_up.weight"))
    told = f"all of its {layers} layers applied ({dora} DoRA, {layers - dora} LoRA); strength 0.8"
    assert f"{camera.name}: {told}" in report["notes"]
    assert any(note.startswith(f"seed {2**33 + 3}, 3 steps of euler, 4 passes") for note in report["notes"])


def names_of(stream: str) -> list[tuple[str, str]]:
    """The endpoint's name and the node's of each scale of a stream."""
    keys = (("cfg", "cfg"), ("stg", "stg"), ("rescaling", "rescale"), ("modality", "modality"))
    return [(f"{stream}_{name}_scale", key) for name, key in keys]


def long_winded(models: TinyFiles) -> int:
    """A seed with which the tiny Gemma, here as on the server, goes on for long."""
    gemma, lengths = load_gemma(models.gemma, torch.float32), []
    for seed in range(20):
        expand(gemma, "a person speaks", seed=seed, on_token=lambda done, *_: lengths.append(done))
        if lengths[-1] > 200:
            return seed
    raise AssertionError(f"no long text in 20, the longest {max(lengths)} tokens")


@pytest.mark.soak
def test_a_prompt_is_written_token_by_token_and_can_be_stopped(comfy: Comfy, models: TinyFiles, sound: str) -> None:
    late: list[Event] = []
    sent = False

    def stop(event: Event) -> None:
        nonlocal sent
        if event.type != "progress" or event.data["node"] != "expand":
            return
        if sent:
            late.append(event)
        elif event.data["value"] >= 3:
            comfy.interrupt()
            sent = True

    prompt = graph.audio_to_video(models, sound, expand=True, **{**FAST, "seed": long_winded(models)})
    run = comfy.run(prompt, on_event=stop)
    assert sent and run.interrupted and run.error is None
    assert len(late) < 100 and "positive" not in run.executed


def test_one_pass_and_the_hq_sampler(comfy: Comfy, models: TinyFiles, sound: str) -> None:
    prompt = graph.audio_to_video(models, sound, two_passes=False, sampler="res_2s", prefix="hq", **FAST)
    report = report_of(comfy.run(prompt))
    assert (report["width"], report["height"], report["frames"]) == (64, 64, 9)
    assert "upscale" not in prompt and any("2 steps of res_2s" in note for note in report["notes"])


def test_kept_audio_is_not_guided_and_the_report_says_so(comfy: Comfy, models: TinyFiles, sound: str) -> None:
    runs = []
    for guidance in (None, {"cfg": 1.0}, {"cfg": 9.0, "stg": 1.0}):
        prompt = graph.audio_to_video(models, sound, audio_guidance=guidance, prefix="kept", **FAST)
        prompt["png"] = {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "kept"}}
        runs.append(comfy.run(prompt))
    frames = [np.stack([np.asarray(Image.open(comfy.path(r))) for r in run.outputs["png"]["images"]]) for run in runs]
    assert (frames[0] == frames[1]).all() and (frames[0] == frames[2]).all()
    said = [any("audio guidance did nothing" in note for note in report_of(run)["notes"]) for run in runs]
    assert said == [False, True, True]


def grey(sound: str, **save: object) -> Prompt:
    """A sound's way to a file beside grey frames, with the save node's inputs."""
    nodes: dict[str, tuple[str, dict[str, object]]] = {
        "audio": ("LTXA2VLoadAudio", {"audio": sound}),
        "frames": (
            "LTXA2VFrameCount",
            {"audio": ["audio", 0], "frame_rate": 23.976, "match_audio_length": False, "num_frames": 17},
        ),
        "grey": ("EmptyImage", {"width": 64, "height": 48, "batch_size": ["frames", 0], "color": 8421504}),
        "joined": ("LTXA2VReport", {"report_1": "first", "report_3": "", "report_8": ["frames", 2]}),
        "save": (
            "LTXA2VSaveVideo",
            {
                "images": ["grey", 0],
                "fps": ["frames", 1],
                "filename_prefix": "formats/clip",
                "audio": ["audio", 0],
                "report": ["joined", 0],
                **FILE,
                **save,
            },
        ),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


@pytest.mark.parametrize(
    ("format", "suffix", "codecs", "mode"),
    [
        ("X264 (.mp4)", ".mp4", ("h264", "aac"), "small"),
        ("VP9 (.webm)", ".webm", ("vp9", "opus"), "fast"),
        ("PRORES4444 (.mov)", ".mov", ("prores", "pcm_s24le"), "balanced"),
        ("GIF (.gif)", ".gif", ("gif", None), "balanced"),
    ],
)
def test_each_format_is_a_file_with_its_graph_and_its_report(
    comfy: Comfy, sound: str, format: str, suffix: str, codecs: tuple[str, str | None], mode: str
) -> None:
    run = comfy.run(grey(sound, format=format, quality="low", write_mode=mode))
    path, report = file_of(comfy, run), report_of(run)
    assert path.suffix == suffix
    with av.open(str(path)) as container:  # independent of what the writer says of itself
        streams = container.streams
        found = [streams.video[0].codec_context.name, streams.audio[0].codec_context.name if streams.audio else None]
        assert sum(1 for _ in container.decode(video=0)) == 17
    assert (found[0].removeprefix("lib"), (found[1] or "").removeprefix("lib") or None) == codecs
    facts = {"frames": 17, "width": 64, "height": 48, "format": format, "quality": "low", "write_mode": mode}
    assert facts.items() <= report.items() and (report["video_codec"], report["size"]) == (
        found[0],
        path.stat().st_size,
    )
    if suffix != ".gif":
        assert report["fps"] == "24000/1001"
    said = ["first", report["notes"][1]]
    assert report["notes"] == said and said[1].startswith("17 frames, 0.71 s")
    kept = probe.probe(path).metadata
    assert "LTXA2VSaveVideo" in kept["prompt"]
    comment = json.loads(kept["comment"])
    assert comment["notes"] == said and comment["used"]["fps"] == "24000/1001" and str(comfy.base) not in str(kept)


def test_decoding_into_the_file_gives_the_same_file(comfy: Comfy, models: TinyFiles, sound: str) -> None:
    """ProRes is compared, for each of its frames stands alone. Small tiles, so that they come one after another."""
    output = {"format": "PRORES4444 (.mov)", "quality": "maximum"}
    files, reports = [], []
    for stream in (False, True):
        prompt = graph.audio_to_video(
            models, sound, stream=stream, output=output, prefix=f"stream-{stream}", **{**FAST, "frames": 33}
        )
        for node in ("decode", "save"):
            if "tile_frames" in prompt.get(node, {"inputs": {}})["inputs"]:
                prompt[node]["inputs"].update(tile_frames=16, tile_frame_overlap=8)
        run = comfy.run(prompt)
        files.append(file_of(comfy, run))
        reports.append(report_of(run))
    assert np.array_equal(decoded(files[0]), decoded(files[1])) and decoded(files[0]).shape == (33, 64, 64, 3)
    assert torch.equal(audio.load_track(files[0]).waveform, audio.load_track(files[1]).waveform)
    assert reports[1]["notes"] == [
        *reports[0]["notes"],
        "decoded in 4 tiles of at most 16 frames and 64 pixels; 73 % of the clip twice",
        "the safety checker did not run: none is installed in models/safety_checker",
    ]


def checked(color: int, sound: str, **inputs: object) -> Prompt:
    prompt = grey(sound)
    prompt["grey"]["inputs"]["color"] = color
    given = {"checker": "first found", "threshold": 0.5, "frames_looked_at": 4, "action": "replace", **inputs}
    prompt["safety"] = {"class_type": "LTXA2VSafetyChecker", "inputs": {"images": ["grey", 0], **given}}
    prompt["flagged"] = {"class_type": "PreviewAny", "inputs": {"source": ["safety", 1]}}
    prompt["save"]["inputs"].update(images=["safety", 0], report=["safety", 2])
    return prompt


WHITE, DARK = 0xF0F0F0, 0x101010


def test_without_a_classifier_the_video_is_made_and_the_report_says_it_was_not_checked(
    comfy: Comfy, sound: str
) -> None:
    run = comfy.run(checked(WHITE, sound))
    said = "the safety checker did not run: none is installed in models/safety_checker"
    assert report_of(run)["notes"] == [said] and run.outputs["flagged"]["text"] == ["False"]
    assert said in comfy.log and decoded(file_of(comfy, run)).mean() > 200


def test_a_flagged_clip_is_replaced_or_refused(comfy: Comfy, sound: str, classifier: Path) -> None:
    passed = comfy.run(checked(DARK, sound))
    (note,) = report_of(passed)["notes"]
    assert note.startswith("the safety checker bright passed the clip (4 frames looked at), highest score 0.")
    assert passed.outputs["flagged"]["text"] == ["False"] and decoded(file_of(comfy, passed)).mean() > 5

    replaced = comfy.run(checked(WHITE, sound, checker="bright"))
    (note,) = report_of(replaced)["notes"]
    assert "flagged the clip (frame 0: " in note and note.endswith("black frames stand in for it")
    assert replaced.outputs["flagged"]["text"] == ["True"] and decoded(file_of(comfy, replaced)).max() == 0
    assert audio.load_track(file_of(comfy, replaced)).waveform.abs().max() > 0.01

    refused = comfy.run(checked(WHITE, sound, action="refuse"))
    assert refused.error["node_id"] == "safety" and "nothing was saved" in refused.message
    assert "\n" not in refused.message and "save" not in refused.outputs


def test_a_clip_that_is_flagged_on_its_way_into_the_file(
    comfy: Comfy, models: TinyFiles, sound: str, classifier: Path
) -> None:
    def run(threshold: float, action: str) -> Run:
        safety = {"checker": "bright", "threshold": threshold, "action": action}
        return comfy.run(
            graph.audio_to_video(models, sound, stream=True, safety=safety, prefix=f"watched-{action}", **FAST)
        )

    passed = run(1.0, "refuse")
    assert report_of(passed)["notes"][-1] == "the safety checker bright passed the clip (9 frames looked at)"
    assert decoded(file_of(comfy, passed)).std() > 1
    replaced = run(0.01, "replace")
    path = file_of(comfy, replaced)
    assert decoded(path).shape == (9, 64, 64, 3) and decoded(path).max() == 0
    assert audio.load_track(path).waveform.abs().max() > 0.01
    assert "black frames" in json.loads(probe.probe(path).metadata["comment"])["notes"][-1]
    before = sorted(path.parent.iterdir())
    refused = run(0.01, "refuse")
    assert refused.error["node_id"] == "save" and "nothing was saved" in refused.message
    assert "\n" not in refused.message and sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("node", "inputs", "said"),
    [
        ("size", {"video_size": "huge"}, "video_size is 'huge': choose one of custom, auto"),
        ("size", {"width": 10}, "smaller than min"),
        ("camera", {"camera_lora": "zoom"}, "camera_lora is 'zoom': choose one of dolly_in"),
        (
            "camera",
            {"camera_lora": "jib_up"},
            "ltx-2-19b-lora-camera-control-jib-up.safetensors is not in models/loras",
        ),
        ("camera", {"strength": 1.5}, "bigger than max"),
        ("preprocess", {"fps": 0.0}, "smaller than min"),
        ("preprocess", {"frames": 0}, "smaller than min"),
        ("sound", {"strength": -0.5}, "smaller than min"),
        ("expand", {"seed": -1}, "smaller than min"),
        ("restart", {"restarts": 1, "sigma_min": 0.8}, "restart goes from sigma 0.8 back to 0.7"),
        ("restart", {"noise": 1.5}, "bigger than max"),
        ("audio guidance", {"stg_blocks": "all"}, "stg_blocks: 'all'"),
        ("first", {"sampler": "heun"}, "sampler is 'heun': choose one of euler, res_2s"),
        ("first", {"sampler": "res_2s"}, "res_2s renews noise by itself"),
        ("track", {"before": ["other sound", 0]}, "connect the audio of one run"),
        ("safety", {"checker": "../../etc"}, "'../../etc' is not a folder with a config.json in models/safety_checker"),
        ("safety", {"action": "ignore"}, "action is 'ignore': choose one of replace, refuse"),
        ("save", {"format": "AVI"}, "format is 'AVI': choose one of X264 (.mp4)"),
        ("save", {"quality": "ultra"}, "quality is 'ultra': choose one of low"),
        ("save", {"write_mode": "slow"}, "write mode is 'slow': choose one of fast"),
        ("stream", {"checker": "nothing"}, "'nothing' is not a folder with a config.json in models/safety_checker"),
        ("stream", {"action": "ignore"}, "action is 'ignore': choose one of replace, refuse"),
        ("stream", {"format": "AVI"}, "format is 'AVI': choose one of X264 (.mp4)"),
        ("stream", {"tile_overlap": 64, "tile_size": 64}, "The tile overlap of 64 pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistake_is_one_sentence_on_the_node_that_makes_it(
    comfy: Comfy, models: TinyFiles, sound: str, camera: Path, node: str, inputs: dict[str, Any], said: str
) -> None:
    options: dict[str, Any] = {"stream": node == "stream"}
    if node in ("safety", "restart", "audio guidance", "camera", "expand", "preprocess", "first"):
        options |= {"safety": {}, "restart": {}, "audio_guidance": {}, "camera": ("dolly_in", 1.0), "preprocess": True}
    prompt = graph.audio_to_video(models, sound, expand=node == "expand", audio_strength=0.6, **options, **FAST)
    if node == "track":
        other = {**prompt["sound"]["inputs"], "frames": 17}
        prompt["other sound"] = {"class_type": "LTXA2VAudioConditioning", "inputs": other}
    name = "save" if node == "stream" else node
    prompt[name]["inputs"].update(inputs)
    try:
        run = comfy.run(prompt)
    except PromptRejected as refused:
        assert set(refused.node_errors) >= {name}
        (error,) = refused.node_errors[name]["errors"]
        message = f"{error['message']}: {error['details']}"
        if error["type"] == "value_not_in_list":
            said = comfy.not_an_option(prompt[name]["class_type"], *next(iter(inputs.items())))
    else:
        assert run.error is not None and run.error["node_id"] == name, run.message
        assert run.error["exception_type"].endswith("InputError")
        message = run.message
    assert said in message and "\n" not in message
