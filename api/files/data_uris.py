"""Decodes data URIs (RFC 2397) while they arrive, so that a file of 100 MB is never in memory."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from ...ltx.errors import InputError
from ..settings import MIB
from .incoming import Incoming, TooLargeError

SCHEME = b"data:"
LONGEST_HEAD = 1024  # bytes before the comma
WHITE = b" \t\r\n\v\f"


class DataUri:
    """Takes the text behind `data:` in pieces and writes the decoded bytes into a file.

    `feed` and `end` raise InputError, which names the field, and OSError if the disk takes nothing.
    """

    def __init__(self, file: Incoming, field: str) -> None:
        self.file, self._field = file, field
        self.head: bytes | None = None
        self._held = b""  # the end of a piece that needs the next one to be decoded
        self._base64 = False
        self._digits = b""  # less than four digits of base64
        self._padded = False

    @property
    def content_type(self) -> str:
        return (self.head or b"").split(b";")[0].strip().lower().decode("ascii", "replace")

    def feed(self, text: bytes) -> None:
        if self.head is None:
            self._held += text
            head, comma, body = self._held.partition(b",")
            if not comma:
                if len(self._held) > LONGEST_HEAD:
                    raise self._no_comma()
                return
            self.head, self._held, text = head, b"", body
            self._base64 = b"base64" in (part.strip().lower() for part in head.split(b";")[1:])
        self._decode(self._unquoted(text))

    def end(self) -> None:
        """Ends the text. Errors: InputError if it was no data URI, or an empty one."""
        if self.head is None:
            raise self._no_comma()
        held, self._held = self._held, b""
        self._decode(held)  # a percent sign without two digits stands for itself
        if self._digits:
            self._write_base64(self._digits + b"=" * (-len(self._digits) % 4))
        if not self.file.size:
            raise InputError(f"{self._field}: the data URI is empty; encode the file again.")

    def _unquoted(self, text: bytes) -> bytes:
        text, self._held = self._held + text, b""
        if b"%" in text[-2:]:
            cut = text.rindex(b"%")
            text, self._held = text[:cut], text[cut:]
        return unquote_to_bytes(text) if b"%" in text else text

    def _decode(self, data: bytes) -> None:
        if not self._base64:
            return self._write(data)
        text = data.translate(None, WHITE) if any(byte in data for byte in WHITE) else data
        digits = text.rstrip(b"=")
        if self._padded and digits:
            raise self._broken("characters after the padding")
        self._padded |= len(digits) < len(text)
        digits = self._digits + digits
        whole = len(digits) // 4 * 4
        self._digits = digits[whole:]
        self._write_base64(digits[:whole])
        return None

    def _write_base64(self, digits: bytes) -> None:
        try:
            self._write(base64.b64decode(digits, validate=True))
        except binascii.Error as error:
            raise self._broken(str(error)) from None

    def _write(self, data: bytes) -> None:
        try:
            self.file.write_now(data)
        except TooLargeError:
            mib = self.file.cap // MIB
            raise InputError(
                f"{self._field}: the data URI is larger than {mib} MiB; upload the file instead."
            ) from None

    def _no_comma(self) -> InputError:
        return InputError(f"{self._field}: the data URI has no comma; give data:<type>;base64,<data>.")

    def _broken(self, reason: str) -> InputError:
        return InputError(f"{self._field}: the data URI's base64 is broken ({reason}); encode the file again.")


@dataclass
class ArrivedFile:
    """A data URI that arrived: its file, or its error."""

    uri: DataUri
    error: InputError | None = None

    @property
    def file(self) -> Incoming:
        return self.uri.file

    @property
    def text(self) -> str:
        """Replaces the data URI in the JSON. It is equal for equal files and different for different ones."""
        head = (self.uri.head or b"").decode("utf-8", "replace")
        return f"data:{head},{self.error or self.file.digest}"
