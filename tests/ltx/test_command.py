"""`python -m ltx`: exit statuses, the sentence on standard error, and what is left at --output.

Most of it calls `main` in this process; programs of their own are started where signals or the start itself are tested.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import wave
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from a2v.ltx import __main__ as command
from a2v.ltx import characters, devices, headless, pipeline, terminal
from a2v.ltx.arguments import KEPT, lora_argument
from a2v.ltx.computing import GPUS
from a2v.ltx.diffusion.conditioning import TextContext
from a2v.ltx.diffusion.kept import KeptWindows
from a2v.ltx.encoding import Prompts
from a2v.ltx.job import Compute, Files
from a2v.ltx.memory import forecast
from a2v.ltx.request import PARAMETERS, Request
from a2v.tests import layouts
from a2v.tests.ltx.goldens import relative
from a2v.tests.ltx.loaded import loaded_once
from a2v.tests.tiny import TinyFiles, write_tiny
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "prompt": "a woman speaks", "seed": 5, "use_multiscale": False, "video_size": {"width": 64, "height": 64},
    "num_frames": 9, "match_audio_length": False, "num_inference_steps": 2,
}  # fmt: skip
TWO_STAGES = {**SMALL, "use_multiscale": True, "video_size": {"width": 128, "height": 64}}


def write_wav(path: Path, seconds: float, rate: int = 16000, channels: int = 1) -> Path:
    time = np.arange(round(seconds * rate)) / rate
    samples = np.stack([0.4 * np.sin(2 * np.pi * (220 + 110 * c) * time) for c in range(channels)], axis=1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_encoded(path: Path, codec: str, layout: str, rate: int, seconds: float, picture: bool = False) -> Path:
    """A tone in another container, with or without a picture."""
    with av.open(str(path), "w") as container:
        if picture:
            video = container.add_stream("libx264", rate=24)
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        if codec:
            sound = container.add_stream(codec, rate=rate, layout=layout)
            channels = len(av.AudioLayout(layout).channels)
            time = np.arange(round(seconds * rate)) / rate
            tone = np.stack([0.4 * np.sin(2 * np.pi * (200 + 50 * c) * time) for c in range(channels)], axis=1)
            frame = av.AudioFrame.from_ndarray(tone.astype(np.float32).reshape(1, -1), format="flt", layout=layout)
            frame.rate, frame.pts = rate, 0
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        if picture:
            for _ in range(5):
                container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
            container.mux(video.encode(None))
    return path


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    with loaded_once():
        yield


@pytest.fixture(scope="module")
def media(tiny: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and broken inputs."""
    folder = tmp_path_factory.mktemp("media")
    voice = write_wav(folder / "voice.wav", 1.0)
    write_wav(folder / "phone.wav", 0.2, rate=8000)
    write_encoded(folder / "film.mp4", "aac", "stereo", 44100, 1.0, picture=True)
    write_encoded(folder / "silent.mp4", "", "", 0, 0, picture=True)
    write_encoded(folder / "surround.flac", "flac", "5.1", 48000, 0.5)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "cut.wav").write_bytes(voice.read_bytes()[:30])
    (folder / "text.mp3").write_text("This is no music at all.\n" * 40, encoding="utf-8")
    Image.new("RGB", (90, 70), (200, 80, 30)).save(folder / "picture.png")
    (folder / "no-picture.png").write_text("not an image", encoding="utf-8")
    tensors = load_file(tiny.checkpoint)
    with safe_open(tiny.checkpoint, "pt") as file:
        metadata = file.metadata()
    for version in ("2.0.0", "2.5.0"):
        save_file(tensors, folder / f"ltx-{version}.safetensors", metadata={**metadata, "model_version": version})
    with tiny.checkpoint.open("rb") as file:
        (folder / "cut.safetensors").write_bytes(file.read(1_000_000))
    layouts.write_split(tiny.checkpoint, folder / "split")
    return folder


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    error: str
    folder: Path

    @property
    def last(self) -> str:
        """The last line on standard error."""
        return self.error.strip().splitlines()[-1] if self.error.strip() else ""

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


Run = Callable[..., Outcome]


def arguments(tiny: TinyFiles, media: Path, folder: Path, request: Any, flags: dict[str, Any]) -> list[str]:
    """A command line; a flag given as None is left out. `request` is written beside the media."""
    file = folder.parent / f"{folder.name}.json"
    file.write_text(request if isinstance(request, str) else json.dumps(request), encoding="utf-8")
    every: dict[str, Any] = {
        "checkpoint": tiny.checkpoint, "text-encoder": tiny.gemma, "upscaler": tiny.upscaler,
        "audio": media / "voice.wav", "request": file, "output": folder / "out.mp4", **flags,
    }  # fmt: skip
    line: list[str] = []
    for flag, value in every.items():
        if value is not None:
            line += [f"--{flag}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return line


Job = Callable[..., pipeline.Result]


@pytest.fixture
def job() -> list[Job]:
    """What the command runs: the pipeline, unless a fixture puts another one here."""
    return [pipeline.run]


@pytest.fixture
def run(
    tiny: TinyFiles, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], job: list[Job]
) -> Iterator[Callable[..., Outcome]]:
    """`main` in this process, its output in an empty folder; puts the signal handlers back."""
    handlers = {number: signal.getsignal(number) for number in terminal.ENDING}
    folder = tmp_path / "output"
    folder.mkdir()

    def call(values: Any = SMALL, **flags: Any) -> Outcome:
        line = arguments(tiny, media, folder, values, {k.replace("_", "-"): v for k, v in flags.items()})
        capsys.readouterr()
        try:
            status = command.main(line, job[0])
        except SystemExit as end:
            status = end.code
        return Outcome(status, *capsys.readouterr(), folder)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def unforeseen(job: list[Job]) -> None:
    """Runs without the forecast of memory, which takes longer than all else here; test_forecast.py has it."""
    job[:] = [lambda *given, announce, **more: pipeline.run(*given, **more)]


@pytest.fixture
def quick(job: list[Job]) -> None:
    """And without Gemma: the prompts' contexts are short random ones."""
    contexts = [TextContext(torch.randn(1, 16, 64), torch.randn(1, 16, 32)) for _ in range(2)]

    def run(files: Files, request: Request, *given: Any, announce: object, **more: Any) -> pipeline.Result:
        return pipeline.run(files, request, *given, prompts=Prompts(request.prompt, *contexts), **more)

    job[:] = [run]


