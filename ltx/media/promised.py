"""What the header of a file promises: how many packets an MP4 or MOV has, and how much sound a WAV, W64 or CAF.

FFmpeg lists all packets when it opens an MP4, whether they are there or not, and has no limit for that. So what a
client or a stranger sends is looked at first: only as far as it says how long those lists will be. Of the other three
it takes the file's end for the sound's, and does not tell that the header promises more.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from contextlib import suppress
from fractions import Fraction
from typing import BinaryIO

import numpy as np

MOST_SAMPLES = 2**23
"""Packets of all tracks of an MP4 or MOV. FFmpeg holds 36 bytes for each, and a tiny file can promise any number.
Three hours of 60 frames and 400 packets of sound a second have half as many."""
MOST_BOXES = 2**21  # of a header; a film whose every picture is a fragment has ten for each
LONGEST_HEADER = 2**27  # bytes; MOST_SAMPLES need less
SMALL_BOX = 2**16  # bytes
TABLE = re.compile(rb"hdlr|stts|ctts|stsc|stco|co64|stsz|stz2|trun")
FULL = frozenset(b"moov trak mdia minf stbl moof traf mvex udta ilst edts dinf tref meta cmov".split())
"""Boxes in which FFmpeg looks for others."""
PASSED_OVER = frozenset((b"mdat", b"free", b"skip", b"ftyp", b"uuid", b"covr"))
DEEPEST_BOX = 12  # FFmpeg opens no file whose boxes are deeper
MOST_CHUNKS = 4096  # before the sound of a WAV, W64 or CAF
OPEN = 2**31 - 2**16  # bytes; recorders that write into a pipe promise 2 or 4 GiB of sound, less their header, or none
LONGEST_FRAME = 4096  # bytes; of an MP3
# A frame's head, the space that its channels need, and Xing's or Fraunhofer's tag. Xing's has a bit for the number.
COUNT = re.compile(
    rb"\xff[\xe2-\xff].{2}(?:..)?(?:.{9}|.{17}|.{32})(?:Xing|Info)\0{3}[\1\3\5\7\x09\x0b\x0d\x0f](.{4})"
    rb"|\xff[\xe2-\xff].{34}VBRI.{10}(.{4})",
    re.DOTALL,
)


def promised_samples(file: BinaryIO) -> float:
    """How many packets FFmpeg would list when it opens this MP4 or MOV: as many as its sample tables promise, whether
    they are there or not. 0 for another format; infinite for headers of a size that no film has."""
    size, at, header = file.seek(0, 2), 0, _Header()
    while header.left:
        header.left -= 1
        file.seek(at)
        kind, start, length = _box(file.read(16), size - at)
        if length < start:
            if size - at < 8:
                break
            at += 4  # FFmpeg looks for the first box in the same way
            continue
        if at + length > size and kind not in FULL:  # another format, or a film that is cut short
            break
        if kind not in PASSED_OVER and (kind in FULL or length <= SMALL_BOX):
            if min(length, size - at) > LONGEST_HEADER:
                return _rewound(file, math.inf)
            file.seek(at)
            header.read(memoryview(file.read(length)))
        at += length
    return _rewound(file, header.samples)


def ends_early(file: BinaryIO) -> bool:
    """Whether the fragments of an MP4 end before it does, or it before they do. FFmpeg reads none behind such a place,
    and no header tells how long the film was to be."""
    size, at, fragments = file.seek(0, 2), 0, False
    for _ in range(MOST_BOXES):
        file.seek(at)
        kind, start, length = _box(file.read(16), size - at)
        if not at and kind not in (b"ftyp", b"styp"):
            return False
        if length < start or at + length > size:
            return fragments and size - at > 8
        fragments |= kind == b"moof"
        at += length
    return False


def _rewound(file: BinaryIO, found: float) -> float:
    file.seek(0)
    return found


def _box(head: bytes, rest: int) -> tuple[bytes, int, int]:
    """Kind, bytes of the head, and bytes of a box that begins so. rest: bytes up to the end of what it is in."""
    if len(head) < 8:
        return b"", 8, 0
    length, kind = struct.unpack(">I4s", head[:8])
    if length == 1 and len(head) == 16:
        return kind, 16, int.from_bytes(head[8:], "big")
    return kind, 8, length or rest


class _Header:
    """The headers of a film, read box by box. left: boxes that may still come."""

    def __init__(self) -> None:
        self.left = MOST_BOXES
        self._found, self._track = 0.0, _Track()

    @property
    def samples(self) -> float:
        return self._found + self._track.samples if self.left else math.inf

    def read(self, data: memoryview, depth: int = 0) -> None:
        """Reads all boxes in `data`. Where a table stands does not matter to FFmpeg, so it does not here."""
        at = 0
        while at + 8 <= len(data) and self.left and depth < DEEPEST_BOX:
            self.left -= 1
            kind, start, length = _box(bytes(data[at : at + 16]), len(data) - at)
            if length < start:
                break
            inside = data[at + start : at + length]
            if kind == b"trak":
                self._found, self._track = self._found + self._track.samples, _Track()
            if kind == b"meta":  # its boxes begin at once or after four bytes
                inside = inside[max(bytes(inside[:SMALL_BOX]).find(b"hdlr") - 4, 0) :]
            if TABLE.fullmatch(kind):
                self._add(kind, inside)
            elif kind == b"cmvd":
                with suppress(zlib.error):
                    unpacked = zlib.decompressobj().decompress(inside[4:], LONGEST_HEADER)
                    self.read(memoryview(unpacked), depth + 1)
            elif kind in FULL:
                self.read(inside, depth + 1)
            elif kind not in PASSED_OVER and len(inside) <= SMALL_BOX:  # a description of a track may have boxes
                for table in TABLE.finditer(inside):
                    self._add(table[0], inside[table.end() :])
            at += length

    def _add(self, kind: bytes, data: memoryview) -> None:
        if kind == b"trun":
            self._found += _number(data, 4)
        else:
            self._track.add(kind, data)


def _number(data: memoryview, at: int) -> float:
    """The number there; infinite if the header has ended: FFmpeg would read on behind it."""
    return int.from_bytes(data[at : at + 4], "big") if len(data) >= at + 4 else math.inf


class _Track:
    """The sample tables of one track, as far as they say how much FFmpeg lists."""

    def __init__(self) -> None:
        self._kinds: set[bytes] = set()
        self._steady = True  # whether each sample lasts one tick, as those of sound that is not compressed
        self._sizes = self._times = self._chunks = self._offsets = 0.0
        self._runs: list[np.ndarray] = []  # [runs, (first chunk, samples of each, kind)]

    def add(self, kind: bytes, data: memoryview) -> None:
        """Adds a table. data: what follows its name."""
        if kind == b"hdlr":
            self._kinds.add(bytes(data[8:12]))
        elif kind in (b"stco", b"co64"):
            self._chunks = max(self._chunks, _number(data, 4))
        elif kind in (b"stsz", b"stz2"):
            self._sizes = max(self._sizes, _number(data, 8))
        else:
            self._add_rows(kind, data)

    def _add_rows(self, kind: bytes, data: memoryview) -> None:
        count, columns = _number(data, 4), 3 if kind == b"stsc" else 2
        if count * columns * 4 > len(data) - 8:  # its end is missing: FFmpeg would read on behind the header
            self._offsets = math.inf
            return
        rows = np.frombuffer(data, ">u4", int(count) * columns, 8).reshape(-1, columns)
        total = float(rows[:, 0].sum(dtype=np.float64))
        if kind == b"stsc":
            self._runs.append(rows)
        elif kind == b"ctts":
            self._offsets = max(self._offsets, total)
        else:
            self._times = max(self._times, total)
            self._steady &= len(rows) == 1 and bool(rows[0, 1] == 1)

    @property
    def samples(self) -> float:
        """Sound that is not compressed is listed in blocks of its chunks, and anything else in samples."""
        if b"soun" in self._kinds and self._steady and not self._kinds & {b"vide", b"subp", b"clcp"}:
            return self._offsets + max((self._blocks(runs) for runs in self._runs), default=0.0)
        return max(self._sizes, self._times, self._offsets)

    def _blocks(self, runs: np.ndarray) -> float:
        first, per_chunk = runs[:, 0].astype(np.float64), runs[:, 1] // 1024 + 1.0
        ends = np.append(first[1:], self._chunks + 1)
        if (ends <= first).any() or len(runs) == 0:  # FFmpeg corrects them in its own way
            return self._chunks * per_chunk.max(initial=1.0)
        return float(((ends - first) * per_chunk).sum())


def missing_sound(file: BinaryIO) -> Fraction:
    """The seconds of sound by which a WAV, W64 or CAF ends before its header says. 0 for another format, and for a
    header that says no length, as recorders into a pipe write it."""
    size, at = file.seek(0, 2), 0
    file.seek(0)
    head = file.read(40)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        at, name, order, own, even = 12, 4, "<I", 0, 2
    elif head[:4] == b"riff" and head[24:28] == b"wave":
        at, name, order, own, even = 40, 16, "<q", 24, 8  # a chunk's length is with its head
    elif head[:4] == b"caff":
        at, name, order, own, even = 8, 4, ">q", 0, 1
    rate = 0.0  # bytes per second
    for _ in range(MOST_CHUNKS if at else 0):
        file.seek(at)
        head = file.read(name + struct.calcsize(order))
        if len(head) < name + struct.calcsize(order):
            break
        length = struct.unpack(order, head[name:])[0] - own
        if head[:4] == b"data":
            told = length > 0 and (length < OPEN or order != "<I") and rate > 0
            return max(Fraction(0), (at + len(head) + length - size) / Fraction(rate)) if told else Fraction(0)
        if length < 0:
            break
        if head[:4] in (b"fmt ", b"desc"):
            rate = _bytes_per_second(head[:4], file.read(min(length, 32)))
        at += len(head) + -(-length // even) * even
    return Fraction(0)


def _bytes_per_second(kind: bytes, form: bytes) -> float:
    """Of the sound that a WAV's or a CAF's description tells of; 0 if it does not say."""
    if kind == b"fmt ":
        found = float(struct.unpack("<I", form[8:12])[0]) if len(form) >= 12 else 0.0
    else:
        rate, size, samples = struct.unpack(">d8xII", form[:24]) if len(form) >= 24 else (0.0, 0, 0)
        found = rate * size / samples if samples else 0.0
    return found if 1 <= found < math.inf else 0.0


def counted_frames(file: BinaryIO) -> int:
    """How many frames an MP3 has, as its first one tells; 0 if it does not. FFmpeg guesses the length where it must, or
    where the file has much behind its frames."""
    file.seek(0)
    tag = file.read(10)
    picture = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(tag[:5:-1])) if tag[:3] == b"ID3" else -10
    file.seek(10 + picture)
    found = COUNT.search(file.read(LONGEST_FRAME))
    return int.from_bytes(found[1] or found[2], "big") if found else 0
