"""Faults on the way: memory and disk that run out, folders that cannot be written, files that vanish, signals.

After each: nothing half-written under a final name, memory back, and the next run is right. Signals during the start
and the first stage, and failures inside the writer, are tests/ltx/test_command.py's and test_video.py's.
"""

from __future__ import annotations

import gc
import math
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx import __main__ as command
from a2v.ltx import encoding, job, pipeline, sampling, seen
from a2v.ltx.diffusion import sample_windows
from a2v.ltx.errors import InputError
from a2v.ltx.job import Compute, Files
from a2v.ltx.media.formats import FORMATS
from a2v.ltx.media.probe import probe
from a2v.ltx.media.video import write_video
from a2v.ltx.prompt import text as prompt_text
from a2v.ltx.request import parse
from a2v.ltx.terminal import ENDING
from a2v.ltx.weights import lora
from a2v.tests.ltx.goldens import unforeseen
from a2v.tests.ltx.test_command import arguments, start, write_wav
from a2v.tests.tiny import TinyFiles, write_tiny
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensor

REQUEST = {
    "prompt": "a woman speaks", "seed": 5, "video_size": {"width": 128, "height": 64}, "num_frames": 9,
    "match_audio_length": False, "num_inference_steps": 2, "enable_prompt_expansion": False,
}  # fmt: skip
ROOT_ONLY = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts a small disk")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"), layers=2, vae_width=4, gemma_layers=1)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_wav(folder / "voice.wav", 1.0)
    Image.linear_gradient("L").convert("RGB").resize((90, 70)).save(folder / "picture.png")
    return folder


Main = Callable[..., tuple[int, str]]


