"""The terminal of a command, which may be closed, full or gone: that ends no run, and its signals end one in order."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""The signals that ask for the end. SIGHUP comes when a terminal is closed, as SIGBREAK does on Windows."""


def to_path(text: str) -> Path:
    """A path of a command line. A ~ at its start is the home folder: cmd and PowerShell leave it, as other shells do
    within --flag=~/file."""
    return Path(os.path.expanduser(text))


def on_end(handler: Callable[..., Any]) -> None:
    """Gives the signals of ENDING a handler. One that was ignored when the program began stays ignored: nohup wants so
    for SIGHUP, and a shell script wants so of SIGINT for what it runs in the background."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


class Steady:
    """A text stream that loses what it cannot write, as on a full disk or after the reader's end, and does not fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def steady_streams() -> None:
    """Makes standard error steady. A closed stream is opened on nothing: otherwise Python has none, and the next file
    that is opened takes its number, where libraries write their messages."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the program ends
    sys.stderr = Steady(sys.stderr)
