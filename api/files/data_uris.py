"""Data URIs (RFC 2397) that requests bring their files in."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from ...ltx.errors import InputError
from ..settings import MIB


def parse(value: str, field: str, cap: int) -> tuple[str, bytes]:
    """RFC 2397: (content type, data). Errors: no comma, broken base64, larger than `cap` bytes."""
    head, comma, body = value[5:].partition(",")
    if not comma:
        raise InputError(f"{field}: the data URI has no comma; give data:<type>;base64,<data>.")
    content_type, *parameters = (part.strip().lower() for part in head.split(";"))
    if "base64" not in parameters:
        data = unquote_to_bytes(body)
    else:
        text = re.sub(rb"\s", b"", unquote_to_bytes(body)).rstrip(b"=")
        try:
            data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
        except binascii.Error as error:
            raise InputError(f"{field}: the data URI's base64 is broken ({error}); encode the file again.") from error
    if len(data) > cap:
        raise InputError(f"{field}: the data URI is larger than {cap // MIB} MiB; upload the file instead.")
    if not data:
        raise InputError(f"{field}: the data URI is empty; encode the file again.")
    return content_type, data