@pytest.fixture
def main(tiny: TinyFiles, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Main]:
    """The command in this process: its status and the last line on standard error. The signal handlers come back."""
    handlers = {number: signal.getsignal(number) for number in ENDING}

    def call(folder: Path, values: dict[str, Any] = REQUEST, **flags: Any) -> tuple[int, str]:
        every = {"image": media / "picture.png", "distill-lora": tiny.distilled_lora, **flags}
        capsys.readouterr()
        status = command.main(arguments(tiny, media, folder, values, every), unforeseen)
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return status, error.strip().splitlines()[-1]

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def right(tiny: TinyFiles, media: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The video of REQUEST."""
    path = tmp_path_factory.mktemp("right") / "out.mp4"
    pipeline.run(files_of(tiny, media, path), parse(REQUEST), Compute(torch.float32))
    return path.read_bytes()


def files_of(tiny: TinyFiles, media: Path, output: Path) -> Files:
    return Files(
        checkpoint=tiny.checkpoint, text_encoder=tiny.gemma, audio=media / "voice.wav", output=output,
        upscaler=tiny.upscaler, distill_lora=tiny.distilled_lora, image=media / "picture.png",
    )  # fmt: skip


def held() -> int:
    """Bytes of all tensors that something refers to."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # Fake ones, which torch.compile's caches keep in a process that compiled before, have no memory.
        if issubclass(type(thing), torch.Tensor) and not issubclass(type(thing), FakeTensor) and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


CALLS = (
    (job, "load_track", 0), (job, "compress", 0), (encoding, "load_gemma", 0), (prompt_text, "connect", 1),
    (encoding, "encode_mel", 0), (seen, "encode_image", 1),
    (lora.Merger, "set", 0), (sample_windows, "sample", 0), (sampling, "upscale", 0),
    (lora.Merger, "set", 1), (sample_windows, "sample", 1), (pipeline, "to_uint8", 0),
)  # fmt: skip
USUAL = ("load_track 0", "connect 1", "sample 0", "to_uint8 0")  # a sound, prompts, a model, a clip in memory


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        pytest.param(*each, id=(name := f"{each[1]} {each[2]}"), marks=[pytest.mark.soak] * (name not in USUAL))
        for each in CALLS
    ],
)
def test_memory_runs_out(
    owner: Any, name: str, call: int, main: Main, right: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that call of that function, with its result in memory. Then the same request again, which succeeds."""
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "out.mp4").write_bytes(b"older")
    real, calls = getattr(owner, name), iter(range(100))
    before = held()

    def full(*arguments: Any, **named: Any) -> Any:
        result = real(*arguments, **named)
        if next(calls) == call:
            raise torch.OutOfMemoryError("out of memory")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        assert main(folder) == (1, "failed: OutOfMemoryError: out of memory")
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]
    assert (folder / "out.mp4").read_bytes() == b"older"
    assert held() <= before + 2**20  # of models and latents nothing is left
    again = main(folder)
    assert again[0] == 0, again
    assert (folder / "out.mp4").read_bytes() == right


@contextmanager
def small_disk(folder: Path, size: str, *options: str) -> Iterator[Path]:
    """A file system of that size; the test is skipped where none may be mounted."""
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(line, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@ROOT_ONLY
@pytest.mark.parametrize("name", FORMATS)
def test_the_disk_is_full(name: str, tmp_path: Path) -> None:
    """Each format's writer: one sentence with the file's name, the older file as it was, and no other."""
    chunks = (torch.randint(0, 255, (8, 128, 128, 3), dtype=torch.uint8) for _ in range(4))
    with small_disk(tmp_path / "disk", "64k") as disk:
        path = disk / f"out{FORMATS[name].suffix}"
        path.write_bytes(b"older")
        with pytest.raises(OSError, match=rf"{path}: could not be written \(No space left") as error:
            write_video(path, chunks, Fraction(24), None, format=name, quality="maximum")
        assert "\n" not in str(error.value)
        assert [entry.name for entry in disk.iterdir()] == [path.name] and path.read_bytes() == b"older"


@ROOT_ONLY
def test_the_disk_is_full_for_the_command(main: Main, right: bytes, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4k") as disk:
        status, line = main(disk)
        assert status == 1 and re.fullmatch(rf"failed: OSError: {disk}/out\.mp4: could not be written \(.*", line)
        assert list(disk.iterdir()) == []
    folder = tmp_path / "output"
    folder.mkdir()
    with small_disk(tmp_path / "traces", "64k") as disk:  # the video is complete, the trace is not
        status, line = main(folder, trace=disk / "trace.safetensors")
        assert status == 1 and "trace" in line, line
        assert list(disk.iterdir()) == []
    assert (folder / "out.mp4").read_bytes() == right


@ROOT_ONLY
def test_the_output_folder_is_read_only(main: Main, tmp_path: Path) -> None:
    """Said before a model loads; and by the writer, which nodes call."""
    with small_disk(tmp_path / "disk", "64k", "ro") as disk:
        status, line = main(disk)
        assert status == 2 and line.startswith(f"--output: the folder {disk} cannot be written to"), line
        frames = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
        with pytest.raises(InputError, match=rf"{disk}/v\.mp4: .*choose another folder"):
            write_video(disk / "v.mp4", [frames], Fraction(24), None)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not delete open files")
@pytest.mark.parametrize(
    "field",
    [
        *("upscaler", "checkpoint", "text_encoder"),
        *(pytest.param(field, marks=pytest.mark.soak) for field in ("audio", "image", "distill_lora")),
    ],
)
def test_a_file_is_deleted_once_it_was_looked_at(
    field: str, tiny: TinyFiles, media: Path, right: bytes, tmp_path: Path
) -> None:
    """The video it would have been, where the file is open by then; else one sentence that names it, and no video."""
    output = tmp_path / "output" / "out.mp4"
    output.parent.mkdir()
    files = files_of(tiny, media, output)
    whole: Path = getattr(files, field)
    copy = tmp_path / whole.name
    (shutil.copytree if whole.is_dir() else shutil.copy)(whole, copy)

    def delete(forecast: object) -> None:
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink()

    try:
        pipeline.run(replace(files, **{field: copy}), parse(REQUEST), Compute(torch.float32), announce=delete)
    except InputError as error:
        assert str(copy) in str(error) and "\n" not in str(error)
        assert field in ("upscaler", "text_encoder"), "it was open"
        assert list(output.parent.iterdir()) == []
    else:
        assert output.read_bytes() == right
    assert not copy.exists()


PHASES = ("encode text", "first stage", "second stage", "decode", "writing")
LONGER = {**REQUEST, "num_frames": 49, "num_inference_steps": 4, "video_size": {"width": 192, "height": 128}}


def signalled(stage: str, number: int, line: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The command, and the signal once that stage's bar is there or, for "writing", the file is begun."""
    with start(line) as program:
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.extend(iter(lambda: program.stderr.read(1), "")))
        reader.start()
        deadline = time.monotonic() + 240
        bar = re.compile(rf"{stage}: +\d+%")  # the forecast names the stages, too
        while not (any(folder.glob(".*partial*")) if stage == "writing" else bar.search("".join(seen))):
            assert program.poll() is None and time.monotonic() < deadline, "".join(seen)
            time.sleep(0.005)
        program.send_signal(number)
        program.wait(120)
        reader.join()
        out = program.stdout.read()
    return subprocess.CompletedProcess(line, program.returncode, out, "".join(seen))


