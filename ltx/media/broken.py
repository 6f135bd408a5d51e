"""Finds what is destroyed in the middle of a Matroska, WebM or AVI file.

FFmpeg goes on at the next cluster or chunk that it finds, and tells nobody what it has passed over; an AVI has no times
that would show it. So the file's elements are walked, by their heads alone, as far as one follows the other.
"""

from __future__ import annotations

import re
from typing import BinaryIO

HEADER, SEGMENT, CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
# What RFC 9559 has in a file, a segment and a cluster, and what RFC 8794 has everywhere. Noise is no such name.
NAMES = frozenset(
    bytes.fromhex(name)
    for name in (
        "1a45dfa3", "18538067", "1f43b675", "114d9b74", "1549a966", "1654ae6b", "1c53bb6b", "1941a469", "1043a770",
        "1254c367", "e7", "5854", "a7", "ab", "a3", "a0", "af", "ec", "bf",
    )
)  # fmt: skip
OPENED = (SEGMENT, CLUSTER)
"""What is in these is walked, so their own lengths say nothing. In a live recording they are open."""
LONGEST_HEAD = 12  # bytes: at most 4 of a name and 8 of a length
BLOCK = 2**20  # bytes that are searched at once
CHUNK = re.compile(rb"[0-9A-Za-z ]{4}")  # the name of a chunk of an AVI
PICTURE = re.compile(rb"0\d(?:dc|db|wb)")  # of one with a picture or with sound


def is_broken(file: BinaryIO) -> bool:
    """Whether a Matroska file has a place that is no element, and a cluster behind it, or an AVI has one that is no
    chunk. False for another format, and for a file whose end alone is missing."""
    size, at = file.seek(0, 2), 0
    file.seek(0)
    head = file.read(LONGEST_HEAD)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _has_bad_chunk(file, size)
    while at < size:
        file.seek(at)
        head = file.read(LONGEST_HEAD)
        if not at and not head.startswith(HEADER):
            return False
        name, length, start = _element(head)
        if name in OPENED:
            at += start
        elif name not in NAMES or length is None or at + start + length > size:
            return _has_cluster(file, at + 1)
        else:
            at += start + length
    return False


def _has_bad_chunk(file: BinaryIO, size: int) -> bool:
    """Whether an AVI has a place that is no chunk, and a picture or sound behind it."""
    at = 0
    while at + LONGEST_HEAD <= size:
        file.seek(at)
        head = file.read(LONGEST_HEAD)
        name, kind, length = head[:4], head[8:12], int.from_bytes(head[4:8], "little")
        if name in (b"RIFF", b"LIST") and kind in (b"AVI ", b"AVIX", b"movi", b"rec "):
            at += LONGEST_HEAD  # what is in these is walked
        elif CHUNK.fullmatch(name):
            at += 8 + length + length % 2
        else:
            file.seek(at)
            return PICTURE.search(file.read(BLOCK)) is not None
    return False


def _element(head: bytes) -> tuple[bytes, int | None, int]:
    """Name of an element that begins so, bytes of its content, and bytes of its head. The length is None if there is no
    element, or if it is open."""
    name = head[: _digits(head, 4)]
    rest = head[len(name) :]
    width = _digits(rest, 8)
    if not name or not width or len(rest) < width:
        return b"", None, 0
    most = (1 << 7 * width) - 1
    length = int.from_bytes(rest[:width], "big") & most
    return name, None if length == most else length, len(name) + width


def _digits(head: bytes, most: int) -> int:
    """Bytes of a number that tells its width by the zeros in front of its first one; 0 if there are too many."""
    width = 9 - head[0].bit_length() if head else 0
    return width if width <= most else 0


def _has_cluster(file: BinaryIO, at: int) -> bool:
    """Whether a cluster begins at that place or behind it."""
    file.seek(at)
    before = b""
    while block := file.read(BLOCK):
        if CLUSTER in before + block:
            return True
        before = block[1 - len(CLUSTER) :]
    return False
