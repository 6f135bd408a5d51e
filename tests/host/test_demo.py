"""`make demo` as a person runs it: from a file to a video, and what it says when it cannot."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from a2v.tests.host import demo

SCRIPT = Path(demo.__file__)


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """0.7 s of a sine, 22.05 kHz mono."""
    file = tmp_path / "tone.wav"
    samples = np.sin(2 * np.pi * 440 * np.arange(15435) / 22050) * 8000
    with wave.open(str(file), "wb") as out:
        out.setparams((1, 2, 22050, 0, "NONE", ""))
        out.writeframes(samples.astype("<i2").tobytes())
    return file


def test_a_file_becomes_a_video(tone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert demo.main(tone, "a lighthouse", base=tmp_path / "demo") == 0
    said = capfd.readouterr().out
    (path,) = re.findall(r"done in [\d.]+ s: (.+\.mp4)$", said, re.MULTILINE)
    with av.open(path) as file:
        assert "a lighthouse" in file.metadata["prompt"] and "tone.wav" in file.metadata["prompt"]
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert video.frames == sum(1 for _ in file.decode(video=0)) == 17  # 0.7 s at 24 fps, up to 8k+1
    assert f"{demo.SIZE}×{demo.SIZE}, 24 fps, 17 frames" in said and "audio: aac" in said
    assert re.search(r"█ +\d+/\d+$", said, re.MULTILINE), "no progress"
    steps = re.findall(r"^ +(\d+)/(\d+)  (\S.*?)(?:  |$)", said, re.MULTILINE)
    assert [(int(done), int(total)) for done, total, _ in steps] == [(n + 1, len(steps)) for n in range(len(steps))]
    titles = [title for _, _, title in steps]
    assert titles.index("First stage") < titles.index("Second stage") < titles.index("Decode and Save")
    assert titles[-1] == "Decode and Save"


@pytest.mark.parametrize("content", [None, b"", b"no sound, just a text"], ids=["missing", "empty", "text"])
def test_a_bad_file_is_one_sentence_and_status_2(
    content: bytes | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "song.mp3"
    if content is not None:
        file.write_bytes(content)
    assert demo.main(file, base=tmp_path / "demo") == 2
    out, err = capfd.readouterr()
    assert "song.mp3" in err and len(err.strip().splitlines()) == 1 and not out
    assert not (tmp_path / "demo").exists()


@pytest.mark.soak  # tests/ltx/test_command.py has a signal to the command
def test_an_interrupt_stops_server_and_demo(tone: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, SCRIPT, tmp_path / "demo"],
        env=os.environ | {"AUDIO": str(tone)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ready = next(line for line in process.stdout if "ready in" in line)
    url = re.search(r"http://\S+", ready)[0]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert not _listens(url)


def _listens(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