@pytest.fixture
def asked(job: list[Job]) -> list[Compute]:
    """And without a run: the way to compute of each command, which ends there."""
    seen: list[Compute] = []

    def stop(files: Files, request: Request, compute: Compute, **_: Any) -> None:
        seen.append(compute)
        raise KeyboardInterrupt

    job[:] = [stop]
    return seen


# What is refused: flags (a text names a file in the media folder), the request, what the sentence says.
MISSING = "nowhere.safetensors"
ALONE, CONNECTORS = "split/ltx-2.3_transformer_only_bf16.safetensors", "split/connectors.safetensors"
AUDIO_VAE, PROJECTION = "split/LTX23_audio_vae_bf16.safetensors", "split/ltx-2.3_text_projection_bf16.safetensors"
REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "no checkpoint": ({"checkpoint": MISSING}, SMALL, r"nowhere\.safetensors"),
    "no text encoder": ({"text-encoder": MISSING}, SMALL, r"nowhere\.safetensors"),
    "no upscaler": ({"upscaler": MISSING}, TWO_STAGES, r"nowhere\.safetensors"),
    "no distilled LoRA": ({"distill-lora": MISSING}, SMALL, r"nowhere\.safetensors"),
    "no camera LoRA": ({"camera-lora": MISSING}, SMALL, r"nowhere\.safetensors"),
    "no LoRA": ({"lora": f"{MISSING}:0.5"}, SMALL, r"nowhere\.safetensors"),
    "no audio": ({"audio": "nowhere.wav"}, SMALL, r"nowhere\.wav"),
    "no image": ({"image": "nowhere.png"}, SMALL, r"nowhere\.png"),
    "no end image": ({"end-image": "nowhere.png"}, SMALL, r"nowhere\.png"),
    "no request": ({"request": "nowhere.json"}, SMALL, r"nowhere\.json"),
    "no JSON": ({}, '{"prompt": ', r"is not JSON"),
    "a list": ({}, "[1]", r"not a JSON object"),
    "unknown key": ({}, {**SMALL, "num_frame": 9}, r"num_frame\b.*num_frames"),
    "audio_url": ({}, {**SMALL, "audio_url": "http://x/y"}, r"audio_url.*--audio"),
    "image_url": ({}, {**SMALL, "image_url": "http://x/y"}, r"image_url.*--image"),
    "end_image_url": ({}, {**SMALL, "end_image_url": "http://x/y"}, r"end_image_url.*--end-image"),
    "sync_mode": ({}, {**SMALL, "sync_mode": True}, r"sync_mode.*--output"),
    "no prompt": ({}, {"seed": 1}, r"prompt"),
    "negative steps": ({}, {**SMALL, "num_inference_steps": -4}, r"num_inference_steps: -4"),
    "no steps": ({}, {**SMALL, "num_inference_steps": 0}, r"num_inference_steps: 0"),
    "no frames": ({}, {**SMALL, "num_frames": 0}, r"num_frames: 0"),
    "negative strength": ({}, {**SMALL, "image_strength": -1}, r"image_strength: -1"),
    "scheduler": ({}, {**SMALL, "scheduler": "karras"}, r"scheduler.*ltx2"),
    "nothing distilled": ({}, {**SMALL, "acceleration": "full"}, r"^acceleration: full needs a distilled model"),
    "NaN": ({}, '{"prompt": "x", "fps": NaN}', r"fps"),
    "no safety checker": ({}, {**SMALL, "enable_safety_checker": True}, r"enable_safety_checker.*--safety-checker"),
    "safety checker": ({"safety-checker": "voice.wav"}, SMALL, r"voice\.wav"),
    "camera movement": ({}, {**SMALL, "camera_lora": "dolly_in"}, r"dolly_in.*--camera-lora"),
    "two stages": ({"upscaler": None}, TWO_STAGES, r"--upscaler.*use_multiscale"),
    "LTX-2.0": ({"checkpoint": "ltx-2.0.0.safetensors"}, SMALL, r"2\.0.*2\.3|2\.3.*2\.0"),
    "LTX-2.5": ({"checkpoint": "ltx-2.5.0.safetensors"}, SMALL, r"2\.5.*2\.3|2\.3.*2\.5"),
    "cut checkpoint": ({"checkpoint": "cut.safetensors"}, SMALL, r"cut\.safetensors"),
    "picture as checkpoint": ({"checkpoint": "picture.png"}, SMALL, r"picture\.png"),
    "checkpoint as upscaler": ({"upscaler": "ltx-2.5.0.safetensors"}, TWO_STAGES, r"not a latent upscaler"),
    "checkpoint as LoRA": ({"distill-lora": "ltx-2.5.0.safetensors"}, SMALL, r"LoRA"),
    "empty sound": ({"audio": "empty.wav"}, SMALL, r"empty\.wav.*empty"),
    "cut sound": ({"audio": "cut.wav"}, SMALL, r"cut\.wav"),
    "text as sound": ({"audio": "text.mp3"}, SMALL, r"text\.mp3"),
    "film without sound": ({"audio": "silent.mp4"}, SMALL, r"silent\.mp4.*no audio"),
    "text as image": ({"image": "no-picture.png"}, SMALL, r"no-picture\.png"),
    "sound as end image": ({"end-image": "voice.wav"}, SMALL, r"voice\.wav"),
    "end image of one frame": ({"end-image": "picture.png"}, {**SMALL, "num_frames": 1}, r"end image"),
    "STG block": ({"stg-blocks": [4]}, SMALL, r"block 4"),
    "STG block below 0": ({"stg-blocks": [-1]}, SMALL, r"stg"),
    "LoRA without a number": ({"lora": f"{MISSING}:much"}, SMALL, r"nowhere"),
    "output name": ({"output": "x" * 300 + ".mp4"}, SMALL, r"--output: the file name has 304 bytes; give at most 246"),
    "name of its windows": ({"output": "歌" * 82 + ".mp4"}, SMALL, r"--output: the file name has 250 bytes"),
    "trace name": ({"trace": "x" * 235 + ".safetensors"}, SMALL, r"--trace: the file name has 247 bytes"),
    "output folder": ({"output": "nowhere/out.mp4"}, SMALL, r"--output.*nowhere"),
    "output kind": ({"output": "out.avi"}, SMALL, r"--output.*\.mp4"),
    "another output kind": ({}, {**SMALL, "video_output_type": "VP9 (.webm)"}, r"--output.*\.webm.*VP9"),
    "trace folder": ({"trace": "nowhere/trace.safetensors"}, SMALL, r"--trace.*nowhere"),
    "output in place of the sound": (
        {"output": "film.mp4", "audio": "film.mp4"},
        SMALL,
        r"--output: \S+ is the file of --audio",
    ),
    "trace in place of a model": (
        {"trace": "cut.safetensors", "upscaler": "cut.safetensors"},
        SMALL,
        r"--trace.*of --upscaler",
    ),
    "trace in place of the output": (
        {"trace": "new.mp4", "output": "new.mp4"},
        SMALL,
        r"--trace: \S+ is the file of --output",
    ),
    "too short to be heard": ({}, {**SMALL, "fps": 60, "num_frames": 1}, r"fps: 1 frame.* 0\.017 s, but .* 0\.032 s"),
    "too long a side": ({}, {**SMALL, "video_size": {"width": 65536, "height": 1}}, r"video_size: .*at most 16384"),
    "file as cache": ({"cache-dir": "voice.wav"}, SMALL, r"--cache-dir.*voice\.wav is a file"),
    "offload without a GPU": ({"offload": "blocks", "device": "cpu"}, SMALL, r"--offload.*CPU"),
    "sound as text encoder": ({"text-encoder": "voice.wav"}, SMALL, r"voice\.wav.*gemma_3_12B"),
    "checkpoint as text encoder": ({"text-encoder": "ltx-2.0.0.safetensors"}, SMALL, r"ltx-2\.0\.0.*is not Gemma 3"),
    "no video VAE": ({"video-vae": MISSING}, SMALL, r"nowhere\.safetensors.*LTX23_video_vae"),
    "folder as audio VAE": ({"audio-vae": "split"}, SMALL, r"split: is a folder.*LTX23_audio_vae"),
    "audio VAE as video VAE": ({"video-vae": AUDIO_VAE}, SMALL, r"audio_vae\S+ has no video VAE.*LTX23_video_vae"),
    "transformer alone": ({"checkpoint": ALONE}, SMALL, r"transformer_only\S+ has no text connectors"),
    "no VAE": ({"checkpoint": ALONE, "connectors": CONNECTORS}, SMALL, r"transformer_only\S+ has no video VAE"),
    "half of the connectors": ({"checkpoint": ALONE, "connectors": PROJECTION}, SMALL, r"has no text connectors"),
    "VAE as checkpoint": ({"checkpoint": AUDIO_VAE}, SMALL, r"audio_vae\S+ holds no LTX transformer"),
}
FILES = {"checkpoint", "text-encoder", "upscaler", "distill-lora", "camera-lora", "lora", "audio", "image"}
FILES |= {
    "end-image",
    "request",
    "output",
    "trace",
    "safety-checker",
    "cache-dir",
    "video-vae",
    "audio-vae",
    "connectors",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name: str, run: Run, media: Path) -> None:
    """Status 2, one line that names the cause, nothing written anywhere."""
    flags, request, sentence = REFUSED[name]
    before = sorted(path.name for path in media.iterdir())
    placed = {flag: media / value if flag in FILES and value else value for flag, value in flags.items()}
    done = run(request, **placed)
    assert done.status == 2, done.error
    lines = [line for line in done.error.splitlines() if line.strip() and "encode text" not in line]
    assert len(lines) == 1, done.error
    assert re.search(sentence, lines[0]), lines[0]
    assert "Traceback" not in done.error and not re.search(r"Error\b.*\(|Errno", lines[0]), lines[0]
    assert done.out == "" and done.left == []
    assert sorted(path.name for path in media.iterdir()) == before


