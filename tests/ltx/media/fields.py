"""Writes H.264 whose pictures are stored as fields, which no encoder at hand makes: every block is stored as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

WIDTH = HEIGHT = 32
SIDE = 16  # of a block
FIELDS, FRAMES, MIXED = "fields", "frames", "mixed"
"""How pictures are stored: as two fields each, as frames, or as both in turns."""


class Bits:
    """Bits in the order in which they are written."""

    def __init__(self) -> None:
        self.text = ""

    def put(self, *fields: tuple[int, int]) -> Bits:
        """Numbers, each with its width in bits."""
        self.text += "".join(format(value, f"0{width}b") for value, width in fields)
        return self

    def codes(self, *values: int) -> Bits:
        """Numbers as Exp-Golomb codes."""
        return self.put(*((value + 1, 2 * (value + 1).bit_length() - 1) for value in values))

    def stored(self, data: bytes) -> Bits:
        self.text += "0" * (-len(self.text) % 8)
        return self.put((int.from_bytes(data, "big"), 8 * len(data)))

    def unit(self, kind: int) -> bytes:
        """A NAL unit with these bits."""
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        out, zeros = bytearray(), 0
        for byte in int(text, 2).to_bytes(len(text) // 8, "big"):
            if zeros == 2 and byte <= 3:
                out.append(3)
                zeros = 0
            out.append(byte)
            zeros = 0 if byte else zeros + 1
        return b"\0\0\0\1" + bytes([kind]) + bytes(out)


def write_fields(
    path: Path, levels: Sequence[int], fps: Fraction, stored: str = FIELDS, order: Iterable[int] | None = None
) -> Path:
    """Writes pictures of 32x32 that have the same brightness everywhere. levels: the brightness of each, 1 to 255;
    order: the numbers of the pictures as they are stored, by default as they are shown."""
    numbers = list(order or range(len(levels)))
    moved = numbers != sorted(numbers)
    sequence = Bits().put((77, 8), (0, 8), (30, 8)).codes(0, 4, 0, 4, 2).put((0, 1))
    sequence.codes(WIDTH // SIDE - 1, HEIGHT // SIDE // 2 - 1).put((0b0010, 4), (1, 1), (0, 4), (1, 1))
    sequence.put((fps.denominator, 32), (2 * fps.numerator, 32), (1, 1), (0, 3), (1, 1), (1, 1))
    sequence.codes(0, 0, 10, 10, 2 * moved, 2)
    picture = Bits().codes(0, 0).put((0, 2)).codes(0, 0, 0).put((0, 3)).codes(0, 0, 0).put((0b100, 3))
    content = sequence.unit(0x67) + picture.unit(0x68)
    for place, number in enumerate(numbers):
        apart = stored == FIELDS or (stored == MIXED and place % 2)
        for field in (0, 1) if apart else (None,):
            first = not place and not field
            part = Bits().codes(0, 7, 0).put((place % 256, 8))
            part.put((0, 1)) if field is None else part.put((1, 1), (field, 1))
            if first:
                part.codes(0)
            part.put(((2 * number + (field or 0)) % 256, 8)).put((0, 2 if first else 1)).codes(0, 1)
            for _ in range(WIDTH * HEIGHT // SIDE**2 // (2 if apart else 1)):
                part.codes(25).stored(bytes([levels[number]]) * SIDE**2 + bytes([128]) * (SIDE**2 // 2))
            content += part.unit(0x65 if first else 0x61)
    path.write_bytes(content)
    return path