def check_signal(stage: str, number: int, tiny: TinyFiles, media: Path, main: Main, tmp_path: Path) -> None:
    """The signal, what it leaves, and the same request again in the same folder."""
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "out.mp4").write_bytes(b"older")
    line = arguments(tiny, media, folder, LONGER, {})
    done = signalled(stage, number, line, folder)
    left = [path.name for path in folder.iterdir() if path.name != "out.mp4"]
    if number == signal.SIGKILL:
        assert done.returncode == -signal.SIGKILL
        assert all(re.fullmatch(r"\.out\.[0-9a-f]{8}\.partial\.mp4", name) for name in left)  # nobody could tidy up
        for name in left:
            os.utime(folder / name, (0, 0))
    else:
        assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.strip().splitlines()[-1] == "interrupted; nothing was written"
        assert left == []
    assert (folder / "out.mp4").read_bytes() == b"older"
    again = main(folder, LONGER)
    assert again[0] == 0, again
    assert probe(folder / "out.mp4").frames == 49
    assert os.listdir(folder) == ["out.mp4"]


def test_an_interrupt_while_the_encoder_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ThreadPoolExecutor loses a thread that is starting then, and does not wait for it: it must write nothing."""
    real, started = threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        real(thread)
        started.append(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            frames = torch.zeros(96, 64, 64, 3, dtype=torch.uint8)  # more than x264 looks ahead: some reach the file
            write_video(tmp_path / "out.mp4", [frames, frames], Fraction(24), None)
    for thread in started:
        thread.join(60)
    assert len(started) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.soak
@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize("stage", PHASES)
@pytest.mark.parametrize("name", ("SIGTERM", "SIGINT", "SIGKILL"))
def test_a_signal_at_every_stage(
    name: str, stage: str, tiny: TinyFiles, media: Path, main: Main, tmp_path: Path
) -> None:
    check_signal(stage, getattr(signal, name), tiny, media, main, tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("checkpoint", math.nan),
        pytest.param("distill_lora", math.inf, marks=pytest.mark.soak),
        pytest.param("checkpoint", math.inf, marks=pytest.mark.soak),
        pytest.param("distill_lora", math.nan, marks=pytest.mark.soak),
    ],
)
def test_weights_that_are_no_numbers(field: str, value: float, tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    """A damaged weight makes no black video: one sentence, and no file."""
    output = tmp_path / "output" / "out.mp4"
    output.parent.mkdir()
    files = files_of(tiny, media, output)
    whole: Path = getattr(files, field)
    with safe_open(whole, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(whole)
    tensors[next(key for key in sorted(tensors) if "attn1.to_q" in key)].view(-1)[0] = value
    save_file(tensors, tmp_path / whole.name, metadata=metadata)
    with pytest.raises(InputError, match=r"NaN or infinite values.*LoRA") as error:
        pipeline.run(replace(files, **{field: tmp_path / whole.name}), parse(REQUEST))
    assert "\n" not in str(error.value)
    assert list(output.parent.iterdir()) == []