@pytest.mark.parametrize(
    "flags", ({"checkpoint": None}, {"dtype": "int8"}, {"device": "tpu"}, {"nonsense": "1"}, {"stg-blocks": ["x"]})
)
def test_a_wrong_command_line(run: Run, flags: dict[str, Any]) -> None:
    done = run(**flags)
    assert (done.status, done.out, done.left) == (2, "", [])
    assert re.search(r"error: .*(checkpoint|int8|tpu|nonsense|'x')", done.last)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and paths are judged as on Windows."""
    monkeypatch.setattr(characters, "WINDOWS", True)
    monkeypatch.setattr(characters, "LONGEST_PATH", 259)


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a:b.mp4", "'a:b.mp4' has ':', which no Windows name can have"),  # it would be a stream beside the file a
        ("what?.mp4", "has '?', which no Windows name can have"),
        ("con.mp4", "has 'con.mp4', which is a device on Windows"),
        ("CONIN$.mp4", "has 'CONIN$.mp4', which is a device on Windows"),
        ("com³.x.mp4", "has 'com³.x.mp4', which is a device on Windows"),
        ("LPT1 .mp4", "has 'LPT1 .mp4', which is a device on Windows"),
    ],
)
def test_what_windows_cannot_name_is_told_before_anything_loads(
    run: Run, asked: list[Compute], name: str, told: str
) -> None:
    done = run(output=name)
    assert done.status == 2 and not asked and done.left == []
    assert done.last.startswith("--output: ") and told in done.last
    for trace in (name, "trace.", "trace "):
        done = run(trace=trace)
        assert done.status == 2 and not asked and done.last.startswith("--trace: ")


def test_elsewhere_such_names_are_good(run: Run, asked: list[Compute], tmp_path: Path) -> None:
    for name in ("a:b.mp4", "con.mp4"):
        assert run(output=tmp_path / name).status == 130
    assert len(asked) == 2


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("film", [False, True])
def test_a_whole_path_is_as_short_as_windows_wants(run: Run, asked: list[Compute], tmp_path: Path, film: bool) -> None:
    """With the windows that a film keeps beside itself, and counted in 16-bit units: an emoji has two."""
    folder = tmp_path / "folder"
    more = 18  # of the unfinished file
    if film:
        more = len(str(KeptWindows.beside(folder / "x.mp4").folder / KEPT)) - len(str(folder / "x.mp4"))
        assert more == len(".windows/.safetensors") + 64
    deep = folder / ("d" * (259 - more - len(str(folder / "x" / "12345678901234567890.mp4"))))
    deep.mkdir(parents=True)
    values = {**SMALL, "windows": {}} if film else SMALL
    fits, longer = deep / f"{'x' * 21}.mp4", deep / f"{'x' * 22}.mp4"
    assert characters.path_length(fits) == 259 - more
    assert run(values, output=fits).status == 130 and asked.pop()
    for path in (longer, deep / f"{'x' * 20}😀.mp4"):
        done = run(values, output=path)
        assert done.status == 2 and not asked
        assert re.search("^--output: the whole path has 260 characters while .*, and 259 is the most; ", done.last)
    assert list(deep.iterdir()) == []


@pytest.mark.usefixtures("windows")
def test_a_long_japanese_name_is_no_longer_than_it_is(run: Run, asked: list[Compute], tmp_path: Path) -> None:
    """Windows counts characters and not bytes."""
    assert run(output=tmp_path / f"{'映' * 81}.mp4").status == 130 and asked


def test_a_folder_that_only_seems_to_be_writable(
    run: Run, asked: list[Compute], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`os.access` says nothing of the rights that Windows and macOS have beside permissions."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "access", lambda *_: True)
    monkeypatch.setattr(Path, "touch", refused)
    done = run()
    assert done.status == 2 and not asked
    assert re.search(r"^--output: the folder .* cannot be written to \(Operation not permitted\); choose", done.last)


@pytest.mark.parametrize("device", GPUS)
def test_no_gpu(run: Run, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    found(monkeypatch)
    done = run(device=device)
    assert done.status == 2
    assert done.error == f"--device: torch finds no {device} device here; leave it out, or use --device cpu.\n"


@pytest.mark.usefixtures("quick")
def test_a_failure_is_status_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk while the file is written, memory that runs out: a line, no traceback, the older file as it was."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    good = run()
    older = (good.folder / "out.mp4").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_video", full)
        done = run({**SMALL, "seed": 6})
    assert done.status == 1 and "No space left" in done.last and "Traceback" not in done.error
    with monkeypatch.context() as patch:
        full = torch.OutOfMemoryError("no memory")
        patch.setattr(pipeline, "decode_video", lambda *_, **__: (_ for _ in ()).throw(full))
        done = run({**SMALL, "seed": 6})
    assert done.status == 1 and "no memory" in done.last and "Traceback" not in done.error
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "decode_video", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        done = run({**SMALL, "seed": 6})
    assert done.status == 130 and "interrupted" in done.last
    assert done.left == ["out.mp4"] and (done.folder / "out.mp4").read_bytes() == older
    assert run({**SMALL, "num_frames": -1}).status == 2
    assert (done.folder / "out.mp4").read_bytes() == older


@pytest.mark.usefixtures("quick")
def test_a_trace_that_cannot_be_replaced_gets_another_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, while another program has the older one open: nothing that was computed is lost."""
    trace, replace = tmp_path / "trace.safetensors", os.replace
    trace.write_text("open in another program")

    def locked(source: Path, target: Path) -> None:
        if Path(target) == trace:
            raise PermissionError(13, "Access denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", locked)
    done = run(trace=trace)
    found = re.search(r"trace\.safetensors: cannot be replaced, .*; the new file is (.*)\.$", done.last)
    assert done.status == 2 and done.left == ["out.mp4"]
    assert found and load_file(found[1]) and Path(found[1]) in [*tmp_path.glob("trace-*.safetensors")]


