"""Decides what the API tells about an error: to a client, in a request's log, and in the server's own log."""

from __future__ import annotations

import logging
import re
import threading
import time
import traceback

REMIND_SECONDS = 60.0  # until a lasting failure is logged again
TOKEN = re.compile(r"[0-9a-f]{32,}")
"""Random names and secrets. Whoever knows one may read or write a file."""
WORD = r"""(?:(?![^\s/\\]*\.[A-Za-z][A-Za-z0-9]{1,11}[ ])[^\s/\\"<>|:;,]+)"""
FOLDER = rf"{WORD}(?: {WORD}){{0,4}}"
"""A folder's name, perhaps with blanks. A word like `x.bin` before a blank is a file's name: the path ends there."""
LAST = r"""[^\s/\\'"<>|:;,()]+"""
PATH = re.compile(
    r"""(?P<quote>['"])(?:/|[A-Za-z]:[\\/]|\\\\)(?:(?!(?P=quote))[^\n])*(?P=quote)"""
    rf"""|(?<![\w:/.\\-])/+(?:{FOLDER}/+)+(?:{LAST})?"""
    rf"""|(?:(?:\\\\\?\\)?(?<!\w)[A-Za-z]:[\\/]+|(?<![\w:/.\\-])\\\\+)(?:(?:{FOLDER}[\\/]+)+(?:{LAST})?|{LAST})"""
)
"""A whole path: in quotes, or as far as it can be told from the text around it."""


def public(message: str) -> str:
    """Removes paths and tokens from a message. Of a path its last part stays, because it may be a model's name."""
    return TOKEN.sub("…", PATH.sub(_last_part, message))


def _last_part(found: re.Match[str]) -> str:
    quote = found["quote"] or ""
    return quote + re.split(r"[\\/]", found[0].strip(quote or None).rstrip("\\/"))[-1] + quote


def log_unexpected(what: str, error: BaseException) -> None:
    """Logs a bug of this program with its traceback, without tokens."""
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    logging.error("LTX A2V: %s: %s\n%s", what, type(error).__name__, TOKEN.sub("…", lines))


class Complaints:
    """Logs sentences about lasting failures: each sentence when the failure begins, then once a minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}  # sentence → when it was logged

    def note(self, sentence: str) -> None:
        now = time.monotonic()
        with self._lock:
            if now < self._said.get(sentence, -REMIND_SECONDS) + REMIND_SECONDS:
                return
            self._said = {each: at for each, at in self._said.items() if now < at + REMIND_SECONDS} | {sentence: now}
        logging.error("LTX A2V: %s It is tried again until it works.", sentence)
