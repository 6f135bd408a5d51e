"""The terminal of a command: streams that are closed or full, the signals that end it, paths as shells leave them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from a2v.ltx import terminal
from a2v.ltx.arguments import keyframe_argument, lora_argument, parser
from a2v.ltx.tools import doctor, download

ROOT = Path(__file__).resolve().parents[2]
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals and streams as POSIX has them")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of a program in a terminal, also where the tests run behind nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in terminal.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def command(*line: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ltx", *line], cwd=ROOT, text=True, **more)


WRONG = ("--checkpoint", "x", "--audio", "gone.wav", "--request", "x.json", "--output", "x.mp4")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_error_changes_no_status() -> None:
    """It would be 1 or 120 otherwise; and a log that is full would end a run after hours."""
    with Path("/dev/full").open("w") as full:
        done = command(*WRONG, stdout=subprocess.PIPE, stderr=full)
    assert (done.returncode, done.stdout) == (2, "")


@POSIX
@pytest.mark.parametrize(
    ("number", "line", "told"), [(1, ("download", "nothing"), "'nothing' is not known"), (2, WRONG, "")]
)
def test_a_closed_stream_is_nothing_to_write_to(number: int, line: tuple[str, ...], told: str) -> None:
    """As of a service. What is for standard error does not come out of the other one."""
    done = command(*line, preexec_fn=lambda: os.close(number), capture_output=True)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert told in done.stderr


class Gone:
    """A stream whose reader has ended."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise OSError(5, "Input/output error")


def test_a_steady_stream_loses_what_it_cannot_write() -> None:
    stream = terminal.Steady(Gone())
    assert stream.write("three") == 5 and stream.flush() is None and stream.encoding == "utf-8"
    print("text", file=stream, flush=True)


@POSIX
def test_a_closed_terminal_ends_a_run_in_order() -> None:
    terminal.on_end(signal.default_int_handler)
    for number in terminal.ENDING:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)  # the handler runs before the next line
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} == set(terminal.ENDING)


@POSIX
@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_a_signal_that_was_ignored_stays_so(name: str) -> None:
    """nohup ignores SIGHUP, and a script SIGINT for what it runs in the background."""
    number = getattr(signal, name)
    signal.signal(number, signal.SIG_IGN)
    terminal.on_end(signal.default_int_handler)
    os.kill(os.getpid(), number)
    assert signal.getsignal(number) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """cmd and PowerShell leave it to the program, and so does --flag=~/file in other shells."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    line = ("--checkpoint=~/m.safetensors", "--request", "~/r.json", "--output", "./~x.mp4", "--lora", "~/l:0.5")
    given = parser().parse_args([*line, "--keyframe", "~/face.png@8", "--speaker", "~/mask.png"])
    assert (given.checkpoint, given.request) == (tmp_path / "m.safetensors", tmp_path / "r.json")
    assert given.output == Path("~x.mp4")
    assert given.lora == [(tmp_path / "l", 0.5)] == [lora_argument("~/l:0.5")]
    assert given.keyframe == [(tmp_path / "face.png", 8, 1.0)] == [keyframe_argument("~/face.png@8:1")]
    assert given.speaker == [tmp_path / "mask.png"]
    for tool in (doctor, download):
        assert tool.parser().parse_args(["--models", "~/models"]).models == tmp_path / "models"