@pytest.mark.usefixtures("quick")
def test_a_trace_on_a_full_disk_is_a_sentence(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors has an error of its own, with the system's words in it."""

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("a2v.ltx.trace.save_file", full)
    done = run(trace=tmp_path / "trace.safetensors")
    assert done.status == 1 and done.left == ["out.mp4"] and "Traceback" not in done.error
    assert re.search(r"trace\.safetensors: could not be written \(.*No space left.*\); is the disk full\?$", done.last)
    assert not (tmp_path / "trace.safetensors").exists()


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.usefixtures("quick")
def test_facts_that_cannot_be_printed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a closed pipe behind standard output: a line that says that the video is there."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        done = run()
    assert done.status == 1 and "Traceback" not in done.error and done.left == ["out.mp4"]
    assert done.last.endswith("out.mp4: is complete, but its facts could not be printed (No space left on device)")


@pytest.mark.usefixtures("quick")
def test_an_error_of_ffmpeg_is_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of encoders are no OSErrors."""

    def refused(*_: object, **__: object) -> None:
        raise av.error.ExternalError(542398533, "Generic error in an external library")

    monkeypatch.setattr(pipeline, "write_video", refused)
    done = run()
    assert done.status == 1 and done.last.startswith("failed: ExternalError: ") and "Traceback" not in done.error


@pytest.mark.usefixtures("quick")
def test_smaller_tiles_are_told_in_the_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the memory runs out after the first frames were written."""
    decode, calls = AutoencoderKLLTX2Video.decode, []

    def cramped(self: nn.Module, *given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(self, *given, **more)

    monkeypatch.setattr(AutoencoderKLLTX2Video, "decode", cramped)
    done = run({**SMALL, "num_frames": 97}, tile_size=64, tile_frames=80)
    assert done.status == 0, done.error
    (note,) = re.findall(r"note: (decoded in tiles of .*)", done.error)
    (tiles,) = re.findall(r"note: (decoded in 3 tiles of at most 80 frames and 64 pixels; .*)", done.error)
    with av.open(str(done.folder / "out.mp4")) as container:
        notes = json.loads(container.metadata["comment"])["notes"]
    assert notes[-2:] == [tiles, note]


@pytest.mark.soak
def test_the_tiles_are_those_of_the_forecast(
    run: Run, quick: None, job: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen by the free memory, or as the flags say; the report tells them, with and without a forecast."""
    forecasts: list[forecast.Forecast] = []
    unannounced, fitting = job[0], pipeline._fitting

    def announced(given: Job, compute: Compute, announce: None) -> Any:
        return fitting(given, compute, forecasts.append)

    def decoded(free: int, **flags: int) -> tuple[str, str]:
        for module in (forecast, pipeline):
            monkeypatch.setattr(module, "free_memory", lambda device: free)
        notes = []
        for wanted in (fitting, announced):
            monkeypatch.setattr(pipeline, "_fitting", wanted)
            done = run({**SMALL, "num_frames": 97}, **flags)
            assert done.status == 0 and job[0] is unannounced, done.error
            notes += re.findall(r"^note: (decoded .*)$", done.error, re.M)
        assert len(notes) == 2 and notes[0] == notes[1]
        return str(forecasts[-1].phases[-1]).rpartition(": ")[2], notes[0]

    assert decoded(2**40) == ("fits", "decoded whole")
    two = "decoded in 2 tiles of at most 80 frames and 64 pixels; 25 % of the clip twice"
    assert decoded(2**40, tile_frames=80) == ("in tiles of 64 px and 80 frames", two)
    assert decoded(1 << 40, tile_frames=80, tile_size=64) == ("fits", two)
    told, note = decoded(1)
    assert told == "in tiles of 64 px and 16 frames, and may not fit even so"
    assert "tiles of at most 16 frames and 64 pixels" in note
    refused = run(SMALL, tile_size=80)
    assert refused.status == 2 and "The tile size of 80 pixels must be a multiple of 32" in refused.last


def pixels(path: Path) -> np.ndarray:
    """uint8 [frames, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def stream_facts(path: Path) -> tuple[int, int, int, float, int, int, float]:
    """Width, height, frames, rate; the sound's rate, channels and seconds, by decoding all of it."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = sum(1 for _ in container.decode(video))
        facts = (video.width, video.height, frames, float(video.average_rate))
    with av.open(str(path)) as container:
        sound = container.streams.audio[0]
        seconds = float(sound.duration * sound.time_base)
        return (*facts, sound.rate, sound.channels, seconds)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("audio", "request_", "expected"),
    [
        ("phone.wav", {**SMALL, "match_audio_length": True}, (64, 64, 9, 24.0, 8000, 1, 0.2)),
        ("film.mp4", {**SMALL, "fps": 30}, (64, 64, 9, 30.0, 44100, 2, 0.3)),
        ("surround.flac", {**SMALL, "match_audio_length": True, "fps": 23.976}, (64, 64, 17, 23.976, 48000, 6, 0.5)),
    ],
)
def test_sounds(run: Run, media: Path, audio: str, request_: dict[str, Any], expected: tuple[float, ...]) -> None:
    """A short telephone recording, a film longer than the video, surround sound: through the whole command."""
    done = run(request_, audio=media / audio)
    assert done.status == 0, done.error
    assert done.left == ["out.mp4"]
    assert stream_facts(done.folder / "out.mp4") == pytest.approx(expected, abs=2e-3)


@pytest.mark.usefixtures("quick")
def test_the_report(run: Run, tiny: TinyFiles, media: Path) -> None:
    """The last line of standard output is JSON; what was changed or left out stands on standard error."""
    request = {**TWO_STAGES, "num_frames": 10, "video_size": {"width": 100, "height": 64}, "image_strength": 0}
    done = run({**request, "audio_cfg_scale": 5}, image=media / "picture.png")
    assert done.status == 0, done.error
    report = json.loads(done.out)
    assert report == {
        "output": str(done.folder / "out.mp4"), "width": 128, "height": 64, "frames": 17, "fps": "24", "seed": 5,
        "prompt": "a woman speaks", "steps": 2, "passes_per_step": 4, "acceleration": "none",
        "model_version": "2.3.0", "loras": [],
    }  # fmt: skip
    for note in (
        r"note: no distilled LoRA given: its scales count as 0",
        r"note: num_frames rounded up from 10 to 17",
        r"note: size changed from 100×64 to 128×64",
        r"note: audio_cfg_scale does nothing",
        r"note: the first image has strength 0",
        r"note: the safety checker did not run",
    ):
        assert re.search(note, done.error), note
    assert "not built" not in done.error
    with_lora = run({**TWO_STAGES, "distill_lora_second_pass_scale": 0.75}, distill_lora=tiny.distilled_lora)
    assert "distilled" not in with_lora.error
    (lora,) = json.loads(with_lora.out)["loras"]
    pairs = sum(key.endswith("lora_A.weight") for key in load_file(tiny.distilled_lora))
    told = {"file": tiny.distilled_lora.name, "layers": pairs, "kinds": {"LoRA": pairs}}
    assert lora == {**told, "first_pass": 0.2, "second_pass": 0.75}


@pytest.mark.usefixtures("quick")
def test_the_report_travels_in_the_file(run: Run, media: Path) -> None:
    """The comment of the file: what was asked, what was used, the notes; names of files, never their folders."""
    request = {**TWO_STAGES, "num_frames": 10, "audio_cfg_scale": 5}
    done = run(request, image=media / "picture.png")
    assert done.status == 0, done.error
    with av.open(str(done.folder / "out.mp4")) as container:
        comment = container.metadata["comment"]
    report = json.loads(comment)
    assert report.keys() == {"asked", "used", "notes"}
    assert {"output": str(done.folder / "out.mp4"), **report["used"]} == json.loads(done.out)
    assert [f"note: {note}" for note in report["notes"]] == re.findall(r"^note: .*$", done.error, re.M)
    asked = {**request, "video_size": [128, 64]}
    assert {name: report["asked"][name] for name in request} == asked
    assert report["asked"].keys() == PARAMETERS.keys()
    assert str(media) not in comment and str(done.folder) not in comment


# The safety checker: a classifier that finds everything unsafe, or nothing.


@pytest.fixture(scope="module")
def checkers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders "strict" and "mild"."""
    folder = tmp_path_factory.mktemp("checkers")
    labels = {"id2label": {0: "normal", 1: "nsfw"}, "label2id": {"normal": 0, "nsfw": 1}}
    for name, bias in (("strict", 9.0), ("mild", -9.0)):
        widths = {"embedding_size": 2, "hidden_sizes": [2], "depths": [1], "layer_type": "basic"}
        model = ResNetForImageClassification(ResNetConfig(**widths, **labels))
        for parameter in model.classifier.parameters():
            torch.nn.init.zeros_(parameter)
        torch.nn.init.constant_(model.classifier[1].bias[1:], bias)
        model.save_pretrained(folder / name)
        document = {"image_processor_type": "ConvNextImageProcessor", "do_resize": True, "crop_pct": 1.0}
        document |= {"size": {"shortest_edge": 8}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": False}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.mark.usefixtures("quick")
def test_a_flagged_result_is_not_written(run: Run, checkers: Path) -> None:
    """Status 1 and a sentence; the older file stays. Switched off, the checker is not asked."""
    for request in (SMALL, {**SMALL, "enable_safety_checker": True}):
        good = run(request, safety_checker=checkers / "mild")
        assert good.status == 0 and "safety" not in good.error
    older = (good.folder / "out.mp4").read_bytes()
    done = run({**SMALL, "seed": 6}, safety_checker=checkers / "strict")
    assert done.status == 1 and done.out == ""
    assert re.search(r"safety checker flagged.*nothing was written.*enable_safety_checker", done.last)
    assert "Traceback" not in done.error
    assert done.left == ["out.mp4"] and (done.folder / "out.mp4").read_bytes() == older
    assert run({**SMALL, "seed": 6, "enable_safety_checker": False}, safety_checker=checkers / "strict").status == 0


@pytest.mark.usefixtures("quick")
def test_a_safety_checker_can_be_required(run: Run, monkeypatch: pytest.MonkeyPatch, checkers: Path) -> None:
    """LTX_A2V_SAFETY=require: its absence is an error even where nobody named it."""
    monkeypatch.setenv("LTX_A2V_SAFETY", "require")
    for request in (SMALL, {**SMALL, "enable_safety_checker": True}):
        done = run(request)
        assert done.status == 2 and "enable_safety_checker" in done.last and done.left == []
    assert run(safety_checker=checkers / "mild").status == 0


@pytest.mark.usefixtures("quick")
def test_a_drawn_seed_is_reported_and_repeats_the_run(run: Run) -> None:
    drawn = {k: v for k, v in SMALL.items() if k != "seed"}
    first = run(drawn)
    content = pixels(first.folder / "out.mp4")
    seed = json.loads(first.out)["seed"]
    assert run({**drawn, "seed": seed}).status == 0
    assert np.array_equal(pixels(first.folder / "out.mp4"), content)
    assert json.loads(run(drawn).out)["seed"] != seed


@pytest.mark.usefixtures("quick")
def test_without_the_distilled_lora_its_scales_are_0(run: Run, tiny: TinyFiles) -> None:
    """No file, and a file at 0: the same frames. The trace lies where it was asked for."""
    traces = []
    zero = {**TWO_STAGES, "distill_lora_first_pass_scale": 0, "distill_lora_second_pass_scale": 0}
    for number, (request, lora) in enumerate(
        ((TWO_STAGES, None), (zero, tiny.distilled_lora), (TWO_STAGES, tiny.distilled_lora))
    ):
        trace = tiny.checkpoint.parent / f"trace{number}.safetensors"
        done = run(request, distill_lora=lora, trace=trace)
        assert done.status == 0, done.error
        traces.append(load_file(trace))
        assert done.left == ["out.mp4"]
    assert torch.equal(traces[0]["final/frames_u8"], traces[1]["final/frames_u8"])
    assert not torch.equal(traces[0]["final/frames_u8"], traces[2]["final/frames_u8"])
    wanted = {"audio/latent", "s1/sigmas", "s1/step1/x0_video", "s2/step2/out_video", "up/out", "final/video_latent"}
    assert wanted <= traces[0].keys()
    assert {tensor.dtype for tensor in traces[0].values()} == {torch.float32, torch.uint8}


def found(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """torch finds GPUs of these kinds, as the command learns it."""
    monkeypatch.setattr(devices, "is_there", lambda kind: kind in ("cpu", *kinds))
    monkeypatch.setattr(headless, "is_there", devices.is_there)
    monkeypatch.setattr(devices, "has_bfloat16", lambda kind: True)


@pytest.mark.parametrize(
    ("gpus", "flags", "device", "dtype"),
    [
        ((), {}, "cpu", torch.float32),
        ((), {"dtype": "bfloat16"}, "cpu", torch.bfloat16),
        (("cuda",), {"device": "cpu"}, "cpu", torch.float32),
        (("cuda",), {}, "cuda", torch.bfloat16),
        (("xpu",), {}, "xpu", torch.bfloat16),
        (("mps",), {}, "mps", torch.bfloat16),
        (("mps",), {"dtype": "float32"}, "mps", torch.float32),
        (("cuda", "xpu"), {"device": "xpu"}, "xpu", torch.bfloat16),
        (("mps",), {"offload": "blocks"}, "mps", torch.bfloat16),
    ],
)
def test_default_dtype_and_device(
    run: Run,
    asked: list[Compute],
    monkeypatch: pytest.MonkeyPatch,
    gpus: tuple[str, ...],
    flags: dict[str, Any],
    device: str,
    dtype: torch.dtype,
) -> None:
    found(monkeypatch, *gpus)
    assert run(**flags).status == 130
    assert (asked[0].device, asked[0].dtype) == (device, dtype)


@pytest.mark.parametrize("device", ["xpu", "mps"])
def test_blocks_are_not_compiled_for_every_gpu(
    run: Run, asked: list[Compute], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    found(monkeypatch, device)
    done = run(compile=[])
    assert done.status == 2 and not asked
    assert done.error == f"--compile: blocks are compiled for cpu and cuda; leave it out on {device}.\n"


def test_a_mac_without_bfloat16(run: Run, asked: list[Compute], monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, "mps")
    monkeypatch.setattr(devices, "has_bfloat16", lambda kind: False)
    monkeypatch.setattr(headless, "has_bfloat16", devices.has_bfloat16)
    done = run(dtype="bfloat16")
    assert done.status == 2 and re.search(r"--dtype: .* no bfloat16.*; use --dtype float32\.$", done.last)
    assert run().status == 130 and asked[0].dtype is torch.float32


def test_every_flag_about_computing_arrives(run: Run, asked: list[Compute]) -> None:
    """And each switch alone sets what it names."""
    switches = {"fp8": "fp8", "compile": "compiled", "fast-products": "fast_products"}
    on: dict[str, Any] = {flag: [] for flag in switches}
    assert run(device="cpu", dtype="bfloat16", offload="none", attention="math", **on).status == 130
    given = {"offload": "none", "attention": "math", **dict.fromkeys(switches.values(), True)}
    assert asked.pop() == Compute(torch.bfloat16, "cpu", **given)
    for flag, field in switches.items():
        assert run(device="cpu", **{flag: []}).status == 130
        assert asked.pop() == Compute(torch.float32, "cpu", **{field: True})
    assert run(device="cpu", **{"no-fused": []}).status == 130
    assert asked.pop() == Compute(torch.float32, "cpu", fused=False)


def test_every_flag_about_a_video_arrives(run: Run, job: list[Job], media: Path) -> None:
    seen: list[Files] = []

    def stop(files: Files, *_: Any, **__: Any) -> None:
        seen.append(files)
        raise KeyboardInterrupt

    job[:] = [stop]
    flags = {"video": media / "film.mp4", "mask": media / "picture.png", "reference": media / "silent.mp4"}
    picture = media / "picture.png"
    assert run(audio=None, **flags, keyframe=f"{picture}@3:0.4").status == 130
    (found,) = seen
    assert {name: getattr(found, name) for name in flags} == flags
    assert found.keyframes == ((picture, 3, 0.4),) and found.audio is None


def test_an_interrupt_tells_what_is_kept(run: Run, job: list[Job], tmp_path: Path) -> None:
    def stop(files: Files, *_: Any, **__: Any) -> None:
        folder = files.output.with_name(f"{files.output.name}.windows")
        folder.mkdir()
        for number in range(2):
            (folder / f"{number:064x}.safetensors").touch()
        raise KeyboardInterrupt

    job[:] = [stop]
    done = run()
    folder = tmp_path / "output" / "out.mp4.windows"
    assert done.status == 130 and done.last == (
        f"interrupted; 2 windows are kept in {folder}; --resume goes on from them, and --as-far-as-it-is writes them "
        "as a film"
    )


@pytest.mark.usefixtures("quick")
def test_bfloat16_runs(run: Run) -> None:
    assert run(dtype="bfloat16", device="cpu").status == 0


# Where the weights come from, and how they are kept: with the text encoder, since these flags concern it too.

UNEXPANDED = {**TWO_STAGES, "enable_prompt_expansion": False}


@pytest.fixture
def traced(run: Run, unforeseen: None, tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """The trace of a run that succeeds."""

    def call(values: Any = UNEXPANDED, **flags: Any) -> dict[str, torch.Tensor]:
        done = run(values, trace=tmp_path / "trace.safetensors", **flags)
        assert done.status == 0, done.error
        return load_file(tmp_path / "trace.safetensors")

    return call


def differ(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name in theirs if not torch.equal(ours[name], theirs[name])]


@pytest.mark.soak
def test_split_files_give_the_same_frames(traced: Callable, tiny: TinyFiles, tmp_path: Path) -> None:
    """With the LoRA, which is matched and merged from the split file, and with connectors in two files."""
    parts = layouts.write_split(tiny.checkpoint, tmp_path / "split")
    whole = traced(distill_lora=tiny.distilled_lora)
    named = {part: parts[part] for part in ("video_vae", "audio_vae", "connectors")}
    assert differ(traced(distill_lora=tiny.distilled_lora, checkpoint=parts["transformer"], **named), whole) == []
    mixed = traced(distill_lora=tiny.distilled_lora, checkpoint=parts["with_connectors"], **named)
    assert differ(mixed, whole) == []


def test_fp8_stays_close(traced: Callable, tiny: TinyFiles) -> None:
    """test_modes.py has the bounds. What is encoded from media is not in float8, and equal."""
    plain, small = traced(distill_lora=tiny.distilled_lora), traced(distill_lora=tiny.distilled_lora, fp8=[])
    changed = differ(small, plain)
    assert "final/video_latent" in changed and "prompt/0/video_enc" in changed and "audio/latent" not in changed
    ours, theirs = small["final/video_latent"], plain["final/video_latent"]
    assert 1e-3 < relative(ours, theirs) < 0.05


@pytest.mark.soak
def test_fp8_halves_the_forecast(run: Run, tmp_path: Path) -> None:
    """Of a transformer whose blocks are most of it."""
    wide, sizes = write_tiny(tmp_path, layers=3, heads=4, head_dim=64), []
    for flags in ({}, {"fp8": []}):
        files = {"checkpoint": wide.checkpoint, "text_encoder": wide.gemma}
        request = {**SMALL, "enable_prompt_expansion": False, "num_inference_steps": 1}
        done = run(request, dtype="bfloat16", device="cpu", **files, **flags)
        assert done.status == 0, done.error
        sizes.append(int(re.search(r"^sample: transformer (\d+) MB", done.error, re.M)[1]))
    assert sizes[0] > 10 and 0.45 < sizes[1] / sizes[0] < 0.75, sizes


def test_the_forecast_comes_before_the_models(run: Run, tiny: TinyFiles) -> None:
    done = run(UNEXPANDED, distill_lora=tiny.distilled_lora)
    lines = [line for line in done.error.splitlines() if line]
    assert re.match(r"memory on cpu, .* free; the most at once \d+ MB$", lines[0]), done.error
    stages = [line.partition(":")[0] for line in lines[1:7]]
    assert stages == ["encode text", "encode sound", "first stage", "upscale", "second stage", "decode"]


def spoiled(file: Path) -> None:
    """Other bytes, of the same size and time: the file seems as it was, and cannot be read."""
    status = file.stat()
    file.write_bytes(b"?" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.soak
def test_a_kept_prompt_needs_no_gemma(run: Run, traced: Callable, tiny: TinyFiles, tmp_path: Path) -> None:
    """With the tokenizer spoiled, no Gemma can be loaded: what is kept runs, expanded prompt and all, and no other."""
    gemma, cache = tmp_path / "gemma", tmp_path / "cache"
    shutil.copytree(tiny.gemma, gemma)
    request = {**TWO_STAGES, "enable_prompt_expansion": True}
    first = traced(request, text_encoder=gemma, cache_dir=cache)
    assert sorted({path.suffix for path in cache.iterdir()}) == [".json", ".safetensors"]
    spoiled(gemma / "tokenizer.json")
    again = traced(request, text_encoder=gemma, cache_dir=cache)
    assert differ(again, {name: first[name] for name in again}) == []
    assert {name for name in first if name not in again} == {
        f"prompt/{i}/{k}" for i in "01" for k in ("hidden_states", "mask")
    }
    for values, flags in (
        ({**request, "prompt": "another"}, {"cache_dir": cache}),
        (request, {"cache_dir": tmp_path / "other"}),
        (request, {"cache_dir": cache, "fp8": []}),
        (request, {}),
    ):
        done = run(values, text_encoder=gemma, **flags)
        assert done.status == 2 and "tokenizer.json" in done.last, done.error


@pytest.mark.soak
def test_a_cache_knows_the_files_it_is_of(traced: Callable, tiny: TinyFiles, tmp_path: Path) -> None:
    """Other connectors, other contexts, though the text encoder and the prompt are the same."""
    parts = layouts.write_split(tiny.checkpoint, tmp_path / "split")
    tensors = {name: 2 * tensor for name, tensor in load_file(parts["connectors"]).items()}
    with safe_open(parts["connectors"], "pt") as file:
        save_file(tensors, tmp_path / "other.safetensors", file.metadata())
    flags = {"cache_dir": tmp_path / "cache", "connectors": parts["connectors"]}
    first, again = traced(**flags), traced(**flags)
    other = traced(**{**flags, "connectors": tmp_path / "other.safetensors"})
    assert torch.equal(first["prompt/0/video_enc"], again["prompt/0/video_enc"])
    assert not torch.equal(first["prompt/0/video_enc"], other["prompt/0/video_enc"])


def test_lora_arguments() -> None:
    assert lora_argument("a.safetensors:0.5") == (Path("a.safetensors"), 0.5)
    assert lora_argument("a.safetensors") == (Path("a.safetensors"), 1.0)
    assert lora_argument("C:\\a.safetensors") == (Path("C:\\a.safetensors"), 1.0)
    assert lora_argument("C:\\a.safetensors:-1") == (Path("C:\\a.safetensors"), -1.0)
    for scale in ("inf", "nan"):
        with pytest.raises(ArgumentTypeError, match="has no number as its scale"):
            lora_argument(f"a.safetensors:{scale}")


def start(line: list[str]) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-m", "ltx", *line], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize(
    "number",
    (
        pytest.param(signal.SIGINT, marks=pytest.mark.soak),
        signal.SIGTERM,
        pytest.param("SIGHUP", marks=pytest.mark.soak),
    ),
)
def test_a_signal_in_the_middle(number: int | str, tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    """While the first stage samples: status 130 soon, and the folder as it was, an older file in it. SIGHUP comes when
    the terminal is gone."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        pytest.skip("behind nohup programs ignore SIGHUP")
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "out.mp4").write_bytes(b"older")
    request = {**SMALL, "num_inference_steps": 5000}
    line = arguments(tiny, media, folder, request, {"trace": folder / "trace.safetensors"})
    with start(line) as program:
        try:
            seen = ""
            while not re.search(r"sample: +\d+%", seen):  # its bar: the forecast names the stage, too
                character = program.stderr.read(1)
                assert character, seen
                seen += character
            if number == "SIGHUP":
                program.stderr.close()
                program.send_signal(signal.SIGHUP)
                out, error = program.stdout.read(), "interrupted; nothing was written"
                program.wait(60)
            else:
                program.send_signal(number)
                out, error = program.communicate(timeout=60)
        finally:
            program.kill()
    assert program.returncode == 130, error
    assert out == "" and "Traceback" not in error
    assert error.strip().splitlines()[-1] == "interrupted; nothing was written"
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]
    assert (folder / "out.mp4").read_bytes() == b"older"


LEFT = """
import atexit, os, signal, sys
sys.path.insert(0, sys.argv[1])
from ltx import __main__ as command
atexit.register(os.kill, os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
command.leave(3)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_a_signal_while_it_ends() -> None:
    """What libraries do at the end of the program takes a moment: Ctrl-C then makes no traceback."""
    done = subprocess.run([sys.executable, "-c", LEFT, str(ROOT)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_a_signal_while_it_starts(tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    """Ctrl-C during the seconds that the imports take: no traceback either."""
    folder = tmp_path / "output"
    folder.mkdir()
    with start(arguments(tiny, media, folder, SMALL, {})) as program:
        try:
            maps = Path(f"/proc/{program.pid}/maps")
            while maps.exists() and "libtorch" not in maps.read_text():
                time.sleep(0.02)
            if not maps.exists():
                pytest.skip("needs /proc")
            program.send_signal(signal.SIGINT)
            out, error = program.communicate(timeout=60)
        finally:
            program.kill()
    assert program.returncode == 130, error
    assert (out, error) == ("", "interrupted; nothing was written\n")
    assert list(folder.iterdir()) == []


def test_the_program_itself(tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    """Everything once from a shell's point of view, with Gemma: status 0 and a file."""
    folder = tmp_path / "out put"
    folder.mkdir()
    shutil.copy(media / "voice.wav", folder / "vöice one.wav")
    line = arguments(tiny, media, folder, SMALL, {"audio": folder / "vöice one.wav", "image": media / "picture.png"})
    with start(line) as program:
        out, error = program.communicate(timeout=240)
    assert program.returncode == 0, error
    assert json.loads(out)["output"] == str(folder / "out.mp4")
    assert stream_facts(folder / "out.mp4")[:4] == (64, 64, 9, 24.0)


WITHOUT_TORCH = """
import runpy, sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "diffusers", "av", "numpy")))
sys.argv = ["ltx", *sys.argv[1:]]
runpy.run_module("ltx", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "flags, values, status, told",
    [
        ({"help": ""}, {}, 0, "Makes a video that moves with an audio file"),
        ({"attention": "flash4"}, {}, 2, "invalid choice: 'flash4'"),
        ({}, {"audio_strength": 2}, 2, "audio_strength"),
        ({"audio": "gone.wav"}, {}, 2, "gone.wav: no such file; check the name and the folder.\n"),
        ({"audio": f"{'x' * 300}.wav"}, {}, 2, "x.wav: no such file; check the name and the folder.\n"),
        ({"output": "out.webm"}, {}, 2, "--output: out.webm does not end in .mp4"),
        ({"output": f"{'x' * 300}/out.mp4"}, {}, 2, "does not exist; create it first.\n"),
    ],
)
def test_what_needs_no_model_is_said_before_torch_is_imported(
    flags: dict[str, str], values: dict[str, Any], status: int, told: str, tiny: TinyFiles, media: Path, tmp_path: Path
) -> None:
    """At once, and not after the seconds that the imports take."""
    line = arguments(tiny, media, tmp_path, {**SMALL, **values}, flags)
    call = [sys.executable, "-c", WITHOUT_TORCH, *line]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status and told in (done.stderr or done.stdout), done.stderr


@pytest.mark.soak  # test_refused_in_one_sentence has the sentences
def test_the_program_refuses(tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    """Status 2 with one line from a shell's point of view, too: no library adds one of its own."""
    folder = tmp_path / "output"
    folder.mkdir()
    with start(arguments(tiny, media, folder, SMALL, {"audio": media / "empty.wav"})) as program:
        out, error = program.communicate(timeout=240)
    assert (program.returncode, out, len(error.splitlines())) == (2, "", 1), error


@pytest.mark.parametrize("flags", [["-I"], []], ids=["isolated", "usual"])
def test_it_runs_by_its_path(tmp_path: Path, flags: list[str]) -> None:
    """For a Python that looks for modules in its own folders alone, as that of the portable ComfyUI."""
    told = [sys.executable, *flags, str(ROOT / "ltx")]
    shown = subprocess.run([*told, "download", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0 and "download" in shown.stdout, shown.stderr
    (tmp_path / "request.json").write_text('{"prompt": "a cat"}')
    given = [
        "--checkpoint",
        "none.safetensors",
        "--request",
        "request.json",
        "--output",
        "out.mp4",
        "--audio",
        "none.wav",
    ]
    wrong = subprocess.run([*told, *given], cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "none." in wrong.stderr, wrong.stderr
