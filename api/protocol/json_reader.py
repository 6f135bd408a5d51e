"""Reads JSON while it arrives: it writes files within it to the disk and limits the rest.

Only the values of some names at the top of a submission may be large: data URIs. The text around them has a few
kilobytes. Python's own parser reads it, with a short text in place of each data URI.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection

from ...ltx.errors import InputError
from ..files.data_uris import SCHEME, ArrivedFile, DataUri
from ..files.incoming import Incoming

LONGEST_TEXT = 2**18  # bytes beside the data URIs
DEEPEST = 32
MOST_FILES = 8  # more than any application takes, because a name may stand twice

OPEN, CLOSE = b"{[", b"}]"
MARK = re.compile(rb'["{}\[\],:]')
STOP = re.compile(rb'["\\]')
WITHOUT_END = re.compile(rb'(?:[^"\\]+|\\[^u]|\\u.{4})*', re.DOTALL)
"""A string's text up to its end, or up to half an escape. Nothing follows the loop, so it never goes back, and any text
takes time by its length alone."""


class TooMuch(Exception):
    """The text is larger or deeper than any right one: one sentence."""


class JsonReader:
    """Takes the bytes of a JSON object in pieces. files: name → the data URI under it.

    names: those whose values may be data URIs. open: returns the file for one. Errors: TooMuch; OSError if the disk
    takes nothing. Broken JSON shows when `text` is parsed.
    """

    def __init__(self, names: Collection[str], open: Callable[[], Incoming], longest: int = LONGEST_TEXT) -> None:
        self.text = bytearray()
        self.files: dict[str, ArrivedFile] = {}
        self._names, self._open, self._longest = names, open, longest
        self._read: Callable[[bytes], bytes] = self._outside
        self._depth = 0
        self._after_colon = False  # whether a value at the top comes next
        self._name = ""
        self._begin = 0  # where the string that is being read begins in `text`
        self._held = b""  # the end of a piece that needs the next one to be understood
        self._opened = 0
        self._arriving: ArrivedFile | None = None

    def feed(self, piece: bytes) -> None:
        piece, self._held = self._held + piece, b""
        while piece:
            piece = self._read(piece)

    def discard(self) -> None:
        """Removes the files that were not kept."""
        for arrived in (*self.files.values(), *([self._arriving] if self._arriving else [])):
            arrived.file.discard()

    def _keep(self, text: bytes) -> None:
        self.text += text
        if len(self.text) > self._longest:
            raise TooMuch(
                f"The body has more than {self._longest // 1024} KiB beside its data URIs; upload files and send their "
                "URLs."
            )

    def _outside(self, piece: bytes) -> bytes:
        """Reads up to the beginning of a string. Returns the rest of the piece."""
        at = 0
        while found := MARK.search(piece, at):
            mark, at = found[0], found.end()
            if mark in OPEN:
                self._depth += 1
                if self._depth > DEEPEST:
                    raise TooMuch(f"The body is nested deeper than {DEEPEST} levels.")
            elif mark in CLOSE:
                self._depth -= 1
            elif mark == b'"':
                self._keep(piece[:at])
                self._begin = len(self.text) - 1
                wanted = self._depth == 1 and self._after_colon and self._name in self._names
                self._read = self._sniff if wanted else self._inside
                return piece[at:]
            if self._depth == 1:
                self._after_colon = mark == b":"
        self._keep(piece)
        return b""

    def _inside(self, piece: bytes) -> bytes:
        """Reads up to the end of a string that belongs to the text."""
        at = 0
        while found := STOP.search(piece, at):
            if found[0] == b'"':
                self._keep(piece[: found.end()])
                self._end_string()
                return piece[found.end() :]
            at = found.end() + 1
            if at > len(piece):  # the escaped letter comes with the next piece
                self._keep(piece[:-1])
                self._held = piece[-1:]
                return b""
        self._keep(piece)
        return b""

    def _end_string(self) -> None:
        self._read = self._outside
        if self._depth == 1 and not self._after_colon:
            try:
                self._name = json.loads(bytes(self.text[self._begin :]))
            except ValueError:  # the parser reports it in the end
                self._name = ""

    def _sniff(self, piece: bytes) -> bytes:
        """Finds out whether the value of a file's name is a data URI."""
        if len(piece) < len(SCHEME) and b'"' not in piece:
            self._held = piece
            return b""
        if piece[: len(SCHEME)].lower() != SCHEME:
            self._read = self._inside
            return piece
        self._opened += 1
        if self._opened > MOST_FILES:
            raise TooMuch(f"The body brings more than {MOST_FILES} data URIs.")
        self._arriving = ArrivedFile(DataUri(self._open(), self._name))
        self._read = self._inside_uri
        return piece[len(SCHEME) :]

    def _inside_uri(self, piece: bytes) -> bytes:
        """Reads up to the end of a data URI."""
        cut = piece.find(b'"')
        cut = len(piece) if cut < 0 else cut
        if piece.find(b"\\", 0, cut) >= 0:  # rare: the pattern takes a hundred times as long
            found = WITHOUT_END.match(piece)
            cut = found.end() if found else 0
        self._take(piece[:cut])
        if piece[cut : cut + 1] == b'"':
            self._end_uri()
            return piece[cut + 1 :]
        self._held = piece[cut:]  # nothing, or half an escape, which waits for the next piece
        return b""

    def _take(self, raw: bytes) -> None:
        """Takes a part of a data URI, with JSON's escapes."""
        if raw and self._arriving and self._arriving.error is None:
            try:
                text = json.loads(b'"%b"' % raw).encode("utf-8", "replace") if b"\\" in raw else raw
                self._arriving.uri.feed(text)
            except InputError as error:
                self._arriving.error = error
            except ValueError:  # an escape that is none in JSON
                self._keep(b"\\ ")  # the parser reports this

    def _end_uri(self) -> None:
        arrived, self._arriving = self._arriving, None
        assert arrived is not None
        if arrived.error is None:
            try:
                arrived.uri.end()
            except InputError as error:
                arrived.error = error
        if self._name in self.files:  # as in JSON, the last one counts
            self.files[self._name].file.discard()
        self.files[self._name] = arrived
        self._keep(json.dumps(arrived.text).encode()[1:])
        self._read = self._outside
