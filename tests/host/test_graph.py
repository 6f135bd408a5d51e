"""The graph on the real server: what it makes, what it keeps, how it stops, what it says; and beside stock nodes."""

from __future__ import annotations

import math
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from a2v.tests.host.comfy import Comfy, Event, Prompt, PromptRejected, Run
from a2v.tests.host.graph import audio_to_video
from a2v.tests.tiny import TinyFiles
from PIL import Image

FAST = {"size": (64, 64), "steps": 2, "frames": 9}
FILE = {"format": "X264 (.mp4)", "quality": "high", "write_mode": "balanced"}


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """A sine, louder in each further channel: int16 [samples, channels]."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([np.sin(2 * math.pi * 330 * time) * 3000 * (c + 1) for c in range(channels)], 1).astype(np.int16)


def write_wav(path: Path, seconds: float = 0.5, rate: int = 16000, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setparams((channels, 2, rate, 0, "NONE", ""))
        out.writeframes(tone(seconds, rate, channels).tobytes())
    return path


def write_sound(path: Path, codec: str, layout: str, rate: int, seconds: float = 0.5, picture: bool = False) -> Path:
    """Any container and codec, by its name; with a picture it is a video."""
    channels = av.AudioLayout(layout).nb_channels
    with av.open(str(path), "w") as container:
        if picture:
            video = container.add_stream("libx264", rate=24)
            video.width = video.height = 32
        stream = container.add_stream(codec, rate=rate, layout=layout)
        if codec == "flac":
            stream.format = "s32"
        if picture:
            for number in range(round(seconds * 24)):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number * 5, np.uint8), "rgb24")
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        samples = tone(seconds, rate, channels)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", layout)
        frame.sample_rate = rate
        for block in [*av.AudioResampler(stream.format, layout, rate).resample(frame)]:
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture(scope="module")
def sound(comfy: Comfy, folder: Path) -> str:
    return comfy.upload(write_wav(folder / "tone.wav"))


@pytest.fixture(scope="module")
def pictures(comfy: Comfy, folder: Path) -> tuple[str, str]:
    names = []
    for number, color in enumerate(((200, 30, 60), (20, 140, 220))):
        path = folder / f"picture{number}.png"
        Image.new("RGB", (80, 60), color).save(path)
        names.append(comfy.upload(path))
    return names[0], names[1]


def video_of(comfy: Comfy, run: Run, node: str = "save") -> Path:
    assert run.error is None, run.message
    (result,) = run.outputs[node]["images"]
    return comfy.path(result)


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def with_frames(prompt: Prompt) -> Prompt:
    """The graph with its frames saved as they are: at 64 pixels a side x264 now and then encodes the same ones anew."""
    prompt["png"] = {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "frames"}}
    return prompt


def saved_frames(comfy: Comfy, run: Run) -> np.ndarray:
    assert run.error is None, run.message
    return np.stack([np.asarray(Image.open(comfy.path(result))) for result in run.outputs["png"]["images"]])


def test_a_video_and_its_report(comfy: Comfy, models: TinyFiles, sound: str, pictures: tuple[str, str]) -> None:
    run = comfy.run(
        audio_to_video(models, sound, image=pictures[0], end_image=pictures[1], prefix="nested/report", **FAST)
    )
    path = video_of(comfy, run)
    assert path.parent == comfy.base / "output" / "nested" and run.outputs["save"]["animated"] == [True]
    assert frames_of(path).shape == (9, 64, 64, 3)
    (report,) = run.outputs["save"]["report"]
    assert (report["filename"], report["subfolder"]) == (path.name, "nested")
    facts = {"width": 64, "height": 64, "frames": 9, "fps": "24", "duration": 0.375, "size": path.stat().st_size}
    assert facts.items() <= report.items() and str(comfy.base) not in str(report)
    assert "9 frames, 0.38 s" in report["notes"]
    with av.open(str(path)) as container:
        embedded = container.metadata["prompt"]
    assert '"LTXA2VSampler"' in embedded and str(comfy.base) not in embedded
    steps = [e.data for e in run.events if e.type == "progress" and e.data["node"] in ("first", "second")]
    assert [(e["node"], e["value"], e["max"]) for e in steps if e["value"]] == [
        *(("first", n, 2) for n in (1, 2)),
        *(("second", n, 3) for n in (1, 2, 3)),
    ]
    assert sum(e.type == "preview" for e in run.events) == 5, "a preview for each step"


def test_previews_can_be_switched_off(comfy: Comfy, models: TinyFiles, sound: str) -> None:
    """By the setting of the page, which comes along with the prompt."""
    seen = {}
    for number, method in enumerate(("none", "auto")):
        prompt = audio_to_video(models, sound, seed=70 + number, **FAST)
        run = comfy.run(prompt, extra_data={"preview_method": method})
        assert run.error is None, run.message
        seen[method] = sum(e.type == "preview" for e in run.events)
    assert seen == {"none": 0, "auto": 5}


def test_a_list_of_sounds_makes_a_video_of_each(comfy: Comfy, models: TinyFiles, folder: Path, sound: str) -> None:
    """Create List, of newer hosts, hands on one sound after the other."""
    if "CreateList" not in comfy.object_info():
        pytest.skip("this host has no Create List")
    prompt = audio_to_video(models, sound, **FAST)
    other = comfy.upload(write_wav(folder / "longer.wav", seconds=0.9))
    for node in prompt.values():
        node["inputs"] |= {name: ["list", 0] for name, value in node["inputs"].items() if value == ["audio", 0]}
    prompt["audio 2"] = {"class_type": "LTXA2VLoadAudio", "inputs": prompt["audio"]["inputs"] | {"audio": other}}
    inputs = {"inputs.input0": ["audio", 0], "inputs.input1": ["audio 2", 0]}
    prompt["list"] = {"class_type": "CreateList", "inputs": inputs}
    run = comfy.run(prompt)
    assert run.error is None, run.message
    reports = run.outputs["save"]["report"]
    assert len({report["filename"] for report in reports}) == 2


def test_a_list_of_pictures_makes_a_video_of_each(
    comfy: Comfy, models: TinyFiles, sound: str, pictures: tuple[str, str]
) -> None:
    """A list that every host can make: what it repeats, it repeats with the picture that stands at that place."""
    alone = [with_frames(audio_to_video(models, sound, image=name, **FAST)) for name in pictures]
    prompt = with_frames(audio_to_video(models, sound, image=pictures[0], **FAST))
    (loaded,) = (key for key, node in prompt.items() if node["class_type"] in ("LoadImage", "LTXA2VLoadImage"))
    for node in prompt.values():
        node["inputs"] |= {name: ["list", 0] for name, value in node["inputs"].items() if value == [loaded, 0]}
    prompt["other"] = {**prompt[loaded], "inputs": prompt[loaded]["inputs"] | {"image": pictures[1]}}
    prompt["both"] = {"class_type": "ImageBatch", "inputs": {"image1": [loaded, 0], "image2": ["other", 0]}}
    prompt["list"] = {"class_type": "RebatchImages", "inputs": {"images": ["both", 0], "batch_size": 1}}
    found = saved_frames(comfy, comfy.run(prompt))
    assert (found == np.concatenate([saved_frames(comfy, comfy.run(each)) for each in alone])).all()


def test_a_negative_seed_and_a_whole_number_of_frames_per_second(
    comfy: Comfy, models: TinyFiles, sound: str, pictures: tuple[str, str]
) -> None:
    """A seed that the page draws at random may be negative, and fps may come from a node for whole numbers."""
    prompt = audio_to_video(models, sound, image=pictures[0], **FAST)
    prompt["whole"] = {"class_type": "PrimitiveInt", "inputs": {"value": 12}}
    prompt["seed"] = {"class_type": "PrimitiveInt", "inputs": {"value": -(2**50)}}
    linked = [
        (node["inputs"], name)
        for node in prompt.values()
        for name in node["inputs"]
        if node["class_type"].startswith("LTXA2V") and name in ("fps", "frame_rate")
    ]
    for inputs, name in linked:
        inputs[name] = ["whole", 0]
    for node in prompt.values():
        for name in ("noise_seed", "seed"):
            if name in node["inputs"]:
                node["inputs"][name] = ["seed", 0]
    run = comfy.run(prompt)
    assert run.error is None, run.message
    assert len(linked) >= 3 and run.outputs["save"]["report"][0]["fps"] == "12"


def test_an_image_at_any_frame(comfy: Comfy, models: TinyFiles, sound: str, pictures: tuple[str, str]) -> None:
    def made(changes: dict[str, int] | None) -> np.ndarray:
        prompt = with_frames(audio_to_video(models, sound, image=pictures[0], end_image=pictures[1], seed=8, **FAST))
        for key in ("end image first", "end image second"):
            if changes is not None:
                prompt[key]["class_type"] = "LTXA2VKeyframe"
                prompt[key]["inputs"] |= changes
        return saved_frames(comfy, comfy.run(prompt))

    end = made(None)
    assert (made({"frame": -1}) == end).all() and (made({"frame": 8}) == end).all()
    assert (made({"frame": 4}) != end).any()


def test_another_seed_encodes_nothing_again(
    comfy: Comfy, models: TinyFiles, sound: str, pictures: tuple[str, str]
) -> None:
    seeds = (11, 12, 11)
    prompts = [with_frames(audio_to_video(models, sound, image=pictures[0], seed=seed, **FAST)) for seed in seeds]
    _, second, _ = runs = [comfy.run(prompt) for prompt in prompts]
    again = {"noise", "first", "upscale", "second", "decode", "joined", "save", "png"}
    assert set(second.executed) == again
    assert set(second.cached) == set(prompts[1]) - again
    frames = [saved_frames(comfy, run) for run in runs]
    assert (frames[0] == frames[2]).all(), "one seed, one video"
    assert (frames[0] != frames[1]).any()


def test_what_the_cache_has_dropped_is_loaded_again(comfy: Comfy, models: TinyFiles, sound: str) -> None:
    prompt = with_frames(audio_to_video(models, sound, seed=21, **FAST))
    before = comfy.run(prompt)
    comfy.free()
    after = comfy.run(prompt)
    assert set(after.executed) == set(prompt) and not after.cached
    assert (saved_frames(comfy, before) == saved_frames(comfy, after)).all()


def test_an_interrupt_ends_the_run_within_a_step_and_the_next_one_works(
    comfy: Comfy, models: TinyFiles, sound: str
) -> None:
    late: list[Event] = []
    sent = False

    def stop(event: Event) -> None:
        nonlocal sent
        if sent and event.type == "progress":
            late.append(event)
        elif event.type == "progress" and event.data["node"] == "first" and event.data["value"] == 1:
            comfy.interrupt()
            sent = True

    run = comfy.run(audio_to_video(models, sound, seed=31, **{**FAST, "steps": 400}), on_event=stop)
    assert sent and run.interrupted and run.error is None and len(late) <= 1
    assert "save" not in run.outputs
    assert video_of(comfy, comfy.run(audio_to_video(models, sound, seed=31, **FAST))).is_file()


@pytest.mark.parametrize(
    ("node", "field", "wanted"),
    [
        ("model", "checkpoint", "ltx-2.3-22b-dev.safetensors"),
        ("gemma", "folder", "gemma-3-12b-it-qat-q4_0-unquantized"),
        ("upscaler", "file", "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"),
        ("distilled", "lora", "ltx-2.3-22b-distilled-lora-384-1.1.safetensors"),
    ],
)
@pytest.mark.parametrize("name", ["missing.safetensors", "../../../../etc/passwd"])
def test_a_missing_model_is_told_before_anything_loads(
    comfy: Comfy, models: TinyFiles, sound: str, node: str, field: str, wanted: str, name: str
) -> None:
    prompt = audio_to_video(models, sound, **FAST)
    prompt[node]["inputs"][field] = name
    with pytest.raises(PromptRejected, match=wanted) as refused:
        comfy.run(prompt)
    assert name in str(refused.value) and set(refused.value.node_errors) >= {node}


def test_a_checkpoint_of_another_version_is_told_before_anything_loads(
    comfy: Comfy, models: TinyFiles, sound: str
) -> None:
    data = models.checkpoint.read_bytes().replace(b'"model_version":"2.3.0"', b'"model_version":"2.0.0"', 1)
    other = models.checkpoint.with_name("other.safetensors")
    other.write_bytes(data)
    try:
        prompt = audio_to_video(models, sound, **FAST)
        prompt["model"]["inputs"]["checkpoint"] = other.name
        with pytest.raises(PromptRejected, match=r"LTX version 2\.0\.0.+ltx-2\.3-22b-dev"):
            comfy.run(prompt)
    finally:
        other.unlink()


def test_files_outside_comfyuis_folders_are_out_of_reach(comfy: Comfy, models: TinyFiles, sound: str) -> None:
    secret = write_wav(comfy.base / "secret.wav")
    for name in ("../secret.wav", str(secret), "../secret.wav [output]"):
        with pytest.raises(PromptRejected, match="outside"):
            comfy.run(sound_only(name))
    for prefix in ("../out", "/tmp/out", "a/../../out"):
        with pytest.raises(PromptRejected, match=r"filename_prefix: .* leads out of the output folder"):
            comfy.run(sound_only(sound, prefix=prefix))
    assert not list(comfy.base.glob("out*.mp4")) and not list(Path("/tmp").glob("out_0*.mp4"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"first": {"negative": None}}, "negative prompt"),
        ({"size": {"frames": 17}}, "give both the same number of frames"),
        ({"size": {"frames": 12}}, "num_frames: 12 is not one more than a multiple of 8"),
        ({"guidance": {"stg_blocks": "last"}}, "stg_blocks: 'last'"),
        ({"guidance": {"stg_blocks": "99"}}, "stg_blocks names block 99"),
        ({"sigmas": {"scheduler": "karras"}}, "scheduler is 'karras'"),
        ({"second": {"latent": ["first", 0], "guides": ["image second", 0]}}, "encode it for this stage"),
        ({"decode": {"tile_size": 64, "tile_overlap": 64}}, "overlap"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistake_is_one_sentence(
    comfy: Comfy, models: TinyFiles, sound: str, pictures: tuple[str, str], change: Prompt, said: str
) -> None:
    prompt = audio_to_video(models, sound, image=pictures[0], seed=41, **FAST)
    for node, inputs in change.items():
        prompt[node]["inputs"].update(inputs)
        prompt[node]["inputs"] = {k: v for k, v in prompt[node]["inputs"].items() if v is not None}
    try:
        run = comfy.run(prompt)
    except PromptRejected as refused:
        ((node, inputs),) = change.items()
        assert str(refused) == comfy.not_an_option(prompt[node]["class_type"], *next(iter(inputs.items())))
        return
    # a short name, not the path of the pack's folder
    assert run.error is not None and run.error["exception_type"] == "ltx_a2v.InputError", run.message
    assert said in run.message and "\n" not in run.message


def test_stock_nodes_plug_in_at_every_edge(
    comfy: Comfy, models: TinyFiles, sound: str, pictures: tuple[str, str]
) -> None:
    """One pass of ours between ComfyUI's own loaders, latents, sigmas, noise, latent arithmetic and video writer."""
    prompt = audio_to_video(models, sound, image=pictures[0], **FAST)
    for ours in ("sigmas", "size", "upscaler", "upscale", "second", "image second", "save", "frames"):
        del prompt[ours]

    def stock(name: str, kind: str, **inputs: object) -> None:
        prompt[name] = {"class_type": kind, "inputs": inputs}

    stock("audio", "LoadAudio", audio=sound)
    stock("size", "EmptyLTXVLatentVideo", width=64, height=96, length=9, batch_size=1)
    stock("schedule", "LTXVScheduler", steps=4, max_shift=2.05, base_shift=0.95, stretch=True, terminal=0.1)
    stock("split", "SplitSigmas", sigmas=["schedule", 0], step=2)
    stock("same", "LatentMultiply", samples=["first", 0], multiplier=1.0)
    stock("video", "CreateVideo", images=["decode", 0], fps=24.0, audio=["audio", 0])
    stock("stock save", "SaveVideo", video=["video", 0], filename_prefix="stock", format="mp4", codec="h264")
    stock("our save", "LTXA2VSaveVideo", images=["decode", 0], fps=24.0, filename_prefix="ours", audio=["audio", 0],
          **FILE)  # fmt: skip
    stock("taken apart", "GetVideoComponents", video=["our save", 0])
    stock("seen", "SaveImage", images=["taken apart", 0], filename_prefix="taken-apart")
    prompt["sound"]["inputs"].update(frames=9, fps=24.0)
    prompt["first"]["inputs"].update(sigmas=["split", 0], guides=["image first", 0])
    prompt["decode"]["inputs"]["latent"] = ["same", 0]
    run = comfy.run(prompt)
    stock_video, our_video = video_of(comfy, run, "stock save"), video_of(comfy, run, "our save")
    assert frames_of(stock_video).shape == frames_of(our_video).shape == (9, 96, 64, 3)
    assert len(run.outputs["seen"]["images"]) == 9
    with av.open(str(our_video)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"


def sound_only(audio: str, frames: int | None = None, prefix: str = "sound") -> Prompt:
    """The sound's whole way without a picture of ours: loaded, counted, written beside grey frames."""
    return {
        "audio": {"class_type": "LTXA2VLoadAudio", "inputs": {"audio": audio}},
        "frames": {
            "class_type": "LTXA2VFrameCount",
            "inputs": {
                "audio": ["audio", 0],
                "frame_rate": 24.0,
                "match_audio_length": frames is None,
                "num_frames": frames or 121,
            },
        },
        "grey": {
            "class_type": "EmptyImage",
            "inputs": {"width": 32, "height": 32, "batch_size": ["frames", 0], "color": 8421504},
        },
        "save": {
            "class_type": "LTXA2VSaveVideo",
            "inputs": {
                "images": ["grey", 0],
                "fps": ["frames", 1],
                "filename_prefix": prefix,
                "audio": ["audio", 0],
                **FILE,
            },
        },
    }


def heard(graph: Prompt, models: TinyFiles) -> Prompt:
    """The same, and encoded as the model hears it."""
    graph["model"] = {
        "class_type": "LTXA2VModelLoader",
        "inputs": {"checkpoint": models.checkpoint.name, "dtype": "float32"},
    }
    graph["sound"] = {
        "class_type": "LTXA2VAudioConditioning",
        "inputs": {
            "audio_vae": ["model", 3],
            "audio": ["audio", 0],
            "frames": ["frames", 0],
            "fps": ["frames", 1],
            "strength": 1.0,
        },
    }
    graph["seen"] = {"class_type": "PreviewAny", "inputs": {"source": ["sound", 0]}}
    return graph


ODD: dict[str, tuple[Callable[[Path], Path], int, int]] = {
    # how it is made, its channels, frames at 24 fps that its length asks for
    "mono 8 kHz": (lambda d: write_wav(d / "mono.wav", 0.5, 8000), 1, 17),
    "5.1, 24 bit": (lambda d: write_sound(d / "surround.flac", "flac", "5.1", 48000), 6, 17),
    "opus": (lambda d: write_sound(d / "sound.opus", "libopus", "stereo", 48000), 2, 17),
    "m4a": (lambda d: write_sound(d / "sound.m4a", "aac", "stereo", 44100), 2, 17),
    "video": (lambda d: write_sound(d / "film.mp4", "aac", "stereo", 44100, picture=True), 2, 17),
    "0.2 s": (lambda d: write_wav(d / "short.wav", 0.2, 44100), 1, 9),
    "3 s": (lambda d: write_wav(d / "long.wav", 3.0, 22050, 2), 2, 73),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_audio_works(comfy: Comfy, models: TinyFiles, folder: Path, kind: str) -> None:
    make, channels, frames = ODD[kind]
    run = comfy.run(heard(sound_only(comfy.upload(make(folder))), models))
    (report,) = run.outputs["save"]["report"]
    assert (report["frames"], report["audio_channels"]) == (frames, channels)
    with av.open(str(video_of(comfy, run))) as container:
        stream = container.streams.audio[0]
        length = stream.duration * stream.time_base
    assert abs(length - Fraction(report["frames"], 24)) < Fraction(9, 24), "never padded, never past the picture"


def test_audio_longer_than_the_video_is_cut(comfy: Comfy, models: TinyFiles, folder: Path) -> None:
    run = comfy.run(heard(sound_only(comfy.upload(ODD["3 s"][0](folder)), frames=9), models))
    with av.open(str(video_of(comfy, run))) as container:
        stream = container.streams.audio[0]
        assert stream.duration * stream.time_base == Fraction(round(Fraction(9, 24) * 22050), 22050)


def no_sound(folder: Path) -> Path:
    path = folder / "silent.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 32
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


BROKEN: dict[str, Callable[[Path], Path]] = {
    "empty": lambda d: written(d / "empty.wav", b""),
    "truncated": lambda d: written(
        d / "cut.m4a", write_sound(d / "whole.m4a", "aac", "stereo", 44100).read_bytes()[:700]
    ),
    "text": lambda d: written(d / "song.mp3", b"this is no sound, it is a text file with another name\n" * 20),
    "no audio stream": no_sound,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_audio_is_one_sentence_that_names_the_file(comfy: Comfy, folder: Path, kind: str) -> None:
    path = BROKEN[kind](folder)
    run = comfy.run(sound_only(comfy.upload(path)))
    assert run.error is not None and run.error["node_id"] == "audio"
    assert run.error["exception_type"].endswith("InputError")
    assert path.name in run.message and "\n" not in run.message
